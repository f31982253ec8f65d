"""Compare what the exact engines say with an independent reference, in every run: every weight, and a few in full.

Every exact engine is held to its ``reference`` on the same samples and precision: Gauss–Newton and tangents to double
backprop, or where that does not exist to what double backprop itself is held to, central differences of the gradient
on a float64 copy of the model, which share none of its second-order machinery. Estimates carry an error of their own
and are not compared.

A difference that shrinks with the precision is rounding, one that stays is a fault of an engine: where an engine and
its reference disagree, both are asked again in the other precision.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from spectrascope.curvature.choose import engine_named, make_engine
from spectrascope.curvature.engine import Curvature, CurvatureEngine, Target
from spectrascope.curvature.microbatches import is_out_of_memory
from spectrascope.curvature.references import Copies, Pick, difference_rows, gradient_slopes, product_rows
from spectrascope.errors import UnsupportedModelError
from spectrascope.records.report import SelfCheck
from spectrascope.records.values import CheckScope, EngineName, Missing
from spectrascope.text import first_line
from spectrascope.workload import FirstSamples, PickedSamples, Workload

__all__ = ["CheckedPairs", "Suspect", "check_engines", "tolerance_of"]

_SAMPLES = 16
_SCORES = 1 << 20  # output scores, over all samples of a full pair
_LAYERS = 4  # per engine, in full pairs: the earliest, the last and two drawn by seed
_DRAWS = (2, 2, 4, 8, 16, 32)
"""Samples drawn for one pair of every weight: two, and more for weights that these hardly bend the loss along."""
_WORTH = 0.05
"""Curvature worth comparing, as a share of the largest that was measured of the weight."""
_ROUNDING = 1e-2  # a difference that shrinks by this much in the higher precision is rounding


@dataclass
class CheckedPairs:
    """Residual per weight name (or why it has none), weights lost in rounding and why, and the run's summary.

    ``slopes``: how far an engine's slopes are from those of the gradient on the same samples, in the larger of these
    and sigma_1. ``summary`` is ``Missing`` if no pair could be compared.
    """

    tolerance: float = 0.0
    residuals: dict[str, float | Missing] = field(default_factory=dict)
    rounding: dict[str, str] = field(default_factory=dict)
    slopes: dict[str, float] = field(default_factory=dict)
    n_pairs: int = 0
    n_samples: int = 0
    why_not: str = "no pair could be compared"

    def residual_of(self, name: str) -> float | Missing:
        """The residual of one weight, or why there is none."""
        return self.residuals.get(name, Missing("not among the pairs compared"))

    @property
    def faults(self) -> dict[str, float]:
        """Weights whose engine differs from its reference by more than rounding, and by how much."""
        return {
            name: value
            for name, value in self.residuals.items()
            if not isinstance(value, Missing) and not value <= self.tolerance
        }

    @property
    def summary(self) -> SelfCheck | Missing:
        """The run's check in a few numbers."""
        found = [value for value in self.residuals.values() if not isinstance(value, Missing)]
        if not found:
            return Missing(self.why_not)
        return SelfCheck(max(found), self.tolerance, self.n_pairs, self.n_samples, n_weights=len(found))

    def without(self, names: Container[str]) -> CheckedPairs:
        """The same without some weights."""
        return replace(self, residuals={name: value for name, value in self.residuals.items() if name not in names})

    def joined(self, other: CheckedPairs) -> CheckedPairs:
        """Both checks as one."""
        return replace(
            self,
            residuals=self.residuals | other.residuals,
            rounding=self.rounding | other.rounding,
            n_pairs=self.n_pairs + other.n_pairs,
        )


def tolerance_of(dtype: torch.dtype) -> float:
    """Largest residual accepted: 1e-3 in float32, 1e-6 in float64, of the layer's largest curvature.

    Rounding alone gives about 1e-6 and 1e-14 on trained networks; a wrong rule gives 0.01 to 10.
    """
    return 1e-6 if dtype == torch.float64 else 1e-3


@dataclass(frozen=True)
class Suspect:
    """A weight as it was measured: by which engine, and the largest curvature it found."""

    target: Target
    engine: EngineName
    largest: float


def check_engines(workload: Workload, suspects: Sequence[Suspect], seed: int, scope: CheckScope) -> CheckedPairs:
    """Compare the engines with their references: one pair of every weight, and a few weights in full.

    Args:
        workload: as measured.
        suspects: all measured weights, in network order.
        seed: draws the samples, weights and directions compared, besides the earliest and last of each engine.
        scope: whether every weight is looked at, or those in full alone.

    Returns:
        Residuals max |M_kj − M_kj of the reference| / max |M_kj of the reference| per weight compared, over the rows k
        that were drawn.
    """
    check = _Comparisons(workload, suspects, seed)
    groups = {
        engine: [s.target for s in suspects if s.engine is engine.name and s.target.directions.k]
        for engine in map(engine_named, dict.fromkeys(s.engine for s in suspects))
        if engine.reference
    }
    for engine, group in groups.items():
        check.some_in_full(engine, group)
    for engine, group in groups.items() if scope is CheckScope.ALL else ():
        check.every(engine, group)
    return check.found


class _Comparisons:
    """The comparisons of one run."""

    def __init__(self, workload: Workload, suspects: Sequence[Suspect], seed: int) -> None:
        self.workload = workload
        self.rng = np.random.default_rng(seed)
        self.copies = Copies(workload)
        self.scores = _scores_per_sample(workload)
        self.largest = {s.target.layer.name: s.largest for s in suspects}
        n = max(1, min(_SAMPLES, workload.source.n, _SCORES // self.scores))
        self.head = replace(workload, source=FirstSamples(workload.source, n))
        self.found = CheckedPairs(tolerance_of(workload.dtype), n_samples=n)
        self.third = False
        """Whether differences of gradients are asked about every weight, as the earliest of some engine fails them.

        Where gradients are not those of the loss (straight through a rounding, round a detached part), an engine and
        double backprop agree with one another.
        """

    def some_in_full(self, engine: type[CurvatureEngine], group: Sequence[Target]) -> None:
        """Compare two directions of a few weights on the first samples."""
        for target in _draw(group, self.rng):
            k = target.directions.k
            places = sorted({0, int(self.rng.integers(k))})
            pick = Pick(replace(target, directions=target.directions.pick(places)), tuple(range(len(places))))
            # Always of the earliest weight, whose directions cross every operation downstream; of a large network only
            # where the two differ, as differences take a copy in float64.
            self._judge(engine, self.head, pick, third=self.third or (target is group[0] and self.copies.is_small))
            self.third = self.third or (target is group[0] and pick.name in self.found.faults)

    def every(self, engine: type[CurvatureEngine], group: Sequence[Target]) -> None:
        """Compare one row of M of every weight, on samples drawn anywhere in the batch."""
        left = [Pick(t, (int(self.rng.integers(t.directions.k)),)) for t in group]
        most = max(1, min(self.workload.source.n, 16 * _SCORES // self.scores))
        for size in dict.fromkeys((_DRAWS[0], most)) if most <= _DRAWS[0] else _DRAWS:
            if not left:
                return
            drawn = self.rng.choice(self.workload.source.n, min(size, most), replace=False)
            few = replace(self.workload, source=PickedSamples(self.workload.source, tuple(sorted(drawn.tolist()))))
            left = self._compare(engine, few, left)
        for pick in left:
            self._note(pick, Missing("none of the samples drawn for the check reaches it"))

    def _compare(self, engine: type[CurvatureEngine], few: Workload, picks: Sequence[Pick]) -> list[Pick]:
        """Compare one row of each weight; returned are those that these samples hardly see."""
        try:
            truths = self._references(engine, few, picks)
            reached = [p for p, truth in zip(picks, truths, strict=True) if isinstance(truth, Tensor)]
            found = make_engine(engine.name, few.source.n).measure_each(few, [p.target for p in reached], groups=1)
            rows = {p.name: _rows_of(p, c) for p, c in zip(reached, found, strict=True)}
            self._compare_slopes(few, reached, found)
        except (UnsupportedModelError, RuntimeError) as error:
            self._give_up(picks, error)
            return []
        again = []
        for pick, truth in zip(picks, truths, strict=True):
            if isinstance(truth, str):
                self._note(pick, Missing(f"no reference: {truth}"))
                continue
            if truth is None or not bool(truth.abs().max() > _WORTH * self.largest[pick.name]):
                again.append(pick)
            if truth is None:
                continue
            row = rows[pick.name]
            if self.third:
                self._judge(engine, few, pick, third=True, together=row)
            elif isinstance(row, Tensor) and (residual := self._residual(pick, row - truth, truth)) <= self._tolerance:
                self._note(pick, residual)
            else:
                self._judge(engine, few, pick, together=row)
        return again

    def _compare_slopes(self, few: Workload, picks: Sequence[Pick], found: Sequence[Curvature | str]) -> None:
        for pick, curvature, right in zip(picks, found, gradient_slopes(few, picks), strict=True):
            if isinstance(right, Tensor) and not isinstance(curvature, str):
                size = max(float(right.abs().max()), float(pick.target.directions.sigma[0]))
                gap = float((curvature.group_sigma[0] - right).abs().max()) / size
                self.found.slopes[pick.name] = max(gap, self.found.slopes.get(pick.name, 0.0))

    def _judge(
        self,
        engine: type[CurvatureEngine],
        few: Workload,
        pick: Pick,
        *,
        third: bool = False,
        together: Tensor | str | None = None,
    ) -> None:
        """Compare one weight with all the references there are; where it differs, in the other precision as well.

        ``together``: what the engine said of it among other weights.
        """
        try:
            gap, truth, differences = self._gap(engine, few, pick, third=third, rows=together)
            residual = self._residual(pick, gap, truth)
            if residual > self._tolerance and together is not None:
                gap, truth, differences = self._gap(engine, few, pick, third=third)
            other = torch.float32 if few.dtype is torch.float64 else torch.float64
            alone = self._residual(pick, gap, truth) <= self._tolerance  # a fault if it is one among others alone
            if alone or not self.copies.has_room_for(other):  # then nothing says that it is rounding
                self._note(pick, residual)
                return
            again, right, _ = self._gap(engine, *self.copies.of(few, pick, other), third=differences)
        except (UnsupportedModelError, RuntimeError) as error:
            self._give_up([pick], error)
            return
        double, single = (again, gap) if other is torch.float64 else (gap, again)
        # Differences settle to a share of the tolerance, and say no more than that the engine is within it.
        agrees = differences and other is torch.float64 and self._residual(pick, again, right) <= self._tolerance
        if agrees or bool(double.abs().max() <= _ROUNDING * single.abs().max()):
            self.found.rounding[pick.name] = (
                f"its curvature is lost in the rounding of {str(few.dtype).removeprefix('torch.')}, which is "
                f"{residual:.2g} of the largest" + ("; try --dtype float64" if other is torch.float64 else "")
            )
        else:
            self._note(pick, residual)

    def _gap(
        self,
        engine: type[CurvatureEngine],
        few: Workload,
        pick: Pick,
        *,
        third: bool = False,
        rows: Tensor | str | None = None,
    ) -> tuple[Tensor, Tensor, bool]:
        """How far the engine's rows are from the reference's, these, and whether differences gave them.

        Raises:
            UnsupportedModelError: there is nothing to compare.
        """
        (truth,) = self._references(engine, few, [pick])
        if rows is None:
            (rows,) = _engine_rows(engine, few, [pick])
        if not isinstance(truth, Tensor) or not isinstance(rows, Tensor):
            why = rows if isinstance(rows, str) else truth if isinstance(truth, str) else "no sample reaches it"
            raise UnsupportedModelError(why)
        if len(engine.reference) > 1 and (third or self._residual(pick, rows - truth, truth) > self._tolerance):
            # Autograd itself can be wrong (weight norm); where differences settle they have the last word.
            settled = self._differences(few, pick)
            if isinstance(settled, Tensor):
                return rows - settled, settled, True
        return rows - truth, truth, False

    def _references(
        self, engine: type[CurvatureEngine], few: Workload, picks: Sequence[Pick]
    ) -> list[Tensor | str | None]:
        if engine.reference[0] is not EngineName.DOUBLE_BACKPROP:
            return [self._differences(few, pick) for pick in picks]
        products = product_rows(few, picks)
        return [
            self._differences(few, pick) if isinstance(row, str) else row
            for pick, row in zip(picks, products, strict=True)
        ]

    def _differences(self, few: Workload, pick: Pick) -> Tensor | str:
        try:
            least = _WORTH * self.largest[pick.name]
            return difference_rows(*self.copies.of(few, pick, torch.float64), self._tolerance, least)
        except UnsupportedModelError as error:
            return str(error)

    @property
    def _tolerance(self) -> float:
        return self.found.tolerance

    def _residual(self, pick: Pick, gap: Tensor, truth: Tensor) -> float:
        # Beside what all samples give, these may hardly bend the loss: then there is only rounding to compare.
        size = max(float(truth.abs().max()), _WORTH * self.largest[pick.name])
        return float(gap.abs().max()) / size if size else float(gap.abs().max() > 0)

    def _give_up(self, picks: Sequence[Pick], error: Exception) -> None:
        if is_out_of_memory(error):
            raise error
        for pick in picks:
            self._note(pick, Missing(f"no reference: {first_line(error)}"))

    def _note(self, pick: Pick, found: float | Missing) -> None:
        known = self.found.residuals.get(pick.name)
        if isinstance(found, Missing):
            self.found.residuals.setdefault(pick.name, found)
            return
        self.found.n_pairs += len(pick.rows)
        self.found.residuals[pick.name] = found if known is None or isinstance(known, Missing) else max(known, found)


def _engine_rows(engine: type[CurvatureEngine], few: Workload, picks: Sequence[Pick]) -> list[Tensor | str]:
    found = make_engine(engine.name, few.source.n).measure_each(few, [pick.target for pick in picks], groups=1)
    return [_rows_of(pick, c) for pick, c in zip(picks, found, strict=True)]


def _rows_of(pick: Pick, found: Curvature | str) -> Tensor | str:
    return found if isinstance(found, str) else found.matrix[list(pick.rows)]


def _scores_per_sample(workload: Workload) -> int:
    """Output scores of a sample: a language model has some at every token, and double backprop's graph is of all."""
    inputs, _ = workload.fetch(0, 1)
    with torch.no_grad():
        output = workload.forward(inputs)
    scores = getattr(output, "logits", output)
    return max(1, scores.numel()) if isinstance(scores, Tensor) else 1


def _draw(group: Sequence[Target], rng: np.random.Generator) -> Sequence[Target]:
    if len(group) <= _LAYERS:
        return group
    # Always an early weight: its directions cross every operation downstream.
    middle = rng.choice(np.arange(1, len(group) - 1), size=_LAYERS - 2, replace=False)
    return [group[i] for i in sorted({0, len(group) - 1, *middle.tolist()})]
