"""How far what is signal moves with the samples: against intervals, by hand, by simulation; and what is refused."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from spectrascope.gating.changes import compare
from spectrascope.gating.judgement import judge
from spectrascope.gating.noise import NoiseMeter, StandardError
from spectrascope.gating.policy import default_policy, policy_from_table
from spectrascope.gating.signal_noise import COUNTS, WIDER_DECREASE
from spectrascope.numerics.steps import pool_step_exponents
from spectrascope.records.values import Missing
from spectrascope.records.verdict import Mark, Outcome
from spectrascope.reports.junit import verdict_to_junit
from spectrascope.reports.render import Format, render
from tests.support.gate_reports import network, with_signal

ONE, OTHER = with_signal(network(1), 1), with_signal(network(2), 2)
LESS = with_signal(network(1), 3, resolved=2)
NOISE = with_signal(network(1), 4, resolved=0)
T_15 = 2.13145  # Student's 97.5 % quantile


def error_of(number: str, *, paired: bool = False, other=OTHER) -> StandardError:
    meter = NoiseMeter(ONE, other, paired=paired)
    if number.startswith("summary"):
        found = meter.of_report(number)
    else:
        found = meter.of_layer(ONE.layers[2], other.layers[2], number)
    assert isinstance(found, StandardError)
    return found


def test_a_step_exponent_has_the_error_of_its_interval() -> None:
    steps = [report.layers[2].held_out.step_exponent for report in (ONE, OTHER)]
    both = math.hypot(*(step.interval.half_width / T_15 for step in steps))
    assert error_of("held_out.step_exponent").value == pytest.approx(both, rel=1e-4)
    pooled = [report.summary.signal.step_exponent for report in (ONE, OTHER)]
    both = math.hypot(*(step.interval.half_width / T_15 for step in pooled))
    assert error_of("summary.signal.step_exponent").value == pytest.approx(both, rel=1e-4)


def test_the_networks_exponent_has_the_error_of_the_weights_it_is_found_from() -> None:
    """A weight that curves down along its steps is not among them."""
    row = ONE.layers[1]
    held = row.held_out
    down = replace(held, curvature_matrix=tuple(tuple(-x for x in line) for line in held.curvature_matrix))
    layers = (ONE.layers[0], replace(row, held_out=down), *ONE.layers[2:])
    step = pool_step_exponents(layers)
    known = replace(ONE.summary.signal, step_exponent=step)
    report = replace(ONE, layers=layers, summary=replace(ONE.summary, signal=known))
    found = NoiseMeter(report, report, paired=False).of_report("summary.signal.step_exponent")
    assert found.value == pytest.approx(math.sqrt(2) * step.interval.half_width / T_15, rel=1e-4)


def test_a_decrease_has_the_error_of_its_root() -> None:
    steps = [report.summary.signal.step_exponent for report in (ONE, OTHER)]
    roots = [step.decrease_stderr / (2 * step.decrease**0.5) for step in steps]
    found = error_of("summary.signal.step_exponent.decrease")
    assert found.of_root
    assert found.value == pytest.approx(WIDER_DECREASE * math.hypot(*roots), rel=0.02)
    assert StandardError(0.5, 15, of_root=True).amount(4, 9.0, 1.0) == pytest.approx(8.0)
    assert StandardError(0.5, 15, of_root=True).amount(9, 9.0, 1.0) == 9.0  # no more than all of it
    assert StandardError(0.5, 15, of_root=True).multiple(9.0, 4.0) == pytest.approx(-2)


def test_on_the_same_samples_shared_noise_cancels() -> None:
    for number in ("held_out.step_exponent", "summary.signal.step_exponent.decrease", "held_out.slopes[2]"):
        assert error_of(number, paired=True, other=ONE).value == pytest.approx(0, abs=1e-12)


def test_slopes_and_curvature_by_direction() -> None:
    held = [report.layers[2].held_out for report in (ONE, OTHER)]
    slopes = math.hypot(*(h.slopes[1] / h.t[1] for h in held))
    assert error_of("held_out.slopes[2]").value == pytest.approx(slopes, rel=1e-9)
    groups = [np.array(h.group_h)[:, 1] for h in held]
    assert error_of("held_out.h[2]").value == pytest.approx(
        2.0 * math.hypot(*(g.std(ddof=1) / 4 for g in groups)), rel=1e-9
    )
    sigma = [report.layers[2].measurement.sigma[1] for report in (ONE, OTHER)]
    shares = math.hypot(*(h.slopes[1] / h.t[1] / s for h, s in zip(held, sigma, strict=True)))
    assert error_of("signal_share[2]").value == pytest.approx(shares, rel=1e-9)


def test_counts_are_binomial_direction_by_direction() -> None:
    """Against draws of t about its value, the error of its own standard error included."""
    rng, expected = np.random.default_rng(0), []
    for report in (ONE, OTHER):
        t = np.array(report.layers[2].held_out.t)
        drawn = t + np.sqrt(1 + t**2 / 30) * rng.standard_normal((20000, t.size))
        expected.append(COUNTS["samples_needed.n_resolved"] * (drawn >= 3).sum(axis=1).std())
    assert error_of("samples_needed.n_resolved").value == pytest.approx(math.hypot(*expected), rel=0.03)


@pytest.mark.parametrize("number", ["samples_needed.n_resolved", "n_signal"])
def test_errors_of_layers_add_up_to_that_of_the_total(number: str) -> None:
    meter = NoiseMeter(ONE, ONE, paired=False)
    alone = [meter.of_layer(row, row, number).value / COUNTS[number] for row in ONE.layers]
    total = f"summary.signal.{number.removeprefix('samples_needed.')}"
    assert meter.of_report(total).value == pytest.approx(sum(alone), rel=1e-9)


@pytest.mark.parametrize("number", ["held_out.step_exponent", "n_signal", "samples_needed.n_resolved", "held_out.h[1]"])
def test_reports_of_version_1_have_no_error(number: str) -> None:
    old = network(1)
    found = NoiseMeter(old, ONE, paired=False).of_layer(old.layers[0], ONE.layers[0], number)
    assert isinstance(found, Missing)
    assert "before held-out numbers were measured" in found.reason


def test_where_no_error_is_known() -> None:
    meter = NoiseMeter(ONE, OTHER, paired=False)
    rows = ONE.layers[0], OTHER.layers[0]
    assert "no sampling error is known for null.beta" in meter.of_layer(*rows, "null.beta").reason
    assert "lies outside the directions held out" in meter.of_layer(*rows, "held_out.slopes[13]").reason
    assert "no sampling error is known" in meter.of_report("summary.signal.n_directions").reason


def test_noise_alone_raises_few_alarms() -> None:
    """The same truth on simulated batches, with slopes so noisy that the counts move."""
    reports = [with_signal(network(s, f"{s:064d}"), s, noise=1.2) for s in range(10)]
    counts = [report.summary.signal.n_resolved for report in reports]
    assert max(counts) - min(counts) >= 3
    pairs = [judge(b, a, default_policy(), force=True).outcome for a, b in itertools.permutations(reports, 2)]
    assert pairs.count(Outcome.FAIL) <= 0.02 * len(pairs)


def test_a_loss_of_signal_is_seen_where_beta_stays() -> None:
    """On the same samples and on others; beta is the same, as only held-out numbers change."""
    for paired, after in ((True, LESS), (False, with_signal(network(5, "cd" * 32), 5, resolved=2))):
        verdict = judge(after, ONE, default_policy(), force=not paired)
        failed = [finding.number for finding in verdict.findings if finding.mark is Mark.FAILED]
        assert "summary.signal.n_resolved" in failed
        assert "beta" not in failed


def test_the_bottom_line_comes_last() -> None:
    for after, says in (
        (ONE, "PASSED: nothing has changed by more than"),
        (LESS, "FAILED: curvature is not what it was: "),
    ):
        text = render(judge(after, ONE, default_policy()), Format.MARKDOWN)
        last = text.rstrip().splitlines()[-1]
        assert says in last
        assert "directions resolved 40" in last
    assert "step exponent 0.8" in last or "step exponent 0.9" in last
    last = render(compare(ONE, NOISE), Format.MARKDOWN).rstrip().splitlines()[-1]
    assert "directions resolved 40 to " in last
    assert "to undetermined" in last
    refused = judge(with_signal(network(1, "cd" * 32)), ONE, default_policy())
    assert "what was to be checked could not be" in render(refused, Format.MARKDOWN).rstrip().splitlines()[-1]


def test_junit_tells_what_is_signal() -> None:
    text = verdict_to_junit(judge(NOISE, ONE, policy_from_table({"rules": ["summary.signal.step_exponent: +-1"]}, "p")))
    assert 'errors="1"' in text
    assert (
        "cannot be judged, in the report it is undetermined: no exponent predicts a decrease beyond its error" in text
    )
    text = verdict_to_junit(judge(LESS, ONE, default_policy()))
    assert '<testcase classname="whole report" name="summary.signal.n_resolved">' in text
    text = verdict_to_junit(judge(ONE, network(1), default_policy()))
    assert 'failures="0"' in text
    assert "skipped, the baseline has no value" in text
