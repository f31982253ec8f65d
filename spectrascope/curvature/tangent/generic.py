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
from spectrascope.curvature.tangent.within import Within

__all__ = ["GENERIC_RULE"]


@dataclass(frozen=True, slots=True)
class _Generic:
    node: Node
    adjoints: tuple[Tensor | None, ...]

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        found = [dense(t) if t is not None else None for t in z]
        directions = next(t.shape[0] for t in found if t is not None)
        with torch.enable_grad():
            leaves, outs = self._run()
            pushed = self._tangents(leaves, outs, found, directions) if outputs else ()
            bent = None if within is None else self._bend(leaves, outs, found, within)
        return pushed, bent

    def splits(self, samples: int) -> bool:
        return False

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
        self, leaves: list[Tensor], outs: list[Tensor], z: Sequence[Tensor | None], within: Within
    ) -> Tensor | None:
        pairs = [(o, a) for o, a in zip(outs, self.adjoints, strict=False) if a is not None and o.requires_grad]
        if not pairs:
            return None
        back = torch.autograd.grad(
            [o for o, _ in pairs], leaves, [a for _, a in pairs], create_graph=True, allow_unused=True
        )
        forms = []
        for rows in within.rows():
            own = [None if t is None else t[rows].flatten(1) for t in z]
            lines = []
            for i in range(rows.start, rows.stop):
                slope = _inner(back, z, i)
                if slope is None or not slope.requires_grad:
                    return None  # linear in what carries tangents
                bent = torch.autograd.grad(slope, leaves, retain_graph=True, allow_unused=True)
                line = slope.new_zeros(rows.stop - rows.start)
                for part, tangent in zip(bent, own, strict=True):
                    if part is not None and tangent is not None:
                        line = line + tangent @ part.detach().flatten()
                lines.append(line)
            forms.append(torch.stack(lines).detach()[None])
        return within.padded(forms)


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
