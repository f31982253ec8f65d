"""Models known by name: with the weights their library publishes, or with random ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.read import read_checkpoint
from spectrascope.loading.checkpoints.skeleton import build_skeleton
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.models.finish import finish
from spectrascope.loading.models.source import Architecture, ModelRequest, ModelSource

__all__ = ["NamedSource", "read_cached", "require_published_classes", "with_seed"]

Built = TypeVar("Built")


class NamedSource(ModelSource):
    """Architectures by name: ``NAME``, ``NAME@WEIGHTS``, and ``NAME@none`` for random weights."""

    def parse(self, spec: str) -> tuple[str, str | None]:
        """The name, and which weights where the string says so."""
        name, at, which = spec.rpartition("@")
        return (name, which) if at else (spec, None)

    def owns(self, spec: str) -> bool:
        """Whether it is one of its names, perhaps with weights."""
        return spec.startswith(self.prefix) if self.prefix else self.parse(spec)[0] in self.names()

    def open(self, request: ModelRequest) -> LoadedModel:
        """Build a network with the weights the string asks for.

        Weights are random only where ``@none`` asks for it, or where the architecture says that its plain name means
        that, because no trained weights exist anywhere.
        """
        name, which = self.parse(request.spec)
        architecture = self.architecture(name)
        assert architecture is not None
        plain = which is None and architecture.untrained
        if not plain and not request.spec.endswith("@none"):
            return self.published(request, architecture, which)
        build = partial(architecture.build, request.num_classes)
        network = build_skeleton(build) if request.headers_only else with_seed(build, request.seed)
        note = f"{name} has no weights of its own: these are random; pass a checkpoint for trained ones"
        return finish(
            request.spec, architecture, network, request.num_classes, weights=f"random (seed {request.seed})",
            notes=(note,) if plain else (),
        )  # fmt: skip

    @abstractmethod
    def published(self, request: ModelRequest, architecture: Architecture, which: str | None) -> LoadedModel:
        """The network with published weights, the default ones for ``None``.

        Raises:
            LoadError: no such weights, or they are neither cached nor downloadable.
        """


def with_seed(build: Callable[[], Built], seed: int) -> Built:
    """Run a constructor from a fixed random state; the caller's is left as found."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would reseed CUDA too
        return build()


def require_published_classes(request: ModelRequest, architecture: Architecture, count: int) -> None:
    """Refuse another number of classes than published weights have.

    Raises:
        LoadError: the numbers differ.
    """
    if request.num_classes not in (None, count):
        raise LoadError(
            f"{request.spec}: the published weights have {count} outputs, not {request.num_classes}; use "
            f"{architecture.name}@none or pass a checkpoint trained on {request.num_classes} classes"
        )


def read_cached(what: str, file: Path, url: str) -> dict[str, Tensor]:
    """The tensors of published weights.

    Raises:
        LoadError: the file cannot be read.
    """
    try:
        return read_checkpoint(file, mapped=True).state_dict
    except LoadError as error:
        raise LoadError(
            f"{what}: the cached weights cannot be read ({str(error).partition(';')[0]}); delete {file} and run "
            f"again, or get {file.name} from {url}"
        ) from None
