"""From a report to an exponent per weight: trust, fall-backs, damping, evidence, and recovery of planted exponents."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.advice.advise import LARGEST_EXPONENT, MOMENTUM, advise
from spectrascope.advice.evidence import USUAL_DAMPING, describe_exponent, find_doubts
from spectrascope.errors import OptionError
from spectrascope.numerics.transfer import make_quadratic_model, transfer
from spectrascope.records.advice import Advice, BetaSource, LayerAdvice, Treatment
from spectrascope.records.report import LayerInfo, LayerReport, SkippedLayer
from spectrascope.records.values import Interval, LayerKind, LayerRole, LayerStatus, Missing, PowerFit, Task
from spectrascope.reports import report_from_json, report_to_json
from spectrascope.reports.emit import emit_torch
from tests.support.made_up_reports import make_info, make_layer, make_measurement, make_report, mixed_report
from tests.support.planted_networks import planted_network


def _by_name(advice: Advice) -> dict[str, LayerAdvice]:
    return {layer.info.name: layer for layer in advice.layers}


def _linear(name: str, shape: tuple[int, int] = (64, 64)) -> LayerInfo:
    return make_info(name, LayerKind.LINEAR, shape)


def _scattered(beta: float = 1.0):
    """A measurement no line fits."""
    return make_measurement(beta=beta, wobble=0.95)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_planted_exponents_are_recovered_within_their_interval(beta: float) -> None:
    hits, widths = 0, []
    for seed in range(20):
        network, inputs, targets = planted_network(beta, seed)
        report = spectrascope.probe(network, (inputs, targets), "mse", top_k=12, self_check=False)
        (layer,) = advise(report).layers
        assert layer.source is BetaSource.LAYER
        assert isinstance(layer.interval, Interval)
        hits += layer.interval.low <= beta <= layer.interval.high
        widths.append(layer.interval.high - layer.interval.low)
    assert hits >= 18
    assert np.mean(widths) < 0.3  # an interval that always hits says nothing


def test_a_trusted_layer_keeps_its_own_beta() -> None:
    advice = advise(make_report((make_layer(make_info("a.weight"), make_measurement(beta=1.4)),)))
    (layer,) = advice.layers
    fit = layer.measured
    assert isinstance(fit, PowerFit)
    assert (layer.treatment, layer.source, layer.doubts) == (Treatment.SPECTRAL, BetaSource.LAYER, ())
    assert layer.beta == fit.value
    assert isinstance(layer.interval, Interval)
    own = fit.interval
    assert layer.interval.low < own.low < own.high < layer.interval.high
    allowance = own.low - layer.interval.low
    alpha = make_layer(make_info("a.weight"), make_measurement(beta=1.4)).analysis.alpha_g
    assert isinstance(alpha, PowerFit)
    assert allowance == pytest.approx(2 * 20 / (2048 * alpha.value**1.5), rel=1e-9)


def test_the_wider_interval_wins() -> None:
    fit = make_layer(make_info("a"), make_measurement()).analysis.beta
    assert isinstance(fit, PowerFit)
    narrow, wide = Interval(1.9, 2.1), Interval(1.5, 2.5)
    assert replace(fit, ci95=narrow, jackknife_ci95=wide).interval == wide
    assert replace(fit, ci95=wide, jackknife_ci95=narrow).interval == wide
    assert replace(fit, ci95=narrow, jackknife_ci95=Missing("no groups")).interval == narrow


def test_low_confidence_falls_back_to_family_then_role_then_kind_then_network() -> None:
    """One doubtful layer each, whose nearest relatives are ever further away."""
    expert = replace(_linear("moe.experts.0.up"), role=LayerRole.EXPERT)
    rows = (
        make_layer(make_info("h.0.conv.weight"), make_measurement(beta=1.2)),
        make_layer(make_info("h.1.conv.weight"), make_measurement(beta=1.4)),
        make_layer(make_info("h.2.conv.weight"), _scattered()),
        make_layer(make_info("stem.weight"), _scattered()),
        make_layer(make_info("last.weight"), make_measurement(beta=2.4)),
        make_layer(_linear("mlp.weight"), make_measurement(beta=0.6)),
        make_layer(expert, _scattered()),
        make_layer(LayerInfo("up.weight", LayerKind.CONV_TRANSPOSE, LayerRole.OTHER, (9, 9), (9, 9, 1)), _scattered()),
    )
    found = _by_name(advise(make_report(rows)))
    own = {name: layer.beta for name, layer in found.items() if layer.source is BetaSource.LAYER}
    assert set(own) == {"h.0.conv.weight", "h.1.conv.weight", "last.weight", "mlp.weight"}
    family = found["h.2.conv.weight"]
    assert family.source is BetaSource.FAMILY
    assert family.beta == pytest.approx(np.mean([own["h.0.conv.weight"], own["h.1.conv.weight"]]))
    intervals = [found[f"h.{i}.conv.weight"].interval for i in (0, 1)]
    assert isinstance(intervals[0], Interval)
    assert isinstance(intervals[1], Interval)
    assert family.interval == Interval(intervals[0].low, intervals[1].high)
    assert found["stem.weight"].source is BetaSource.ROLE
    assert found["stem.weight"].beta == pytest.approx(own["h.1.conv.weight"])
    assert found["moe.experts.0.up"].source is BetaSource.KIND
    assert found["moe.experts.0.up"].beta == own["mlp.weight"]
    assert found["up.weight"].source is BetaSource.NETWORK
    assert "scattered about the line" in family.doubts[0] or "interval" in family.doubts[0]


def test_no_group_is_surer_than_the_only_layer_it_trusts() -> None:
    rows = (
        make_layer(make_info("h.0.conv.weight"), make_measurement(beta=2.0, wobble=0.3)),
        make_layer(make_info("h.1.conv.weight"), _scattered()),
    )
    advice = advise(make_report(rows))
    sure, doubtful = advice.layers
    assert (sure.source, doubtful.source) == (BetaSource.LAYER, BetaSource.FAMILY)
    assert isinstance(sure.interval, Interval)
    assert sure.interval.high - sure.interval.low > 0.01
    assert doubtful.interval == sure.interval
    assert {group.interval for group in advice.groups if group.n_confident} == {sure.interval}


def test_with_nothing_to_trust_the_papers_values_stand() -> None:
    rows = (make_layer(make_info("c.weight"), _scattered()), make_layer(_linear("l.weight"), _scattered()))
    found = _by_name(advise(make_report(rows)))
    assert [found[n].beta for n in ("c.weight", "l.weight")] == [2.0, 1.0]
    assert all(layer.source is BetaSource.USUAL and isinstance(layer.interval, Missing) for layer in found.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 3}, "no beta: 3 usable points"),
        ({"k": 5}, "fitted to 5 directions, fewer than 6"),
        ({"n_negative": 8}, "8 of 20 directions have no positive curvature"),
        ({"wobble": 0.95}, "scattered about the line"),
    ],
)
def test_doubts(change: dict, words: str) -> None:
    row = make_layer(make_info("a"), make_measurement(beta=0.5, **change))
    assert any(words in doubt for doubt in find_doubts(row)), find_doubts(row)


def test_a_flat_spectrum_is_no_doubt() -> None:
    """Beta 0 explains nothing of log h, since there is nothing to explain: R² is low and the exponent certain."""
    row = make_layer(make_info("a"), make_measurement(beta=0.0, wobble=0.05))
    fit = row.analysis.beta
    assert isinstance(fit, PowerFit)
    assert fit.r2 < 0.5
    assert find_doubts(row) == ()


def test_a_wide_interval_is_a_doubt() -> None:
    row = make_layer(make_info("a"), make_measurement())
    fit = row.analysis.beta
    assert isinstance(fit, PowerFit)
    wide = replace(fit, jackknife_ci95=Interval(fit.value - 0.7, fit.value + 0.7))
    doubtful = replace(row, analysis=replace(row.analysis, beta=wide))
    assert find_doubts(doubtful) == ("its interval is ±0.70, wider than ±0.5",)


def test_what_goes_to_adamw() -> None:
    head = replace(_linear("lm_head.weight", (500, 64)), role=LayerRole.UNEMBEDDING)
    tied = replace(head, name="wte.weight", tied_names=("lm_head.weight",))
    table = LayerInfo("emb.weight", LayerKind.EMBEDDING, LayerRole.EMBEDDING, (500, 64), (500, 64))
    cube = LayerInfo("cube", LayerKind.OTHER, LayerRole.OTHER, (3, 20), (3, 4, 5))
    column = _linear("gate.weight", (1, 64))
    rows = (
        make_layer(head, make_measurement()),
        make_layer(tied, make_measurement()),
        SkippedLayer(table, LayerStatus.SKIPPED, "embedding look-up table"),
        SkippedLayer(cube, LayerStatus.SKIPPED, "no single matrix view"),
        make_layer(column, make_measurement(k=1)),
        make_layer(make_info("conv.weight"), make_measurement()),
        make_layer(_linear("fc.weight", (10, 64)), make_measurement(k=9)),
    )
    advice = advise(make_report(rows))
    found = _by_name(advice)
    reasons = {name: layer.reason for name, layer in found.items() if layer.treatment is Treatment.ADAMW}
    assert set(reasons) == {"lm_head.weight", "wte.weight", "emb.weight", "cube", "gate.weight", "fc.weight"}
    assert "head" in reasons["lm_head.weight"]
    assert "tied to its embedding" in reasons["wte.weight"]
    assert "embedding" in reasons["emb.weight"]
    assert "no single matrix view" in reasons["cube"]
    assert "vector" in reasons["gate.weight"]
    assert "one row per class" in reasons["fc.weight"]
    assert advice.adamw == tuple(reasons)
    assert [p.name for p in advice.parameters] == ["conv.weight"]
    measured = found["fc.weight"]
    assert isinstance(measured.measured, PowerFit)  # shown all the same
    assert isinstance(measured.efficiencies, tuple)


def test_parametrized_weights_are_not_named_as_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 3))
    nn.utils.parametrizations.weight_norm(model[0])
    report = spectrascope.probe(model, (torch.randn(64, 12), torch.randint(0, 3, (64,))), top_k=6)
    assert [row.info.parametrized for row in report.layers] == [True, False, False]
    advice = advise(report_from_json(report_to_json(report)))
    assert [p.name for p in advice.parameters] == ["2.weight"]
    assert advice.layers[0].reason == "no parameter: parametrized, computed from others"
    assert advice.adamw == ("4.weight",)
    scope = {"model": model}
    exec(emit_torch(advice), scope)
    stepped = [id(p) for group in scope["optimizer"].param_groups for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(stepped) == sorted(id(p) for p in model.parameters())


def test_a_hidden_layer_as_wide_as_the_classes_is_no_head() -> None:
    rows = (
        make_layer(_linear("hidden.weight", (10, 64)), make_measurement()),
        make_layer(_linear("head.weight", (10, 10)), make_measurement()),
    )
    treatments = [layer.treatment for layer in advise(make_report(rows)).layers]
    assert treatments == [Treatment.SPECTRAL, Treatment.ADAMW]


def test_damping_is_the_noise_floor_to_the_power_beta() -> None:
    measurement = make_measurement(beta=1.5)
    (layer,) = advise(make_report((make_layer(make_info("a"), measurement),))).layers
    norm = sum(s**4 for s in measurement.sigma) ** 0.25
    assert isinstance(layer.beta, float)
    assert layer.damping == pytest.approx(0.05**layer.beta)
    assert layer.relative_damping == pytest.approx((0.05 / norm) ** layer.beta)
    # At the floor the transfer is half of what it would be without damping.
    plain, damped = (float(transfer([0.05], layer.beta, d)[0]) for d in (0.0, layer.damping))
    assert damped == pytest.approx(plain / 2)


def test_damping_for_training_batches() -> None:
    report = make_report((make_layer(make_info("a"), make_measurement(beta=2.0, wobble=0.0)),))
    (usual,), (small,) = advise(report).layers, advise(report, train_batch=32).layers
    noise = math.sqrt(2048 / 32 * (1 - MOMENTUM) / (1 + MOMENTUM))
    assert small.damping == pytest.approx(usual.damping * noise**2)
    (tiny,) = advise(make_report((make_layer(make_info("a"), make_measurement()),)), train_batch=1).layers
    assert isinstance(tiny.relative_damping, float)
    assert tiny.relative_damping <= 1
    with pytest.raises(OptionError, match="--train-batch 0: must be at least 1"):
        advise(report, train_batch=0)


def test_all_noise_is_fully_damped_and_said_to_be() -> None:
    noisy = replace(make_measurement(), noise_floor=5.0)
    (layer,) = advise(make_report((make_layer(make_info("a"), noisy),))).layers
    assert layer.relative_damping == 1.0
    assert "all noise" in layer.damping_reason


def test_without_a_noise_floor_the_papers_damping() -> None:
    blind = replace(make_measurement(), noise_floor=Missing("needs at least two samples"))
    (layer,) = advise(make_report((make_layer(make_info("a"), blind),))).layers
    assert layer.relative_damping == USUAL_DAMPING
    assert "needs at least two samples" in layer.damping_reason
    failed = SkippedLayer(make_info("dead"), LayerStatus.FAILED, "the gradient is zero")
    (nothing,) = advise(make_report((failed,))).layers
    assert nothing.relative_damping == USUAL_DAMPING
    assert nothing.doubts == ("the gradient is zero",)


@pytest.mark.parametrize(("beta", "expected"), [(-0.4, 0.0), (3.6, LARGEST_EXPONENT)])
def test_recommendations_stay_between_0_and_3(beta: float, expected: float) -> None:
    (layer,) = advise(make_report((make_layer(make_info("a"), make_measurement(beta=beta)),))).layers
    assert layer.beta == expected
    assert isinstance(layer.measured, PowerFit)
    assert layer.measured.value == pytest.approx(beta, abs=0.1)


def test_efficiencies_are_those_of_the_quadratic_model() -> None:
    row = make_layer(make_info("a"), make_measurement(beta=1.6, wobble=0.2))
    (layer,) = advise(make_report((row,))).layers
    model = make_quadratic_model(row.measurement.sigma, row.measurement.curvature_matrix)
    assert not isinstance(model, Missing)
    assert isinstance(layer.efficiencies, tuple)
    assert [step.name for step in layer.efficiencies] == ["0", "1", "beta", "2", "recommended"]
    for step in layer.efficiencies:
        expected = model.step(transfer(model.sigma, step.exponent, step.damping))
        assert not isinstance(expected, Missing)
        assert (step.efficiency, step.decrease, step.length) == (
            expected.efficiency, expected.decrease, expected.length,
        )  # fmt: skip
        assert step.k == 20
    by_name = {step.name: step.efficiency for step in layer.efficiencies}
    assert by_name["0"] < by_name["1"] < by_name["beta"]
    assert layer.best_exponent == pytest.approx(1.6, abs=0.2)


def test_the_window_of_the_report_is_respected() -> None:
    from spectrascope.reports.refit import refit

    report = make_report((make_layer(make_info("a"), make_measurement()),))
    (layer,) = advise(refit(report, top_k=8, min_rank=2)).layers
    assert layer.window == (2, 8)
    assert isinstance(layer.efficiencies, tuple)
    assert {step.k for step in layer.efficiencies} == {7}


def test_groups_count_and_take_medians_over_trusted_members() -> None:
    rows = (
        make_layer(make_info("h.0.c.weight"), make_measurement(beta=1.0)),
        make_layer(make_info("h.1.c.weight"), make_measurement(beta=2.0)),
        make_layer(_linear("l.weight"), _scattered()),
    )
    groups = {(g.by, g.name): g for g in advise(make_report(rows)).groups}
    family = groups["family", "h.*.c.weight"]
    assert (family.n, family.n_confident) == (2, 2)
    assert family.beta == pytest.approx(1.5, abs=0.02)
    assert family.meaning == "between Muon and Newton"
    lonely = groups["role", "matrix"]
    assert (lonely.n, lonely.n_confident) == (1, 0)
    assert isinstance(lonely.beta, Missing)
    assert groups["network", "all"].n == 3
    assert [name for by, name in groups if by == "depth"] == ["early", "middle", "late"]
    assert ("family", "l.weight") not in groups  # a group of one is no group


def test_blocks_of_one_parameter_are_taken_together() -> None:
    rows = tuple(
        make_layer(replace(_linear(f"attn.c_attn.weight[{letter}]"), stored_shape=(64, 192)), make_measurement(beta=b))
        for letter, b in (("q", 1.0), ("k", 1.2), ("v", 1.9))
    )
    experts = tuple(
        make_layer(
            LayerInfo(f"mlp.experts.up[{i}]", LayerKind.LINEAR, LayerRole.EXPERT, (8, 8), (2, 8, 8)),
            make_measurement(k=8),
        )
        for i in range(2)
    )
    kernel = LayerInfo("up.weight", LayerKind.CONV_TRANSPOSE, LayerRole.CONV, (32, 64), (16, 32, 2, 2))
    up = make_layer(kernel, make_measurement())
    advice = advise(make_report((*rows, *experts, up)))
    assert [(p.name, p.layout) for p in advice.parameters] == [
        ("attn.c_attn.weight", "flat"),
        ("mlp.experts.up", "stacked"),
        ("up.weight", "conv_transpose"),
    ]
    assert advice.parameters[0].beta == pytest.approx(1.2, abs=0.02)
    assert any("blocks of a fused or stacked weight" in note for note in advice.notes)


def test_tokens_count_as_samples_of_a_language_model() -> None:
    report = make_report((make_layer(_linear("l.weight"), make_measurement()),))
    run = report.provenance
    text = replace(
        report,
        provenance=replace(
            run,
            model=replace(run.model, task=Task.CAUSAL_LM),
            data=replace(run.data, input_shape=(128,), n_classes=Missing("tokens")),
        ),
    )
    (plain,), (language,) = advise(report).layers, advise(text).layers
    assert isinstance(plain.interval, Interval)
    assert isinstance(language.interval, Interval)
    assert language.interval.low > plain.interval.low


@pytest.mark.parametrize(
    ("beta", "words"),
    [
        (-0.5, "gradient descent"), (0.3, "gradient descent"), (0.5, "between gradient descent and Muon"),
        (1.0, "Muon-like"), (1.5, "between Muon and Newton"), (1.9, "Newton-like"), (2.5, "Newton-like"),
        (2.6, "beyond Newton"),
    ],
)  # fmt: skip
def test_what_an_exponent_means(beta: float, words: str) -> None:
    assert describe_exponent(beta) == words


def test_a_saved_report_gives_the_same_advice() -> None:
    report = mixed_report()
    assert advise(report_from_json(report_to_json(report))) == advise(report)


def test_every_row_gets_advice() -> None:
    report = mixed_report()
    advice = advise(report)
    assert [layer.info for layer in advice.layers] == [row.info for row in report.layers]
    spectral = [layer for layer in advice.layers if layer.treatment is Treatment.SPECTRAL]
    assert all(isinstance(layer.beta, float) for layer in spectral)
    assert sum(isinstance(row, LayerReport) for row in report.layers) == 4


def test_an_advice_cannot_contradict_itself() -> None:
    layer = advise(mixed_report()).layers[0]
    with pytest.raises(ValueError, match="a spectral step needs an exponent, an AdamW step has none"):
        replace(layer, beta=Missing("none"))
