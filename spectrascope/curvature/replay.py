"""Straight operations without a rule of their own: autograd differentiates the one operation, column by column."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from spectrascope.curvature.columns import BackwardRule, Columns, Grads, Saved
from spectrascope.curvature.operations import functional, tensors_of, with_tensors

__all__ = ["replay_rule"]


@functools.cache
def replay_rule(name: str) -> BackwardRule:
    """A rule that replays the single operation under autograd and pulls each column back through it."""
    func = functional(name)

    def save(args: Any, kwargs: Any, outs: Any, positions: Any) -> Saved:
        return args, kwargs

    def vjp(saved: Saved, grads: Grads, positions: tuple[int, ...]) -> list[Columns | None]:
        args, kwargs = saved
        with torch.enable_grad():
            fresh = {
                p: t.detach().requires_grad_() if p in positions else t.detach()
                for p, t in enumerate(tensors_of(args, kwargs))
            }
            leaves = [fresh[p] for p in positions]
            new_args, new_kwargs = with_tensors(args, kwargs, fresh)
            out = func(*new_args, **new_kwargs)
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

    return BackwardRule(save, vjp, reads_target=True)
