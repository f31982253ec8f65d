"""What a pipeline can meet, and what the gate says: the verdict in JSON and the exit code of the command."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path

import pytest

from spectrascope.cli import main
from spectrascope.numerics.analysis import analyse
from spectrascope.records.report import Report, SkippedLayer
from spectrascope.records.signal import GradientSource, LabelSource
from spectrascope.records.values import EngineName, LayerKind, LayerStatus, Missing
from spectrascope.reports.json import report_to_json
from tests.support.gate_reports import (
    K,
    extended,
    measured,
    network,
    with_measurement,
    with_options,
    with_rows,
    with_run,
    with_signal,
    with_status,
    without,
)
from tests.support.made_up_reports import make_info

BASE = network()
LAYER = "layer2.conv.weight"
GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Situation:
    """Two reports (or their JSON), the gate's options and what is expected of it."""

    report: Report | str
    outcome: str
    options: tuple[str, ...] = ()
    baseline: Report | str = BASE
    policy: str | None = None
    says: str = ""

    @property
    def exit_code(self) -> int:
        return {"pass": 0, "fail": 1, "inconclusive": 3}[self.outcome]


def _edited(report: Report, change: Callable[[dict], None]) -> str:
    document = json.loads(report_to_json(report))
    change(document)
    return json.dumps(document)


def _other_window(report: Report, top_k: int) -> Report:
    rows = with_rows(report, lambda rows: tuple(replace(r, analysis=analyse(r.measurement, top_k=top_k)) for r in rows))
    return replace(rows, options=replace(report.options, top_k=top_k))


def _published(report: Report) -> Report:
    """Nothing held out, by choice."""
    why = Missing("only the published numbers were asked for")
    rows = [replace(row, held_out=why, null=why) for row in report.layers]
    rows = [replace(r, analysis=replace(r.analysis, n_signal=why, signal_share=why, samples_needed=why)) for r in rows]
    return with_rows(report, lambda _: tuple(rows))


def _estimated(report: Report, engine: EngineName = EngineName.GAUSS_NEWTON) -> Report:
    return with_measurement(report, LAYER, exact=False, engine=engine)


def _differenced(report: Report) -> Report:
    """One layer by central differences, each h with a standard error of 2 % of the largest."""
    m = next(row.measurement for row in report.layers if row.info.name == LAYER)
    errors = (0.02 * max(m.h),) * len(m.h)
    return with_measurement(report, LAYER, exact=False, engine=EngineName.FINITE_DIFFERENCE, h_stderr=errors)


def _few_groups(report: Report) -> Report:
    m = next(row.measurement for row in report.layers if row.info.name == LAYER)
    return with_measurement(
        report, LAYER, group_sizes=m.group_sizes[:3], group_sigma=m.group_sigma[:3], group_h=m.group_h[:3]
    )


def _decaying(report: Report, rate: float, wobble: float = 0.01) -> Report:
    """sigma that falls exponentially, up to a wobble: that rank model wins."""
    sigma = tuple(exp(-rate * k) * (1 + wobble * (-1) ** k) for k in range(K))
    return with_measurement(report, LAYER, sigma=sigma)


def _rounded(report: Report) -> Report:
    m = next(row.measurement for row in report.layers if row.info.name == LAYER)
    return with_measurement(report, LAYER, h=tuple(h * (1 + 1e-6 * (-1) ** k) for k, h in enumerate(m.h)))


def _curved(report: Report, by: float) -> Report:
    """sigma with some curvature in log-log: of two models that tied, the other wins."""
    m = next(row.measurement for row in report.layers if row.info.name == LAYER)
    return with_measurement(report, LAYER, sigma=tuple(s * exp(-by * k * k) for k, s in enumerate(m.sigma)))


SIGNAL = with_signal(BASE)
LESS_SIGNAL = with_signal(BASE, 1, resolved=2)
NO_SIGNAL = with_signal(BASE, 2, resolved=0)
PUBLISHED = _published(BASE)
STEP_RULE = 'rules = ["summary.signal.step_exponent: +-0.5 or noise"]'
DRIFTED = network(layer2_conv_weight={"beta": 2.3})
FLAT_HEAD = with_measurement(BASE, "fc.weight", rank=3)
FAILED = with_status(BASE, LAYER, LayerStatus.FAILED)
NEW = measured("extra.weight", 7)
BIAS = SkippedLayer(make_info("extra.bias", LayerKind.BIAS, (10, 1)), LayerStatus.SKIPPED, "1-D parameter")
SMALL_HEAD = make_info("fc.weight", LayerKind.LINEAR, (20, 64))
NOTHING = with_rows(BASE, lambda rows: tuple(SkippedLayer(r.info, LayerStatus.SKIPPED, "left out") for r in rows))

SITUATIONS = {
    "the same report": Situation(BASE, "pass"),
    "other rounding": Situation(_rounded(BASE), "pass"),
    "other samples": Situation(network(1, "cd" * 32), "inconclusive", says="data"),
    "other samples, forced": Situation(network(1, "cd" * 32), "pass", ("--force",)),
    "drift": Situation(DRIFTED, "fail", says="changed by +0.6"),
    "drift, other samples, forced": Situation(
        network(1, "cd" * 32, layer2_conv_weight={"beta": 2.3}), "fail", ("--force",)
    ),
    "drift within tolerance": Situation(network(layer2_conv_weight={"beta": 1.73}), "pass"),
    "drift in a layer not looked at": Situation(DRIFTED, "pass", ("--layers", "layer3*")),
    "drift in an excluded layer": Situation(DRIFTED, "pass", ("--exclude", "layer2*")),
    "drift allowed by a later rule": Situation(
        DRIFTED, "pass", ("--rule", "beta @ layer2*: +-1"), policy='rules = ["beta: +-0.1"]'
    ),
    "drift of a layer taken out of a rule": Situation(
        DRIFTED, "pass", policy='rules = ["beta: +-0.1", "beta @ layer2*: any"]'
    ),
    "drift under an informational rule": Situation(
        DRIFTED, "pass", policy='rules = ["beta: +-0.1 (informational)", "alpha_g: +-1"]'
    ),
    "drift against a rise only": Situation(DRIFTED, "fail", policy='rules = ["beta: +0.1"]'),
    "drift against a fall only": Situation(DRIFTED, "pass", policy='rules = ["beta: -0.1"]'),
    "drift against percent": Situation(DRIFTED, "fail", policy='rules = ["beta: +-10%"]'),
    "drift against standard errors": Situation(DRIFTED, "fail", policy='rules = ["beta: 4 stderr"]'),
    "both of two limits": Situation(DRIFTED, "fail", policy='rules = ["beta: min 0 and max 2"]'),
    "sharper": Situation(network(layer2_conv_weight={"scale": 12.0}), "fail", says="h[1]"),
    "flatter": Situation(network(layer2_conv_weight={"scale": 0.8}), "pass"),
    "summary drift": Situation(DRIFTED, "fail", policy='rules = ["summary.conv.beta_median: +-0.01"]'),
    "a layer is missing": Situation(without(BASE, LAYER), "fail", says="missing: not in the report"),
    "a missing layer is ignored": Situation(without(BASE, LAYER), "pass", policy='missing = "ignore"'),
    "a missing layer is told": Situation(without(BASE, LAYER), "pass", policy='missing = "inform"'),
    "a layer is skipped": Situation(with_status(BASE, LAYER, LayerStatus.SKIPPED), "fail", says="skipped (a reason)"),
    "a layer failed": Situation(FAILED, "fail", says="could not be measured: a reason"),
    "a failed layer is told": Situation(FAILED, "pass", policy='failed = "inform"'),
    "a layer failed in both": Situation(FAILED, "pass", baseline=FAILED),
    "a layer works again": Situation(BASE, "fail", baseline=FAILED, says="failed in the baseline"),
    "a new layer": Situation(extended(BASE, NEW), "fail", says="new: not in the baseline"),
    "a new layer is told": Situation(extended(BASE, NEW), "pass", policy='new = "inform"'),
    "a new bias": Situation(extended(BASE, BIAS), "pass"),
    "another shape": Situation(
        with_rows(BASE, lambda rows: (*rows[:-1], replace(rows[-1], info=SMALL_HEAD))),
        "fail",
        says="another shape: 64×576 became 20×64",
    ),
    "a fit failed": Situation(FLAT_HEAD, "fail", says="not measured any more"),
    "a fit failed in both": Situation(FLAT_HEAD, "pass", baseline=FLAT_HEAD),
    "a fit works again": Situation(BASE, "fail", baseline=FLAT_HEAD, says="the baseline has no value to judge by"),
    "no fit, bounded": Situation(FLAT_HEAD, "inconclusive", baseline=FLAT_HEAD, policy='rules = ["r2: min 0.5"]'),
    "another window": Situation(_other_window(BASE, 8), "inconclusive", says="window"),
    "another window, fitted again": Situation(_other_window(BASE, 8), "pass", ("--top-k", "8")),
    "another dtype": Situation(with_run(BASE, dtype="float64"), "inconclusive", says="dtype"),
    "another dtype, forced": Situation(with_run(BASE, dtype="float64"), "pass", ("--force",)),
    "another loss": Situation(with_run(BASE, loss_name="mse"), "inconclusive", says="loss"),
    "the loss nearly three times as high": Situation(
        with_run(BASE, loss=2.8 * BASE.provenance.loss), "fail", says="loss"
    ),
    "the loss as high on other samples, forced": Situation(
        with_run(network(1, "cd" * 32), loss=2.8 * BASE.provenance.loss), "pass", ("--force",), says="chance alone"
    ),
    "the loss a little higher": Situation(with_run(BASE, loss=1.3 * BASE.provenance.loss), "pass"),
    "the loss fell": Situation(with_run(BASE, loss=0.1 * BASE.provenance.loss), "pass"),
    "the loss as once spelt": Situation(with_run(BASE, loss_name="cross_entropy"), "pass"),
    "an estimate against an exact engine": Situation(_estimated(BASE), "inconclusive", says="engine exactness"),
    "an estimate in a layer not looked at": Situation(_estimated(BASE), "pass", ("--exclude", LAYER)),
    "two kinds of estimate": Situation(
        _estimated(BASE), "inconclusive", baseline=_estimated(BASE, EngineName.DOUBLE_BACKPROP), says="engine exactness"
    ),
    "the same estimate": Situation(
        _estimated(BASE), "pass", baseline=_estimated(BASE), says="gauss-newton on 1, error of h not stated"
    ),
    "finite differences against an exact engine": Situation(
        _differenced(BASE), "inconclusive", says="estimate, finite-difference (layer2.conv.weight)"
    ),
    "finite differences against an exact engine, forced": Situation(_differenced(BASE), "pass", ("--force",)),
    "an exact engine against finite differences": Situation(
        BASE, "inconclusive", baseline=_differenced(BASE), says="estimate, finite-difference (layer2.conv.weight)"
    ),
    "a sketch against an exact engine": Situation(
        _estimated(BASE, EngineName.GAUSS_NEWTON_SKETCH), "inconclusive", says="engine exactness"
    ),
    "a sketch against finite differences": Situation(
        _estimated(BASE, EngineName.GAUSS_NEWTON_SKETCH), "inconclusive", baseline=_differenced(BASE)
    ),
    "finite differences on both sides": Situation(
        _differenced(BASE), "pass", baseline=_differenced(BASE), says="finite-difference on 1, h +- up to 2.0%"
    ),
    "tangent against double backprop": Situation(
        with_measurement(BASE, LAYER, engine=EngineName.TANGENT),
        "pass",
        baseline=with_measurement(BASE, LAYER, engine=EngineName.DOUBLE_BACKPROP),
    ),
    "another exact engine": Situation(with_measurement(BASE, LAYER, engine=EngineName.DOUBLE_BACKPROP), "pass"),
    "another device and release": Situation(
        with_run(BASE, device="cuda:0", versions={"python": "3.13", "torch": "3.0"}), "pass", says="torch"
    ),
    "no self-check": Situation(with_run(BASE, self_check=Missing("switched off")), "pass", says="self-check"),
    "NaN in the report": Situation(report_to_json(BASE).replace('"loss": 0.71234', '"loss": NaN'), "inconclusive"),
    "a newer schema": Situation(_edited(BASE, lambda d: d.update(schema_version=99)), "inconclusive"),
    "half a file": Situation(report_to_json(BASE)[:5000], "inconclusive"),
    "NaN in the baseline": Situation(BASE, "inconclusive", baseline=report_to_json(BASE).replace("0.71234", "NaN")),
    "a report of the first release": Situation(
        (GOLDEN / "report-v1.json").read_text(), "pass", baseline=(GOLDEN / "report-v1-first-release.json").read_text()
    ),
    "below a bound": Situation(BASE, "fail", policy='rules = ["beta: min 1.6"]', says="beyond the bound"),
    "above a bound": Situation(BASE, "fail", policy='rules = ["beta: max 1.8"]'),
    "another rank model": Situation(_decaying(BASE, 0.3), "fail", policy='rules = ["rank_model: same"]', says="became"),
    "a rank model that tied": Situation(_curved(BASE, 0.002), "pass", policy='rules = ["rank_model: same"]'),
    "percent of nothing": Situation(
        with_measurement(BASE, LAYER, h=(*BASE.layers[2].measurement.h[:-1], -0.1)),
        "fail",
        policy='rules = ["n_negative: +50%"]',
    ),
    "nothing of nothing": Situation(BASE, "pass", policy='rules = ["n_negative: +50%"]'),
    "noise without sample groups": Situation(
        _few_groups(BASE),
        "inconclusive",
        baseline=_few_groups(BASE),
        policy='rules = ["beta: noise"]',
        says="3 sample groups",
    ),
    "noise not needed": Situation(_few_groups(BASE), "pass", baseline=_few_groups(BASE)),
    "no known sampling error": Situation(
        BASE, "inconclusive", policy='rules = ["pr_g: 3 stderr"]', says="no sampling error is known for pr_g"
    ),
    "a glob that matches nothing": Situation(
        BASE, "inconclusive", ("--rule", "beta @ layr2*: +-1"), says="no layer matches 'layr2*'"
    ),
    "no rules": Situation(BASE, "inconclusive", policy="rules = []", says="nothing was compared"),
    "no layers": Situation(NOTHING, "inconclusive", baseline=NOTHING, says="nothing was compared"),
    "the same signal": Situation(SIGNAL, "pass", baseline=SIGNAL, says="summary.signal.n_resolved"),
    "as much signal on other samples, forced": Situation(
        with_signal(network(1, "cd" * 32), 1), "pass", ("--force",), baseline=SIGNAL
    ),
    "fewer directions are resolved": Situation(LESS_SIGNAL, "fail", baseline=SIGNAL, says="summary.signal.n_resolved"),
    "fewer directions than noise gives": Situation(
        LESS_SIGNAL, "fail", baseline=SIGNAL, policy='rules = ["summary.signal.n_signal: -20% or -noise"]'
    ),
    "the step promises less": Situation(
        LESS_SIGNAL,
        "fail",
        baseline=SIGNAL,
        policy='rules = ["summary.signal.step_exponent.decrease: -20% or -noise"]',
    ),
    "nothing is signal any more": Situation(NO_SIGNAL, "fail", baseline=SIGNAL, says="undetermined: no exponent"),
    "more signal is no regression": Situation(SIGNAL, "pass", baseline=LESS_SIGNAL),
    "no signal in either": Situation(NO_SIGNAL, "pass", baseline=NO_SIGNAL, says="undetermined: no exponent"),
    "an exponent that is undetermined now": Situation(
        NO_SIGNAL, "inconclusive", baseline=SIGNAL, policy=STEP_RULE, says="in the report it is undetermined"
    ),
    "an exponent that was undetermined": Situation(
        SIGNAL, "inconclusive", baseline=NO_SIGNAL, policy=STEP_RULE, says="in the baseline it is undetermined"
    ),
    "an exponent undetermined in both": Situation(
        NO_SIGNAL, "inconclusive", baseline=NO_SIGNAL, policy=STEP_RULE, says="measured in neither report: undetermined"
    ),
    "an undetermined exponent against a bound": Situation(
        NO_SIGNAL, "inconclusive", baseline=SIGNAL, policy='rules = ["step_exponent: min 0"]',
        says="judged: undetermined",
    ),
    "an undetermined exponent is not the same": Situation(
        NO_SIGNAL, "inconclusive", baseline=SIGNAL, policy='rules = ["step_exponent: same"]'
    ),
    "another exponent": Situation(
        with_signal(BASE, exponent=2.0), "fail", baseline=SIGNAL, policy='rules = ["step_exponent: +-0.3 or noise"]'
    ),
    "an exponent of a layer": Situation(
        with_signal(BASE, exponent=2.0), "fail", baseline=SIGNAL,
        policy='rules = ["step_exponent @ fc*: +-0.3 or noise"]',
    ),
    "too few directions, bounded": Situation(
        LESS_SIGNAL, "fail", baseline=SIGNAL, policy='rules = ["n_resolved: min 4"]', says="beyond the bound"
    ),
    "a baseline of version 1": Situation(
        SIGNAL, "pass", says="skipped, the baseline has no value: the report was written before held-out numbers"
    ),
    "a baseline of version 1, a rule of one's own": Situation(
        SIGNAL, "inconclusive", policy='rules = ["n_resolved: -1"]', says="cannot be judged by this baseline"
    ),
    "a report of version 1": Situation(BASE, "pass", baseline=SIGNAL, says="cannot be judged by this report"),
    "a report of version 1, a rule of one's own": Situation(
        BASE, "inconclusive", ("--rule", "summary.signal.n_signal: -1"), baseline=SIGNAL
    ),
    "a baseline without held-out numbers": Situation(
        SIGNAL, "pass", baseline=PUBLISHED, says="skipped, the baseline has no value: only the published"
    ),
    "held out no more": Situation(PUBLISHED, "fail", baseline=SIGNAL, says="not measured any more"),
    "shuffled labels": Situation(
        with_options(SIGNAL, labels=LabelSource.SHUFFLED), "inconclusive", baseline=SIGNAL, says="labels"
    ),
    "momentum against the batch": Situation(
        with_options(SIGNAL, gradient=GradientSource.MOMENTUM), "inconclusive", baseline=SIGNAL, says="gradient"
    ),
    "other folds": Situation(with_options(SIGNAL, folds=2), "pass", baseline=SIGNAL, says="folds"),
    "noise of what this report does not hold": Situation(
        BASE, "inconclusive", baseline=SIGNAL, policy='rules = ["null.beta: noise"]', says="cannot be judged"
    ),
    "no known error of the null": Situation(
        SIGNAL, "inconclusive", baseline=SIGNAL, policy='rules = ["null.beta: noise"]',
        says="no sampling error is known for null.beta",
    ),
    "only informational rules": Situation(BASE, "inconclusive", policy='rules = ["beta: +-1 (informational)"]'),
}  # fmt: skip


def _write(path: Path, report: Report | str) -> str:
    path.write_text(report if isinstance(report, str) else report_to_json(report))
    return str(path)


@pytest.mark.parametrize("name", SITUATIONS)
def test_verdict_and_exit_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    situation = SITUATIONS[name]
    monkeypatch.chdir(tmp_path)
    arguments = [
        "gate",
        _write(tmp_path / "report.json", situation.report),
        "--baseline",
        _write(tmp_path / "base.json", situation.baseline),
        *situation.options,
    ]
    if situation.policy is not None:
        (tmp_path / "policy.toml").write_text(situation.policy)
        arguments += ["--policy", "policy.toml"]
    assert main([*arguments, "--json"]) == situation.exit_code
    out, err = capsys.readouterr()
    if err:  # a report that cannot be read has no verdict, but the same exit code
        assert err.startswith("error: ")
        assert situation.exit_code == 3
        return
    assert json.loads(out)["outcome"] == situation.outcome
    assert situation.says in out.encode().decode("unicode_escape")


def test_there_are_enough_situations() -> None:
    assert len(SITUATIONS) >= 70
    assert {situation.exit_code for situation in SITUATIONS.values()} == {0, 1, 3}
