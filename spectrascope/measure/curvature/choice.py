"""Which engine measures which weight, decided by the operations that really run downstream of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from spectrascope.errors import UnsupportedModelError
from spectrascope.measure.layers import WeightLayer
from spectrascope.measure.tape import Tape, WeightUse
from spectrascope.records import EngineName
from spectrascope.workload import Workload

__all__ = ["EngineChoice", "choose_engines"]


@dataclass(frozen=True)
class EngineChoice:
    """The engine for one weight and, in words, why."""

    engine: EngineName
    reason: str


def choose_engines(
    workload: Workload, layers: Sequence[WeightLayer], requested: EngineName = EngineName.AUTO
) -> list[EngineChoice]:
    """Run the network once on two or three samples and look at every operation downstream of every weight.

    Gauss–Newton is chosen where the tail is piecewise linear and the output is one row of scores per sample;
    there it equals the Hessian block. Everything else gets double backprop.

    Raises:
        UnsupportedModelError: ``requested`` is Gauss–Newton and it would not be exact for some weight.
    """
    if requested is EngineName.DOUBLE_BACKPROP:
        return [EngineChoice(requested, "asked for") for _ in layers]
    reasons = _why_not_gauss_newton(workload, layers)
    choices = []
    for layer, reason in zip(layers, reasons, strict=True):
        if reason is None:
            choices.append(EngineChoice(EngineName.GAUSS_NEWTON, "piecewise-linear tail"))
        elif requested is EngineName.GAUSS_NEWTON:
            raise UnsupportedModelError(
                f"gauss-newton is not exact for weight {layer.name!r}: {reason}; use --engine auto, or leave it "
                "out with --exclude"
            )
        else:
            choices.append(EngineChoice(EngineName.DOUBLE_BACKPROP, reason))
    return choices


def _why_not_gauss_newton(workload: Workload, layers: Sequence[WeightLayer]) -> list[str | None]:
    parameters = list({id(layer.parameter): layer.parameter for layer in layers}.values())
    number = {id(p): i for i, p in enumerate(parameters)}
    inputs, _ = workload.fetch(0, min(3, workload.source.n))
    batch = len(inputs)
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
        output = workload.model(inputs)
    if not isinstance(output, torch.Tensor) or output.dim() != 2 or output.shape[0] != batch:
        return ["the output is not one row of scores per sample"] * len(layers)
    end = tape.number_of(output)
    reached = 0 if end is None else tape.dep(end)
    uses: dict[int, list[WeightUse]] = {}
    for use in tape.uses:
        uses.setdefault(use.weight, []).append(use)
    found: list[str | None] = []
    for layer in layers:
        index = number[id(layer.parameter)]
        transposed = layer.layout == "transposed"
        if not reached >> index & 1:
            found.append("it does not reach the output")
        elif index in tape.smooth:
            found.append(tape.smooth[index])
        elif index not in uses:
            found.append("it is not used by a convolution or linear layer")
        elif index in shapes:
            found.append(shapes[index])
        elif any(u.transposed != transposed for u in uses[index]) or layer.layout == "conv_transpose":
            found.append("its stored layout is not the one its operation expects")
        else:
            found.append(None)
    return found
