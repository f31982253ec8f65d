"""Piecewise-linear operations without a rule of their own: autograd differentiates the one operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectrascope.curvature.columns import BackwardRule, Columns, Grads, Saved, copy_target

__all__ = ["PIECEWISE_LINEAR", "replay_rule"]

aten = torch.ops.aten

PIECEWISE_LINEAR = """
    permute transpose t expand select slice split split_with_sizes unbind cat stack repeat flip roll diagonal
    constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d pixel_shuffle
    pixel_unshuffle channel_shuffle native_channel_shuffle im2col col2im unfold cumsum tril triu avg_pool1d
    avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d
    max_pool3d_with_indices upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
    upsample_linear1d neg neg_ abs abs_ clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ threshold
    threshold_ maximum minimum softshrink hardshrink index_select gather masked_fill masked_fill_
"""


def replay_rule(name: str) -> BackwardRule:
    """A rule that replays the single operation under autograd and pulls each column back through it."""
    func = getattr(aten, name.removesuffix("_"))
    in_place = name.endswith("_")

    def save(args: Any, kwargs: Any, out: Any, before: Any, positions: Any) -> tuple[Any, ...]:
        kept = (before, *args[1:]) if in_place else args
        n_out = len([o for o in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(o, Tensor)])
        return kept, kwargs, n_out

    def vjp(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
        args, kwargs, _ = saved.items
        with torch.enable_grad():
            leaves: list[Tensor] = []
            counter = [-1]

            def fresh(arg: Any) -> Any:
                if isinstance(arg, Tensor):
                    counter[0] += 1
                    if counter[0] in positions:
                        leaves.append(arg.detach().requires_grad_())
                        return leaves[-1]
                    return arg.detach()
                return [fresh(a) for a in arg] if isinstance(arg, (tuple, list)) else arg

            out = func(*[fresh(a) for a in args], **kwargs)
            outs = [o for o in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(o, Tensor)]
            pairs = [(o, g.plain()) for o, g in zip(outs, grads, strict=True) if g is not None and o.requires_grad]
            columns = pairs[0][1].shape[0]
            rows = [
                torch.autograd.grad(
                    [o for o, _ in pairs],
                    leaves,
                    [g[c] for _, g in pairs],
                    retain_graph=True,
                    allow_unused=True,
                )
                for c in range(columns)
            ]
        found: list[Columns | None] = []
        for i in range(len(leaves)):
            parts = [row[i] for row in rows]
            found.append(None if any(p is None for p in parts) else Columns(torch.stack(parts)))
        return found

    return BackwardRule(save, vjp, before=copy_target if in_place else (lambda args: None))
