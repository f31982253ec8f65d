"""One model string to a network, its provenance and what its inputs look like."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from spectrascope.errors import LoadError
from spectrascope.loading import torchvision_models
from spectrascope.loading.architectures import Architecture, find_architecture
from spectrascope.loading.checkpoint import (
    SUFFIXES,
    Checkpoint,
    file_sha256,
    read_checkpoint,
    require_finite,
)
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.preprocessing import Preprocessing
from spectrascope.loading.recognise import key_variants, recognise
from spectrascope.loading.skeleton import Difference, Skeleton, build_skeleton, compare, skeleton_of
from spectrascope.records import Missing, ModelInfo

__all__ = ["load_model"]

EMBEDDED = "digits-cnn"


def load_model(
    spec: str | None,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    allow_download: bool = True,
) -> LoadedModel:
    """Load what a model string names. Weights are never random unless ``@none`` asks for it.

    Args:
        spec: ``None`` or ``digits-cnn`` for the embedded network; a checkpoint file; ``NAME@none`` for random
            weights; a torchvision model, ``NAME`` or ``NAME@WEIGHTS``; ``package.module:factory`` or
            ``file.py:factory``, called for a network that brings its own weights.
        arch: architecture of a checkpoint file (a name or a factory); recognised from its keys when ``None``.
        num_classes: number of outputs, where it is not the usual one; must agree with a file's.
        seed: of random weights. The caller's random state is left as found.
        allow_download: fetch torchvision's published weights where they are not cached.

    Raises:
        LoadError: unknown name, unreadable file, keys or shapes that do not fit, a failing factory, weights
            that are neither cached nor downloadable.
        NonFiniteError: a weight is NaN or infinite.
    """
    if spec is None:
        spec = EMBEDDED
    if _is_file_spec(spec):
        return _load_checkpoint(spec, arch, num_classes, seed)
    if arch is not None:
        raise LoadError(f"--arch goes with a checkpoint file, but {spec!r} is a name; pass a file or drop --arch")
    if spec == EMBEDDED:
        return _load_embedded(num_classes)
    name, at, which = spec.rpartition("@")
    architecture = find_architecture(name if at else spec)
    if architecture.source == "factory":
        if at:
            raise LoadError(f"{spec}: a factory brings its own weights; drop @{which}")
        return _finish(
            spec,
            architecture,
            _build(architecture, num_classes, seed),
            num_classes,
            weights="from the factory",
        )
    if at and which == "none":
        network = _build(architecture, num_classes, seed)
        return _finish(spec, architecture, network, num_classes, weights=f"random (seed {seed})")
    if architecture.source == "torchvision":
        return _load_published(spec, architecture, which if at else None, num_classes, allow_download)
    raise LoadError(
        f"{spec}: built-in networks other than {EMBEDDED} have no weights of their own; pass a checkpoint "
        f"with --arch {architecture.name}, or {architecture.name}@none for random weights"
    )


def _is_file_spec(spec: str) -> bool:
    path = Path(spec)
    if path.suffix == ".py":
        raise LoadError(
            f"{spec} is Python source; expected {spec}:factory, naming the function that returns the network"
        )
    # A directory counts only when written as a path, so that one called "resnet50" does not hide the network.
    separators = {"/", os.sep}
    written_as_path = any(s in spec for s in separators) and ".py:" not in spec
    return path.is_file() or path.suffix.lower() in SUFFIXES or written_as_path


def _load_checkpoint(spec: str, arch: str | None, num_classes: int | None, seed: int) -> LoadedModel:
    checkpoint = read_checkpoint(spec)
    if arch is None:
        try:
            recognised = recognise(checkpoint.state_dict)
        except LoadError as error:
            raise LoadError(f"{spec}: {error}") from None
        architecture, found = find_architecture(recognised.architecture), recognised.num_classes
        network = _fill(build_skeleton(recognised.build), recognised.state_dict)
    elif (architecture := find_architecture(arch)).source == "factory":
        network = _fill_factory(spec, architecture, checkpoint, num_classes, seed)
        return _finish(spec, architecture, network, num_classes, weights=_describe(checkpoint), checkpoint=checkpoint)
    else:
        skeleton = skeleton_of(lambda n: architecture.build(None if arch.startswith("mlp:") else n))
        state_dict, count = _fitting_variant(spec, architecture, skeleton, checkpoint)
        found = count if count is not None else next(reversed(skeleton.shapes.values()))[0]
        network = _fill(build_skeleton(lambda: architecture.build(found)), state_dict)
    if num_classes not in (None, found):
        raise LoadError(
            f"{spec} has {found} outputs, but {num_classes} classes were asked for; drop --num-classes or "
            f"pass a checkpoint trained on {num_classes} classes"
        )
    return _finish(spec, architecture, network, found, weights=_describe(checkpoint), checkpoint=checkpoint)


def _describe(checkpoint: Checkpoint) -> str:
    other = ", ".join(checkpoint.narrow_dtypes)
    return f"checkpoint ({other}, converted to float32)" if other else "checkpoint"


def _fitting_variant(
    spec: str, architecture: Architecture, skeleton: Skeleton, checkpoint: Checkpoint
) -> tuple[dict[str, Tensor], int | None]:
    """Find the reading of the file's keys that fits; refuse with the smallest difference where none does."""
    best: Difference | None = None
    for variant in key_variants(checkpoint.state_dict):
        count, difference = compare(skeleton, {key: tuple(value.shape) for key, value in variant.items()})
        if difference.size == 0:
            return variant, count
        if best is None or difference.size < best.size:
            best = difference
    tensors = checkpoint.state_dict.values()
    in_order = [tuple(tensor.shape) for tensor in tensors] == list(skeleton.shapes.values())
    if architecture.name.startswith("mlp:") and in_order:
        # Whoever names the widths has said what the network is; only the names of its layers differ.
        return dict(zip(skeleton.shapes, tensors, strict=True)), None
    raise LoadError(
        f"{spec} does not fit {architecture.name}: {best}; pass the architecture it was trained with, or "
        f"drop --arch to have it recognised"
    )


def _fill(skeleton: nn.Module, state_dict: dict[str, Tensor]) -> nn.Module:
    """Put a file's tensors, which fit, into a network built without storage."""
    tensors = {
        key: value.to(torch.float32) if value.is_floating_point() else value for key, value in state_dict.items()
    }
    skeleton.load_state_dict(tensors, strict=False, assign=True)
    left = [name for name, p in skeleton.named_parameters() if p.is_meta]
    if left:
        raise LoadError(f"{len(left)} parameters got no weights from the file ({', '.join(left[:3])})")
    return torchvision_models.without_auxiliary_heads(skeleton)


def _fill_factory(
    spec: str, architecture: Architecture, checkpoint: Checkpoint, num_classes: int | None, seed: int
) -> nn.Module:
    """Load a file into a user's own network, by copying, which keeps its tied parameters tied."""
    weights = [value for value in checkpoint.state_dict.values() if value.ndim >= 2]
    guesses = [num_classes]
    if num_classes is None and architecture.takes_num_classes and weights:
        # The last matrix of a file is nearly always the head; wrong guesses do not fit and are not used.
        guesses = [int(weights[-1].shape[0]), None]
    refusal: LoadError | None = None
    for guess in guesses:
        try:
            network = _build(architecture, guess, seed)
            shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
            optional = frozenset(key for key in shapes if key.endswith("num_batches_tracked"))
            state_dict, _ = _fitting_variant(spec, architecture, Skeleton(shapes, {}, optional), checkpoint)
        except LoadError as error:
            refusal = error
            continue
        network.load_state_dict({key: value for key, value in state_dict.items() if key in shapes}, strict=False)
        return network
    assert refusal is not None
    raise refusal


def _load_embedded(num_classes: int | None) -> LoadedModel:
    if num_classes not in (None, 10):
        raise LoadError(f"{EMBEDDED} has 10 outputs, not {num_classes}; use {EMBEDDED}@none or drop --num-classes")
    architecture = find_architecture(EMBEDDED)
    with resources.as_file(resources.files("spectrascope.data").joinpath("digits_cnn.safetensors")) as path:
        checkpoint = read_checkpoint(path)
    network = _fill(build_skeleton(lambda: architecture.build(10)), checkpoint.state_dict)
    return _finish(EMBEDDED, architecture, network, 10, weights="embedded", checkpoint=checkpoint)


def _load_published(
    spec: str, architecture: Architecture, which: str | None, num_classes: int | None, allow_download: bool
) -> LoadedModel:
    entry = torchvision_models.find_weights(architecture.name, which)
    categories = tuple(entry.meta["categories"])
    if num_classes not in (None, len(categories)):
        raise LoadError(
            f"{spec}: the published weights have {len(categories)} outputs, not {num_classes}; use "
            f"{architecture.name}@none or pass a checkpoint trained on {num_classes} classes"
        )
    network, file = torchvision_models.fetch_weights(architecture.name, entry, allow_download=allow_download)
    network = torchvision_models.without_auxiliary_heads(network).eval().float()
    require_finite(network.state_dict(), spec)
    return LoadedModel(
        network,
        ModelInfo(
            id=spec, architecture=architecture.name, source="torchvision", path=str(file),
            sha256=file_sha256(file), weights=str(entry.name), n_parameters=_count(network),
        ),
        torchvision_models.preprocessing_of(architecture.name, entry),
        categories,
        None,
        len(categories),
    )  # fmt: skip


def _build(architecture: Architecture, num_classes: int | None, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would reseed CUDA too
        return architecture.build(num_classes)


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _finish(
    spec: str,
    architecture: Architecture,
    network: nn.Module,
    num_classes: int | None,
    *,
    weights: str,
    checkpoint: Checkpoint | None = None,
) -> LoadedModel:
    network = torchvision_models.without_auxiliary_heads(network).to("cpu", torch.float32).eval()
    if checkpoint is None:
        require_finite(network.state_dict(), spec)
    if num_classes is None and architecture.source != "factory":
        num_classes = next(iter(reversed(list(network.parameters())))).shape[0]
    embedded = weights == "embedded"
    from_file = checkpoint is not None and not embedded
    no_file = "shipped inside the package" if embedded else "no weights file"
    info = ModelInfo(
        id=Path(spec).name if from_file else spec,
        architecture=architecture.name,
        source="checkpoint" if from_file else architecture.source,
        path=str(checkpoint.path) if checkpoint is not None and from_file else Missing(no_file),
        sha256=checkpoint.sha256 if checkpoint is not None else Missing(no_file),
        weights=weights,
        n_parameters=_count(network),
    )
    class_names = architecture.class_names.get(num_classes) if num_classes is not None else None
    return LoadedModel(
        model=network,
        info=info,
        preprocessing=architecture.preprocessing or _guess_preprocessing(network),
        class_names=class_names,
        default_dataset=architecture.dataset if class_names is not None else None,
        num_classes=num_classes,
    )


def _guess_preprocessing(network: nn.Module) -> Preprocessing:
    """A user's own network: images at their own size, as many channels as its first convolution takes."""
    channels = 3
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            channels = module.in_channels
            break
    return Preprocessing(size=None, channels=channels, note="the network does not say how its inputs are prepared")
