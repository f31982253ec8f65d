"""What the engines are held to: rows of M by double backprop, or by central differences of float64 gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spectrascope.curvature.double_backprop import hessian_products, loss_gradients_found
from spectrascope.curvature.engine import Target
from spectrascope.curvature.microbatches import available_bytes
from spectrascope.errors import UnsupportedModelError
from spectrascope.network.effective import copy_of
from spectrascope.network.formats import in_format
from spectrascope.records.values import Missing
from spectrascope.workload import Workload

__all__ = ["Copies", "Pick", "difference_rows", "gradient_slopes", "product_rows"]

_SMALL = 1 << 30  # bytes of a copy in float64 that a run makes whether or not anything is wrong
_BYTES = 1 << 28  # of gradients that hang on one graph: a network's weights are taken in blocks


@dataclass(frozen=True)
class Pick:
    """A weight, its directions, and those of them whose rows of M are compared with a reference."""

    target: Target
    rows: tuple[int, ...]

    @property
    def name(self) -> str:
        """The weight's."""
        return self.target.layer.name


def product_rows(workload: Workload, picks: Sequence[Pick]) -> Iterator[Tensor | str | None]:
    """Rows (rows, K) of M by one Hessian-vector product each, in float64; ``None`` where no sample reaches the weight.

    Where autograd has no second derivative: why.
    """
    inputs, labels = workload.fetch(0, workload.source.n)
    for block in _blocks(picks):
        gradients: Sequence[Tensor | None]
        try:
            gradients = loss_gradients_found(workload, [pick.target for pick in block], inputs, labels)
        except UnsupportedModelError:  # these samples reach none of the block
            gradients = [None] * len(block)
        for pick, gradient in zip(block, gradients, strict=True):
            if gradient is None:
                yield None
                continue
            try:
                products = hessian_products(pick.target, gradient, pick.rows)
            except UnsupportedModelError as error:
                yield str(error)
                continue
            yield torch.stack([pick.target.directions.forms(pick.target.layer.matrix(product)) for product in products])


def gradient_slopes(workload: Workload, picks: Sequence[Pick]) -> Iterator[Tensor | None]:
    """Slopes (K,) of the workload's mean loss along each weight's directions, ``None`` where no sample reaches it."""
    inputs, labels = workload.fetch(0, workload.source.n)
    for block in _blocks(picks):
        gradients = loss_gradients_found(workload, [pick.target for pick in block], inputs, labels)
        for pick, gradient in zip(block, gradients, strict=True):
            yield None if gradient is None else pick.target.directions.forms(pick.target.layer.matrix(gradient))


def _blocks(picks: Sequence[Pick]) -> Iterator[list[Pick]]:
    block: list[Pick] = []
    held: dict[int, int] = {}
    for pick in picks:
        weight = pick.target.layer.parameter
        if block and id(weight) not in held and sum(held.values()) + weight.nbytes > _BYTES:
            yield block
            block, held = [], {}
        block.append(pick)
        held[id(weight)] = weight.nbytes
    if block:
        yield block


class Copies:
    """The network in other precisions: copied when first asked for, and kept."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._models: dict[torch.dtype, nn.Module] = {}
        self._numbers = sum(t.numel() for t in (*workload.model.parameters(), *workload.model.buffers()))

    @staticmethod
    def bytes_in_float64(numbers: int) -> int:
        """Bytes of the copy that checks a network of so many numbers in any case: 0 where it would be large."""
        return 8 * numbers if 8 * numbers <= _SMALL else 0

    @property
    def is_small(self) -> bool:
        """Whether a copy in float64 costs little beside the measurement, and is worth as much."""
        return not self._workload.loss_reads_weights and self.bytes_in_float64(self._numbers) > 0

    def has_room_for(self, dtype: torch.dtype) -> bool:
        """Whether memory holds a copy in this precision, where there is none yet, and one would do."""
        if self._workload.loss_reads_weights:
            return False
        free = available_bytes(self._workload.device)
        return dtype in self._models or isinstance(free, Missing) or self._numbers * dtype.itemsize <= free

    def of(self, workload: Workload, pick: Pick, dtype: torch.dtype) -> tuple[Workload, Pick]:
        """The workload in another precision, and the same weight of it.

        Raises:
            UnsupportedModelError: the device lacks the precision, or room for a copy.
        """
        if workload.device.type == "mps" and dtype is torch.float64:
            raise UnsupportedModelError("a comparison in float64 needs a device that has it")
        if dtype not in self._models:
            if self._workload.loss_reads_weights:
                raise UnsupportedModelError("the loss reads the network's own weights, which a copy does not have")
            if not self.has_room_for(dtype):
                raise UnsupportedModelError(f"memory does not hold a copy in {str(dtype).removeprefix('torch.')}")
            self._models[dtype] = in_format(copy_of(self._workload.model), None, dtype, in_place=True)
        model = self._models[dtype]
        weight = model.get_parameter(pick.name.split("[", maxsplit=1)[0])
        layer = replace(pick.target.layer, parameter=weight)
        # In float64 a network's own casts to float32 would drown differences of gradients in rounding.
        double = replace(workload, model=model, dtype=dtype).without_casts()
        return double, replace(pick, target=replace(pick.target, layer=layer))


def difference_rows(double: Workload, pick: Pick, tolerance: float, least: float = 0.0) -> Tensor:
    """Rows (rows, K) of M by central differences of ``.backward()`` gradients in float64.

    Taken at two steps: where they disagree by a tenth of ``tolerance``, a kink lies in between or cancellation wins,
    and differences prove nothing.

    Args:
        double: the network in float64, a copy: its weight is moved to and fro.
        pick: the weight of that copy.
        tolerance: of the comparison, relative.
        least: curvature that is as good as none: a difference of two that are far below it is settled.

    Raises:
        UnsupportedModelError: the two steps disagree, or no gradient arrives.
    """
    model, layer = double.model, pick.target.layer
    weight = layer.parameter
    inputs, labels = double.fetch(0, double.source.n)
    start = weight.detach().clone()
    step = 1e-5 * max(float(start.norm()) / max(start.numel(), 1) ** 0.5, 1e-3)

    def gradient(shift: Tensor) -> Tensor:
        with torch.no_grad():
            weight.copy_(start + shift)
        model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            double.loss(inputs, labels).backward()
        if weight.grad is None:
            raise UnsupportedModelError(f"weight {pick.name!r} gets no gradient from backward()")
        return layer.matrix(weight.grad.detach())

    found = []
    try:
        for size in (step, step / 8):
            rows = []
            for k in pick.rows:
                direction = pick.target.direction(k).to(weight) * size
                rows.append(pick.target.directions.forms(gradient(direction) - gradient(-direction)) / (2 * size))
            found.append(torch.stack(rows))
    finally:
        with torch.no_grad():
            weight.copy_(start)
    coarse, fine = found
    if float((coarse - fine).abs().max()) > 0.1 * tolerance * max(float(fine.abs().max()), least):
        raise UnsupportedModelError("central differences do not settle here (a kink or cancellation)")
    return fine
