"""What is claimed of operations: straight, a product, or curved. Every rule, backward or tangent, reads it here.

An operation that is not listed is curved: an omission costs speed, never correctness. Being listed is a claim, made by
hand, that the operation is linear away from kinks in the tensors that depend on the weights, jointly or (a product)
one at a time. Gauss–Newton, the choice of engine and tangents ask the same table, so that an activation is not straight
for one and curved for the other.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = [
    "BATCH_NORMS",
    "MAPPED",
    "STRAIGHT_ENTRY_BY_ENTRY",
    "Claim",
    "Kind",
    "bare_name",
    "batch_norm_eps",
    "data_positions",
    "is_claimed",
    "read_claim",
    "uses_batch_statistics",
]


class Kind(Enum):
    """Where an operation has second derivatives, away from kinks."""

    STRAIGHT = "straight"  # nowhere: linear or piecewise linear in all that depends on the weights
    JUMPING = "jumping"  # nowhere either, but it may jump, or route rows: tangents follow, Gauss–Newton does not try
    PRODUCT = "product"  # linear in each input: where two inputs depend on the same weight
    CURVED = "curved"


@dataclass(frozen=True, slots=True)
class Claim:
    """The kind of one call, and in words why it is not straight."""

    kind: Kind
    reason: str = ""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# -- straight in some of the arguments: shapes, sums, look-ups, pooling -------------------------------------------

_FIRST = _names("""
    view _unsafe_view reshape squeeze unsqueeze flatten unflatten clone contiguous alias lift_fresh _to_copy to t
    transpose permute expand slice select split split_with_sizes unsafe_split unsafe_split_with_sizes unbind mean
    sum embedding index_select gather index sort topk max min median mode cummax cummin masked_fill
    max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d constant_pad_nd prelu
    _prelu_kernel
""")

MAPPED = _names("""
    repeat flip roll diagonal reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col col2im unfold
    cumsum tril triu avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d
    upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    nll_loss_forward nll_loss2d_forward diag_embed trace rot90 grid_sampler_2d affine_grid_generator stack copy
    index_put _unsafe_index_put scatter scatter_add index_add index_copy select_scatter slice_scatter
    diagonal_scatter masked_scatter
""")
"""Straight, and simply applied to one tangent after another."""

_SEVERAL: dict[str, Any] = {
    "cat": "all",
    "stack": "all",
    "copy": (1,),
    "index_put": "ends",
    "_unsafe_index_put": "ends",
    "scatter": (0, 2),
    "scatter_add": (0, 2),
    "index_add": (0, 2),
    "index_copy": (0, 2),
    "select_scatter": (0, 1),
    "slice_scatter": (0, 1),
    "diagonal_scatter": (0, 1),
    "masked_scatter": (0, 2),
}


_ROUTING = _names("""
    copy index index_put _unsafe_index_put index_add index_copy scatter scatter_add masked_scatter
""")
"""Straight as well, but what moves where may depend on the data, so that rows are no longer one per sample in order
(or, of ``copy``, on what else looks at the memory written)."""


def data_positions(name: str, count: int) -> tuple[int, ...]:
    """Of ``count`` tensor arguments of a straight operation, those in which it is linear together."""
    data = _SEVERAL.get(bare_name(name), (0,))
    if data == "all":
        return tuple(range(count))
    return (0, count - 1) if data == "ends" else tuple(data)


# -- entry by entry -----------------------------------------------------------------------------------------------

_PIECEWISE = _names("""
    add sub rsub neg relu hardsigmoid hardtanh leaky_relu threshold clamp clamp_min clamp_max abs maximum minimum
    fmax fmin softshrink hardshrink nan_to_num
""")
_JUMPING = _names("sign sgn where floor ceil round trunc fmod remainder")

STRAIGHT_ENTRY_BY_ENTRY = _PIECEWISE | _JUMPING
"""Without second derivatives in all tracked inputs together (``where`` in its two branches)."""

_PRODUCTS = frozenset(["mul", "mm", "addmm", "bmm", "baddbmm", "convolution"])

# -- what depends on the call -------------------------------------------------------------------------------------

BATCH_NORMS = (
    "native_batch_norm",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
)


def uses_batch_statistics(args: tuple[Any, ...]) -> bool:
    """Whether a batch normalisation uses its input's own mean and variance, as instance norm does."""
    flag = args[5]  # ``train``; the variants without that argument have a number there, or no statistics at all
    return flag if isinstance(flag, bool) else args[3] is None


def batch_norm_eps(args: tuple[Any, ...]) -> float:
    """The constant that a batch normalisation adds to the variance."""
    return float(args[7] if isinstance(args[5], bool) else args[6])


def _divided(kwargs: dict[str, Any], positions: Collection[int]) -> Claim:
    if kwargs.get("rounding_mode") is not None:
        return Claim(Kind.CURVED, "div rounds its result")
    if any(p > 0 for p in positions):
        return Claim(Kind.CURVED, "div is not linear in its denominator")
    return Claim(Kind.STRAIGHT)


def _batch_normalised(args: tuple[Any, ...], positions: Collection[int]) -> Claim:
    if any(p > 0 for p in positions):
        return Claim(Kind.CURVED, "the weight enters a batch normalisation's own parameters")
    if uses_batch_statistics(args):
        return Claim(Kind.CURVED, "batch normalisation uses batch statistics (train mode)")
    return Claim(Kind.STRAIGHT)


# -- reading ------------------------------------------------------------------------------------------------------


def bare_name(name: str) -> str:
    """The name of an operation (``aten.relu_``) without its namespace, and as if it were not in place."""
    return name.removeprefix("aten.").removesuffix("_")


def is_claimed(name: str) -> bool:
    """Whether Gauss–Newton may go back through an operation: then it has, or can make, a rule of it."""
    bare = bare_name(name)
    lists = (_FIRST, MAPPED, _SEVERAL, _PIECEWISE, _PRODUCTS, BATCH_NORMS, ("div",))
    return name.startswith("aten.") and bare not in _ROUTING and any(bare in names for names in lists)


def read_claim(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], positions: Collection[int], count: int
) -> Claim:
    """The claim about one call.

    Args:
        name: of the operation, such as ``aten.relu_``.
        args: of the call.
        kwargs: of the call.
        positions: which of its tensor arguments depend on the weights.
        count: how many tensor arguments there are.
    """
    bare = bare_name(name)
    refusal = f"{name.removeprefix('aten.')} is not piecewise linear"
    if bare in _PRODUCTS:
        return Claim(Kind.PRODUCT, f"{name.removeprefix('aten.')} multiplies two activations of the same weight")
    if bare in _PIECEWISE:
        return Claim(Kind.STRAIGHT)
    if bare in _FIRST or bare in MAPPED or bare in _SEVERAL:
        if set(positions) <= set(data_positions(name, count)) and kwargs.get("reduce") is None:
            return Claim(Kind.JUMPING, refusal) if bare in _ROUTING else Claim(Kind.STRAIGHT)
    elif bare == "div":
        return _divided(kwargs, positions)
    elif bare in BATCH_NORMS:
        return _batch_normalised(args, positions)
    return Claim(Kind.JUMPING if bare in _JUMPING else Kind.CURVED, refusal)
