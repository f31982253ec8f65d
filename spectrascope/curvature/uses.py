"""Every use of a measured weight while the network runs: its input, and where its output stands in autograd's graph.

Keyed on the parameter, never on the module: a hook on ``nn.MultiheadAttention.out_proj`` never fires, yet the weight is
used. Capturing sits below autograd (``TorchDispatchMode``); a graph edge is read once autograd has set it, which is by
the time of the next operation, before anything can write into the output in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from spectrascope.curvature.engine import Target
from spectrascope.network.layers import WeightLayer
from spectrascope.records.values import LayerKind, Missing
from spectrascope.workload import Inputs, Workload

__all__ = ["CapturedUse", "Layout", "capture_uses", "find_layouts"]

Key = tuple[int, "int | None"]
"""Identity of a parameter, and number of the expert in a stack of them."""


@dataclass(slots=True)
class CapturedUse:
    """One operation that applies a weight: ``kind`` is ``linear`` or ``conv``."""

    key: Key
    kind: str
    inputs: Tensor
    output: Tensor | None
    conv: tuple[Any, ...]
    weight_shape: tuple[int, ...]
    transposed: bool
    edge: Any = None  # torch.autograd.graph.GradientEdge, once autograd has set it


@dataclass(frozen=True, slots=True)
class _Alias:
    parameter: int
    transposed: bool
    expert: int | None


class _Capture(TorchDispatchMode):
    def __init__(self, layers: Sequence[WeightLayer], *, edges: bool) -> None:
        super().__init__()
        self.uses: list[CapturedUse] = []
        self.problems: dict[int, str] = {}
        self._edges = edges
        self._aliases = WeakIdKeyDictionary()
        self._experts = {id(la.parameter) for la in layers if la.expert is not None}
        for layer in layers:
            self._aliases[layer.parameter] = _Alias(id(layer.parameter), False, None)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping means importing the compiler (seconds)

    def settle(self) -> None:
        """Read the graph edge of the last use, now that autograd has set it."""
        for use in reversed(self.uses):
            if use.output is None:
                break
            if self._edges and use.output.requires_grad:
                use.edge = get_gradient_edge(use.output)
            use.output = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.settle()
        out = func(*args, **(kwargs or {}))
        flat = [x for x in args if isinstance(x, Tensor)]
        flat += [x for arg in args if isinstance(arg, (list, tuple)) for x in arg if isinstance(x, Tensor)]
        found = [(x, alias) for x in flat if (alias := self._aliases.get(x)) is not None]
        if found:
            self._record(str(func._schema.name).removeprefix("aten::"), args, found, out)
        return out

    def _record(self, name: str, args: tuple[Any, ...], found: list[tuple[Tensor, _Alias]], out: Any) -> None:
        weight, alias = found[0]
        if name in ("detach", "alias"):
            self._aliases[out] = alias
        elif name == "t" or (name in ("transpose", "permute") and weight.dim() == 2):
            turned = out.shape != weight.shape or name == "t" or args[1:] not in (([0, 1],), (0, 0), (1, 1))
            self._aliases[out] = _Alias(alias.parameter, alias.transposed ^ turned, alias.expert)
        elif name == "select" and args[1] == 0 and alias.expert is None and alias.parameter in self._experts:
            self._aliases[out] = _Alias(alias.parameter, False, args[2] % weight.shape[0])
        elif len(found) == 1 and name in ("mm", "addmm") and args[-1] is weight:
            x = args[-2]
            # x @ Wᵀ is a linear layer that stores (out, in); x @ W one that stores (in, out).
            self._use(CapturedUse((alias.parameter, alias.expert), "linear", x, out, (), tuple(weight.shape),
                                  not alias.transposed))  # fmt: skip
        elif len(found) == 1 and name == "convolution" and args[1] is weight and not args[6]:
            self._use(CapturedUse((alias.parameter, alias.expert), "conv", args[0], out, tuple(args[3:9]),
                                  tuple(weight.shape), False))  # fmt: skip
        elif name == "embedding":
            self.problems.setdefault(alias.parameter, "the weight is also a look-up table")
        else:
            self.problems.setdefault(alias.parameter, f"the weight is used by {name}, which is not followed here")

    def _use(self, use: CapturedUse) -> None:
        use.inputs = use.inputs.detach()
        self.uses.append(use)


def capture_uses(workload: Workload, inputs: Inputs, layers: Sequence[WeightLayer]) -> tuple[list[CapturedUse], Any]:
    """Run the network once and capture every use of the layers' weights; also what the network returned.

    The caller enables gradients. Uses that autograd does not see are left out.
    """
    with _Capture(layers, edges=True) as capture:
        output = workload.forward(inputs)
    capture.settle()
    return [use for use in capture.uses if use.edge is not None], output


@dataclass(frozen=True)
class Layout:
    """How rows of a use's matrices belong to samples: ``first`` says samples vary slowest (else positions do)."""

    key: Key
    sample_first: bool
    groups: int

    def split(self, rows: Tensor, batch: int) -> Tensor:
        """Rows (images or rows, …) as (b, t, …)."""
        if self.sample_first:
            return rows.reshape(batch, -1, *rows.shape[1:])
        return rows.reshape(-1, batch, *rows.shape[1:]).transpose(0, 1)

    def outputs(self, use: CapturedUse, delta: Tensor, batch: int) -> Tensor:
        """Cotangents of the output as (b, t, g, w)."""
        if use.kind == "linear":
            return self.split(delta, batch)[:, :, None, :]
        rows = delta.flatten(2).transpose(1, 2).unflatten(2, (self.groups, -1))  # (images, t, g, w)
        return self.split(rows, batch).flatten(1, 2)


def find_layouts(workload: Workload, targets: Sequence[Target]) -> list[Layout | Missing]:
    """Tell for every target which rows of its inputs belong to which sample.

    Attention moves tokens before samples in some networks. The network is run on a few samples, then again with the
    first sample replaced by another: rows that change belong to the first.
    """
    batch = min(3, workload.source.n)
    inputs, _ = workload.fetch(0, batch)
    layers = [t.layer for t in targets]
    with torch.no_grad():
        before = _look(workload, inputs, layers)
        after = _look(workload, _swapped(inputs), layers)
    found: list[Layout | Missing] = []
    for target in targets:
        key = (id(target.layer.parameter), target.layer.expert)
        uses = [use for use in before.uses if use.key == key]
        others = [use for use in after.uses if use.key == key]
        found.append(_layout(target, key, uses, others, before.problems, batch))
    return found


def _look(workload: Workload, inputs: Inputs, layers: Sequence[WeightLayer]) -> _Capture:
    capture = _Capture(layers, edges=False)
    with capture:
        workload.forward(inputs)
    capture.settle()
    return capture


def _swapped(inputs: Inputs) -> Inputs:
    def swap(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[0] = tensor[-1]
        return changed

    return swap(inputs) if isinstance(inputs, Tensor) else {name: swap(tensor) for name, tensor in inputs.items()}


def _layout(
    target: Target,
    key: Key,
    uses: list[CapturedUse],
    others: list[CapturedUse],
    problems: dict[int, str],
    batch: int,
) -> Layout | Missing:
    layer = target.layer
    if key[0] in problems:
        return Missing(problems[key[0]])
    if layer.info.kind is LayerKind.CONV_TRANSPOSE:
        return Missing("transposed convolutions have no patches to take factors of")
    if not uses:
        return Missing("no linear layer or convolution uses the weight")
    if any(use.transposed != (layer.layout == "transposed") for use in uses if use.kind == "linear"):
        return Missing("the weight's stored layout is not the one its operation expects")
    orders = set()
    for use, other in zip(uses, others, strict=False):
        if use.inputs.shape != other.inputs.shape or len(use.inputs) % batch:
            return Missing("which rows of the input belong to which sample depends on the data")
        changed = (use.inputs != other.inputs).flatten(1).any(1).nonzero().flatten()
        length = len(use.inputs) // batch
        first, strided = bool((changed < length).all()), bool((changed % batch == 0).all())
        if not first and not strided:
            return Missing("rows of the input mix samples")
        if length > 1 and first != strided:
            orders.add(first)
    if len(orders) > 1:
        return Missing("uses of the weight order their rows differently")
    groups = uses[0].conv[-1] if uses[0].kind == "conv" else 1
    return Layout(key, orders.pop() if orders else True, int(groups))
