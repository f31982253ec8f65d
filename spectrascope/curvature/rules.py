"""How a batch of cotangents goes back through each operation that is straight, or a product.

Which those are is said in ``claims.py``. The rules here are for what deserves one of its own, by speed or by memory; of
every other operation claimed there autograd differentiates the single call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectrascope.curvature.claims import BATCH_NORMS, batch_norm_eps, is_claimed
from spectrascope.curvature.columns import BackwardRule, Columns, Grads, Saved, only
from spectrascope.curvature.replay import replay_rule

__all__ = ["find_rule"]

aten = torch.ops.aten


_RULES: dict[str, BackwardRule] = {}


def find_rule(name: str) -> BackwardRule | None:
    """The rule of an operation such as ``aten.relu_``, ``None`` if nothing is claimed of it."""
    rule = _RULES.get(name)
    return replay_rule(name) if rule is None and is_claimed(name) else rule


def _register(names: str, rule: BackwardRule) -> None:
    for name in names.split():
        _RULES[f"aten.{name}"] = rule


# -- convolution ------------------------------------------------------------------------------------------------


def _save_conv(args: Any, kwargs: Any, outs: Any, positions: Any) -> Saved:
    x, weight, _, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    return (
        weight,
        tuple(x.shape),
        (stride, padding, dilation, transposed, output_padding, groups),
        _is_channels_last(x),
    )


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _vjp_conv(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
    if not positions:
        return []
    weight, shape, conv, last = saved
    grad = only(grads)
    scale = grad.scale
    if scale is not None:
        axis = 1 if conv[3] else 0
        if conv[3] and conv[5] > 1:
            grad = Columns(grad.plain())
        else:
            view = [1] * weight.dim()
            view[axis] = -1
            weight = (weight * scale.view(view)).to(weight.dtype)  # statistics may have more digits
    flat = grad.tensor.flatten(0, 1)
    columns, batch = grad.tensor.shape[:2]
    # Only the shape and memory format of the input matter for its own gradient: untouched memory costs nothing.
    like = torch.empty((columns * batch, *shape[1:]), dtype=flat.dtype, device=flat.device)
    if last:
        like = torch.empty_like(like, memory_format=torch.channels_last)
        flat = flat.contiguous(memory_format=torch.channels_last)
    back = aten.convolution_backward(flat, like, weight, None, *conv[:5], conv[5], [True, False, False])[0]
    return [Columns(back.unflatten(0, (columns, batch)))]


def _refuse_conv(args: Any, kwargs: Any, positions: tuple[int, ...]) -> str | None:
    return "a convolution's filters are computed from the weight" if any(p > 0 for p in positions) else None


_register("convolution", BackwardRule(_save_conv, _vjp_conv, refuse=_refuse_conv))


# -- matrix products --------------------------------------------------------------------------------------------


def _save_addmm(args: Any, kwargs: Any, outs: Any, positions: Any) -> Saved:
    return args[1], args[2], kwargs.get("alpha", 1), kwargs.get("beta", 1), tuple(args[0].shape)


def _vjp_addmm(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
    left, right, alpha, beta, bias_shape = saved
    if not positions:
        return []
    grad = only(grads).plain()
    found: list[Columns | None] = []
    for position in positions:
        if position == 0:
            found.append(Columns(_sum_to(grad, bias_shape) * beta, owned=False))
        elif position == 1:
            found.append(Columns(torch.matmul(grad, right.t()) * alpha))
        else:
            found.append(Columns(torch.matmul(left.t(), grad) * alpha))
    return found


def _save_product(args: Any, kwargs: Any, outs: Any, positions: Any) -> Saved:
    return args[0], args[1]


def _vjp_matmul(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
    left, right = saved
    if not positions:
        return []
    grad = only(grads).plain()
    return [
        Columns(torch.matmul(grad, right.transpose(-1, -2)) if p == 0 else torch.matmul(left.transpose(-1, -2), grad))
        for p in positions
    ]


_register("addmm", BackwardRule(_save_addmm, _vjp_addmm))
_register("mm bmm", BackwardRule(_save_product, _vjp_matmul))


# -- elementwise ------------------------------------------------------------------------------------------------


def _sum_to(grad: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo broadcasting: sum columns (c, *out) down to (c, *shape)."""
    extra = grad.dim() - 1 - len(shape)
    if extra:
        grad = grad.sum(tuple(range(1, 1 + extra)))
    axes = tuple(i + 1 for i, n in enumerate(shape) if n == 1 and grad.shape[i + 1] != 1)
    return grad.sum(axes, keepdim=True) if axes else grad


def _save_add(args: Any, kwargs: Any, outs: Any, positions: Any) -> Saved:
    shapes = tuple(tuple(a.shape) for a in args[:2] if isinstance(a, Tensor))
    return shapes, float(kwargs.get("alpha", 1)), tuple(outs[0].shape)


def _vjp_add(sign: float) -> Callable[[Saved, Grads, tuple[int, ...]], list[Columns | None]]:
    def vjp(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
        shapes, alpha, out_shape = saved
        grad = only(grads)
        found: list[Columns | None] = []
        for position in positions:
            factor = sign * alpha if position == 1 else 1.0
            if shapes[position] == out_shape:
                part = Columns(grad.tensor, grad.scale, owned=False)
            else:
                part = Columns(_sum_to(grad.plain(), shapes[position]), owned=False)
            found.append(part if factor == 1.0 else Columns(part.tensor * factor, part.scale))
        return found

    return vjp


def _save_mul(args: Any, kwargs: Any, outs: Any, positions: Any) -> Saved:
    return _factors(args[0], args[1], positions)


def _factors(left: Any, right: Any, positions: tuple[int, ...]) -> tuple[Any, ...]:
    """Of two factors keep the values that the other's derivative needs, and otherwise only the shape."""
    needed = (1 in positions, 0 in positions)
    return tuple(
        f if keep or not isinstance(f, Tensor) else f.shape for f, keep in zip((left, right), needed, strict=True)
    )


def _shape_of(factor: Tensor | torch.Size) -> tuple[int, ...]:
    return tuple(factor.shape if isinstance(factor, Tensor) else factor)


def _vjp_mul(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
    factors = saved
    grad = only(grads).plain()
    return [Columns(_sum_to(grad * factors[1 - p], _shape_of(factors[p]))) for p in positions]


def _vjp_div(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
    numerator, denominator = saved
    return [Columns(_sum_to(only(grads).plain() / denominator, _shape_of(numerator))) for _ in positions]


_register("add add_", BackwardRule(_save_add, _vjp_add(1.0)))
_register("sub sub_", BackwardRule(_save_add, _vjp_add(-1.0)))
_register("mul mul_", BackwardRule(_save_mul, _vjp_mul, reads_target=True))
_register("div div_", BackwardRule(_save_mul, _vjp_div, reads_target=True))


def _save_out(args: Any, kwargs: Any, outs: Any, positions: Any) -> Saved:
    return (outs[0],)


def _vjp_relu(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
    (out,) = saved
    grad = only(grads)
    if grad.owned:  # in place: these passes are bound by memory traffic
        aten.threshold_backward.grad_input(grad.tensor, out.unsqueeze(0), 0, grad_input=grad.tensor)
        return [grad]
    return [Columns(aten.threshold_backward(grad.tensor, out.unsqueeze(0), 0), grad.scale)]


def _save_hardtanh(args: Any, kwargs: Any, outs: Any, positions: Any) -> Saved:
    low = args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)
    high = args[2] if len(args) > 2 else kwargs.get("max_val", 1.0)
    # Inside the bounds output = input, so the output alone tells where the slope is one.
    return outs[0], low, high


def _vjp_hardtanh(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
    out, low, high = saved
    grad = only(grads)
    return [Columns(grad.tensor * ((out > low) & (out < high)), grad.scale)]


def _save_leaky(args: Any, kwargs: Any, outs: Any, positions: Any) -> Saved:
    slope = args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)
    return outs[0], slope


def _vjp_leaky(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
    out, slope = saved
    grad = only(grads)
    return [Columns(torch.where(out > 0, grad.tensor, grad.tensor * slope), grad.scale)]


def _refuse_leaky(args: Any, kwargs: Any, positions: tuple[int, ...]) -> str | None:
    slope = args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)
    return None if slope >= 0 else "leaky_relu with a negative slope cannot be inverted from its output"


def _vjp_hardsigmoid(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
    (out,) = saved
    grad = only(grads)
    # torch's own backward takes a sixth in float32, of float64 too.
    return [Columns(grad.tensor * ((out > 0) & (out < 1)) / 6, grad.scale)]


_register("hardsigmoid hardsigmoid_", BackwardRule(_save_out, _vjp_hardsigmoid))
_register("relu relu_", BackwardRule(_save_out, _vjp_relu))
_register("hardtanh hardtanh_", BackwardRule(_save_hardtanh, _vjp_hardtanh))
_register("leaky_relu leaky_relu_", BackwardRule(_save_leaky, _vjp_leaky, refuse=_refuse_leaky))


# -- normalisation with fixed statistics ------------------------------------------------------------------------


def _save_batch_norm(args: Any, kwargs: Any, outs: Any, positions: Any) -> Saved:
    _, weight, _, _, variance = args[:5]
    scale = torch.rsqrt(variance + batch_norm_eps(args))
    return (scale if weight is None else scale * weight,)


def _vjp_channel_scale(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
    (scale,) = saved
    grad = only(grads)
    return [Columns(grad.tensor, scale if grad.scale is None else scale * grad.scale, owned=grad.owned)]


_register(" ".join(BATCH_NORMS), BackwardRule(_save_batch_norm, _vjp_channel_scale))


# -- shapes -----------------------------------------------------------------------------------------------------


def _save_shape(args: Any, kwargs: Any, outs: Any, positions: Any) -> Saved:
    return (tuple(args[0].shape),)


def _vjp_reshape(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
    (shape,) = saved
    grad = only(grads).plain()
    return [Columns(grad.reshape(grad.shape[0], *shape), owned=False)]


def _vjp_same(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
    grad = only(grads)
    return [Columns(grad.tensor, grad.scale, owned=False)]


def _save_mean(args: Any, kwargs: Any, outs: Any, positions: Any) -> Saved:
    x = args[0]
    dims = args[1] if len(args) > 1 and args[1] else list(range(x.dim()))
    dims = tuple(sorted(d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)))
    keep = bool(args[2]) if len(args) > 2 else bool(kwargs.get("keepdim", False))
    count = 1
    for d in dims:
        count *= x.shape[d]
    return tuple(x.shape), dims, keep, count


def _vjp_mean(divide: bool) -> Callable[[Saved, Grads, tuple[int, ...]], list[Columns | None]]:
    def vjp(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
        shape, dims, keep, count = saved
        grad = only(grads).plain()
        if not keep:
            for d in dims:
                grad = grad.unsqueeze(d + 1)
        if divide:
            grad = grad / count
        return [Columns(grad.expand(grad.shape[0], *shape), owned=False)]

    return vjp


_register("view _unsafe_view reshape squeeze unsqueeze flatten", BackwardRule(_save_shape, _vjp_reshape))
_register("clone contiguous alias lift_fresh", BackwardRule(_save_shape, _vjp_same))


_register("mean", BackwardRule(_save_mean, _vjp_mean(True)))
_register("sum", BackwardRule(_save_mean, _vjp_mean(False)))


# -- pooling ----------------------------------------------------------------------------------------------------


def _save_max_pool(args: Any, kwargs: Any, outs: Any, positions: Any) -> Saved:
    return outs[1], tuple(args[0].shape)


def _vjp_max_pool(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
    indices, shape = saved
    grad = only(grads)
    columns = grad.tensor.shape[0]
    flat = grad.tensor.flatten(-2)
    where = indices.flatten(-2).unsqueeze(0).expand(columns, *indices.shape[:-2], -1)
    size = (columns, *shape[:-2], shape[-2] * shape[-1])
    back = flat.new_zeros(size).scatter_add_(-1, where, flat)
    return [Columns(back.view(columns, *shape), grad.scale)]


_register("max_pool2d_with_indices", BackwardRule(_save_max_pool, _vjp_max_pool))
