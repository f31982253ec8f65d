"""One model string to a network, its provenance and what its inputs look like."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

import torch

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.read import SUFFIXES, Checkpoint, read_checkpoint
from spectrascope.loading.checkpoints.skeleton import build_skeleton
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.models import torchvision as torchvision_models
from spectrascope.loading.models.architectures import find_architecture
from spectrascope.loading.models.factories import Factory, Made, find_factory, is_factory
from spectrascope.loading.models.finish import finish, finish_factory
from spectrascope.loading.models.fit import fill, fill_architecture, fill_factory
from spectrascope.loading.models.hints import named_architecture
from spectrascope.loading.models.published_models import load_timm, load_torchvision
from spectrascope.loading.models.recognise import Recognised, is_listed, recognise
from spectrascope.loading.zoo import ZOO

__all__ = ["load_model"]

EMBEDDED = "digits-cnn"
Built = TypeVar("Built")


def load_model(
    spec: str | None,
    *,
    arch: str | None = None,
    base: str | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    allow_download: bool = True,
    trust_remote_code: bool = False,
    headers_only: bool = False,
) -> LoadedModel:
    """Load what a model string names.

    Weights are never random unless ``@none`` asks for it, or the plain name of a built-in network of which no trained
    weights exist anywhere (``mini-gpt2``); both say so.

    Args:
        spec: ``None`` or ``digits-cnn`` for the embedded network; a checkpoint file, or ``FILE::dotted.key`` for a
            place in it; a folder with a checkpoint, a Hugging Face model or a PEFT adapter; ``hf:org/name``;
            ``NAME@none`` for random weights, and ``mini-gpt2``; a torchvision model, ``NAME`` or ``NAME@WEIGHTS``;
            ``timm:NAME`` or ``timm:NAME@TAG``; ``package.module:factory`` or ``file.py:factory``, called for a
            network that brings its own weights, perhaps with its loss and data.
        arch: architecture of a checkpoint (a name or a factory); recognised from its keys when ``None``.
        base: network that a PEFT adapter was trained on; the one it names itself when ``None``.
        num_classes: number of outputs, where it is not the usual one; must agree with a file's.
        seed: of random weights. The caller's random state is left as found.
        allow_download: fetch published weights where they are not cached.
        trust_remote_code: run Python code that came with a Hugging Face model.
        headers_only: read names and shapes, not tensors; parameters are on the meta device, except a factory's own.

    Raises:
        LoadError: unknown name, unreadable file, keys or shapes that do not fit, a failing factory, weights
            that are neither cached nor downloadable, options that do not go together.
        NonFiniteError: a weight is NaN or infinite.
    """
    spec = EMBEDDED if spec is None else spec
    foreign = _huggingface_part(spec, arch, base)
    if foreign is None:
        if base is not None:
            raise LoadError(f"--base goes with a PEFT adapter, but {spec!r} is none; drop --base")
        if trust_remote_code:
            raise LoadError(f"--trust-remote-code goes with a Hugging Face model, but {spec!r} is none; drop it")
    else:
        if arch is not None:
            raise LoadError(f"--arch goes with a checkpoint file, but {spec!r} says itself what it is; drop --arch")
        return _load_foreign(
            spec, foreign, base, num_classes=num_classes, allow_download=allow_download,
            trust_remote_code=trust_remote_code, headers_only=headers_only,
        )  # fmt: skip
    if _is_file_spec(spec):
        return _load_checkpoint(spec, arch, num_classes, seed, headers_only)
    if arch is not None:
        raise LoadError(f"--arch goes with a checkpoint file, but {spec!r} is a name; pass a file or drop --arch")
    if spec == EMBEDDED:
        return _load_embedded(num_classes, headers_only)
    name, at, which = spec.rpartition("@")
    name = name if at else spec
    if is_factory(name):
        if at:
            raise LoadError(f"{spec}: a factory brings its own weights; drop @{which}")
        factory = find_factory(spec)
        return finish_factory(spec, factory.name, _seeded(factory, seed)(num_classes), num_classes)
    if name.startswith("timm:") and not at:
        name, _, which = name.partition(".")  # timm's own spelling of NAME@TAG
    architecture = find_architecture(name)
    if which == "none" if at else architecture.untrained:
        build = partial(architecture.build, num_classes)
        network = build_skeleton(build) if headers_only else _with_seed(build, seed)
        notes = (
            () if at else (f"{name} has no weights of its own: these are random; pass a checkpoint for trained ones",)
        )
        return finish(spec, architecture, network, num_classes, weights=f"random (seed {seed})", notes=notes)
    if architecture.source == "torchvision":
        return load_torchvision(
            spec, architecture, which if at else None, num_classes=num_classes, allow_download=allow_download,
            headers_only=headers_only,
        )  # fmt: skip
    if architecture.source == "timm":
        return load_timm(
            spec, architecture, which or None, num_classes=num_classes, allow_download=allow_download,
            headers_only=headers_only,
        )  # fmt: skip
    raise LoadError(
        f"{spec}: built-in networks other than {EMBEDDED} have no weights of their own; pass a checkpoint "
        f"with --arch {architecture.name}, or {architecture.name}@none for random weights"
    )


def _huggingface_part(spec: str, arch: str | None, base: str | None) -> str | None:
    """Whether Hugging Face's libraries load this: ``"adapter"``, ``"model"``, or ``None``."""
    if spec.startswith("hf:"):
        return "adapter" if base is not None else "model"
    path = Path(spec.partition("::")[0])
    if not path.exists():
        return None
    from spectrascope.loading.models.huggingface.adapters import is_adapter_directory
    from spectrascope.loading.models.huggingface.open import is_huggingface_directory

    if path.is_dir():
        if not _is_file_spec(spec):
            return None
        if is_adapter_directory(path):
            return "adapter"
        return "model" if arch is None and is_huggingface_directory(path) else None
    if path.name.startswith("adapter_model.") and is_adapter_directory(path.parent):
        return "adapter"
    if arch is None and "::" not in spec and _is_file_spec(spec) and is_huggingface_directory(path.parent):
        try:
            listed = is_listed(read_checkpoint(path, headers_only=True).state_dict)
        except LoadError:  # the loader below says what is wrong with the file
            listed = False
        return None if listed else "model"
    return None


def _load_foreign(
    spec: str,
    part: str,
    base: str | None,
    *,
    num_classes: int | None,
    allow_download: bool,
    trust_remote_code: bool,
    headers_only: bool,
) -> LoadedModel:
    from spectrascope.loading.models.huggingface.adapters import is_adapter_alone, load_adapter
    from spectrascope.loading.models.huggingface.open import load_huggingface

    if part == "model" and base is not None:
        raise LoadError(f"--base goes with a PEFT adapter, but {spec!r} is a whole model; drop --base")
    if (
        spec.startswith("hf:")
        and part == "model"
        and is_adapter_alone(
            spec, allow_download=allow_download, trust_remote_code=trust_remote_code, headers_only=headers_only
        )
    ):
        part = "adapter"
    load = partial(load_adapter, base=base) if part == "adapter" else load_huggingface
    return load(
        spec, num_classes=num_classes, allow_download=allow_download, trust_remote_code=trust_remote_code,
        headers_only=headers_only,
    )  # fmt: skip


def _is_file_spec(spec: str) -> bool:
    file = spec.partition("::")[0]
    path = Path(file)
    if path.suffix == ".py":
        raise LoadError(
            f"{spec} is Python source; expected {file}:factory, naming the function that returns the network"
        )
    if spec.startswith(("hf:", "timm:")) or ".py:" in spec:
        return False
    separators = {"/", os.sep}
    written_as_path = any(s in file for s in separators) or "::" in spec
    if path.is_file() or path.suffix.lower() in SUFFIXES or written_as_path:
        return True
    # A folder called "resnet50" does not hide the network; "./resnet50" is the folder.
    return path.is_dir() and spec not in ZOO and spec not in torchvision_models.list_names()


def _read(path: str | Path, headers_only: bool) -> Checkpoint:
    return read_checkpoint(path, headers_only=True) if headers_only else read_checkpoint(path)


def _load_checkpoint(
    spec: str, arch: str | None, num_classes: int | None, seed: int, headers_only: bool
) -> LoadedModel:
    factory = find_factory(arch) if arch is not None and is_factory(arch) else None
    architecture = find_architecture(arch) if arch is not None and factory is None else None
    checkpoint = _read(spec, headers_only)
    if factory is not None:
        filled = fill_factory(spec, factory, _seeded(factory, seed), checkpoint.state_dict, num_classes)
        weights = _describe(checkpoint, filled.reading.note)
        return finish_factory(spec, factory.name, filled.made, num_classes, weights=weights, checkpoint=checkpoint)
    if architecture is not None:
        filled = fill_architecture(spec, architecture, checkpoint.state_dict)
        network, note, found = filled.made.network, filled.reading.note, filled.num_classes
    else:
        try:
            recognised = recognise(checkpoint.state_dict, hint=named_architecture(spec, checkpoint.metadata))
        except LoadError as error:
            raise LoadError(f"{spec}: {error}") from None
        architecture = find_architecture(recognised.architecture)
        network = fill(recognised.build, recognised.state_dict)
        note, found = _note(recognised), recognised.num_classes
    if num_classes not in (None, found):
        raise LoadError(
            f"{spec} has {found} outputs, but {num_classes} classes were asked for; drop --num-classes or "
            f"pass a checkpoint trained on {num_classes} classes"
        )
    return finish(spec, architecture, network, found, weights=_describe(checkpoint, note), checkpoint=checkpoint)


def _note(recognised: Recognised) -> str:
    same = f"the same network as {', '.join(recognised.same)}" if recognised.same else ""
    return "; ".join(part for part in (recognised.reading.note, same) if part)


def _describe(checkpoint: Checkpoint, note: str) -> str:
    other = ", ".join(checkpoint.narrow_dtypes)
    converted = f"{other}, converted to float32" if other else ""
    details = "; ".join(part for part in (converted, note) if part)
    return f"checkpoint ({details})" if details else "checkpoint"


def _load_embedded(num_classes: int | None, headers_only: bool) -> LoadedModel:
    if num_classes not in (None, 10):
        raise LoadError(f"{EMBEDDED} has 10 outputs, not {num_classes}; use {EMBEDDED}@none or drop --num-classes")
    architecture = find_architecture(EMBEDDED)
    with resources.as_file(resources.files("spectrascope.data").joinpath("digits_cnn.safetensors")) as path:
        checkpoint = _read(path, headers_only)
    network = fill(lambda: architecture.build(10), checkpoint.state_dict)
    return finish(EMBEDDED, architecture, network, 10, weights="embedded", checkpoint=checkpoint)


def _with_seed(build: Callable[[], Built], seed: int) -> Built:
    """Run a constructor from a fixed random state; the caller's is left as found."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would reseed CUDA too
        return build()


def _seeded(factory: Factory, seed: int) -> Callable[[int | None], Made]:
    return lambda num_classes: _with_seed(partial(factory.make, num_classes), seed)
