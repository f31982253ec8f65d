"""Whether two reports may be compared: how they were made differently, and what of that forbids it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum

from spectrascope.records.comparison import Difference
from spectrascope.records.report import LayerReport, Measurement, Report
from spectrascope.records.values import Missing
from spectrascope.reports.figures import format_count

__all__ = ["find_differences", "is_same_batch", "name_report"]


def find_differences(before: Report, after: Report) -> tuple[Difference, ...]:
    """List how two reports were made differently, what forbids comparing them first.

    Other samples or labels, another precision, window of ranks or loss, directions of an optimizer's momentum on one
    side, and an estimate on one side (or another estimate on the other) forbid it: the numbers would differ on the same
    network. Another device, release or exact engine is noted only, and so are other folds, other samples for curvature,
    and layers estimated alike on both sides, whose engine's errors add to those of the samples.
    Names of networks are not compared: a gate is there to compare two networks.

    Args:
        before: the baseline.
        after: what is compared with it.
    """
    found = [*_forbidding(before, after), *_noted(before, after)]
    return tuple(sorted(found, key=lambda difference: not difference.forbids))


def is_same_batch(before: Report, after: Report) -> bool:
    """Whether both saw the same samples in the same order, so that their sample groups are the same too."""
    return before.provenance.data.digest == after.provenance.data.digest


def name_report(report: Report) -> str:
    """Say which network on which data a report is of, on one line."""
    run = report.provenance
    sha = f" (sha256 {run.model.sha256[:12]})" if isinstance(run.model.sha256, str) else ""
    return f"{run.model.id}{sha} on {run.data.id}, {run.created}"


def _forbidding(before: Report, after: Report) -> Iterator[Difference]:
    old, new = before.provenance, after.provenance
    if not is_same_batch(before, after):
        yield Difference(
            "data",
            f"{old.data.id}, {format_count(old.data.n, 'sample')}, batch {old.data.digest[:12]}",
            f"{new.data.id}, {format_count(new.data.n, 'sample')}, batch {new.data.digest[:12]}",
            forbids=True,
            advice="measure both on the same data with the same --num-samples and --seed",
        )
    if old.dtype != new.dtype:
        yield Difference("dtype", old.dtype, new.dtype, forbids=True, advice=f"measure with --dtype {old.dtype}")
    if old.loss_name.replace("_", "-") != new.loss_name.replace("_", "-"):  # the first release wrote cross_entropy
        yield Difference("loss", old.loss_name, new.loss_name, forbids=True, advice="measure both with the same --loss")
    for what, words in (("labels", "--labels"), ("gradient", "--gradient")):
        first, second = (getattr(report.options, what).value for report in (before, after))
        if first != second:
            yield Difference(what, first, second, forbids=True, advice=f"measure both with the same {words}")
    one, other = (f"ranks {report.options.min_rank} to {report.options.top_k}" for report in (before, after))
    if one != other:
        top_k = min(before.options.top_k, after.options.top_k)
        advice = f"--top-k {top_k}"
        if before.options.min_rank != after.options.min_rank:
            advice += f" --min-rank {max(before.options.min_rank, after.options.min_rank)}"
        yield Difference("window", one, other, forbids=True, advice=f"{advice} fits both again over the same ranks")
    yield from _exactness(before, after)


def _exactness(before: Report, after: Report) -> Iterator[Difference]:
    """Layers measured exactly on one side and estimated on the other, or estimated in two ways."""
    rows = {row.info.name: row.measurement for row in before.layers if isinstance(row, LayerReport)}
    apart: dict[tuple[str, str], list[str]] = {}
    for row in after.layers:
        old = rows.get(row.info.name)
        if old is None or not isinstance(row, LayerReport):
            continue
        new = row.measurement
        if (old.exact, new.exact) != (True, True) and (old.exact, old.engine) != (new.exact, new.engine):
            apart.setdefault((_name_engine(old), _name_engine(new)), []).append(row.info.name)
    for (one, other), names in apart.items():
        where = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
        yield Difference(
            "engine exactness",
            f"{one} ({where})",
            f"{other} ({where})",
            forbids=True,
            advice="measure both with the same --engine; auto is exact",
        )


def _name_engine(measurement: Measurement) -> str:
    return f"{'exact' if measurement.exact else 'estimate'}, {measurement.engine.value}"


def _estimates(before: Report, after: Report) -> Iterator[Difference]:
    """Layers that both reports estimate in one way: comparable, but with errors beside those of the samples."""
    rows = {row.info.name: row.measurement for row in before.layers if isinstance(row, LayerReport)}
    pairs = [
        (rows[row.info.name], row.measurement)
        for row in after.layers
        if isinstance(row, LayerReport) and row.info.name in rows
    ]
    for engine in sorted({new.engine for _, new in pairs}):
        alike = [pair for pair in pairs if all(not side.exact and side.engine is engine for side in pair)]
        if alike:
            one, other = (_worst_error([pair[side] for pair in alike]) for side in (0, 1))
            what = f"{engine.value} on {len(alike)}"
            yield Difference("estimates", f"{what}, {one}", f"{what}, {other}", forbids=False)


def _worst_error(measurements: Sequence[Measurement]) -> str:
    """The largest standard error that an engine states of any h, as a share of its layer's largest h."""
    shares = [
        max(m.h_stderr) / max(map(abs, m.h)) for m in measurements if not isinstance(m.h_stderr, Missing) and any(m.h)
    ]
    return f"h +- up to {max(shares):.1%}" if shares else "error of h not stated"


def _word(option: object) -> str:
    return str(option.value if isinstance(option, Enum) else option)


def _noted(before: Report, after: Report) -> Iterator[Difference]:
    old, new = before.provenance, after.provenance
    if before.schema_version != after.schema_version:
        yield Difference("schema version", str(before.schema_version), str(after.schema_version), forbids=False)
    if old.model.architecture != new.model.architecture:
        yield Difference("architecture", old.model.architecture, new.model.architecture, forbids=False)
    if old.device != new.device:
        yield Difference("device", old.device, new.device, forbids=False)
    if old.seed != new.seed:
        yield Difference("seed", str(old.seed), str(new.seed), forbids=False)
    if old.engines != new.engines:
        one, other = (", ".join(f"{name} on {n}" for name, n in sorted(run.engines.items())) for run in (old, new))
        yield Difference("engines", one, other, forbids=False)
    for what in ("estimate", "folds", "curvature_samples", "null_draws"):
        one, other = (_word(getattr(report.options, what)) for report in (before, after))
        if one != other:
            yield Difference(what.replace("_", " "), one, other, forbids=False)
    yield from _estimates(before, after)
    if isinstance(old.self_check, Missing) != isinstance(new.self_check, Missing):
        one, other = ("not made" if isinstance(run.self_check, Missing) else "passed" for run in (old, new))
        yield Difference("self-check", one, other, forbids=False)
    for name in sorted({*old.versions, *new.versions} - {"python"}):
        one, other = (run.versions.get(name, "none") for run in (old, new))
        if one != other:
            yield Difference(name, one, other, forbids=False)
