"""From a recording to the steps that every sweep follows: adjoints by one backward pass, constants computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrascope.curvature.claims import Kind
from spectrascope.curvature.engine import UnsupportedOperationError
from spectrascope.curvature.microbatches import is_out_of_memory
from spectrascope.curvature.recorder import Node, Recording, Value
from spectrascope.curvature.tangent.chains import Chain, Chains, ChainStep
from spectrascope.curvature.tangent.head import HeadStep, row_order, token_forms
from spectrascope.curvature.tangent.products import matrix_product
from spectrascope.curvature.tangent.rule import Step, TangentRule
from spectrascope.curvature.tangent.samples import MixedSamplesError, SampleOrder
from spectrascope.curvature.tangent.table import find_rule, kind_of

__all__ = ["Footprint", "Plan", "Planned", "make_plan", "record_loss"]


@dataclass(frozen=True, slots=True)
class Planned:
    """A step among others. ``curved``: weights with second-order terms here; ``wanted``: those needing the outputs.

    ``entries`` says in which inputs tangents of weights alone first meet samples, ``pulls`` are the outputs' adjoints;
    both are empty where samples need not be told apart. ``dtypes`` are the outputs' formats, in which their tangents
    travel, whatever a rule computes them in. ``rounds`` of all samples lie in the outputs.
    """

    step: Step
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int | None, ...]
    curved: int
    wanted: int
    entries: tuple[bool, ...] = ()
    pulls: tuple[Tensor | None, ...] = ()
    dtypes: tuple[torch.dtype | None, ...] = ()
    rounds: int = 1

    @property
    def weights(self) -> int:
        """The weights for which the step matters, as bits."""
        return self.curved | self.wanted


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes a recording takes, and what each tangent adds while it is pushed."""

    fixed: int
    per_direction: int

    def of(self, directions: int) -> int:
        """Bytes with that many tangents."""
        return self.fixed + directions * self.per_direction


@dataclass(frozen=True)
class Plan:
    """What all sweeps over one micro-batch share.

    ``loss`` is its mean loss, ``gradients`` that loss's gradients in the weights; ``unsupported`` the weights that
    cannot be followed, by bit, and why; ``borders`` the sample numbers 0 … b between which sample groups lie.
    """

    steps: tuple[Planned, ...]
    loss: float
    gradients: tuple[Tensor | None, ...]
    unsupported: dict[int, str]
    footprint: Footprint
    borders: tuple[int, ...]

    def met(self, bit: int) -> int:
        """Which step first meets a weight: the order in which weights are swept."""
        return next((i for i, s in enumerate(self.steps) if bit in s.inputs), len(self.steps))


def record_loss(weights: Sequence[Tensor], loss_of: Callable[[], Tensor]) -> tuple[Recording, Tensor]:
    """Run one differentiable forward pass, loss included, under a recording."""
    with torch.enable_grad():
        recording = Recording(weights)
        with recording:
            loss = loss_of()
    return recording, loss


@dataclass(frozen=True, slots=True)
class _Ruled:
    node: Node
    rule: TangentRule
    curved: int
    wanted: int


def make_plan(
    recording: Recording,
    weights: Sequence[Tensor],
    loss: Tensor,
    directions: int,
    *,
    borders: tuple[int, ...] = (0, 1),
    order: SampleOrder | None = None,
    joint: bool = False,
) -> Plan:
    """Adjoints, constants and the order of steps.

    Args:
        recording: a finished recording.
        weights: those it was made for.
        loss: the scalar it ended in.
        directions: how many tangents will be pushed, over all weights; decides what is worth preparing.
        borders: sample numbers 0 … b at which sample groups begin, the end included.
        order: where samples lie in every value; needed for more than one group.
        joint: whether second-order terms across weights are wanted too.

    Raises:
        MixedSamplesError: sample groups cannot be told apart.
        UnsupportedOperationError: the loss does not depend on any weight.
    """
    end = recording.number_of(loss)
    if end is None:
        raise UnsupportedOperationError(
            "the loss does not depend on any measured weight through autograd: the model detaches its output or runs "
            "under no_grad or inference_mode"
        )
    ruled = _with_rules(recording, end, joint)
    entries: dict[int, tuple[bool, ...]] = {}
    if order is not None:
        matter = [(r.node, r.curved, r.wanted) for r in ruled]
        entries = order.entries(recording, _reaching(recording, end), matter, borders[-1])
    looked_at = [r.node for r in ruled if r.curved or id(r.node) in entries]
    numbers = sorted({n for node in looked_at for n in node.outputs if n is not None})
    edges = [(n, edge) for n in numbers if (edge := recording.values[n].gradient_edge()) is not None]
    found = torch.autograd.grad(loss, [*weights, *(edge for _, edge in edges)], allow_unused=True)
    gradients, rest = found[: len(weights)], found[len(weights) :]
    adjoints = {n: a.detach() for (n, _), a in zip(edges, rest, strict=True) if a is not None}
    for r in ruled:
        if id(r.node) in entries and any(n is not None and n not in adjoints for n in r.node.outputs):
            raise MixedSamplesError(f"{r.node.name.removeprefix('aten.')} has no adjoint")
        if r.curved and all(n not in adjoints for n in r.node.outputs if n is not None):
            # It reaches the loss, so autograd should have found its adjoint: never take it for zero.
            recording.refuse(r.curved, f"{r.node.name.removeprefix('aten.')} has no adjoint")
    steps = _steps(recording, ruled, adjoints, directions, entries, order)
    if order and not all(s.step.splits(borders[-1] * s.rounds) for s in steps if s.curved):
        raise MixedSamplesError("an operation's second-order terms are not told apart by sample")
    plan = Plan(
        tuple(steps),
        float(loss.detach()),
        tuple(None if g is None else g.detach() for g in gradients),
        dict(recording.refused),
        _footprint(recording, steps),
        borders,
    )
    recording.release()
    return plan


def _footprint(recording: Recording, steps: Sequence[Planned]) -> Footprint:
    values = recording.values
    # A weight is there anyway, and its tangent is two factors.
    sizes = [0 if v.of_weight else v.nbytes for v in values]
    kept = sum(size for size, v in zip(sizes, values, strict=True) if not v.view)
    widest = max((sum(sizes[n] for n in {*s.inputs, *s.outputs} if n is not None) for s in steps), default=0)
    # Each activation with its adjoint and a constant or two, and forms of the head as large as all of them; a step's
    # operands, a residual branch beside them.
    return Footprint(5 * kept, 2 * widest)


def _reaching(recording: Recording, end: int) -> list[Node]:
    """Nodes that reach the loss, last first."""
    reaches = {end}
    kept: list[Node] = []
    for node in reversed(recording.nodes):
        if any(n in reaches for n in node.outputs):
            reaches.update(node.inputs.values())
            kept.append(node)
    return kept


def _with_rules(recording: Recording, end: int, joint: bool) -> list[_Ruled]:
    """Nodes that reach the loss, each with its rule and the weights for which it matters."""
    values = recording.values
    need = [0] * len(values)
    ruled: list[_Ruled] = []
    for node in _reaching(recording, end):
        kind = kind_of(node)
        deps = [values[n].dep for n in node.inputs.values()]
        union = overlap = 0
        for dep in deps:
            overlap |= union if joint and dep else union & dep
            union |= dep
        if joint and overlap:
            overlap = union
        curved = {Kind.STRAIGHT: 0, Kind.PRODUCT: overlap, Kind.CURVED: union}[kind]
        wanted = 0
        for n in node.outputs:
            if n is not None:
                wanted |= need[n]
        wanted &= union
        if not curved | wanted:
            continue
        for n in node.inputs.values():
            need[n] |= (curved | wanted) & values[n].dep
        ruled.append(_Ruled(node, find_rule(node, kind), curved, wanted))
    return ruled[::-1]


@dataclass(frozen=True, slots=True)
class _Head:
    """A product whose rows, whole, go into a log-softmax of which only the loss is made."""

    product: Node
    between: tuple[Node, ...]  # views, and the log-softmax last

    def make(self, adjoints: dict[int, Tensor], directions: int, memory: int) -> Step:
        softmax = self.between[-1]
        (number,) = (n for n in softmax.outputs if n is not None)
        logits = softmax.outs[0].detach().flatten(0, -2)
        (of,) = (n for n in self.product.outputs if n is not None)
        product = matrix_product(self.product, adjoints.get(of))
        rows = row_order(self.between[:-1], product.shape[0])
        if rows is None:
            raise NotImplementedError("the rows of the head are mixed before the log-softmax")
        there = product.right.device  # scores may be compared on another
        p = logits.exp().to(there)  # of the log-softmax's own format, float32 where the product's is narrower
        weights = -adjoints[number].flatten(0, -2).sum(-1, keepdim=True).to(there)
        positive = bool((weights >= 0).all())
        forms = token_forms(product.right, p, weights, directions, memory) if positive else None
        mean = p @ product.right.T.to(p.dtype)
        return HeadStep(product, rows.to(there), p, weights, mean, positive, forms)


_PRODUCTS = ("aten.mm", "aten.addmm")
_ROW_WISE = frozenset(
    f"aten.{name}" for name in ("view", "_unsafe_view", "reshape", "slice", "clone", "alias", "_to_copy")
)


def _find_heads(ruled: Sequence[_Ruled], adjoints: dict[int, Tensor]) -> dict[int, _Head]:
    """Heads by the id of their product's node."""
    producer = {n: r for r in ruled for n in r.node.outputs if n is not None}
    consumers = Counter(n for r in ruled for n in r.node.inputs.values())
    found: dict[int, _Head] = {}
    for r in ruled:
        node = r.node
        if node.name != "aten._log_softmax" or r.wanted or tuple(node.inputs) != (0,):
            continue
        if int(node.args[1]) % node.outs[0].dim() != node.outs[0].dim() - 1 or node.outputs[0] not in adjoints:
            continue
        between = [node]
        while True:
            number = between[-1].inputs[0]
            above = producer.get(number)
            if above is None or consumers[number] != 1:
                break
            if above.node.name in _PRODUCTS:
                if row_order(between[:0:-1], above.node.outs[0].shape[0]) is not None:
                    found[id(above.node)] = _Head(above.node, tuple(between[::-1]))
                break
            if above.node.name not in _ROW_WISE or tuple(above.node.inputs) != (0,):
                break
            between.append(above.node)
    return found


def _steps(
    recording: Recording,
    ruled: Sequence[_Ruled],
    adjoints: dict[int, Tensor],
    directions: int,
    entries: dict[int, tuple[bool, ...]],
    order: SampleOrder | None,
) -> list[Planned]:
    values = recording.values
    # For forms of the head: no more than the weights and activations themselves.
    memory = sum(v.nbytes for v in values if not v.view)
    heads = _find_heads(ruled, adjoints)
    inside = {id(node) for head in heads.values() for node in head.between}
    chains = Chains(values)
    placed: list[tuple[float, Planned]] = []
    made_at: dict[int, int] = {}
    used: set[int] = set()
    with torch.no_grad():
        for i, r in enumerate(ruled):
            node = r.node
            outputs = node.outputs
            entry = entries.get(id(node), ())
            pulls = tuple(adjoints.get(n) if n is not None else None for n in outputs)
            of = pulls if r.curved or (entry and node.name in _PRODUCTS) else (None,) * len(outputs)
            for n in outputs:
                if n is not None:
                    made_at[n] = i
            if id(node) in inside:
                continue
            head = heads.get(id(node))
            if head is None and not entry and chains.take(node, r.curved, of[0] if of else None):
                continue
            used.update(node.inputs.values())
            try:
                step = r.rule.make(node, of) if head is None else head.make(adjoints, directions, memory)
            except (NotImplementedError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                recording.refuse(r.curved | r.wanted, (str(error).splitlines() or [node.name])[0])
                continue
            inputs, name = tuple(node.inputs.values()), node.name.removeprefix("aten.")
            dtypes = tuple(None if n is None else values[n].dtype for n in outputs)
            pulls = pulls if entry else ()
            rounds = (order and order.rounds_at(node)) or 1
            if head is None:
                planned = Planned(step, name, inputs, outputs, r.curved, r.wanted, entry, pulls, dtypes, rounds)
            else:
                if order and {rounds, order.rounds_at(head.between[-1])} != {1}:
                    raise MixedSamplesError("the head's rows are not one sample after another")
                both = f"{name} and log-softmax"
                planned = Planned(step, both, inputs, (), r.curved | r.wanted, 0, entry, pulls)
            placed.append((i, planned))
    for root, chain in chains.by_root.items():
        chained = _chained(chain, values, used, order)
        if chained is not None:
            # Directly after what makes the root; weights are there from the start.
            placed.append((made_at.get(root, -1) + 0.5, chained))
    return [planned for _, planned in sorted(placed, key=lambda p: p[0])]


def _chained(chain: Chain, values: Sequence[Value], used: set[int], order: SampleOrder | None) -> Planned | None:
    leaving = tuple(n for n in chain.slopes if n in used)
    wanted = 0
    for n in leaving:
        wanted |= values[n].dep
    if not (wanted | chain.curved):
        return None
    rounds, *others = {r for n in chain.slopes if order and (r := order.rounds[n])} or {1}
    if others and chain.curved:
        raise MixedSamplesError("pointwise operations have samples in several orders")
    step = ChainStep(tuple(chain.slopes[n] for n in leaving), chain.bend, values[chain.root].shape)
    dtypes, name = tuple(values[n].dtype for n in leaving), "pointwise chain"
    return Planned(step, name, (chain.root,), leaving, chain.curved, wanted, dtypes=dtypes, rounds=rounds)
