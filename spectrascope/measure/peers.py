"""Other tools' Hessian-vector products, each by its own interface, as its users call it.

None of them goes through the weights by itself, so each is handed one at a time, the way its interface allows, which is
also its fastest: PyHessian multiplies by the Hessian of all that requires a gradient, so only that weight does;
curvlinops takes a list of parameters, hessian-eigenthings a filter. All get batches of one size, the one at which
double backprop is fastest, and the attention kernel that has second derivatives.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectrascope.records.values import Missing
from spectrascope.workload import Inputs, Workload

__all__ = ["PEERS", "Multiply", "Peer", "Problem"]

Multiply: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Vectors v shaped like the weight -> the products H v, each the mean over the samples, shaped likewise."""


@dataclass(frozen=True)
class Problem:
    """The Hessian block of one weight over batches of samples, as other tools want it said.

    ``network`` maps inputs to what ``loss`` compares with the targets; ``loss`` is a mean over the batch.
    """

    network: nn.Module
    loss: nn.Module
    weight: nn.Parameter
    batches: Sequence[tuple[Inputs, Tensor]]

    @classmethod
    def of(cls, workload: Workload, weight: nn.Parameter, batches: Sequence[tuple[Inputs, Tensor]]) -> Problem:
        """The problem of one weight of a workload."""
        return cls(_ScoresModule(workload), _LossModule(workload), weight, batches)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The weight as the only one that requires a gradient; gradients that a tool leaves behind are dropped."""
        parameters = list(self.network.parameters())
        wanted = [p.requires_grad for p in parameters]
        try:
            for p in parameters:
                p.requires_grad_(p is self.weight)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of cycles that backward(create_graph=True) leaves: dropped below
                yield
        finally:
            for p, wants in zip(parameters, wanted, strict=True):
                p.requires_grad_(wants)
                p.grad = None


class _ScoresModule(nn.Module):
    """A workload's network from inputs to what its loss takes; fused attention has no second derivative."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.model = workload.model
        self._workload = workload

    def forward(self, inputs: Inputs) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return self._workload.forward(inputs, self.model)


class _LossModule(nn.Module):
    """A workload's loss as a module, which is what tools expect."""

    reduction = "mean"

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self._loss_fn = workload.loss_fn

    def forward(self, output: Any, targets: Tensor) -> Tensor:
        return self._loss_fn(output, targets)


@dataclass(frozen=True)
class Peer:
    """Another tool and how its product is taken.

    Args:
        name: as it calls itself.
        package: on the package registry.
        module: to be imported.
        product: how its product is taken, in words.
        prepare: from its module and the problem to its product.
        at_once: whether it multiplies several vectors together, and is then handed all of a weight.
    """

    name: str
    package: str
    module: str
    product: str
    prepare: Callable[[Any, Problem], Multiply]
    at_once: bool = False

    def find(self) -> Any | Missing:
        """Its module, imported, or why there is none."""
        if importlib.util.find_spec(self.module) is None:
            return Missing(f"not installed: pip install {self.package}, or spectrascope[peers]")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what another tool makes of its own imports is not the user's doing
                return importlib.import_module(self.module)
        except Exception as error:
            return failed(error)

    def version(self) -> str:
        """The version installed, empty where none says so."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return ""


def failed(error: Exception, name: str = "") -> Missing:
    """Why a tool gives no numbers, in one line; ``name``: of the weight it had in hand."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 160 else text[:159] + "…"
    return Missing(f"{f'on {name}: ' if name else ''}{type(error).__name__}{': ' if text else ''}{text}")


def _pyhessian(module: Any, problem: Problem) -> Multiply:
    """As its example script: one batch is held with its gradient's graph, several are gone through for each product."""
    cuda = problem.weight.is_cuda
    if len(problem.batches) == 1:
        one = module.hessian(problem.network, problem.loss, data=problem.batches[0], cuda=cuda)
        return lambda vectors: [module.hessian_vector_product(one.gradsH, one.params, [v])[0] for v in vectors]
    several = module.hessian(problem.network, problem.loss, dataloader=problem.batches, cuda=cuda)
    return lambda vectors: [several.dataloader_hv_product([v])[1][0] for v in vectors]


def _curvlinops(module: Any, problem: Problem) -> Multiply:
    """A matrix of all vectors at a time; its check for randomness, two products more, is left out."""
    operator = module.HessianLinearOperator(
        problem.network,
        problem.loss,
        [problem.weight],
        problem.batches,
        check_deterministic=False,
        batch_size_fn=lambda inputs: len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))),
    )

    def multiply(vectors: Sequence[Tensor]) -> Sequence[Tensor]:
        (products,) = operator @ [torch.stack(list(vectors), dim=-1)]
        return [product.reshape(problem.weight.shape) for product in products.reshape(-1, len(vectors)).unbind(-1)]

    return multiply


def _eigenthings(module: Any, problem: Problem) -> Multiply:
    operator = module.HessianOperator(
        problem.network,
        problem.batches,
        lambda network, batch: problem.loss(network(batch[0]), batch[1]),
        param_filter=lambda _, parameter: parameter is problem.weight,
    )
    return lambda vectors: [operator.matvec(v.reshape(-1)).view_as(v) for v in vectors]


PEERS: tuple[Peer, ...] = (
    Peer(
        "PyHessian",
        "pyhessian",
        "pyhessian",
        "dataloader_hv_product (of one batch: its kept graph), other weights frozen",
        _pyhessian,
    ),
    Peer(
        "curvlinops",
        "curvlinops-for-pytorch",
        "curvlinops",
        "HessianLinearOperator of the weight, all its directions at once",
        _curvlinops,
        at_once=True,
    ),
    Peer(
        "hessian-eigenthings",
        "hessian-eigenthings",
        "hessian_eigenthings",
        "HessianOperator of the weight",
        _eigenthings,
    ),
)
"""The tools that ``bench --peers`` times."""
