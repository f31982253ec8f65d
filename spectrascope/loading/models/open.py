"""One model string to a network: the registry of sources, and what a string that names a file means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spectrascope.errors import LoadError
from spectrascope.loading.absent import is_written_as_path, nearest_names, refuse_python_source
from spectrascope.loading.checkpoints.pickles import find_weights
from spectrascope.loading.checkpoints.read import (
    Checkpoint,
    everything,
    is_buffer,
    read_checkpoint,
    read_step,
    require_plain,
    strip_wrappers,
)
from spectrascope.loading.installed import find_installed, installed_names
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.models.builtin import BUILTIN, EMBEDDED
from spectrascope.loading.models.factories import (
    FACTORIES,
    fill_factory,
    find_factory,
    finish_factory,
    is_factory,
    seeded,
)
from spectrascope.loading.models.finish import finish
from spectrascope.loading.models.fit import fill, fill_architecture
from spectrascope.loading.models.huggingface.adapters import is_adapter_directory
from spectrascope.loading.models.huggingface.open import is_huggingface_directory
from spectrascope.loading.models.huggingface.source import HUGGINGFACE
from spectrascope.loading.models.recognise import Recognised, is_listed, named_architecture, recognise
from spectrascope.loading.models.source import Architecture, ModelRequest, ModelSource, require_taken
from spectrascope.loading.models.timm import TIMM
from spectrascope.loading.models.torchvision import TORCHVISION
from spectrascope.records.values import Missing

__all__ = ["GROUP", "SOURCES", "find_architecture", "find_step", "load_model", "load_weights"]

GROUP = "spectrascope.models"
"""Of the entry points by which installed distributions add sources."""


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
    keep_bfloat16: bool = False,
) -> LoadedModel:
    """Load what a model string names.

    Weights are never random unless ``@none`` asks for it, or the plain name of a built-in network of which no trained
    weights exist anywhere (``mini-gpt2``); both say so.

    Args:
        spec: ``None`` or ``digits-cnn`` for the embedded ``digits-cnn@early``; a checkpoint file, or
            ``FILE::dotted.key`` for a place in it; a folder with a checkpoint, a Hugging Face model or a PEFT adapter;
            ``hf:org/name``; ``NAME@none`` for random weights, and ``mini-gpt2``; a torchvision model, ``NAME`` or
            ``NAME@WEIGHTS``; ``timm:NAME`` or ``timm:NAME@TAG``; ``package.module:factory`` or ``file.py:factory``,
            called for a network that brings its own weights, perhaps with its loss and data.
        arch: architecture of a checkpoint (a name or a factory); recognised from its keys when ``None``.
        base: network that a PEFT adapter was trained on; the one it names itself when ``None``.
        num_classes: number of outputs, where it is not the usual one; must agree with a file's.
        seed: of random weights. The caller's random state is left as found.
        allow_download: fetch published weights where they are not cached.
        trust_remote_code: run Python code that came with a Hugging Face model.
        headers_only: read names and shapes, not tensors; parameters are on the meta device, except a factory's own.
        keep_bfloat16: leave a Hugging Face network in bfloat16 all of whose weights are stored in it.

    Raises:
        LoadError: unknown name, unreadable file, keys or shapes that do not fit, a failing factory, weights
            that are neither cached nor downloadable, options that do not go together.
        NonFiniteError: a weight is NaN or infinite.
    """
    request = ModelRequest(
        EMBEDDED if spec is None else spec, arch=arch, base=base, num_classes=num_classes, seed=seed,
        allow_download=allow_download, trust_remote_code=trust_remote_code, headers_only=headers_only,
        keep_bfloat16=keep_bfloat16,
    )  # fmt: skip
    source = _find_source(request.spec, SOURCES)
    require_taken(request, () if source is None else source.options)
    if source is None:
        raise _unknown(request.spec.rpartition("@")[0] or request.spec)
    return source.open(request)


def load_weights(content: Mapping[str, Any], *, arch: str | None = None, seed: int = 0) -> LoadedModel:
    """Load the network that a state dict in memory belongs to, recognised from names and shapes without ``arch``.

    Args:
        content: parameter name -> tensor, bare or as training checkpoints hold it (under ``state_dict``, ``model``, …).
        arch: architecture, as for :func:`load_model`.
        seed: of what a factory draws.

    Raises:
        LoadError: no weights in it, or of an unknown network.
        NonFiniteError: a weight is NaN or infinite.
    """
    where = "the state dict"
    found = find_weights(content, where)
    memory = Missing("the weights were passed in memory")
    checkpoint = Checkpoint(
        strip_wrappers(found.tensors), memory, Path(where), "in memory", {}, found.place, found.others
    )
    loaded = _load_checkpoint(ModelRequest(where, arch=arch, seed=seed), checkpoint)
    weights = f"in memory ({checkpoint.choice})" if checkpoint.choice else "in memory"
    info = replace(loaded.info, id="state dict", source="python", path=memory, weights=weights)
    return replace(loaded, info=info)


def find_step(spec: str) -> int | None:
    """The training step that a model string's weights say they are from; ``None`` where they say nothing.

    Raises:
        LoadError: there are no such weights.
    """
    source = _find_source(spec, SOURCES)
    return None if source is None else source.step(spec)


def _find_source(spec: str, sources: Sequence[ModelSource]) -> ModelSource | None:
    known = next((source for source in sources if source.owns(spec)), None)
    if known is None or (known is FILES and not FILES.exists(spec)):
        # Also for NAME:a/b, which looks like the path of a file that is not there.
        known = find_installed(GROUP, spec, ModelSource, LoadError) or known  # type: ignore[type-abstract]
    return known if known is not None or not is_factory(spec) else FACTORIES  # which says what cannot be imported


def runs_code(spec: str) -> bool:
    """Whether a model string names Python of its user's own, which runs when it is loaded."""
    return is_factory(spec) and _find_source(spec, SOURCES) is FACTORIES


def find_architecture(name: str) -> Architecture:
    """The network that ``--arch NAME`` means.

    Raises:
        LoadError: no such name (the nearest are listed).
    """
    for source in SOURCES:
        found = source.architecture(name)
        if found is not None:
            return found
    installed = find_installed(GROUP, name, ModelSource, LoadError)  # type: ignore[type-abstract]
    found = None if installed is None else installed.architecture(name)
    if found is None:
        raise _unknown(name)
    return found


def _unknown(name: str) -> LoadError:
    known = [other for source in SOURCES for other in source.names()]
    near = nearest_names(name, known)
    *usages, last = [source.usage for source in SOURCES]
    return LoadError(
        f"no network named {name!r}; "
        + (f"nearest: {', '.join(near)}; " if near else "")
        + f"expected {', '.join(usages)}, or {last}{installed_names(GROUP)}"
    )


class _Files(ModelSource):
    """Checkpoint files and folders, with Hugging Face's own loader for those that are its."""

    usage = "a checkpoint file"
    options = frozenset({"arch", "base", "trust_remote_code"})

    def owns(self, spec: str) -> bool:
        """Whether the string is the path of a file or folder, there or not."""
        refuse_python_source(spec)
        path = Path(spec.partition("::")[0])
        if any(source.prefix and spec.startswith(source.prefix) for source in SOURCES) or ".py:" in spec:
            return False
        if path.is_file() or is_written_as_path(spec):
            return True
        # A folder called "resnet50" does not hide the network; "./resnet50" is the folder.
        return path.is_dir() and not any(spec in source.names() for source in SOURCES)

    def exists(self, spec: str) -> bool:
        """Whether the file or folder is there."""
        return Path(spec.partition("::")[0]).exists()

    def step(self, spec: str) -> int | None:
        """The step in a safetensors file's metadata."""
        return read_step(Path(spec.partition("::")[0]))

    def open(self, request: ModelRequest) -> LoadedModel:
        """Load a network that says itself what it is, or the weights of one that ``--arch`` or its keys tell."""
        part = _huggingface_part(request.spec, request.arch)
        if part is not None:
            require_taken(request, HUGGINGFACE.options)
            return HUGGINGFACE.load(request, adapter=part == "adapter")
        require_taken(request, {"arch"})
        return _load_checkpoint(request)


def _huggingface_part(spec: str, arch: str | None) -> str | None:
    """Whether Hugging Face's libraries load this path: ``"adapter"``, ``"model"``, or ``None``."""
    path = Path(spec.partition("::")[0])
    if not path.exists():
        return None
    if path.is_dir():
        if is_adapter_directory(path):
            return "adapter"
        return "model" if arch is None and is_huggingface_directory(path) else None
    if path.name.startswith("adapter_model.") and is_adapter_directory(path.parent):
        return "adapter"
    if arch is None and "::" not in spec and is_huggingface_directory(path.parent):
        try:
            listed = is_listed(read_checkpoint(path, headers_only=True).state_dict)
        except LoadError:  # the loader below says what is wrong with the file
            listed = False
        return None if listed else "model"
    return None


def _load_checkpoint(request: ModelRequest, checkpoint: Checkpoint | None = None) -> LoadedModel:
    spec, arch, num_classes = request.spec, request.arch, request.num_classes
    owner = None if arch is None else _find_source(arch, [source for source in SOURCES if source is not FILES])
    factory = find_factory(arch) if arch is not None and owner is FACTORIES else None
    architecture = find_architecture(arch) if arch is not None and factory is None else None
    if checkpoint is None:
        checkpoint = read_checkpoint(spec, headers_only=request.headers_only, aside=everything, mapped=True)
    where = checkpoint.path
    if factory is not None:
        make = seeded(factory, request.seed)
        made, reading = fill_factory(where, factory, make, checkpoint.state_dict, num_classes)
        weights = _describe(checkpoint, reading.note)
        return finish_factory(spec, factory.name, made, num_classes, weights=weights, checkpoint=checkpoint)
    if architecture is not None:
        filled = fill_architecture(where, architecture, checkpoint.state_dict)
        network, note, found = filled.network, filled.reading.note, filled.num_classes
    else:
        try:
            recognised = recognise(checkpoint.state_dict, hint=named_architecture(spec, checkpoint.metadata))
        except LoadError as error:
            require_plain({n: t for n, t in checkpoint.state_dict.items() if not is_buffer(n, tuple(t.shape))}, where)
            raise LoadError(f"{spec}: {error}") from None
        architecture = find_architecture(recognised.architecture)
        network = fill(recognised.build, recognised.state_dict, where)
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
    details = "; ".join(part for part in (converted, checkpoint.choice, note) if part)
    return f"checkpoint ({details})" if details else "checkpoint"


FILES = _Files()

SOURCES: tuple[ModelSource, ...] = (FILES, BUILTIN, TORCHVISION, TIMM, HUGGINGFACE, FACTORIES)
"""Every built-in source, asked in this order whose a string is; a new one is a file and a name here."""
