"""What is known about a network once it has its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from spectrascope.loading.checkpoints.read import Checkpoint, file_sha256, require_finite
from spectrascope.loading.checkpoints.skeleton import meta_copy
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.models.fit import without_auxiliary_heads
from spectrascope.loading.models.source import Architecture
from spectrascope.records.report import ModelInfo
from spectrascope.records.values import Missing, Task

__all__ = ["describe_network", "finish", "ready"]

_HEADERS = Missing("only headers were read")


def finish(
    spec: str,
    architecture: Architecture,
    network: nn.Module,
    num_classes: int | None,
    *,
    weights: str,
    checkpoint: Checkpoint | None = None,
    file: Path | None = None,
    notes: tuple[str, ...] = (),
) -> LoadedModel:
    """Describe a network of a known architecture.

    Args:
        spec: the model string.
        architecture: what it was built as.
        network: with its weights; on the meta device where only headers were read.
        num_classes: number of outputs; read off the network's last parameter when ``None``.
        weights: where they come from, in words.
        checkpoint: the user's file they were in, or the embedded one.
        file: the cached file of published weights.
        notes: what the reader should know besides.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
    """
    preprocessing = architecture.preprocessing_of(network)
    network = ready(without_auxiliary_heads(network), spec, checked=checkpoint is not None)
    if num_classes is None:
        num_classes = list(network.parameters())[-1].shape[0]
    named = architecture.class_names_of(num_classes).get(num_classes)
    embedded = weights == "embedded"
    info = describe_network(
        spec, architecture.name, architecture.source, network, weights=weights, checkpoint=checkpoint, file=file,
        embedded=embedded,
    )  # fmt: skip
    return LoadedModel(
        model=network,
        info=replace(info, task=architecture.task),
        preprocessing=preprocessing,
        class_names=named,
        default_dataset=architecture.dataset if named is not None else None,
        num_classes=None if architecture.task is Task.CAUSAL_LM else num_classes,
        text=architecture.text_of(network),
        notes=notes,
    )


def ready(network: nn.Module, spec: str, *, checked: bool) -> nn.Module:
    """Put a network into evaluation mode, its weights finite; ``checked`` ones come from a file that was.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
    """
    if any(p.is_meta for p in network.parameters()):
        return meta_copy(network).eval()  # constructors fill some parameters with numbers of their own
    if not checked:
        require_finite(network.state_dict(), spec)
    return network.to("cpu").eval()


def describe_network(
    spec: str,
    architecture: str,
    source: str,
    network: nn.Module,
    *,
    weights: str,
    checkpoint: Checkpoint | None,
    file: Path | None = None,
    embedded: bool = False,
) -> ModelInfo:
    """The record of a network for the report; of a ``checkpoint`` or published ``file``, where it came from one."""
    path: str | Missing = Missing("shipped inside the package" if embedded else "no weights file")
    sha256: str | Missing = path
    if file is not None:
        path, sha256 = str(file), file_sha256(file)
    elif checkpoint is not None:
        sha256 = checkpoint.sha256
        if not embedded:
            path, source, spec = str(checkpoint.path), "checkpoint", Path(spec).name
    elif any(p.is_meta for p in network.parameters()):
        sha256 = _HEADERS
    return ModelInfo(
        id=spec,
        architecture=architecture,
        source=source,
        path=path,
        sha256=sha256,
        weights=weights,
        n_parameters=sum(p.numel() for p in network.parameters()),
    )
