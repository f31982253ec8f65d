"""The built-in networks, and the one whose weights are shipped with the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib import resources
from pathlib import Path

from torch import nn

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.read import read_checkpoint, read_step
from spectrascope.loading.loaded import LoadedModel, TextInput
from spectrascope.loading.models.finish import finish
from spectrascope.loading.models.fit import fill
from spectrascope.loading.models.named import NamedSource
from spectrascope.loading.models.source import Architecture, Build, ModelRequest
from spectrascope.loading.zoo import ZOO, ZooEntry, find_entry

__all__ = ["BUILTIN", "EMBEDDED"]

EMBEDDED = "digits-cnn"
_STAGES = {"early": "digits_cnn_early.safetensors", "final": "digits_cnn.safetensors"}
"""Of the embedded network's training, by what stands behind the @; the first is what its plain name means."""


class _BuiltIn(NamedSource):
    """The networks of ``spectrascope.loading.zoo``, ``mlp:WIDTHS`` included."""

    usage = "a built-in name (such as cifar-resnet20 or mlp:784-256-10)"

    def owns(self, spec: str) -> bool:
        """Whether it is a name in the zoo, or meant as an MLP."""
        return spec.startswith("mlp:") or super().owns(spec)

    def names(self) -> Sequence[str]:
        """Of all but the MLPs, which are without end."""
        return tuple(ZOO)

    def architecture(self, name: str) -> Architecture | None:
        """The network of a name in the zoo, or an MLP of these widths."""
        entry = find_entry(name)
        if entry is None and name.startswith("mlp:"):
            raise LoadError(
                f"{name}: expected mlp: and at least two widths joined by hyphens, as in mlp:784-256-128-10"
            )
        return None if entry is None else _architecture(entry)

    def published(self, request: ModelRequest, architecture: Architecture, which: str | None) -> LoadedModel:
        """The embedded network; the others have no weights."""
        if architecture.name != EMBEDDED:
            raise LoadError(
                f"{request.spec}: built-in networks other than {EMBEDDED} have no weights of their own; pass a "
                f"checkpoint with --arch {architecture.name}, or {architecture.name}@none for random weights"
            )
        if request.num_classes not in (None, 10):
            raise LoadError(
                f"{EMBEDDED} has 10 outputs, not {request.num_classes}; use {EMBEDDED}@none or drop --num-classes"
            )
        stage = which or next(iter(_STAGES))
        with _shipped(request.spec, stage) as path:
            checkpoint = read_checkpoint(path, headers_only=request.headers_only)
        network = fill(lambda: architecture.build(10), checkpoint.state_dict, path)
        return finish(f"{EMBEDDED}@{stage}", architecture, network, 10, weights="embedded", checkpoint=checkpoint)

    def step(self, spec: str) -> int | None:
        """The training step of the embedded network's weights."""
        name, which = self.parse(spec)
        if name != EMBEDDED or which == "none":
            return None
        with _shipped(spec, which or next(iter(_STAGES))) as path:
            return read_step(path)


def _shipped(spec: str, stage: str) -> AbstractContextManager[Path]:
    """The embedded network's file of a stage of its training.

    Raises:
        LoadError: there is no such stage.
    """
    if stage not in _STAGES:
        known = ", ".join(f"{EMBEDDED}@{name}" for name in _STAGES)
        raise LoadError(
            f"{spec}: no such weights; expected {known}, {EMBEDDED} (which means {EMBEDDED}@{next(iter(_STAGES))}), or "
            f"{EMBEDDED}@none for random ones"
        )
    return resources.as_file(resources.files("spectrascope.data").joinpath(_STAGES[stage]))


def _architecture(entry: ZooEntry) -> Architecture:
    own, sizes_in = entry.num_classes, entry.sizes_in

    def build(num_classes: int | None, sizes: tuple[int, ...] = ()) -> nn.Module:
        if num_classes is not None and num_classes != own and entry.name.startswith("mlp:"):
            raise LoadError(f"{entry.name} has {own} outputs, not {num_classes}; change the last width")
        return entry.build(own if num_classes is None else num_classes, *sizes)

    def builds_for(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Build, ...]:
        return (partial(build, sizes=() if sizes_in is None else sizes_in(shapes)),)

    return Architecture(
        entry.name,
        "built-in",
        build,
        lambda network: entry.preprocessing,
        lambda count: entry.class_names,
        entry.dataset,
        builds_for=None if sizes_in is None else builds_for,
        task=entry.task,
        text_of=_text_of,
        untrained=entry.untrained,
    )


def _text_of(network: nn.Module) -> TextInput | None:
    vocabulary, context = getattr(network, "vocabulary", None), getattr(network, "context", None)
    if not isinstance(vocabulary, int) or not isinstance(context, int):
        return None
    # Which numbers stand for what is not in its weights. Padding comes last, where no token before it looks.
    return TextInput(vocabulary, context, "none; weights alone do not say which token is which", pad_id=0)


BUILTIN = _BuiltIn()
