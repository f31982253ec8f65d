"""From a report to an exponent per weight: held-out exponents, pools, what is undetermined, and damping."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import spectrascope
from spectrascope.advice.advise import LARGEST_EXPONENT, advise
from spectrascope.advice.evidence import (
    LEAST_DAMPING,
    apply_spectral_rule,
    describe_exponent,
    find_damping,
    find_doubts,
    schatten4,
    training_sigma,
)
from spectrascope.errors import OptionError
from spectrascope.numerics.steps import pool_step_exponents
from spectrascope.numerics.transfer import transfer
from spectrascope.optim import SpectralNewton, parameter_groups
from spectrascope.records.advice import Advice, BetaSource, LayerAdvice, Treatment
from spectrascope.records.report import LayerReport, SkippedLayer
from spectrascope.records.signal import Estimate, HeldOut, StepExponent
from spectrascope.records.values import Interval, LayerKind, LayerRole, LayerStatus, Missing
from spectrascope.reports import report_from_json, report_to_json
from spectrascope.reports.emit import emit_torch, emit_yaml
from spectrascope.reports.render import Format, render
from spectrascope.reports.views.signal import say_signal
from tests.support.held_out_layers import held_out_layer
from tests.support.made_up_reports import decomposed, make_info, make_layer, make_measurement, make_report, mixed_report


def _by_name(advice: Advice) -> dict[str, LayerAdvice]:
    return {layer.info.name: layer for layer in advice.layers}


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5, 2.0])
def test_a_planted_exponent_is_recommended_whatever_the_published_beta(exponent: float) -> None:
    row = held_out_layer("a.weight", exponent, published=2.6 - exponent)
    (layer,) = advise(make_report((row,))).layers
    assert (layer.treatment, layer.source, layer.doubts) == (Treatment.SPECTRAL, BetaSource.LAYER, ())
    assert layer.beta == pytest.approx(exponent, abs=0.05)
    assert isinstance(layer.interval, Interval)
    assert layer.interval.low <= layer.beta <= layer.interval.high
    assert isinstance(layer.efficiencies, tuple)
    assert [step.name for step in layer.efficiencies] == ["0", "1", "2", "recommended"]


def test_exponents_stay_between_0_and_3() -> None:
    (layer,) = advise(make_report((held_out_layer("a.weight", 3.6),))).layers
    assert layer.beta == LARGEST_EXPONENT


def test_a_weight_without_an_exponent_takes_that_of_its_family_all_members_pooled() -> None:
    rows = tuple(
        held_out_layer(f"h.{i}.weight", b, noise=z) for i, (b, z) in enumerate(((1.0, 0.0), (1.4, 0.0), (1.2, 0.9)))
    )
    advice = advise(make_report(rows))
    found = _by_name(advice)
    doubtful = found["h.2.weight"]
    pooled = pool_step_exponents(rows)
    assert isinstance(pooled, StepExponent)
    assert doubtful.source is BetaSource.FAMILY
    assert (doubtful.beta, doubtful.interval) == (pooled.value, pooled.interval)
    assert "undetermined" in doubtful.doubts[0]
    group = next(g for g in advice.groups if g.by == "family")
    assert (group.n, group.n_confident, group.beta) == (3, 2, pooled.value)


def test_relatives_are_asked_from_near_to_far() -> None:
    linear = LayerKind.LINEAR
    rows = (
        held_out_layer("conv.weight", 1.2),
        held_out_layer("stem.weight", 1.2, noise=0.9),
        held_out_layer("mlp.weight", 0.8, kind=linear, noise=0.9),
    )
    found = _by_name(advise(make_report(rows)))
    assert found["stem.weight"].source is BetaSource.ROLE
    assert found["mlp.weight"].source is BetaSource.NETWORK


def test_for_a_whole_training_one_exponent_half_way_from_muons_to_the_networks() -> None:
    advice = advise(make_report((held_out_layer("a.weight", 1.2), held_out_layer("b.weight", 1.9))))
    (together,) = (group.beta for group in advice.groups if group.by == "network")
    assert advice.training_beta == pytest.approx((1 + together) / 2)
    assert 1.2 < 2 * advice.training_beta - 1 < 1.9
    console = Console(width=400, file=io.StringIO())
    console.print(render(advice, Format.TABLE, width=400))
    assert f"For a whole training: β {advice.training_beta:.2f} for all weights" in console.file.getvalue()


def test_where_nothing_is_determined_no_exponent_is_said_for_a_training() -> None:
    advice = advise(make_report((held_out_layer("a.weight", 1.2, noise=0.9),)))
    assert isinstance(advice.training_beta, Missing)
    console = Console(width=400, file=io.StringIO())
    console.print(render(advice, Format.TABLE, width=400))
    assert "whole training" not in console.file.getvalue()
    assert isinstance(advise(make_report(())).training_beta, Missing)


def test_reports_without_held_out_slopes_leave_everything_undetermined() -> None:
    """Of version 1, and of the published estimate: never the published beta, never the paper's usual value."""
    old = make_report((make_layer(make_info("a.weight"), make_measurement(beta=1.4)),))
    published = replace(old, options=replace(old.options, estimate=Estimate.PUBLISHED))
    for report in (old, published):
        advice = advise(report)
        (layer,) = advice.layers
        assert layer.treatment is Treatment.UNDETERMINED
        assert isinstance(layer.beta, Missing)
        assert "measure again" in layer.beta.reason
        assert (advice.parameters, advice.undetermined) == ((), ("a.weight",))
        assert isinstance(layer.damping, Missing)
        assert advice.known == say_signal(report)


def test_labels_drawn_from_the_model_determine_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 5))
    data = (torch.randn(512, 12), torch.randint(0, 5, (512,)))
    report = spectrascope.probe(model, data, "cross-entropy", labels="model", top_k=8, self_check=False)
    advice = advise(report)
    assert {layer.treatment for layer in advice.layers} <= {Treatment.UNDETERMINED, Treatment.ADAMW}
    assert any("undetermined at 512 samples" in layer.reason for layer in advice.layers)


def test_one_direction_determines_no_exponent() -> None:
    row = held_out_layer("a.weight", 1.0, k=2)
    assert "2 held-out directions, fewer than 4" in find_doubts(row)
    assert advise(make_report((row,))).layers[0].treatment is Treatment.UNDETERMINED


def test_the_same_batch_without_momentum_changes_nothing() -> None:
    report = make_report((held_out_layer("a.weight", 1.3, share=0.4),))
    plain, same = advise(report), advise(report, train_batch=2048)
    assert plain.layers == same.layers


def test_momentum_and_batch_enter_only_as_the_samples_that_a_step_averages() -> None:
    report = make_report((held_out_layer("a.weight", 1.3, share=0.4),))
    (big,), (averaged,) = advise(report, train_batch=768).layers, advise(report, train_batch=256, momentum=0.5).layers
    assert (big.damping, big.relative_damping) == (averaged.damping, averaged.relative_damping)
    row = report.layers[0]
    assert isinstance(row, LayerReport)
    sigma = np.asarray(row.measurement.sigma)
    assert (training_sigma(row, 1.0) == sigma).all()
    assert training_sigma(row, 4.0) == pytest.approx(sigma * np.sqrt(0.16 + 4 * 0.84))
    for wrong in ({"train_batch": 0}, {"train_batch": 8, "momentum": 1.0}, {"momentum": 0.5}):
        with pytest.raises(OptionError):
            advise(report, **wrong)


def test_damping_is_the_best_on_held_out_samples_and_the_least_where_the_exponent_did_it_all() -> None:
    row = held_out_layer("a.weight", 1.0)
    assert find_damping([row], 1.0, 1.0)[0] == LEAST_DAMPING
    damping, _ = find_damping([row], 2.0, 1.0)  # too large an exponent: damping brings it back
    assert damping > 0.09
    assert isinstance(row.held_out, HeldOut)
    x, s = np.asarray(row.measurement.sigma), np.asarray(row.held_out.slopes)
    m, norm = np.asarray(row.held_out.curvature_matrix), schatten4(x)

    def decrease(d: float) -> float:
        t = transfer(x / norm, 2.0, d)
        return float((t @ s) ** 2 / (2 * t @ m @ t))

    assert decrease(damping) >= max(decrease(d) for d in np.geomspace(1e-4, 1, 400)) * 0.999


def test_the_rule_compares_nuclear_and_stable_rank() -> None:
    row = make_layer(make_info("a"), make_measurement())
    assert isinstance(apply_spectral_rule(row), Missing)
    rule = apply_spectral_rule(decomposed(row))
    assert not isinstance(rule, Missing)
    assert rule.nuclear_rank == row.measurement.pr_g
    assert rule.stable_rank == pytest.approx(sum(k**-0.6 for k in range(1, 577)))
    assert rule.favours == "gradient descent"


def test_what_goes_to_adamw() -> None:
    head = replace(make_info("lm_head.weight", LayerKind.LINEAR, (500, 64)), role=LayerRole.UNEMBEDDING)
    table = replace(make_info("emb.weight", LayerKind.EMBEDDING, (500, 64)), role=LayerRole.EMBEDDING)
    rows = (
        make_layer(head, make_measurement()),
        SkippedLayer(table, LayerStatus.SKIPPED, "embedding look-up table"),
        held_out_layer("conv.weight", 1.0),
        make_layer(make_info("fc.weight", LayerKind.LINEAR, (10, 64)), make_measurement(k=9)),
    )
    advice = advise(make_report(rows))
    assert advice.adamw == ("lm_head.weight", "emb.weight", "fc.weight")
    assert [p.name for p in advice.parameters] == ["conv.weight"]


def test_parametrized_weights_are_not_named_as_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 3))
    nn.utils.parametrizations.weight_norm(model[0])
    report = spectrascope.probe(model, (torch.randn(64, 12), torch.randint(0, 3, (64,))), top_k=6)
    assert [row.info.parametrized for row in report.layers] == [True, False, False]
    advice = advise(report_from_json(report_to_json(report)))
    assert advice.parameters == ()
    assert advice.undetermined == ("2.weight",)
    assert advice.layers[0].reason == "no parameter: parametrized, computed from others"
    assert advice.adamw == ("4.weight",)
    scope = {"model": model}
    exec(emit_torch(advice), scope)
    stepped = [id(p) for group in scope["optimizer"].param_groups for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(stepped) == sorted(id(p) for p in model.parameters())


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


def test_an_advice_cannot_contradict_itself() -> None:
    layer = advise(mixed_report()).layers[0]
    assert layer.treatment is Treatment.SPECTRAL
    with pytest.raises(ValueError, match="a spectral step needs an exponent, any other has none"):
        replace(layer, beta=Missing("undetermined"))
    with pytest.raises(ValueError, match="a spectral step needs an exponent, any other has none"):
        replace(layer, treatment=Treatment.ADAMW)


def test_the_optimizer_takes_exactly_the_step_that_was_rated_and_damps_it_once() -> None:
    yaml = pytest.importorskip("yaml")
    row = held_out_layer("weight", 0.8)
    advice = advise(make_report((row,)))
    (layer,) = advice.layers
    assert isinstance(layer.beta, float)
    sigma, norm = np.asarray(row.measurement.sigma), schatten4(np.asarray(row.measurement.sigma))
    relative, _ = find_damping([row], layer.beta, 1.0)
    rated = transfer(sigma / norm, layer.beta, relative)  # what find_damping compared
    recommended = transfer(sigma, layer.beta, layer.damping)  # what the efficiencies are of
    assert rated / rated[0] == pytest.approx(recommended / recommended[0], rel=1e-12)
    for free in (True, False):
        model = nn.Linear(24, 20, bias=False, dtype=torch.float64)
        left, right = (torch.linalg.qr(torch.randn(n, 20, dtype=torch.float64))[0] for n in (20, 24))
        before, model.weight.grad = model.weight.detach().clone(), (left * torch.from_numpy(sigma)) @ right.T
        groups = parameter_groups(model, yaml.safe_load(emit_yaml(advice)), scale_free=free)
        SpectralNewton(groups, lr=1.0, momentum=0.0).step()
        taken = (left.T @ (before - model.weight.detach()) @ right).diagonal().numpy()
        assert taken / taken[0] == pytest.approx(rated / rated[0], rel=5e-3)  # a file has three digits of damping
