"""One table says what is straight: backward rules and tangent rules follow it, and each other, on every operation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectrascope.curvature import claims
from spectrascope.curvature.choose import choose_engines
from spectrascope.curvature.claims import Kind, bare_name, data_positions, is_claimed, read_claim
from spectrascope.curvature.gauss_newton import GaussNewton
from spectrascope.curvature.recorder import Recording
from spectrascope.curvature.rules import _RULES, find_rule
from spectrascope.curvature.tangent.engine import Tangents
from spectrascope.curvature.tangent.linear import LINEAR_RULES
from spectrascope.curvature.tangent.normalise import NORMALISING_RULES
from spectrascope.curvature.tangent.pointwise import POINTWISE_RULES
from spectrascope.curvature.tangent.products import PRODUCT_RULES
from tests.support.cases import Net, make_workload, vec
from tests.support.measure_helpers import assert_close, hold, layers_of, targets_of

aten = torch.ops.aten
KNOWN_TO_TANGENTS = {bare_name(n) for t in (LINEAR_RULES, POINTWISE_RULES, PRODUCT_RULES) for n in t}
CLAIMED = (
    claims._FIRST | claims.MAPPED | set(claims._SEVERAL) | claims._PIECEWISE | claims._PRODUCTS | {"div"}
) - claims._ROUTING


def _ramp(first: float, last: float, n: int) -> Tensor:
    return torch.linspace(first, last, n, dtype=torch.float64)


# On h (b, 12), or an image of it (b, 3, 2, 2) or (b, 2, 6) or (b, 1, 12): one call per operation both kinds know.
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda h: h.view(-1, 12),
    "_unsafe_view": lambda h: aten._unsafe_view(h, [len(h), 12]),
    "reshape": lambda h: h.t().reshape(12, -1).t(),
    "squeeze": lambda h: h[:, None].squeeze(1),
    "unsqueeze": lambda h: h.unsqueeze(1),
    "clone": lambda h: h.clone(),
    "alias": aten.alias,
    "lift_fresh": aten.lift_fresh,
    "_to_copy": lambda h: h.to(torch.float64, copy=True),
    "t": lambda h: h.t().t(),
    "transpose": lambda h: h.view(-1, 3, 4).transpose(1, 2),
    "permute": lambda h: h.view(-1, 3, 4).permute(0, 2, 1),
    "expand": lambda h: h[:, None].expand(-1, 2, -1),
    "slice": lambda h: h[:, 2:11:2],
    "select": lambda h: h.view(-1, 3, 4).select(1, 2),
    "split": lambda h: torch.split(h, 5, 1)[1],
    "split_with_sizes": lambda h: torch.split(h, [5, 7], 1)[1],
    "unsafe_split": lambda h: torch.unsafe_split(h, 5, 1)[1],
    "unsafe_split_with_sizes": lambda h: torch.unsafe_split_with_sizes(h, [5, 7], 1)[1],
    "unbind": lambda h: h.view(-1, 3, 4).unbind(1)[2],
    "mean": lambda h: h.view(-1, 3, 4).mean(1),
    "sum": lambda h: h.view(-1, 3, 4).sum(1),
    "index_select": lambda h: h.index_select(1, torch.tensor([3, 3, 5])),
    "gather": lambda h: h.gather(1, torch.tensor([[3, 3, 5]]).expand(len(h), -1)),
    "sort": lambda h: h.sort(1).values,
    "topk": lambda h: h.topk(3, 1).values,
    "max": lambda h: h.view(-1, 3, 4).max(1).values,
    "min": lambda h: h.view(-1, 3, 4).min(1).values,
    "median": lambda h: h.view(-1, 3, 4).median(1).values,
    "mode": lambda h: h.view(-1, 3, 4).mode(1).values,
    "cummax": lambda h: h.cummax(1).values,
    "cummin": lambda h: h.cummin(1).values,
    "masked_fill": lambda h: h.masked_fill(torch.arange(12) % 3 == 0, 0.5),
    "max_pool2d_with_indices": lambda h: F.max_pool2d(h.view(-1, 1, 3, 4), 2, 1),
    "max_pool3d_with_indices": lambda h: F.max_pool3d(h.view(-1, 1, 1, 3, 4), (1, 2, 2)),
    "adaptive_max_pool2d": lambda h: F.adaptive_max_pool2d(h.view(-1, 1, 3, 4), 2),
    "adaptive_max_pool3d": lambda h: F.adaptive_max_pool3d(h.view(-1, 1, 1, 3, 4), (1, 2, 2)),
    "constant_pad_nd": lambda h: F.pad(h, (1, 2)),
    "prelu": lambda h: F.prelu(h, _ramp(0.3, 0.3, 1)),
    "_prelu_kernel": lambda h: aten._prelu_kernel(h, _ramp(0.3, 0.3, 12)),
    "repeat": lambda h: h.repeat(1, 2),
    "flip": lambda h: h.flip(1),
    "roll": lambda h: h.roll(2, 1),
    "diagonal": lambda h: h.view(-1, 3, 4).diagonal(0, 1, 2),
    "reflection_pad1d": lambda h: F.pad(h[:, None], (1, 2), "reflect"),
    "reflection_pad2d": lambda h: F.pad(h.view(-1, 1, 3, 4), (1, 2, 1, 0), "reflect"),
    "reflection_pad3d": lambda h: F.pad(h.view(-1, 1, 2, 2, 3), (1, 1, 1, 0, 0, 1), "reflect"),
    "replication_pad1d": lambda h: F.pad(h[:, None], (1, 2), "replicate"),
    "replication_pad2d": lambda h: F.pad(h.view(-1, 1, 3, 4), (1, 2, 1, 0), "replicate"),
    "replication_pad3d": lambda h: F.pad(h.view(-1, 1, 2, 2, 3), (1, 1, 1, 0, 0, 1), "replicate"),
    "pixel_shuffle": lambda h: F.pixel_shuffle(h.view(-1, 4, 1, 3), 2),
    "pixel_unshuffle": lambda h: F.pixel_unshuffle(h.view(-1, 1, 2, 6), 2),
    "channel_shuffle": lambda h: F.channel_shuffle(h.view(-1, 4, 1, 3), 2),
    "im2col": lambda h: F.unfold(h.view(-1, 1, 3, 4), 2),
    "col2im": lambda h: F.fold(h.view(-1, 4, 3), (2, 4), 2),
    "unfold": lambda h: h.unfold(1, 4, 2),
    "cumsum": lambda h: h.cumsum(1),
    "tril": lambda h: h.view(-1, 3, 4).tril(),
    "triu": lambda h: h.view(-1, 3, 4).triu(),
    "avg_pool1d": lambda h: F.avg_pool1d(h[:, None], 3),
    "avg_pool2d": lambda h: F.avg_pool2d(h.view(-1, 1, 3, 4), 2, 1),
    "avg_pool3d": lambda h: F.avg_pool3d(h.view(-1, 1, 2, 2, 3), 2, 1),
    "_adaptive_avg_pool2d": lambda h: F.adaptive_avg_pool2d(h.view(-1, 1, 3, 4), 2),
    "_adaptive_avg_pool3d": lambda h: F.adaptive_avg_pool3d(h.view(-1, 1, 2, 2, 3), (1, 2, 2)),
    "upsample_nearest1d": lambda h: F.interpolate(h[:, None], 20),
    "upsample_nearest2d": lambda h: F.interpolate(h.view(-1, 1, 3, 4), (5, 6)),
    "upsample_nearest3d": lambda h: F.interpolate(h.view(-1, 1, 2, 2, 3), (3, 2, 4)),
    "_upsample_nearest_exact1d": lambda h: F.interpolate(h[:, None], 20, mode="nearest-exact"),
    "_upsample_nearest_exact2d": lambda h: F.interpolate(h.view(-1, 1, 3, 4), (5, 6), mode="nearest-exact"),
    "upsample_linear1d": lambda h: F.interpolate(h[:, None], 20, mode="linear"),
    "upsample_bilinear2d": lambda h: F.interpolate(h.view(-1, 1, 3, 4), (5, 6), mode="bilinear"),
    "upsample_bicubic2d": lambda h: F.interpolate(h.view(-1, 1, 3, 4), (5, 6), mode="bicubic"),
    "upsample_trilinear3d": lambda h: F.interpolate(h.view(-1, 1, 2, 2, 3), (3, 2, 4), mode="trilinear"),
    "_upsample_bilinear2d_aa": lambda h: F.interpolate(h.view(-1, 1, 3, 4), (2, 3), mode="bilinear", antialias=True),
    "_upsample_bicubic2d_aa": lambda h: F.interpolate(h.view(-1, 1, 3, 4), (2, 3), mode="bicubic", antialias=True),
    "diag_embed": lambda h: h.diag_embed(),
    "rot90": lambda h: h.view(-1, 3, 4).rot90(1, (1, 2)),
    "grid_sampler_2d": lambda h: F.grid_sample(
        h.view(-1, 1, 3, 4), _ramp(-1, 1, 8).view(1, 2, 2, 2).expand(len(h), -1, -1, -1), align_corners=False
    ),
    "affine_grid_generator": lambda h: F.affine_grid(h[:, :6].view(-1, 2, 3), (len(h), 1, 2, 2), align_corners=False),
    "stack": lambda h: torch.stack([h, 2 * h], 1),
    "cat": lambda h: torch.cat([h, 2 * h], 1),
    "select_scatter": lambda h: h.select_scatter(2 * h[:, 0], 1, 3),
    "slice_scatter": lambda h: h.slice_scatter(2 * h[:, :2], 1, 3, 5),
    "diagonal_scatter": lambda h: h.view(-1, 3, 4).diagonal_scatter(2 * h[:, :3], 0, 1, 2),
    "add": lambda h: h.add(h.flip(1), alpha=0.5),
    "sub": lambda h: h.sub(h.flip(1), alpha=0.5),
    "rsub": lambda h: torch.rsub(h, h.flip(1), alpha=0.5),
    "neg": lambda h: -h,
    "relu": lambda h: h.relu(),
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "leaky_relu": F.leaky_relu,
    "threshold": lambda h: F.threshold(h, 0.2, 0.1),
    "clamp": lambda h: h.clamp(-0.5, 0.5),
    "clamp_min": lambda h: h.clamp_min(-0.2),
    "clamp_max": lambda h: h.clamp_max(0.2),
    "abs": lambda h: h.abs(),
    "maximum": lambda h: torch.maximum(h, h.flip(1)),
    "minimum": lambda h: torch.minimum(h, h.flip(1)),
    "fmax": lambda h: torch.fmax(h, h.flip(1)),
    "fmin": lambda h: torch.fmin(h, h.flip(1)),
    "softshrink": lambda h: F.softshrink(h, 0.2),
    "hardshrink": lambda h: F.hardshrink(h, 0.2),
    "nan_to_num": lambda h: h.nan_to_num(),
    "mul": lambda h: h * _ramp(0, 1, 12),
    "mm": lambda h: h @ _ramp(0, 1, 36).view(12, 3),
    "addmm": lambda h: torch.addmm(_ramp(0, 1, 3), h, _ramp(0, 1, 36).view(12, 3), beta=0.5, alpha=2),
    "bmm": lambda h: h.view(-1, 3, 4) @ _ramp(0, 1, 8).view(1, 4, 2).expand(len(h), -1, -1),
    "baddbmm": lambda h: torch.baddbmm(
        _ramp(0, 1, 2), h.view(-1, 3, 4), _ramp(0, 1, 8).view(1, 4, 2).expand(len(h), -1, -1)
    ),
    "convolution": lambda h: F.conv1d(h[:, None], _ramp(0, 1, 6).view(2, 1, 3)),
    "div": lambda h: h / _ramp(1, 2, 12),
}
# Composite for autograd, without an own backward, or not of samples: never seen downstream of a weight and upstream of
# one row of scores per sample.
NEVER_SEEN = {
    "native_channel_shuffle",
    "to",
    "flatten",
    "unflatten",
    "contiguous",
    "embedding",
    "trace",
    "nll_loss_forward",
    "nll_loss2d_forward",
}


def test_every_operation_that_both_kinds_know_is_called_here() -> None:
    assert {n for n in KNOWN_TO_TANGENTS if is_claimed(f"aten.{n}")} - NEVER_SEEN - set(claims.BATCH_NORMS) == set(
        CALLS
    )


def _net(call: Callable[[Tensor], Tensor]) -> nn.Module:
    def run(s, x):
        h = call(s.a(x))
        return s.b(F.relu(h.reshape(len(x), -1)))

    width = call(torch.randn(3, 12, dtype=torch.float64)).reshape(3, -1).shape[1]
    return Net(run, a=nn.Linear(6, 12), b=nn.Linear(width, 4))


@pytest.mark.parametrize("name", CALLS)
def test_both_kinds_of_rules_agree(name: str) -> None:
    """The choice takes it for piecewise linear, and the curvature upstream is the same by both engines."""

    workload = make_workload(vec(lambda: _net(CALLS[name])))
    layers = layers_of(workload)
    with hold(workload, layers):
        choices = choose_engines(workload, layers)
        assert all("piecewise-linear tail" in c.reason for c in choices), choices
        targets = targets_of(workload, layers)
        for fast, slow in zip(
            GaussNewton(3).measure(workload, targets, groups=2),
            Tangents(3).measure(workload, targets, groups=2),
            strict=True,
        ):
            assert_close(fast.matrix, slow.matrix, float(slow.h.abs().max()), 1e-10, name)


def test_rules_are_where_the_claims_are() -> None:
    assert all(is_claimed(name) for name in (*_RULES, *PRODUCT_RULES))
    assert {bare_name(name) for name in LINEAR_RULES if not is_claimed(name)} == claims._ROUTING
    assert all(find_rule(f"aten.{name}") is not None for name in CLAIMED)
    assert not any(is_claimed(n) for n in NORMALISING_RULES if bare_name(n) not in claims.BATCH_NORMS)
    for name in POINTWISE_RULES:
        kind = read_claim(name, (), {}, (0,), 1).kind
        assert (kind in (Kind.CURVED, Kind.JUMPING)) == (find_rule(name) is None), name


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda h: h / h.exp(), Kind.CURVED),
        (lambda h: h.div(2, rounding_mode="floor"), Kind.CURVED),
        (lambda h: torch.prelu(h, h[0, :1].clone()), Kind.CURVED),
        (lambda h: h.scatter(1, torch.zeros(3, 1, dtype=torch.int64), 2.0, reduce="multiply"), Kind.CURVED),
        (lambda h: torch.where(h > 0, h, -h), Kind.JUMPING),
        (lambda h: h[h[:, 0] > 0], Kind.JUMPING),
        (
            lambda h: F.grid_sample(torch.ones(3, 1, 2, 2).double(), h[:, :2].view(3, 1, 1, 2), align_corners=True),
            Kind.CURVED,
        ),
    ],
)
def test_what_depends_on_the_call(call: Callable[[Tensor], Tensor], kind: Kind) -> None:
    weight = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    with Recording([weight]) as recording:
        call(weight * 1.0)
    node = recording.nodes[-1]
    assert read_claim(node.name, node.args, node.kwargs, node.inputs, len(node.tensors())).kind is kind


def test_data_positions() -> None:
    assert data_positions("aten.cat", 3) == (0, 1, 2)
    assert data_positions("aten.index_put_", 4) == (0, 3)
    assert data_positions("aten.relu", 1) == (0,)
