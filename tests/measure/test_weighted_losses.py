"""Losses that are no mean over samples: measured as the loss of the whole batch, by one double backprop of it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spectrascope
from spectrascope.errors import DataError, UnsupportedModelError
from spectrascope.losses import make_loss
from spectrascope.measure.signal import deal_samples
from spectrascope.numerics.signal import draw_signs
from spectrascope.records.report import ProbeOptions
from spectrascope.workload import TensorSource
from tests.support import oracles

N, T, C = 48, 6, 4
FOLDS = ProbeOptions().folds
GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 9, (N, T), generator=GENERATOR)
LENGTHS = torch.arange(N).mul(5).remainder(T - 1) + 2
TAGS = torch.randint(0, C, (N, T), generator=GENERATOR).where(torch.arange(T) < LENGTHS[:, None], -100)
ROWS = torch.randn(N, 5, generator=GENERATOR, dtype=torch.float64)
KINDS = torch.randint(0, C, (N,), generator=GENERATOR).sort().values
SOME = KINDS.where(torch.arange(N) % 3 > 0, -100)
VOID = KINDS.where(torch.arange(N) % 3 > 0, 255)
W = torch.tensor([0.2, 3.0, 1.0, 0.6], dtype=torch.float64)


class Tagger(nn.Module):
    """Scores (b, t, C), or (b, C, t) as torch's own losses want them."""

    def __init__(self, classes: int, act: nn.Module, *, last: bool) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(9, 5), nn.Linear(5, 6), nn.Linear(6, classes)
        self.act, self.last = act, last

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores = self.head(self.act(self.inner(self.table(ids))))
        return scores if self.last else scores.movedim(-1, 1)


def rows(act: nn.Module, *more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), act, nn.Linear(7, C), *more)


def cross_entropy_of_flat(scores: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(scores.flatten(0, 1), tags.flatten())


def shifted(scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return cross_entropy_of_flat(scores[:, :-1], ids[:, 1:])


PADDED = IDS.where(torch.arange(T) < LENGTHS[:, None], -100)
ONE_HOT = F.one_hot(KINDS, C).double()
sum_of = partial(F.cross_entropy, reduction="sum")
CASES = {
    "tags": (lambda act: Tagger(C, act, last=False), IDS, TAGS, nn.CrossEntropyLoss(), None),
    "tags, named": (lambda act: Tagger(C, act, last=True), IDS, TAGS, "cross-entropy", cross_entropy_of_flat),
    "tags, class weights, sum": (
        lambda act: Tagger(C, act, last=False), IDS, TAGS, nn.CrossEntropyLoss(weight=W, reduction="sum"), None,
    ),
    "causal-lm": (lambda act: Tagger(9, act, last=True), IDS, PADDED, "causal-lm", shifted),
    "masked-lm": (lambda act: Tagger(9, act, last=True), IDS, PADDED, "masked-lm", cross_entropy_of_flat),
    "function": (lambda act: Tagger(C, act, last=False), IDS, TAGS, F.cross_entropy, None),
    "rows without label": (rows, ROWS, SOME, nn.CrossEntropyLoss(label_smoothing=0.2), None),
    "void label": (rows, ROWS, VOID, nn.CrossEntropyLoss(weight=W, ignore_index=255, label_smoothing=0.2), None),
    "partial": (rows, ROWS, SOME, partial(F.cross_entropy, weight=W), None),
    "nll": (lambda act: rows(act, nn.LogSoftmax(1)), ROWS, SOME, nn.NLLLoss(weight=W), None),
    "nll function": (lambda act: rows(act, nn.LogSoftmax(1)), ROWS, SOME, F.nll_loss, None),
    "sum": (rows, ROWS, KINDS, nn.CrossEntropyLoss(reduction="sum"), None),
    "sum of some": (rows, ROWS, SOME, sum_of, None),
    "sum of squares": (rows, ROWS, ONE_HOT, nn.MSELoss(reduction="sum"), None),
    "sum of several labels": (rows, ROWS, ONE_HOT, nn.BCEWithLogitsLoss(pos_weight=W, reduction="sum"), None),
    "sum of probabilities": (rows, ROWS, ONE_HOT, nn.CrossEntropyLoss(weight=W, reduction="sum"), None),
}  # fmt: skip


def _truth(net, loss, weight):
    gradient = torch.autograd.grad(loss(), weight)[0]
    sigma, left, right, _ = oracles.svd_directions(gradient, 2, 2**-52)
    along = [torch.outer(torch.from_numpy(left[:, i]), torch.from_numpy(right[:, i])) for i in range(len(sigma))]
    (matrix,) = oracles.curvature_of_weights(loss, [weight], [along])
    return sigma[:2], matrix.diagonal(), along


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Tanh()], ids=["relu", "tanh"])
@pytest.mark.parametrize("case", CASES)
def test_loss_sigma_and_h_are_those_of_the_whole_batch(case, act):
    make, x, y, loss, same = CASES[case]
    torch.manual_seed(0)
    net = make(act).double()
    users = same or loss
    for engine in ("auto", "double-backprop"):
        report = spectrascope.probe(net, (x, y), loss, top_k=2, curvature_samples="all", engine=engine)
        assert report.provenance.loss == pytest.approx(users(net(x), y).item(), rel=1e-12)
        for layer in report.layers:
            if layer.info.name == "table.weight":
                continue
            sigma, h, _ = _truth(net, lambda: users(net(x), y), net.get_parameter(layer.info.name))
            found = torch.tensor(layer.measurement.h, dtype=torch.float64)
            assert layer.measurement.sigma == pytest.approx(sigma[: len(found)], rel=1e-9)
            assert found == pytest.approx(h[: len(found)], abs=1e-9 * float(h.abs().max()))
            assert layer.measurement.residual < 1e-6 if isinstance(layer.measurement.residual, float) else True


@pytest.mark.parametrize("case", ["tags", "rows without label", "tags, class weights, sum"])
def test_groups_count_by_samples_and_samples_by_weight(case):
    make, x, y, loss, _ = CASES[case]
    torch.manual_seed(0)
    net = make(nn.ReLU()).double()
    whole = nn.CrossEntropyLoss(loss.weight, label_smoothing=loss.label_smoothing, reduction="sum")
    report = spectrascope.probe(net, (x, y), loss, top_k=2, curvature_samples="all", groups=8)
    deal = deal_samples(TensorSource(x, y), groups=8, folds=FOLDS, curvature_samples=N, seed=0)
    weights = torch.ones(C).double() if loss.weight is None else loss.weight
    divisor = 1.0 if loss.reduction == "sum" else float(weights[y[y >= 0]].sum())
    parts = [deal.source.fetch(a, b) for a, b in zip(deal.borders, deal.borders[1:], strict=False)]
    for layer in report.layers:
        if layer.info.name == "table.weight":
            continue
        weight, found = net.get_parameter(layer.info.name), layer.measurement
        _, _, along = _truth(net, lambda: whole(net(x), y), weight)
        gradients = []
        for g, (inputs, labels) in enumerate(parts):

            def share(inputs=inputs, labels=labels):  # of the loss, as if the group were the whole batch
                return whole(net(inputs), labels) / divisor * N / len(labels)

            gradients.append(torch.autograd.grad(share(), weight)[0])
            slopes = [float((gradients[-1] * d).sum()) for d in along]
            (matrix,) = oracles.curvature_of_weights(share, [weight], [along])
            assert found.group_sigma[g] == pytest.approx(slopes, rel=1e-8, abs=1e-10)
            assert found.group_h[g] == pytest.approx(matrix.diagonal(), abs=1e-9 * float(matrix.abs().max()))
        first = deal.parts[0].groups
        others = sum(g * len(parts[i][1]) for i, g in enumerate(gradients) if i not in first)
        left, _, right = torch.linalg.svd(others, full_matrices=False)
        slope = [float(left[:, 0] @ gradients[g] @ right[0]) for g in first]
        assert [layer.held_out.group_slopes[g][0] for g in first] == pytest.approx(slope, rel=1e-8)
        draws = torch.from_numpy(draw_signs(8, 20, 0)) / 8
        noise = torch.linalg.matrix_norm(torch.einsum("dg,gmn->dmn", draws, torch.stack(gradients)), 2)
        assert layer.null.sigma_1 == pytest.approx(noise.tolist(), rel=1e-8)


@pytest.mark.parametrize("case", ["rows without label", "void label", "sum", "sum of some"])
@pytest.mark.parametrize("fisher", ["ggn", "mc", "empirical"])
def test_factors_weigh_samples_as_the_loss_does(case, fisher):
    make, x, y, loss, _ = CASES[case]
    torch.manual_seed(0)
    net = make(nn.ReLU()).double()
    report = spectrascope.decompose(net, (x, y), loss, top_k=2, fisher=fisher, draws=2000 if fisher == "mc" else 8)
    for layer in report.layers:
        found = layer.decomposition.factors.h_gn
        if fisher == "ggn":
            assert found == pytest.approx(layer.measurement.h, rel=1e-8)
        else:
            ratio = [a / b for a, b in zip(found, layer.measurement.h, strict=True)]
            assert all(0.05 < r < 20 for r in ratio)  # of the loss's own scale


def test_an_estimate_weighs_tokens_too():
    make, x, y, loss, _ = CASES["tags"]
    torch.manual_seed(0)
    net = make(nn.ReLU()).double()
    exact = spectrascope.probe(net, (x, y), loss, top_k=2, curvature_samples="all")
    for loss_fn, factor in ((loss, 1.0), (sum_of, float((y >= 0).sum()))):
        rough = spectrascope.probe(
            net, (x, y), loss_fn, top_k=2, curvature_samples="all", engine="gauss-newton-sketch", micro_batch=4
        )
        for a, b in zip(exact.layers, rough.layers, strict=True):
            if a.info.name == "head.weight":
                errors = [factor * p - q for p, q in zip(a.measurement.h, b.measurement.h, strict=True)]
                assert all(abs(e) < 4 * s for e, s in zip(errors, b.measurement.h_stderr, strict=True))


def uneven(scores, tags):
    return F.cross_entropy(scores, tags) * 1.0


def test_a_loss_that_weighs_is_told_wherever_in_the_batch_it_does():
    """Five samples of 1 000 with fewer labels, far from the front and from any even spread."""
    torch.manual_seed(0)
    net = Tagger(C, nn.Tanh(), last=False)
    ids, tags = torch.randint(0, 9, (1000, T)), torch.randint(0, C, (1000, T))
    tags[613:618, 3:] = -100
    with pytest.raises(UnsupportedModelError, match=r"samples with more or fewer labels"):
        spectrascope.probe(net, (ids, tags), uneven, layers=["head.weight"])
    spectrascope.probe(net, (ids[:600], tags[:600]), uneven, layers=["head.weight"], top_k=1, self_check=False)


def test_causes_of_a_loss_of_the_users_own():
    torch.manual_seed(0)
    net = rows(nn.Tanh()).double()
    with pytest.raises(UnsupportedModelError, match="it is a sum"):
        spectrascope.probe(net, (ROWS, KINDS), lambda o, y: F.cross_entropy(o, y, reduction="sum"))
    with pytest.raises(UnsupportedModelError, match="it weighs samples by what else is in the batch"):
        spectrascope.probe(net, (ROWS, SOME), lambda o, y: F.cross_entropy(o, y) * 1.0)
    with pytest.raises(DataError, match="all labels of the batch are -100"):
        spectrascope.probe(net, (ROWS, torch.full((N,), -100)), make_loss("cross-entropy"))


def test_the_report_says_what_the_loss_divides_by():
    net = rows(nn.Tanh()).double()

    def named(loss, y=KINDS):
        return spectrascope.probe(net, (ROWS, y), loss, top_k=1).provenance.loss_name

    assert named(nn.CrossEntropyLoss()) == "CrossEntropyLoss"
    assert named(nn.CrossEntropyLoss(), SOME) == "CrossEntropyLoss (mean over the batch's labels)"
    assert named(partial(F.cross_entropy, weight=W, reduction="sum")) == (
        "cross_entropy (class weights) (sum over the batch)"
    )
