"""Any other operation: autograd differentiates the one operation, direction by direction.

First-order tangents by forward mode, or by the derivative of the reverse mode in its cotangent; second-order terms by
double backprop through the single operation. An operation without a rule costs speed, never correctness; one that
autograd cannot differentiate twice is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectrascope.curvature.operations import functional, with_tensors
from spectrascope.curvature.recorder import Node
from spectrascope.curvature.tangent.rule import Pushed, TangentRule, Tangents
from spectrascope.curvature.tangent.values import dense

__all__ = ["GENERIC_RULE"]


@dataclass(frozen=True, slots=True)
class _Generic:
    node: Node
    adjoints: tuple[Tensor | None, ...]

    def push(self, z: Tangents, *, outputs: bool, bend: bool) -> tuple[Pushed, Tensor | None]:
        found = [dense(t) if t is not None else None for t in z]
        directions = next(t.shape[0] for t in found if t is not None)
        with torch.enable_grad():
            leaves, outs = self._run()
            pushed = self._tangents(leaves, outs, found, directions) if outputs else ()
            bent = self._bend(leaves, outs, found, directions) if bend else None
        return pushed, bent

    def _run(self) -> tuple[list[Tensor], list[Tensor]]:
        tensors = self.node.tensors()
        leaves = {p: tensors[p].detach().clone().requires_grad_() for p in self.node.inputs}
        args, kwargs = with_tensors(self.node.args, self.node.kwargs, {**leaves})
        out = functional(self.node.name)(*args, **kwargs)
        outs = [o for o in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(o, Tensor)]
        return list(leaves.values()), outs

    def _tangents(
        self, leaves: list[Tensor], outs: list[Tensor], z: Sequence[Tensor | None], directions: int
    ) -> list[Tensor | None]:
        """Each output's J z, as the derivative in w of <J^T w, z>: linear in w, so w may be zero."""
        live = [o for o in outs if o.requires_grad]
        cotangents = [torch.zeros_like(o, requires_grad=True) for o in live]
        back = torch.autograd.grad(live, leaves, cotangents, create_graph=True, allow_unused=True)
        rows: list[tuple[Tensor | None, ...]] = []
        for i in range(directions):
            slope = _inner(back, z, i)
            if slope is None or not slope.requires_grad:
                rows.append(tuple(torch.zeros_like(o) for o in live))
            else:
                rows.append(
                    torch.autograd.grad(slope, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True)
                )
        columns = iter(torch.stack([_present(row[j]) for row in rows]).detach() for j in range(len(live)))
        return [next(columns) if o.requires_grad else None for o in outs]

    def _bend(
        self, leaves: list[Tensor], outs: list[Tensor], z: Sequence[Tensor | None], directions: int
    ) -> Tensor | None:
        pairs = [(o, a) for o, a in zip(outs, self.adjoints, strict=False) if a is not None and o.requires_grad]
        if not pairs:
            return None
        back = torch.autograd.grad(
            [o for o, _ in pairs], leaves, [a for _, a in pairs], create_graph=True, allow_unused=True
        )
        rows = []
        for i in range(directions):
            slope = _inner(back, z, i)
            if slope is None or not slope.requires_grad:
                return None  # linear in what carries tangents
            bent = torch.autograd.grad(slope, leaves, retain_graph=True, allow_unused=True)
            total = slope.new_zeros(directions)
            for part, tangent in zip(bent, z, strict=True):
                if part is not None and tangent is not None:
                    total = total + tangent.flatten(1) @ part.detach().flatten()
            rows.append(total)
        return torch.stack(rows).detach()


def _inner(back: Sequence[Tensor | None], z: Sequence[Tensor | None], i: int) -> Tensor | None:
    total: Tensor | None = None
    for part, tangent in zip(back, z, strict=True):
        if part is not None and tangent is not None:
            term = (part * tangent[i]).sum()
            total = term if total is None else total + term
    return total


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _make(node: Node, adjoints: Sequence[Tensor | None]) -> Any:
    return _Generic(node, tuple(adjoints))


GENERIC_RULE = TangentRule(_make)
