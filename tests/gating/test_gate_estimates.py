"""The error of an engine that estimates h, in every number made of h: by hand, by simulation, and who has none."""

import math
from dataclasses import replace
from statistics import median

import numpy as np
import pytest

from spectrascope.gating.estimates import engine_error, engine_error_of_median
from spectrascope.gating.judgement import judge
from spectrascope.gating.noise import NoiseMeter
from spectrascope.gating.policy import policy_from_table
from spectrascope.numerics.fits import fit_alpha_h, fit_beta
from spectrascope.numerics.participation import effective_rank, participation_ratio
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.values import EngineName, Missing
from spectrascope.records.verdict import Outcome
from tests.support.gate_reports import NAMES, network, with_measurement

LAYER = NAMES[2]
NUMBERS = {
    "beta": lambda sigma, h: fit_beta(sigma, h).value,
    "alpha_h": lambda _, h: fit_alpha_h(h).value,
    "pr_h": lambda _, h: participation_ratio(h),
    "effective_rank_h": lambda _, h: effective_rank(h),
}


def estimated(report: Report, share: float, engine: EngineName = EngineName.FINITE_DIFFERENCE) -> Report:
    """Every layer by an engine that is off by a share of each h."""
    for row in report.layers:
        errors = tuple(share * abs(h) for h in row.measurement.h)
        report = with_measurement(report, row.info.name, exact=False, engine=engine, h_stderr=errors)
    return report


def of(report: Report, name: str = LAYER) -> LayerReport:
    (row,) = (row for row in report.layers if row.info.name == name)
    return row


@pytest.mark.parametrize("number", list(NUMBERS))
def test_each_h_is_moved_by_its_error_in_turn(number: str) -> None:
    row = of(estimated(network(1), 0.05))
    m = row.measurement
    as_measured = NUMBERS[number](m.sigma, m.h)
    expected = 0.0
    for k, error in enumerate(m.h_stderr):
        h = np.array(m.h)
        h[k] += error
        expected += (NUMBERS[number](m.sigma, h) - as_measured) ** 2
    assert engine_error(row, number) == pytest.approx(expected**0.5, rel=1e-9)


@pytest.mark.parametrize("number", list(NUMBERS))
def test_it_is_the_spread_over_such_errors(number: str) -> None:
    row = of(estimated(network(1), 0.02))
    m, rng = row.measurement, np.random.default_rng(0)
    drawn = [NUMBERS[number](m.sigma, np.array(m.h) + rng.standard_normal(len(m.h)) * m.h_stderr) for _ in range(400)]
    assert engine_error(row, number) == pytest.approx(np.std(drawn), rel=0.15)


def test_single_directions() -> None:
    row = of(estimated(network(1), 0.02))
    assert engine_error(row, "h", 3) == row.measurement.h_stderr[2]
    assert engine_error(row, "h", 3, of_logarithm=True) == pytest.approx(0.02, rel=1e-12)
    assert engine_error(row, "sigma", 3) == 0
    assert engine_error(row, "alpha_g") == 0


def test_who_has_no_error_of_an_engine() -> None:
    exact = of(network(1))
    unstated = with_measurement(network(1), LAYER, exact=False, engine=EngineName.FINITE_DIFFERENCE)
    sketched = of(estimated(network(1), 0.5, EngineName.GAUSS_NEWTON_SKETCH))
    for row in (exact, of(unstated), sketched):
        assert engine_error(row, "beta") == 0
        assert engine_error(row, "h", 1) == 0


@pytest.mark.parametrize("number", ["beta", "alpha_h", "pr_h", "h[1]", "h[4]"])
@pytest.mark.parametrize("paired", [True, False])
def test_it_comes_on_top_of_the_samples(number: str, paired: bool) -> None:
    one, other = network(1), network(2)
    rows = of(one), of(other)
    noisy = of(estimated(one, 0.1)), of(estimated(other, 0.2))
    samples = NoiseMeter(one, other, paired=paired).of_layer(*rows, number)
    both = NoiseMeter(one, other, paired=paired).of_layer(*noisy, number)
    engines = [0.1, 0.2] if number.startswith("h") else [engine_error(row, number) for row in noisy]
    assert both.value == pytest.approx(math.hypot(samples.value, *engines), rel=1e-9)
    assert both.dof == samples.dof


def test_the_median_over_layers() -> None:
    report = estimated(network(1), 0.3)
    betas = [row.analysis.beta.value for row in report.layers]
    errors = [engine_error(row, "beta") for row in report.layers]
    moved = [
        median([b + e if i == j else b for j, b in enumerate(betas)]) - median(betas) for i, e in enumerate(errors)
    ]
    expected = math.hypot(*moved)
    assert expected > 0
    assert engine_error_of_median(report.layers) == pytest.approx(expected, rel=1e-12)
    meter = NoiseMeter(report, report, paired=True)
    assert meter.of_report("summary.beta_median").value == pytest.approx(expected * 2**0.5, rel=1e-9)


@pytest.mark.parametrize("rule", ["h[1]: 3 stderr", "h[1]: noise", f"h[1] @ {LAYER}: +3 stderr"])
def test_a_rule_allows_what_the_engine_cannot_tell(rule: str) -> None:
    """h[1] rises by 12 %: three times the error of the samples, not of engines that are each off by 10 %."""
    policy = policy_from_table({"rules": [rule]}, "p")

    def judged(share: float) -> Outcome:
        before = network(1, layer2_conv_weight={"noise": 0.002})
        after = network(1, layer2_conv_weight={"noise": 0.002, "scale": 3.0 * 1.12})
        if share:
            before, after = estimated(before, share), estimated(after, share)
        return judge(after, before, policy).outcome

    assert judged(0) is Outcome.FAIL
    assert judged(0.1) is Outcome.PASS


def test_a_number_that_cannot_be_worked_out_has_no_error() -> None:
    report = estimated(network(1), 0.1)
    row = of(report)
    m = row.measurement
    odd = replace(row, measurement=replace(m, h=(-m.h[0], *m.h[1:])))  # contradicts its groups, which are positive
    found = NoiseMeter(report, report, paired=True).of_layer(odd, odd, "h[1]")
    assert found == Missing("it cannot be worked out within the engine's error of h")


def test_sample_groups_see_the_error_of_a_sketch() -> None:
    """One sample, many times: all that makes the groups differ is the sketch, and the jackknife finds its error."""
    torch = pytest.importorskip("torch")
    import spectrascope

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 5))
    batch = torch.randn(1, 6).expand(256, 6).contiguous(), torch.full((256,), 2)
    report = spectrascope.probe(
        model, batch, torch.nn.functional.cross_entropy, top_k=1, engine="gauss-newton-sketch", micro_batch=4
    )
    for row in report.layers:
        if isinstance(row, LayerReport):
            m = row.measurement
            groups = np.array(m.group_h)[:, 0]
            jackknife = groups.std(ddof=1) / len(groups) ** 0.5
            assert jackknife > 0
            assert m.h_stderr[0] == pytest.approx(jackknife, rel=0.25)
