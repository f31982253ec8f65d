"""How a measurement is divided: between ranks, between shards of a job array, and over sittings that a folder joins."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

import torch
from torch import nn

from spectrascope.curvature.factor_slice import Keeper
from spectrascope.curvature.microbatches import MicroBatch, Tuning
from spectrascope.losses import loss_label
from spectrascope.measure.ranks import ALONE, Ranks
from spectrascope.measure.run_folder import PieceCurvature, RunFolder
from spectrascope.measure.signal import Piece
from spectrascope.network.effective import unwrapped
from spectrascope.records.report import WHERE_IT_FITS, ProbeOptions
from spectrascope.records.values import Missing
from spectrascope.workload import LossFunction, Run, Workload

__all__ = ["WHOLE", "Division"]


@dataclass(frozen=True)
class Division:
    """Who measures what, and where it is kept.

    Args:
        ranks: the processes that work together.
        folder: where parts are kept, and those that are there already.
        shard: (number from 0, of how many): which parts fall to this process or these ranks; ``None`` for all.
        assembling: whether parts are put together and none is made.
        factors: what a decomposition is asked for besides: its parts are no probe's.
    """

    ranks: Ranks = ALONE
    folder: RunFolder | None = None
    shard: tuple[int, int] | None = None
    assembling: bool = False
    factors: str | None = None

    def of_round(self, number: int) -> Division:
        """The same for the weights that the self-check has handed to another engine: in rounds from 2 on.

        Which those are is known only once all parts are there, so they are no part of a shard.
        """
        if self.folder is None or number == 1:
            return self
        return replace(self, folder=replace(self.folder, round=number), shard=None, assembling=False)

    def settle(self, run: Run, workload: Workload, choose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Settle once for all processes, and all sittings, what another machine or the clock would decide otherwise.

        Args:
            run: what is measured.
            workload: the network on its device.
            choose: settles it; asked of one process, once.

        Raises:
            OptionError: the folder is of another measurement.
        """
        folder = self.folder

        def settle() -> dict[str, Any]:
            if folder is None:
                return {**_now(run), **choose()}
            same = {**_measurement(run, workload), "decompose": self.factors}
            if self.assembling:
                folder.require_targets()
                del same["device"]  # where parts are put together need not be where they were made
            return folder.open(same, lambda: {**_now(run), **choose()})

        return self.ranks.first(settle)

    def micro_batch(self, options: ProbeOptions) -> MicroBatch:
        """Samples per micro-batch: as asked for, else by the clock unless several sittings must agree."""
        return Tuning(timed=self.folder is None) if options.micro_batch == "auto" else int(options.micro_batch)

    def keeper(self, device: torch.device) -> Keeper | None:
        """Where sums over all samples are kept as they grow; ``None`` without a folder."""
        folder = self.folder
        return None if folder is None else Keeper(lambda: folder.read_sums(device), folder.write_sums)

    def kept(self, pieces: Sequence[Piece]) -> dict[int, PieceCurvature]:
        """Parts that are in the folder, by sample group."""
        folder = self.folder
        if folder is None:
            return {}
        if self.assembling:
            folder.require_parts([piece.group for piece in pieces])
        return {piece.group: folder.read_part(piece.group) for piece in pieces if folder.part(piece.group).exists()}

    def own(self, pieces: Sequence[Piece], kept: Mapping[int, PieceCurvature]) -> list[Piece]:
        """The pieces that this process is to measure: of the shard's that are not kept, its rank's."""
        if self.shard is not None:
            number, of = self.shard
            pieces = pieces[number * len(pieces) // of : (number + 1) * len(pieces) // of]
        left = [piece for piece in pieces if piece.group not in kept]
        share = self.ranks.share(len(left))
        return left[share.start : share.stop]


WHOLE = Division()


def _now(run: Run) -> dict[str, str]:
    return {"created": datetime.now(timezone.utc).isoformat(timespec="seconds"), "command": run.command}


def _measurement(run: Run, workload: Workload) -> dict[str, Any]:
    """What must be the same for two parts to belong together."""
    from importlib.metadata import version

    options = asdict(run.options)
    del options["device"]  # cuda:0 of one machine is cuda:1 of another
    for name in WHERE_IT_FITS:
        del options[name]
    sha256 = run.model_info.sha256
    return {
        "model": run.model_info.id,
        "weights": _digest(unwrapped(run.model)) if isinstance(sha256, Missing) else sha256,
        "data": run.data_info.id,
        "samples": run.data_info.digest,
        "loss": "usual" if run.loss_fn is None else _loss(run.loss_fn),
        **{f"--{name.replace('_', '-')}": _plain(value) for name, value in options.items()},
        "device": workload.device.type,
        "spectrascope": version("spectrascope"),
        "torch": str(torch.__version__),
    }


def _loss(loss_fn: LossFunction) -> str:
    """A loss by its name; a function of the user's own by its text too, as another may have the same name."""
    try:
        text = inspect.getsource(loss_fn) if inspect.isfunction(loss_fn) else ""
    except (OSError, TypeError):  # typed at a prompt
        text = ""
    return loss_label(loss_fn) + (f" {hashlib.sha256(text.encode()).hexdigest()[:8]}" if text else "")


def _plain(value: Any) -> Any:
    return getattr(value, "value", list(value) if isinstance(value, tuple) else value)


def _digest(model: nn.Module) -> str:
    """Sha256 over names and values of all parameters and buffers."""
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
