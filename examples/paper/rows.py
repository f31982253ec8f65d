"""From reports and arrays to rows: every claim with its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from examples.paper.arrays import Arrays, checks, released_triangles
from examples.paper.claims import CLAIMS, COMPARISONS, OPEN, OPTIMIZERS, Comparison
from examples.paper.lab import Lab
from examples.paper.quantities import Quantity, layers
from examples.paper.rules import Maybe, Row, difference, mean_of
from spectrascope.records.signal import LabelSource
from spectrascope.records.values import Missing
from spectrascope.reports.fields import plain

NO_NULL = Missing("both sides share the noise")
NO_ARRAYS = Missing("no array of it was released")
NO_COUNTERPART = Missing("it has no counterpart on held-out samples")


def claim_rows(lab: Lab, arrays: Arrays) -> list[Row]:
    """Every claim about one network."""
    known = {check.claim: check.recomputed for check in checks(arrays)}
    rows = []
    for claim in CLAIMS:
        released = claim.released
        recomputed = known.get(released, NO_ARRAYS) if isinstance(released, str) else arrays.figure(released)
        rows.append(
            Row(
                claim.place, claim.claim, claim.paper, claim.allowed, lab.label(claim.network), recomputed,
                _figure(lab, claim.network, claim.quantity, top_k=claim.top_k),
                _figure(lab, claim.network, claim.quantity, LabelSource.MODEL, claim.top_k),
                _figure(lab, claim.network, claim.held_out, top_k=claim.top_k),
            )
        )  # fmt: skip
    return rows


def _figure(
    lab: Lab, network: str, quantity: Quantity | None, labels: LabelSource = LabelSource.DATA, top_k: int = 20
) -> Maybe:
    if quantity is None:
        return NO_COUNTERPART
    reports = lab.reports(network, labels, top_k)
    return reports if isinstance(reports, Missing) else quantity(reports)


def comparison_rows(lab: Lab) -> list[Row]:
    """Every claim about a difference."""
    rows = []
    for item in COMPARISONS:

        def apart(quantity: Quantity | None, labels: LabelSource = LabelSource.DATA, item: Comparison = item) -> Maybe:
            return difference(*(_figure(lab, name, quantity, labels) for name in (item.after, item.before)))

        on = f"{lab.label(item.after)} less {lab.label(item.before)}"
        rows.append(
            Row(
                item.place, item.claim, item.paper, item.allowed, on,
                NO_ARRAYS, apart(item.quantity), apart(item.quantity, LabelSource.MODEL), apart(item.held_out),
            )
        )  # fmt: skip
    return rows


@dataclass(frozen=True)
class TriangleRow:
    """One weight's three exponents."""

    network: str
    weight: str
    beta: float
    alpha_g: float
    alpha_h: float

    @property
    def error(self) -> float:
        """Relative, of α_H against β·α_G."""
        return abs(self.alpha_h - self.beta * self.alpha_g) / abs(self.alpha_h)


def triangle_rows(lab: Lab, arrays: Arrays) -> list[TriangleRow]:
    """Every weight of the paper whose exponents were released, and every weight measured here."""
    rows = [
        TriangleRow(f"paper: {name}", x["name"].removesuffix(".weight"), x["alpha"], x["gamma"], x["s_hessian"])
        for name, x in released_triangles(arrays)
    ]
    for name, report in lab.measured().items():
        for layer in layers([report]):
            found = [plain(x) for x in (layer.analysis.beta, layer.analysis.alpha_g, layer.analysis.alpha_h)]
            if not any(isinstance(x, Missing) for x in found):
                rows.append(TriangleRow(name, layer.info.name.removesuffix(".weight"), *found))
    return rows


def open_rows(lab: Lab) -> list[Row]:
    """Predictions whose trained networks are not here: what noise alone gives on a block of random weights."""
    why = Missing("no trained weights of that size are here: spectrascope probe hf:… measures them where they are")
    return [
        Row(
            item.place, item.claim, item.paper, item.allowed, f"not measured; null on {lab.label(item.network)}",
            NO_ARRAYS, why, _figure(lab, item.network, item.quantity, LabelSource.MODEL), why,
        )
        for item in OPEN
    ]  # fmt: skip


def optimizer_rows(summary: dict[str, Any] | None) -> list[Row]:
    """Claims about training on a task, from the comparison in ``examples/optimizers``: equal steps, paired by seed."""
    rows = []
    for place, claim, paper, allowed, one, other in OPTIMIZERS:
        found = Missing("the comparison was left out") if summary is None else _paired(summary, one, other)
        on = "not trained" if summary is None else f"{summary['task']}: {one} less {other}"
        rows.append(Row(place, claim, paper, allowed, on, NO_ARRAYS, found, NO_NULL, Missing("it is about training")))
    return rows


def _paired(summary: dict[str, Any], one: str, other: str) -> Maybe:
    scores = {
        row["contender"]: dict(zip(row["seeds"], row["scores"], strict=True))
        for row in summary["rows"]
        if row["budget"] == "steps"
    }
    if one not in scores or other not in scores:
        return Missing(f"{one if one not in scores else other} was not trained")
    shared = scores[one].keys() & scores[other].keys()
    if any(scores[name][seed] is None for name in (one, other) for seed in shared):
        return Missing("a run diverged")
    if len(shared) < 3:
        return Missing(f"{len(shared)} seeds: an interval needs 3")
    return mean_of([scores[one][seed] - scores[other][seed] for seed in sorted(shared)], "seed")
