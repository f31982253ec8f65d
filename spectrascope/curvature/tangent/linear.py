"""Operations that are linear in everything that can carry a tangent: shapes, sums, look-ups, fixed normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spectrascope.curvature.claims import BATCH_NORMS, MAPPED, batch_norm_eps, data_positions
from spectrascope.curvature.operations import functional, with_tensors
from spectrascope.curvature.recorder import Node
from spectrascope.curvature.tangent.rule import LinearStep, Pushed, Step, TangentRule, Tangents, argument
from spectrascope.curvature.tangent.values import RankOne, Stacked, Tangent, Zero, dense

__all__ = ["LINEAR_RULES"]

Map = Callable[[Tangent], "Tangent | Zero | Sequence[Tangent]"]

LINEAR_RULES: dict[str, TangentRule] = {}


def _register(names: str, make: Callable[[Node], Map]) -> None:
    """Operations of one data tensor, the first argument, which alone carries tangents (``claims.py``)."""

    def step(node: Node, adjoints: Sequence[Tensor | None]) -> Step:
        apply = make(node)

        def push(z: Tangents) -> Pushed:
            assert z[0] is not None
            out = apply(z[0])
            return out if isinstance(out, (list, tuple)) else (out,)

        return LinearStep(push)

    for name in names.split():
        LINEAR_RULES[f"aten.{name}"] = TangentRule(step)


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.outs[0].shape)


def _axis(node: Node, position: int = 1, name: str = "dim", default: int = 0) -> int:
    """The axis an operation works on, counted behind the direction axis."""
    dims = max(node.tensors()[0].dim(), 1)
    return int(argument(node, position, name, default)) % dims + 1


# -- shapes -----------------------------------------------------------------------------------------------------


def _reshape(node: Node) -> Map:
    shape = _shape(node)
    return lambda z: dense(z).reshape(-1, *shape)


def _same(node: Node) -> Map:
    return lambda z: z


def _cast(node: Node) -> Map:
    # The format or the device of what comes out: a network may lie on several devices.
    before, after = node.tensors()[0], node.outs[0]
    same = before.dtype == after.dtype and before.device == after.device
    dtype, device = after.dtype, after.device
    return lambda z: z if same else dense(z).to(device, dtype)


def _t(node: Node) -> Map:
    if node.tensors()[0].dim() < 2:
        return _same(node)
    return lambda z: z.t() if isinstance(z, RankOne) and len(z.shape) == 2 else dense(z).transpose(1, 2)


def _transpose(node: Node) -> Map:
    first, second = _axis(node, 1, "dim0"), _axis(node, 2, "dim1")

    def apply(z: Tangent) -> Tangent:
        if isinstance(z, RankOne) and len(z.shape) == 2 and first != second:
            return z.t()
        return dense(z).transpose(first, second)

    return apply


def _permute(node: Node) -> Map:
    dims = node.args[1]
    order = (0, *(d % len(dims) + 1 for d in dims))
    return lambda z: dense(z).permute(order)


def _expand(node: Node) -> Map:
    shape = _shape(node)
    source = tuple(node.tensors()[0].shape)
    lead = (1,) * (len(shape) - len(source))
    return lambda z: (x := dense(z)).reshape(x.shape[0], *lead, *source).expand(-1, *shape)


def _slice(node: Node) -> Map:
    axis = _axis(node)
    start, end, step = argument(node, 2, "start", None), argument(node, 3, "end", None), argument(node, 4, "step", 1)
    return lambda z: torch.ops.aten.slice(dense(z), axis, start, end, step)


def _select(node: Node) -> Map:
    axis, index = _axis(node), int(argument(node, 2, "index", 0))
    size = node.tensors()[0].shape[axis - 1]

    def apply(z: Tangent) -> Tangent | Zero:
        if isinstance(z, Stacked) and axis == 1:
            return z.matrix if index % size == z.index else Zero()
        return dense(z).select(axis, index)

    return apply


def _split(node: Node) -> Map:
    axis, sizes = _axis(node, 2), node.args[1]
    return lambda z: torch.split(dense(z), sizes, axis)


def _unbind(node: Node) -> Map:
    axis = _axis(node)
    return lambda z: dense(z).unbind(axis)


def _mean(divide: bool) -> Callable[[Node], Map]:
    def make(node: Node) -> Map:
        source = node.tensors()[0]
        dims = argument(node, 1, "dim", None)
        dims = [dims] if isinstance(dims, int) else dims
        axes = tuple(d % source.dim() + 1 for d in (dims or range(source.dim())))
        keep = bool(argument(node, 2, "keepdim", False))
        dtype = node.outs[0].dtype
        if not axes:
            return _cast(node)
        if divide:
            return lambda z: dense(z).to(dtype).mean(axes, keepdim=keep)
        return lambda z: dense(z).to(dtype).sum(axes, keepdim=keep)

    return make


_register("view _unsafe_view reshape squeeze unsqueeze flatten unflatten", _reshape)
_register("clone contiguous alias lift_fresh", _same)
_register("_to_copy to", _cast)
_register("t", _t)
_register("transpose", _transpose)
_register("permute", _permute)
_register("expand", _expand)
_register("slice", _slice)
_register("select", _select)
_register("split split_with_sizes unsafe_split unsafe_split_with_sizes", _split)
_register("unbind", _unbind)
_register("mean", _mean(True))
_register("sum", _mean(False))


# -- look-ups ---------------------------------------------------------------------------------------------------


def _embedding(node: Node) -> Map:
    indices = node.tensors()[1]

    def apply(z: Tangent) -> Tangent:
        if isinstance(z, RankOne):
            rows = z.left[indices.reshape(-1)].T.contiguous()  # (K, N)
            return (rows[:, :, None] * z.right.T[:, None, :]).reshape(-1, *node.outs[0].shape)
        return dense(z)[:, indices]

    return apply


def _index_select(node: Node) -> Map:
    axis, index = _axis(node), node.tensors()[1]
    return lambda z: dense(z).index_select(axis, index)


def _gather(node: Node) -> Map:
    axis, index = _axis(node), node.tensors()[1]

    def apply(z: Tangent) -> Tangent:
        x = dense(z)
        return x.gather(axis, index.unsqueeze(0).expand(x.shape[0], *index.shape))

    return apply


def _index(node: Node) -> Map:
    indices = node.args[1]
    whole = (slice(None), *(slice(None) if i is None else i for i in indices))
    return lambda z: dense(z)[whole]


def _at_maxima(axes: int) -> Callable[[Node], Map]:
    """Pooling by maxima: the tangent at each maximum, ``indices`` counting within the last ``axes`` axes."""

    def make(node: Node) -> Map:
        indices = node.outs[1].flatten(-axes)

        def apply(z: Tangent) -> Sequence[Tangent]:
            x = dense(z).flatten(-axes)
            picked = x.gather(-1, indices.unsqueeze(0).expand(x.shape[0], *indices.shape))
            return (picked.reshape(x.shape[0], *node.outs[0].shape),)

        return apply

    return make


def _along(position: int) -> Callable[[Node], Map]:
    """Sorted, largest or smallest entries along an axis: the tangents where they came from."""

    def make(node: Node) -> Map:
        axis = _axis(node, position, "dim", -1)
        keep = node.outs[0].dim() == node.tensors()[0].dim()
        indices = node.outs[1] if keep else node.outs[1].unsqueeze(axis - 1)

        def apply(z: Tangent) -> Sequence[Tangent]:
            x = dense(z)
            picked = x.gather(axis, indices.unsqueeze(0).expand(x.shape[0], *indices.shape))
            return (picked if keep else picked.squeeze(axis),)

        return apply

    return make


def _masked_fill(node: Node) -> Map:
    mask = node.tensors()[1]
    return lambda z: dense(z).masked_fill(mask, 0)


def _pad(node: Node) -> Map:
    return lambda z: torch.constant_pad_nd(dense(z), node.args[1], 0)


_register("embedding", _embedding)
_register("index_select", _index_select)
_register("gather", _gather)
_register("index", _index)
_register("max_pool2d_with_indices adaptive_max_pool2d", _at_maxima(2))
_register("max_pool3d_with_indices adaptive_max_pool3d", _at_maxima(3))
_register("sort", _along(1))
_register("topk", _along(2))
_register("max min median mode cummax cummin", _along(1))
_register("masked_fill", _masked_fill)
_register("constant_pad_nd", _pad)


# -- fixed statistics, losses that are linear in log-probabilities ----------------------------------------------


def _batch_norm(node: Node) -> Map:
    x, gamma, variance = node.args[0], node.args[1], node.args[4]
    scale = torch.rsqrt(variance + batch_norm_eps(node.args))
    scale = scale if gamma is None else scale * gamma
    scale = scale.detach().view(-1, *(1,) * (x.dim() - 2))
    return lambda z: (dense(z) * scale,)


_register(" ".join(BATCH_NORMS), _batch_norm)


# -- several data tensors, or none of the above: the operation itself, mapped over directions --------------------


def _mapped(node: Node, adjoints: Sequence[Tensor | None]) -> Step:
    """The operation itself, mapped over directions."""
    tensors = node.tensors()
    func = functional(node.name)

    def push(z: Tangents) -> Pushed:
        found = {p: dense(t) for p, t in zip(node.inputs, z, strict=True) if t is not None}
        some = next(iter(found.values()))
        # Data without a tangent of this weight counts as zero, as in any linear map.
        still = {
            p: tensors[p].new_zeros(tensors[p].shape, dtype=some.dtype)
            for p in data_positions(node.name, len(tensors))
            if p < len(tensors) and p not in found and tensors[p].is_floating_point()
        }

        def one(*pushed: Tensor) -> Any:
            new = {**still, **dict(zip(found, pushed, strict=True))}
            args, kwargs = with_tensors(node.args, node.kwargs, new)
            return func(*args, **kwargs)

        out = torch.vmap(one)(*found.values())
        return tuple(out) if isinstance(out, (list, tuple)) else (out,)

    return LinearStep(push)


def _cat(node: Node, adjoints: Sequence[Tensor | None]) -> Step:
    tensors = node.tensors()
    real = [p for p, t in enumerate(tensors) if t.dim() > 1 or t.numel()]  # ``cat`` skips legacy empty tensors
    axis = int(argument(node, 1, "dim", 0)) % tensors[real[0]].dim() + 1

    def push(z: Tangents) -> Pushed:
        found = {p: dense(t) for p, t in zip(node.inputs, z, strict=True) if t is not None}
        some = next(iter(found.values()))
        parts = [found[p] if p in found else some.new_zeros(1).expand(some.shape[0], *tensors[p].shape) for p in real]
        return (torch.cat(parts, axis),)

    return LinearStep(push)


LINEAR_RULES.update({f"aten.{name}": TangentRule(_mapped) for name in MAPPED})
LINEAR_RULES["aten.cat"] = TangentRule(_cat)
