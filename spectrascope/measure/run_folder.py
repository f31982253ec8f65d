"""A measurement kept in a folder as it is made, so that another process can go on with it or put it together.

    RUN/  run.json                            what is measured: what makes two parts belong together
          directions.safetensors              sigma, U, V of every weight; written when the gradient is complete
          parts/curvature-g03.safetensors     sample group 3: slopes, h and M of every weight
          factors.pt                          of a decomposition: sums over the samples so far, written again and again

Every file is written whole or not at all, and holds numbers and text alone: nothing in a folder is ever run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectrascope.curvature.engine import Curvature
from spectrascope.errors import LoadError, OptionError
from spectrascope.measure.gradients import GradientPass
from spectrascope.measure.signal import SignalTarget
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.directions import Directions
from spectrascope.records.signal import RankResamples
from spectrascope.records.values import EngineName, Missing
from spectrascope.reports.write import write_bytes_atomically, write_text_atomically
from spectrascope.text import first_line, plural

__all__ = ["KeptTargets", "PieceCurvature", "RunFolder"]

_FORMAT = 2
_MOST_NAMED = 3


@dataclass(frozen=True)
class KeptTargets:
    """What the gradient stage found: of the batch, of every weight with directions, and why others have none."""

    gradient: GradientPass
    targets: list[SignalTarget]
    failed: dict[str, str]
    noise: dict[str, float]
    resamples: dict[str, RankResamples | Missing] = field(default_factory=dict)


@dataclass(frozen=True)
class PieceCurvature:
    """Curvature of every weight on a sample group, or several of a fold.

    Also why its engine is not the first choice, or why there is none.
    """

    curvatures: dict[str, Curvature]
    reasons: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFolder:
    """A folder of the kind above, which need not exist yet."""

    path: Path
    round: int = 1
    """Of the weights measured together: those that the self-check handed on are in rounds of their own."""

    def read(self) -> dict[str, Any] | None:
        """What the folder is about; ``None`` where nothing is kept yet.

        Raises:
            LoadError: it cannot be read.
        """
        file = self.path / "run.json"
        if not file.exists():
            return None
        try:
            found = dict(json.loads(file.read_bytes()))
            kept = found.get("format")
            if not isinstance(found["measurement"], dict):
                raise TypeError("no measurement is named")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LoadError(f"{file}: describes no run ({first_line(error)}): name another folder") from None
        if kept != _FORMAT:
            raise LoadError(f"{file}: written in format {kept!r}, expected {_FORMAT}: name another folder")
        return found

    def open(self, measurement: Mapping[str, Any], about: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Read what the folder is about, having made it where there was none.

        Args:
            measurement: what must be the same in all processes that work on one folder, by name.
            about: gives what the first of them says besides.

        Returns:
            What the first process wrote.

        Raises:
            OptionError: the folder is of another measurement, or cannot be written.
            LoadError: its description cannot be read.
        """
        found = self.read()
        if found is None:
            self._write_first({"format": _FORMAT, "measurement": dict(measurement), **about()})
            found = self.read() or {}
        kept, given = found["measurement"], json.loads(json.dumps(measurement))
        apart = [name for name in given if kept.get(name) != given[name]]
        if apart:
            named = "; ".join(
                f"{name}: {_short(kept.get(name))} there, {_short(given[name])} here" for name in apart[:_MOST_NAMED]
            )
            more = f" and {len(apart) - _MOST_NAMED} more" if len(apart) > _MOST_NAMED else ""
            raise OptionError(f"--run {self.path} holds another measurement ({named}{more}): name another folder")
        return found

    def _write_first(self, document: Mapping[str, Any]) -> None:
        """Write the description, unless another process was first."""
        self._make()
        file, mine = self.path / "run.json", self.path / f".run-{os.getpid()}.json"
        write_text_atomically(mine, json.dumps(document, indent=1, sort_keys=True) + "\n")
        try:
            os.link(mine, file)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(mine, file)
        mine.unlink(missing_ok=True)

    def _make(self) -> None:
        try:
            (self.path / "parts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(f"--run {self.path}: cannot make the folder: {error.strerror or error}") from error

    # -- directions -------------------------------------------------------------------------------------------------

    @property
    def has_targets(self) -> bool:
        """Whether the gradient stage is complete."""
        return self._targets.exists()

    @property
    def _suffix(self) -> str:
        return "" if self.round == 1 else f"-{self.round}"

    @property
    def _targets(self) -> Path:
        return self.path / f"directions{self._suffix}.safetensors"

    def write_targets(self, found: KeptTargets) -> None:
        """Keep what the gradient stage found."""
        tensors: dict[str, Tensor] = {}
        weights = []
        for i, target in enumerate(found.targets):
            sets = {"all": target.directions}
            sets |= {f"fold{j}": d for j, d in enumerate(target.folds)}
            sets |= {f"null{j}": d for j, d in enumerate(target.nulls)}
            for name, directions in sets.items():
                for part in ("sigma", "left", "right", "spectrum"):
                    value = getattr(directions, part)
                    if value is not None:
                        tensors[f"{i}.{name}.{part}"] = value
            tensors[f"{i}.slopes"] = target.slopes
            if target.held_out is not None and not target.is_momentum:
                tensors[f"{i}.held_out"] = target.held_out
            weights.append(
                {
                    "name": target.layer.name,
                    "ranks": {name: directions.rank for name, directions in sets.items()},
                    "momentum": target.is_momentum,
                    "null_sigma": list(target.null_sigma),
                }
            )
        gradient = {key: getattr(found.gradient, key) for key in ("missing", "loss", "accuracy", "micro_batch")}
        resamples: dict[str, Any] = {}
        for name, drawn in found.resamples.items():
            if isinstance(drawn, Missing):
                resamples[name] = drawn.reason
            else:
                resamples[name] = drawn.wins
                tensors[f"resamples.{name}"] = torch.tensor(drawn.sigma, dtype=torch.float64)
        told = {"gradient": gradient, "weights": weights, "failed": found.failed, "noise": found.noise}
        told["resamples"] = resamples
        _write(self._targets, tensors, told)

    def read_targets(self, layers: Mapping[str, WeightLayer]) -> KeptTargets:
        """What the gradient stage found, of weights by name."""
        tensors, told = _read(self._targets)
        try:
            targets = []
            for i, weight in enumerate(told["weights"]):
                sets = {
                    name: Directions(
                        tensors[f"{i}.{name}.sigma"],
                        tensors[f"{i}.{name}.left"],
                        tensors[f"{i}.{name}.right"],
                        rank,
                        tensors.get(f"{i}.{name}.spectrum"),
                    )
                    for name, rank in weight["ranks"].items()
                }
                slopes = tensors[f"{i}.slopes"]
                targets.append(
                    SignalTarget(
                        layers[weight["name"]],
                        sets["all"],
                        tuple(d for name, d in sets.items() if name.startswith("fold")),
                        tuple(d for name, d in sets.items() if name.startswith("null")),
                        slopes,
                        slopes if weight["momentum"] else tensors.get(f"{i}.held_out"),
                        tuple(weight["null_sigma"]),
                    )
                )
            gradient = GradientPass(gradients={}, half_difference=None, by_group={}, **told["gradient"])
            resamples = {
                name: Missing(drawn)
                if isinstance(drawn, str)
                else RankResamples(tuple(map(tuple, tensors[f"resamples.{name}"].tolist())), drawn)
                for name, drawn in told["resamples"].items()
            }
            return KeptTargets(gradient, targets, told["failed"], told["noise"], resamples)
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(self._targets, error) from None

    # -- sums of factors --------------------------------------------------------------------------------------------

    @property
    def _sums(self) -> Path:
        return self.path / f"factors{self._suffix}.pt"

    def read_sums(self, device: torch.device) -> Mapping[str, Any] | None:
        """What :meth:`write_sums` kept last; ``None`` where nothing was.

        Raises:
            LoadError: the file is damaged.
        """
        if not self._sums.exists():
            return None
        try:
            found: dict[str, Any] = torch.load(self._sums, map_location=device, weights_only=True)
        except Exception as error:  # zipfile's, pickle's and torch's own
            raise _damaged(self._sums, error) from None
        return found

    def write_sums(self, sums: Mapping[str, Any]) -> None:
        """Keep plain values and tensors, in the place of those before; they are streamed, as they may be large.

        Raises:
            OptionError: they cannot be written.
        """
        part = self.path / f".{self._sums.name}-{os.getpid()}"
        try:
            with part.open("wb") as stream:
                torch.save(dict(sums), stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, self._sums)
        except (OSError, RuntimeError) as error:  # torch's writer has errors of its own for a full disk
            part.unlink(missing_ok=True)
            raise OptionError(f"--run {self.path}: cannot write {self._sums.name}: {first_line(error)}") from error

    # -- parts ------------------------------------------------------------------------------------------------------

    def part(self, group: int) -> Path:
        """The file of a sample group's curvature."""
        return self.path / "parts" / f"curvature{self._suffix}-g{group:02d}.safetensors"

    def require_targets(self) -> None:
        """Refuse to go on without the gradient stage.

        Raises:
            LoadError: it is not complete.
        """
        if not self.has_targets:
            raise LoadError(f"{self.path}: nothing to merge, as it holds no {self._targets.name}: run a shard first")

    def require_parts(self, groups: Sequence[int]) -> None:
        """Refuse to go on without the parts of these sample groups.

        Raises:
            LoadError: some are missing; they are named.
        """
        missing = [self.part(group).stem for group in groups if not self.part(group).exists()]
        if missing:
            raise LoadError(
                f"{self.path} lacks {plural(len(missing), 'part')} of {len(groups)}: {', '.join(missing)}; run "
                "the shards that should have made them, or the same command without --shard"
            )

    def write_part(self, group: int, found: PieceCurvature) -> None:
        """Keep a sample group's curvature."""
        tensors: dict[str, Tensor] = {}
        weights = []
        for i, (name, curvature) in enumerate(found.curvatures.items()):
            for item in fields(curvature):
                value = getattr(curvature, item.name)
                if isinstance(value, Tensor):
                    tensors[f"{i}.{item.name}"] = value
            weights.append(
                {
                    "name": name,
                    "group_sizes": list(curvature.group_sizes),
                    "engine": curvature.engine.value,
                    "exact": curvature.exact,
                }
            )
        _write(self.part(group), tensors, {"weights": weights, "reasons": found.reasons, "failed": found.failed})

    def read_part(self, group: int) -> PieceCurvature:
        """A sample group's curvature.

        Raises:
            LoadError: the file is damaged.
        """
        file = self.part(group)
        tensors, told = _read(file)
        try:
            curvatures = {
                weight["name"]: Curvature(
                    tensors[f"{i}.matrix"],
                    tensors[f"{i}.group_h"],
                    tensors[f"{i}.group_sigma"],
                    tuple(weight["group_sizes"]),
                    EngineName(weight["engine"]),
                    weight["exact"],
                    tensors.get(f"{i}.stderr"),
                )
                for i, weight in enumerate(told["weights"])
            }
            return PieceCurvature(curvatures, told["reasons"], told["failed"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(file, error) from None


def _write(path: Path, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
    from safetensors.torch import save

    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    write_bytes_atomically(path, save(plain, {"spectrascope": json.dumps(told)}))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(json.loads(file.metadata()["spectrascope"]))
    except Exception as error:  # its own error class, OSError, ValueError, KeyError, TypeError
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> LoadError:
    return LoadError(f"{path}: damaged ({type(error).__name__}: {first_line(error)}): remove it and run again")


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
