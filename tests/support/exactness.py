"""Which engine measures which family, and how far its numbers are from the reference: a table of the guide.

    python -m tests.support.exactness      # writes the table between its markers

Everything is measured here: the engine ``auto`` takes for every weight of every family of the catalogue, and h and the
matrix M of those engines against double backprop in float64 (differences of the gradient where torch cannot derive
twice).
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from spectrascope.curvature.choose import choose_engines, make_engine
from spectrascope.curvature.engine import Curvature, Target
from spectrascope.curvature.tangent.engine import Tangents
from spectrascope.records.values import EngineName
from spectrascope.workload import Workload
from tests.support import oracles
from tests.support.families import FAMILIES, no_narrowing
from tests.support.measure_helpers import hold, layers_of, stored_directions, targets_of

K = 3
KINDS = {"torchvision": "torchvision", "huggingface": "Hugging Face", "torch": "plain torch", "timm": "timm"}
PLACE = "spectrascope/data/explain/guides/exactness.md"
START, END = "<!-- exactness: python -m tests.support.exactness -->", "<!-- end of exactness -->"


@functools.cache
def measured(name: str) -> tuple[Workload, list[Target], list[Curvature | str], list[Tensor]]:
    """Targets of a family, M by tangents or why not, and M by double backprop (or differences of the gradient)."""
    workload = FAMILIES[name]()
    layers = layers_of(workload)
    with no_narrowing(), hold(workload, layers):
        targets = targets_of(workload, layers, K)
        found = Tangents(2).measure_each(workload, targets, groups=2)
        inputs, labels = workload.fetch(0, workload.source.n)
        truth = oracles.curvature_of_weights(
            lambda: workload.loss(inputs, labels),
            [t.layer.parameter for t in targets],
            [stored_directions(t) for t in targets],
        )
    return workload, targets, found, truth


@functools.cache
def engines_of(name: str) -> tuple[tuple[EngineName, ...], float]:
    """Engines that ``auto`` ends with for a family, and the largest difference of h and M in units of max |h|."""
    workload, targets, by_tangents, truth = measured(name)
    with no_narrowing(), hold(workload, [t.layer for t in targets]):
        found = by_chosen_engine(workload, targets, by_tangents)
    used = {curvature.engine for curvature in found}
    return tuple(sorted(used, key=list(EngineName).index)), largest_difference(found, truth)


def by_chosen_engine(
    workload: Workload, targets: Sequence[Target], by_tangents: Sequence[Curvature | str]
) -> list[Curvature]:
    """What ``auto`` measures of each target, given what tangents measured, or why they could not; model held still."""
    found = []
    for choice, target, tangents in zip(
        choose_engines(workload, [t.layer for t in targets], EngineName.AUTO, K), targets, by_tangents, strict=True
    ):
        if choice.engine is EngineName.TANGENT and not isinstance(tangents, str):
            found.append(tangents)
        else:
            engine = EngineName.DOUBLE_BACKPROP if choice.engine is EngineName.TANGENT else choice.engine
            found += make_engine(engine).measure(workload, [target], groups=1)
    return found


def largest_difference(found: Sequence[Curvature], truth: Sequence[Tensor]) -> float:
    """Of h and M, in units of each weight's max |h|."""
    pairs = zip(found, truth, strict=True)
    return max(float((f.matrix - matrix).abs().max() / matrix.diagonal().abs().max()) for f, matrix in pairs)


def rows() -> dict[tuple[str, tuple[EngineName, ...], str], list[str]]:
    """Names of families by kind, engines and what sends a weight to double backprop."""
    found: dict[tuple[str, tuple[EngineName, ...], str], list[str]] = defaultdict(list)
    for name, family in FAMILIES.items():
        found[KINDS[family.kind], engines_of(name)[0], family.fallback or ""].append(name)
    return found


def table() -> str:
    """The table as Markdown; differences are rounded up to a power of ten."""
    lines = ["| | families | engines | h and M differ by at most |", "|---|---|---|---|"]
    for (kind, engines, fallback), names in rows().items():
        worst = max(engines_of(name)[1] for name in names)
        said = ", ".join(f"`{engine.value}`" for engine in engines) + (f" ({fallback})" if fallback else "")
        exponent = math.ceil(math.log10(max(worst, 1e-15)))
        lines.append(f"| {kind} | {', '.join(names)} | {said} | 1e{exponent} |")
    return "\n".join(lines)


def written(guide: str) -> str:
    """What stands between the markers."""
    return guide.partition(START)[2].partition(END)[0].strip()


if __name__ == "__main__":
    path = Path(__file__).parents[2] / PLACE
    before = path.read_text(encoding="utf-8")
    head, _, rest = before.partition(START)
    path.write_text(f"{head}{START}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
