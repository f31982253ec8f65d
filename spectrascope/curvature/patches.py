"""What a convolution's weight sees: its input patches, their Gram matrix and their projections.

Patches run over kernel positions first and channels last, which copies whole runs of memory; :func:`kernel_first`
brings a matrix with the flattened weight's order into that one. Eigenvalues and projections do not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spectrascope.numerics.spectra import lower_gram

__all__ = ["filter_patches", "gram_of_patches", "kernel_first", "patches_of", "project_patches"]

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)


def patches_of(x: Tensor, weight_shape: Sequence[int], conv: tuple[Any, ...]) -> Tensor:
    """Input patches (b, t, g, n) of a convolution.

    Args:
        x: (b, C, …) input.
        weight_shape: (m, C/g, …) of the weight.
        conv: stride, padding, dilation, transposed, output padding, groups.
    """
    stride, padding, dilation, _, _, groups = conv
    spatial = len(weight_shape) - 2
    x = functional.pad(x, [p for size in reversed(padding) for p in (size, size)]).movedim(1, -1)
    for axis in range(spatial):
        reach = (weight_shape[2 + axis] - 1) * dilation[axis] + 1
        x = x.unfold(1 + axis, reach, stride[axis])[..., :: dilation[axis]]
    # (b, positions …, C, kernel …)
    order = [*range(1 + spatial), *range(2 + spatial, 2 + 2 * spatial), 1 + spatial]
    positions = math.prod(x.shape[1 : 1 + spatial])
    patches: Tensor = x.permute(order).reshape(len(x), positions, -1, groups, weight_shape[1])
    by_group: Tensor = patches.transpose(2, 3).flatten(3)
    return by_group


def kernel_first(matrix: Tensor, channels: int) -> Tensor:
    """Rows (channels · kernel, k) of a flattened convolution weight in the order of :func:`patches_of`."""
    rows: Tensor = matrix.unflatten(0, (channels, -1)).transpose(0, 1).flatten(0, 1)
    return rows


def project_patches(x: Tensor, right: Tensor, weight_shape: Sequence[int], conv: tuple[Any, ...]) -> Tensor:
    """Projections (b, t, g, K) of patches on the columns of ``right`` (n, K), in the weight's order: a convolution."""
    by_group: Tensor = filter_patches(x, right, weight_shape, conv).unflatten(0, (len(x), conv[-1])).permute(0, 3, 1, 2)
    return by_group


def filter_patches(x: Tensor, right: Tensor, weight_shape: Sequence[int], conv: tuple[Any, ...]) -> Tensor:
    """The same projections as (b · g, K, t), as the convolution leaves them."""
    stride, padding, dilation, _, _, groups = conv
    k = right.shape[1]
    # Convolution kernels work on blocks of 8 output channels; odd numbers can take twice as long.
    filters = functional.pad(right.t(), (0, 0, 0, -k % 8)).reshape(-1, *weight_shape[1:])
    if groups > 1:  # the same filters look at every group's own channels
        x = x.reshape(len(x) * groups, x.shape[1] // groups, *x.shape[2:])
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        filters = filters.contiguous(memory_format=torch.channels_last)
    q: Tensor = _CONV[x.dim() - 3](x, filters, None, stride, padding, dilation).flatten(2)
    filtered: Tensor = q[:, :k]
    return filtered


def gram_of_patches(x: Tensor, weight_shape: Sequence[int], conv: tuple[Any, ...]) -> Tensor | None:
    """Σ a aᵀ over all patches (n, n), lower triangle; ``None`` where no shorter way than by patches is known.

    A patch of a 2-D convolution with vertical stride 1 is a pile of horizontal strips, and moving it down one row moves
    every strip up one place. So the block of strips p and p + e sums the same products as that of strips 0 and e, but
    for a few rows at the border, and one Gram matrix per e serves all p.
    """
    stride, padding, dilation, _, _, groups = conv
    if len(weight_shape) != 4 or groups != 1 or stride[0] != 1:
        return None
    rows, columns = weight_shape[2:]
    x = functional.pad(x, (padding[1], padding[1], padding[0], padding[0])).movedim(1, -1)
    strips = x.unfold(2, (columns - 1) * dilation[1] + 1, stride[1])[..., :: dilation[1]]
    strips = strips.permute(1, 0, 2, 4, 3).flatten(3).flatten(1, 2)  # (rows, b · positions in a row, kernel · C)
    height, width, step = len(strips), strips.shape[2], dilation[0]
    used = height - (rows - 1) * step  # rows of the output
    gram = strips.new_zeros(rows * width, rows * width)

    def products(first: int, last: int, shift: int) -> Tensor:
        upper, lower = strips[first:last].flatten(0, 1), strips[first + shift : last + shift].flatten(0, 1)
        return lower_gram(upper) if shift == 0 else lower.T @ upper

    for e in range(rows):
        shift = e * step
        every = products(0, height - shift, shift)
        for p in range(rows - e):
            block = every
            start, stop = p * step, p * step + used
            if start > 0:
                block = block - products(0, start, shift)
            if stop < height - shift:
                block = block - products(stop, height - shift, shift)
            gram[(p + e) * width : (p + e + 1) * width, p * width : (p + 1) * width] = block
    return gram
