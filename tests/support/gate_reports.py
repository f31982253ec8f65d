"""Made-up reports with known truth and known noise; imported by name, as doctest collection allows one conftest."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from spectrascope.numerics.analysis import analyse
from spectrascope.numerics.signal import read_signal, t_values
from spectrascope.numerics.steps import widen_groups
from spectrascope.numerics.summary import summarise
from spectrascope.records.report import LayerReport, Measurement, Report, SkippedLayer
from spectrascope.records.signal import HeldOut, NullDraws
from spectrascope.records.values import EngineName, LayerKind, LayerStatus, Missing
from tests.support.made_up_reports import make_info, make_report

NAMES = ("conv1.weight", "layer1.conv.weight", "layer2.conv.weight", "layer3.conv.weight", "fc.weight")
K = 12


def measured(
    name: str, seed: int, *, beta: float = 1.8, decay: float = 0.9, scale: float = 3.0, noise: float = 0.05, k: int = K
) -> LayerReport:
    """A layer with h = scale·sigma^beta up to noise that is independent from sample group to sample group."""
    rng = np.random.default_rng(seed)
    sigma = np.arange(1, k + 1) ** -decay
    group_sigma = sigma * (1 + noise * rng.standard_normal((16, k)))
    group_h = scale * sigma**beta * (1 + noise * rng.standard_normal((16, k)))
    found, h = -np.sort(-group_sigma.mean(0)), group_h.mean(0)
    measurement = Measurement(
        sigma=tuple(found.tolist()),
        h=tuple(h.tolist()),
        curvature_matrix=tuple(tuple(row) for row in np.diag(h).tolist()),
        group_sizes=(32,) * 16,
        group_sigma=tuple(tuple(row) for row in group_sigma.tolist()),
        group_h=tuple(tuple(row) for row in group_h.tolist()),
        rank=k,
        full_rank=64,
        pr_g=5.0,
        effective_rank_g=8.0,
        noise_floor=0.01,
        engine=EngineName.GAUSS_NEWTON,
        engine_reason="piecewise linear from here to the logits",
        exact=True,
        residual=1e-6,
    )
    kind = LayerKind.LINEAR if name.startswith("fc") else LayerKind.CONV
    return LayerReport(make_info(name, kind), measurement, analyse(measurement, top_k=k))


def network(seed: int = 0, digest: str = "ab" * 32, **changes: dict[str, float]) -> Report:
    """A report of five layers; ``changes`` (keys with _ for .) alter the truth of single ones."""
    rows = []
    for index, name in enumerate(NAMES):
        truth = {"beta": 1.5 + 0.1 * index, "decay": 0.8 + 0.05 * index}
        rows.append(measured(name, 100 * seed + index, **{**truth, **changes.get(name.replace(".", "_"), {})}))
    report = make_report(tuple(rows))
    options = replace(report.options, top_k=K, layers=())
    data = replace(report.provenance.data, digest=digest)
    return replace(report, options=options, provenance=replace(report.provenance, data=data))


def with_rows(report: Report, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Report:
    """The report with other rows, summarised anew."""
    rows = change(report.layers)
    return replace(report, layers=rows, summary=summarise(rows))


def with_run(report: Report, **changes: Any) -> Report:
    """The report with another provenance."""
    return replace(report, provenance=replace(report.provenance, **changes))


def with_options(report: Report, **changes: Any) -> Report:
    """The report asked for with other options."""
    return replace(report, options=replace(report.options, **changes))


def with_measurement(report: Report, name: str, **changes: Any) -> Report:
    """The report with one layer measured differently and fitted again."""

    def change(rows: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            replace(row, measurement=(m := replace(row.measurement, **changes)), analysis=analyse(m, top_k=K))
            if row.info.name == name
            else row
            for row in rows
        )

    return with_rows(report, change)


def without(report: Report, name: str) -> Report:
    """The report without one layer."""
    return with_rows(report, lambda rows: tuple(row for row in rows if row.info.name != name))


def with_status(report: Report, name: str, status: LayerStatus) -> Report:
    """The report with one layer skipped or failed."""
    return with_rows(
        report,
        lambda rows: tuple(SkippedLayer(r.info, status, "a reason") if r.info.name == name else r for r in rows),
    )


def extended(report: Report, row: Any) -> Report:
    """The report with one more row."""
    return with_rows(report, lambda rows: (*rows, row))


def held_out(
    row: LayerReport, seed: int, *, resolved: int = 8, exponent: float = 1.2, noise: float = 0.15
) -> LayerReport:
    """Give a layer held-out numbers: slopes that are signal on the first ``resolved`` directions and noise beyond.

    The decrease is largest for about ``exponent``: h on held-out samples is s·sigma^(exponent - 1) there.
    """
    rng = np.random.default_rng(seed)
    m = row.measurement
    sigma, groups = np.array(m.sigma), len(m.group_sizes)
    k = len(sigma)
    share = np.where(np.arange(k) < resolved, 0.8, 0.0)
    slopes = share * sigma * (1 + noise * rng.standard_normal((groups, k)))
    slopes += np.where(share > 0, 0.0, 1.0) * sigma * rng.standard_normal((groups, k))
    h = 3 * sigma**exponent * (1 + noise * rng.standard_normal((groups, k)))
    unread = Missing("not fitted yet")
    held = HeldOut(
        n_folds=4,
        slopes=tuple(slopes.mean(0).tolist()),
        t=tuple(t_values(widen_groups(slopes, sigma, m.group_sizes), m.group_sizes).tolist()),
        h=tuple(h.mean(0).tolist()),
        curvature_matrix=tuple(tuple(line) for line in np.diag(h.mean(0)).tolist()),
        group_slopes=tuple(tuple(line) for line in slopes.tolist()),
        group_h=tuple(tuple(line) for line in h.tolist()),
        beta=unread,
        step_exponent=unread,
    )
    level = sigma[resolved - 1] * 0.9 if resolved else sigma[0] * 1.5
    draws = np.sort(level * (1 - 0.08 * rng.random(20)))
    draws[-1] = level
    null = NullDraws(
        sigma_1=tuple(draws.tolist()),
        quantile=float(level),
        sigma=tuple(tuple((level * np.arange(1, k + 1) ** -0.5).tolist()) for _ in range(2)),
        h=tuple(tuple((level * np.arange(1.0, k + 1) ** -1.0 * (1 + 0.01 * d)).tolist()) for d in range(2)),
        beta=unread,
        contains_beta=unread,
    )
    found, null_found, analysis = read_signal(m, held, null, row.analysis)
    return replace(row, held_out=found, null=null_found, analysis=analysis)


def with_signal(report: Report, seed: int = 0, **truth: Any) -> Report:
    """The report with held-out numbers for every measured layer."""
    return with_rows(
        report,
        lambda rows: tuple(
            held_out(row, 1000 * seed + i, **truth) if isinstance(row, LayerReport) else row
            for i, row in enumerate(rows)
        ),
    )
