"""Standard errors of changes: against the slow way, against simulation, and what is refused."""

import itertools
from dataclasses import replace
from math import exp, log

import numpy as np
import pytest

from spectrascope.gating.judgement import judge
from spectrascope.gating.noise import FIXED_DIRECTIONS, LARGEST, NoiseMeter, StandardError
from spectrascope.gating.numbers import layer_value
from spectrascope.gating.policy import default_policy, policy_from_table
from spectrascope.numerics.fits import fit_beta
from spectrascope.numerics.participation import participation_ratio
from spectrascope.numerics.sample_groups import SampleGroups
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.values import Missing
from spectrascope.records.verdict import Mark, Outcome
from tests.support.gate_reports import NAMES, network, with_measurement

ONE, OTHER = network(1), network(2)


def _leave_one_out(row: LayerReport) -> list:
    m = row.measurement
    return list(zip(*SampleGroups(m.group_sizes, m.group_sigma, m.group_h).leave_one_out(), strict=True))


def _jackknife(values: list[float]) -> float:
    n = len(values)
    mean = sum(values) / n
    return ((n - 1) / n * sum((value - mean) ** 2 for value in values)) ** 0.5


def test_different_samples_add_their_variances() -> None:
    meter = NoiseMeter(ONE, OTHER, paired=False)
    before, after = ONE.layers[2], OTHER.layers[2]
    expected = 0.0
    for row in (before, after):
        jackknife = _jackknife([fit_beta(sigma, h).value for sigma, h in _leave_one_out(row)])
        expected += max(jackknife, row.analysis.beta.stderr) ** 2
    found = meter.of_layer(before, after, "beta")
    assert found.value == pytest.approx(expected**0.5, rel=1e-9)
    assert found.dof == 15


def test_the_same_samples_are_judged_by_differences() -> None:
    meter = NoiseMeter(ONE, OTHER, paired=True)
    before, after = ONE.layers[2], OTHER.layers[2]
    pairs = zip(_leave_one_out(before), _leave_one_out(after), strict=True)
    differences = [fit_beta(*b).value - fit_beta(*a).value for a, b in pairs]
    assert meter.of_layer(before, after, "beta") == StandardError(pytest.approx(_jackknife(differences), rel=1e-9), 15)


def test_shared_noise_cancels() -> None:
    """A network whose every group gradient is scaled alike has the same beta without any noise of a change."""
    m = ONE.layers[0].measurement
    scaled = with_measurement(
        ONE, NAMES[0], h=tuple(3 * h for h in m.h), group_h=tuple(tuple(3 * h for h in row) for row in m.group_h)
    )
    rows = ONE.layers[0], scaled.layers[0]
    assert NoiseMeter(ONE, scaled, paired=True).of_layer(*rows, "beta").value == pytest.approx(0, abs=1e-12)
    assert NoiseMeter(ONE, scaled, paired=False).of_layer(*rows, "beta").value > 0.001


def test_numbers_of_h_alone_are_widened() -> None:
    meter = NoiseMeter(ONE, OTHER, paired=True)
    rows = ONE.layers[1], OTHER.layers[1]
    pairs = list(zip(*map(_leave_one_out, rows), strict=True))
    pr_h = [participation_ratio(b[1]) - participation_ratio(a[1]) for a, b in pairs]
    assert meter.of_layer(*rows, "pr_h").value == pytest.approx(FIXED_DIRECTIONS["pr_h"] * _jackknife(pr_h), rel=1e-9)
    top = [log(b[1][0] / a[1][0]) for a, b in pairs]
    found = meter.of_layer(*rows, "h[1]")
    assert found.value == pytest.approx(FIXED_DIRECTIONS["h"] * _jackknife(top), rel=1e-9)
    assert found.of_logarithm
    sigma = [log(b[0][2] / a[0][2]) for a, b in pairs]
    assert meter.of_layer(*rows, "sigma[3]").value == pytest.approx(_jackknife(sigma), rel=1e-9)


def test_a_curvature_below_zero_has_no_logarithm() -> None:
    m = ONE.layers[0].measurement
    turned = with_measurement(
        ONE, NAMES[0], h=(-m.h[0], *m.h[1:]), group_h=tuple((-row[0], *row[1:]) for row in m.group_h)
    )
    rows = ONE.layers[0], turned.layers[0]
    found = NoiseMeter(ONE, turned, paired=True).of_layer(*rows, "h[1]")
    pairs = zip(*map(_leave_one_out, rows), strict=True)
    assert found.value == pytest.approx(FIXED_DIRECTIONS["h"] * _jackknife([b[1][0] - a[1][0] for a, b in pairs]))
    assert not found.of_logarithm


def test_errors_of_logarithms_become_amounts() -> None:
    error = StandardError(0.1, 15, of_logarithm=True)
    assert error.amount(3, 2.0, 5.0) == pytest.approx(2 * (exp(0.3) - 1))
    assert error.amount(3, 2.0, 1.0) == pytest.approx(2 * (1 - exp(-0.3)))
    assert error.multiple(2.0, 2 * exp(-0.3)) == pytest.approx(-3)
    assert StandardError(0.1, 15).multiple(2.0, 1.7) == pytest.approx(-3)
    assert StandardError(0.0, 15).multiple(2.0, 1.7) == Missing("the sample groups show no spread")
    assert "contradicts its sample groups" in error.multiple(-2.0, 1.7).reason
    assert error.amount(1e6, 2e9, 5e9) == LARGEST


def test_the_median_leaves_the_same_group_out_of_every_layer() -> None:
    betas = [[fit_beta(*pair).value for pair in _leave_one_out(row)] for row in ONE.layers]
    expected = _jackknife(np.median(betas, axis=0).tolist())
    meter = NoiseMeter(ONE, ONE, paired=False)
    assert meter.of_report("summary.beta_median").value == pytest.approx(expected * 2**0.5, rel=1e-9)
    assert NoiseMeter(ONE, ONE, paired=True).of_report("summary.conv.beta_median").value == 0


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        ("pr_g", "no sampling error is known for pr_g; use a limit such as"),
        ("beta.r2", "no sampling error is known for beta.r2"),
        ("h[13]", "h[13] lies outside the window"),
    ],
)
@pytest.mark.parametrize("paired", [True, False])
def test_where_no_error_is_known(number: str, reason: str, paired: bool) -> None:
    found = NoiseMeter(ONE, OTHER, paired=paired).of_layer(ONE.layers[0], OTHER.layers[0], number)
    assert isinstance(found, Missing)
    assert reason in found.reason


def test_no_error_of_the_whole_report() -> None:
    meter = NoiseMeter(ONE, OTHER, paired=False)
    assert "no sampling error is known for loss" in meter.of_report("loss").reason
    assert "do not share" in meter.of_report("summary.embedding.beta_median").reason


def _gated(reports: list[Report]) -> list[Outcome]:
    return [judge(b, a, default_policy(), force=True).outcome for a, b in itertools.combinations(reports, 2)]


def test_noise_alone_raises_few_alarms() -> None:
    """The same truth measured on simulated batches, more noise than tolerance: no plain limit hides an alarm."""
    noisy = {name.replace(".", "_"): {"noise": 0.4} for name in NAMES}
    outcomes = _gated([network(seed, f"{seed:064d}", **noisy) for seed in range(25)])
    assert len(outcomes) == 300
    assert outcomes.count(Outcome.FAIL) <= 0.02 * 300
    spread = np.std([network(seed, **noisy).layers[0].analysis.beta.value for seed in range(10)])
    assert spread > 0.05  # of the order of the tolerance


def test_noise_does_not_hide_a_change() -> None:
    clean = [network(seed, f"{seed:064d}") for seed in range(6)]
    drifted = [network(seed, f"{seed:064d}", layer2_conv_weight={"beta": 2.2}) for seed in range(10, 16)]
    for before, after in zip(clean, drifted, strict=True):
        verdict = judge(after, before, default_policy(), force=True)
        assert verdict.outcome is Outcome.FAIL
        first = verdict.findings[0]
        assert (first.layer, first.mark) == ("layer2.conv.weight", Mark.FAILED)


def test_more_checks_allow_more_noise() -> None:
    """The false-alarm probability is shared: what one number may do grows with the number of checks."""
    rules = ["beta @ conv1*: noise"]
    one = judge(OTHER, ONE, policy_from_table({"rules": rules}, "p"), force=True)
    many = judge(OTHER, ONE, policy_from_table({"rules": [*rules, "alpha_g: noise", "pr_h: noise"]}, "p"), force=True)
    (alone,) = [f.allowed for f in one.findings if f.number == "beta"]
    (among,) = [f.allowed for f in many.findings if f.number == "beta"]
    error = NoiseMeter(ONE, OTHER, paired=True).of_layer(ONE.layers[0], OTHER.layers[0], "beta")
    assert alone == pytest.approx(error.value * error.quantile(0.01, two_sided=True))
    assert among == pytest.approx(error.value * error.quantile(0.01 / 11, two_sided=True))
    assert among > alone


def test_findings_come_worst_first() -> None:
    before = network()
    after = network(layer2_conv_weight={"beta": 2.3}, layer3_conv_weight={"beta": 2.2})
    policy = policy_from_table(
        {"rules": ["beta: +-0.1", "alpha_g: +-0.0001 (informational)", "pr_g: 1 stderr", "r2: min 0.1"]}, "p"
    )
    marks = [finding.mark for finding in judge(after, before, policy).findings]
    order = [Mark.FAILED, Mark.INCONCLUSIVE, Mark.INFORMATIONAL, Mark.PASSED]
    assert marks == sorted(marks, key=order.index)
    failed = [f for f in judge(after, before, policy).findings if f.mark is Mark.FAILED]
    assert [f.layer for f in failed] == ["layer2.conv.weight", "layer3.conv.weight"]
    assert failed[0].severity > failed[1].severity > 1
    assert failed[0].change == pytest.approx(
        layer_value(after.layers[2], "beta") - layer_value(before.layers[2], "beta")
    )


def test_rounding_is_no_noise() -> None:
    row = replace(ONE.layers[0])
    meter = NoiseMeter(ONE, ONE, paired=True)
    assert meter.of_layer(row, row, "beta").value == 0
    assert meter.rounding(2.0, -1.0) == pytest.approx(2e-4)
