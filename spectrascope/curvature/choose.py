"""The engines there are, and which one measures which weight: by the operations that really run downstream of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from spectrascope.curvature.double_backprop import DoubleBackprop
from spectrascope.curvature.engine import GRADIENT_COST, CurvatureEngine, Downstream
from spectrascope.curvature.finite_difference import FiniteDifference
from spectrascope.curvature.gauss_newton import GaussNewton
from spectrascope.curvature.microbatches import MicroBatch
from spectrascope.curvature.recorder import Tape, WeightUse
from spectrascope.curvature.sketch import GaussNewtonSketch
from spectrascope.curvature.tangent.engine import Tangents
from spectrascope.errors import UnsupportedModelError
from spectrascope.network.layers import WeightLayer
from spectrascope.records.values import EngineName
from spectrascope.workload import Workload

__all__ = [
    "ENGINES",
    "EngineChoice",
    "EnginePlan",
    "choose_engines",
    "engine_named",
    "make_engine",
    "plan_engines",
]


DirectionSets: TypeAlias = Callable[[EngineName], int]
"""How often as many directions of a weight an engine measures together: published, held out, of noise."""


@dataclass(frozen=True)
class EngineChoice:
    """The engine for one weight and, in words, why."""

    engine: EngineName
    reason: str


@dataclass(frozen=True)
class EnginePlan:
    """The engine of every weight, and roughly what the run will cost.

    ``gradient_passes`` and each engine's ``passes`` are in forward-equivalents: multiples of one plain forward pass
    over the whole batch. They are estimates, from the share of the network after each weight.
    """

    choices: list[EngineChoice]
    gradient_passes: float
    passes: dict[EngineName, float]


ENGINES: tuple[type[CurvatureEngine], ...] = (
    GaussNewton,
    Tangents,
    DoubleBackprop,
    GaussNewtonSketch,
    FiniteDifference,
)
"""Every engine, in the order they run: the exact ones first, cheapest first. A new one is a file of its own, its
spelling in ``EngineName``, and a line here."""


def engine_named(name: EngineName) -> type[CurvatureEngine]:
    """The engine of that name; ``auto`` is a choice, not an engine."""
    return next(engine for engine in ENGINES if engine.name is name)


def make_engine(
    name: EngineName, micro_batch: MicroBatch = None, seed: int = 0, memory: int | None = None
) -> CurvatureEngine:
    """Make the engine of that name.

    Args:
        name: which.
        micro_batch: samples per pass; ``None`` tunes it.
        seed: of random vectors, where the engine draws any.
        memory: bytes of tangents at a time, where the engine takes as many as fit; ``None`` goes by what is free.
    """
    return engine_named(name).make(micro_batch, seed, memory)


def plan_engines(
    workload: Workload,
    layers: Sequence[WeightLayer],
    requested: EngineName = EngineName.AUTO,
    top_k: int = 20,
    sets: DirectionSets = lambda _: 1,
) -> EnginePlan:
    """As :func:`choose_engines`, with the estimated cost. The model may be on the meta device.

    Raises:
        UnsupportedModelError: as :func:`choose_engines`.
    """
    found = _look_downstream(workload, layers)
    choices = _choose(found, layers, requested, top_k, sets)
    passes = {}
    for engine in ENGINES:
        weights = zip(_weights(found, layers, top_k, sets(engine.name)), choices, strict=True)
        own = [weight for weight, choice in weights if choice.engine is engine.name]
        passes[engine.name] = engine.cost(own, found.n_outputs)
    return EnginePlan(choices, GRADIENT_COST, passes)


def choose_engines(
    workload: Workload,
    layers: Sequence[WeightLayer],
    requested: EngineName = EngineName.AUTO,
    top_k: int = 20,
    sets: DirectionSets = lambda _: 1,
) -> list[EngineChoice]:
    """Run the network once on two or three samples and look at every operation downstream of every weight.

    Gauss–Newton is possible where the tail is piecewise linear and the output is one row of scores per sample;
    there it equals the Hessian block. It sweeps once per output column, tangents once per (weight, k), so for few
    weights of a network with many classes the latter are chosen all the same. Everything else gets tangents, exact
    on every tail.

    Args:
        workload: the model, held still.
        layers: the weights to measure.
        requested: an engine, or ``auto``.
        top_k: directions per weight, for the estimate of cost.
        sets: how often as many directions are measured together by an engine: published, held out, of noise.

    Raises:
        UnsupportedModelError: ``requested`` is Gauss–Newton and it would not be exact for some weight.
    """
    if requested not in (EngineName.AUTO, EngineName.GAUSS_NEWTON):
        return [EngineChoice(requested, "asked for") for _ in layers]
    return _choose(_look_downstream(workload, layers), layers, requested, top_k, sets)


def _choose(
    found: _Tails, layers: Sequence[WeightLayer], requested: EngineName, top_k: int, sets: DirectionSets
) -> list[EngineChoice]:
    if requested not in (EngineName.AUTO, EngineName.GAUSS_NEWTON):
        return [EngineChoice(requested, "asked for") for _ in layers]

    def cost(engine: type[CurvatureEngine]) -> float:
        pairs = zip(_weights(found, layers, top_k, sets(engine.name)), found.reasons, strict=True)
        return engine.cost([weight for weight, reason in pairs if reason is None], found.n_outputs)

    sweeps, products = cost(GaussNewton), cost(Tangents)
    dear = requested is EngineName.AUTO and products < sweeps - 1  # the sweeps' forward pass decides nothing
    choices = []
    for layer, reason in zip(layers, found.reasons, strict=True):
        if reason is None and dear:
            why = f"piecewise-linear tail, but {found.n_outputs} output columns would cost more than tangents"
            choices.append(EngineChoice(EngineName.TANGENT, why))
        elif reason is None:
            choices.append(EngineChoice(EngineName.GAUSS_NEWTON, "piecewise-linear tail"))
        elif requested is EngineName.GAUSS_NEWTON:
            raise UnsupportedModelError(
                f"gauss-newton is not exact for weight {layer.name!r}: {reason}; use --engine auto, or leave it "
                "out with --exclude"
            )
        else:
            choices.append(EngineChoice(EngineName.TANGENT, reason))
    return choices


@dataclass(frozen=True)
class _Tails:
    """Per weight: why Gauss–Newton is not exact (``None``: it is), and the share of the network after it."""

    reasons: list[str | None]
    shares: list[float]
    n_outputs: int


def _weights(found: _Tails, layers: Sequence[WeightLayer], top_k: int, sets: int) -> list[Downstream]:
    pairs = zip(layers, found.shares, strict=True)
    return [Downstream(share, sets * min(top_k, *layer.info.shape)) for layer, share in pairs]


def _look_downstream(workload: Workload, layers: Sequence[WeightLayer]) -> _Tails:
    batch = min(3, workload.source.n)
    found = _look_at(workload, layers, batch)
    if workload.differentiates or workload.loss_reads_weights:
        inside = "the network takes gradients inside its forward pass"
        why = inside if workload.differentiates else "the loss reads weights itself, beside the network's outputs"
        return replace(found, reasons=[reason or why for reason in found.reasons])
    if batch == 1 or None not in found.reasons:
        return found
    # Rows that only happen to be as many as the samples give themselves away at another batch size.
    again = _look_at(workload, layers, batch - 1)
    reasons = [a if a is not None else b for a, b in zip(found.reasons, again.reasons, strict=True)]
    return replace(found, reasons=reasons)


def _look_at(workload: Workload, layers: Sequence[WeightLayer], batch: int) -> _Tails:
    parameters = list({id(layer.parameter): layer.parameter for layer in layers}.values())
    number = {id(p): i for i, p in enumerate(parameters)}
    inputs, _ = workload.fetch(0, batch)
    shapes: dict[int, str] = {}

    def note(use: WeightUse) -> torch.Tensor:
        layer_shape = tuple(parameters[use.weight].shape)
        if use.kind == "linear" and (use.inputs.dim() != 2 or use.inputs.shape[0] != batch):
            shapes[use.weight] = "it is applied to more than one row per sample"
        elif use.kind == "conv" and use.inputs.shape[0] != batch:
            shapes[use.weight] = "its input does not keep samples on the first axis"
        elif use.kind == "conv" and len(layer_shape) != use.inputs.dim():
            shapes[use.weight] = "it is applied to an unbatched input"
        return use.inputs

    with torch.enable_grad(), Tape(parameters, analysing=True, on_use=note) as tape:
        output = workload.forward(inputs)
    if not isinstance(output, torch.Tensor) or output.dim() != 2 or output.shape[0] != batch:
        return _Tails(["the output is not one row of scores per sample"] * len(layers), [1.0] * len(layers), 0)
    end = tape.number_of(output)
    reached = 0 if end is None else tape.values[end].dep
    uses: dict[int, list[WeightUse]] = {}
    for use in tape.uses:
        uses.setdefault(use.weight, []).append(use)
    found: list[str | None] = []
    for layer in layers:
        index = number[id(layer.parameter)]
        transposed = layer.layout == "transposed"
        if index in tape.refused:
            found.append(tape.refused[index])
        elif not reached >> index & 1:
            found.append("it does not reach the output")
        elif index not in uses:
            found.append("it is not used by a convolution or linear layer")
        elif index in shapes:
            found.append(shapes[index])
        elif any(u.transposed != transposed for u in uses[index]) or layer.layout == "conv_transpose":
            found.append("its stored layout is not the one its operation expects")
        else:
            found.append(None)
    order = [node.use.weight for node in tape.nodes if node.use is not None]
    shares = [
        1 - order.index(number[id(layer.parameter)]) / len(order) if number[id(layer.parameter)] in order else 1.0
        for layer in layers
    ]
    return _Tails(found, shares, output.shape[1])
