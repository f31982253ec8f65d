"""What a source of models is: which strings are its own, and how one becomes a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from torch import nn

from spectrascope.errors import LoadError
from spectrascope.loading.loaded import LoadedModel, TextInput
from spectrascope.loading.preprocessing import Preprocessing
from spectrascope.records.values import Task

__all__ = ["Architecture", "Build", "ModelRequest", "ModelSource", "require_taken"]

Build: TypeAlias = Callable[["int | None"], nn.Module]


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A model string and the options beside it, as :func:`spectrascope.loading.models.open.load_model` takes them.

    ``keep_bfloat16``: weights stored in that format may stay in it, as they will be measured in it.
    """

    spec: str
    arch: str | None = None
    base: str | None = None
    num_classes: int | None = None
    seed: int = 0
    allow_download: bool = True
    trust_remote_code: bool = False
    headers_only: bool = False
    keep_bfloat16: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network that can be built, and what is known about its inputs and outputs.

    ``build`` takes the number of classes, ``None`` for the architecture's own. ``source`` is what a report calls where
    it comes from: ``built-in``, ``torchvision``, ``timm``. ``preprocessing_of`` tells how a network that was built
    wants its inputs, and ``class_names_of`` what that number of outputs stands for (nothing where it is not known).
    ``builds_for`` lists the constructors to try on a file with given shapes, where there is more than ``build``.
    ``text_of`` tells what a network that was built says about the text it reads. ``untrained`` networks mean random
    weights by their name.
    """

    name: str
    source: str
    build: Build
    preprocessing_of: Callable[[nn.Module], Preprocessing]
    class_names_of: Callable[[int], dict[int, tuple[str, ...]]]
    dataset: str | None = None
    builds_for: Callable[[Mapping[str, tuple[int, ...]]], tuple[Build, ...]] | None = None
    task: Task = Task.IMAGE_CLASSIFICATION
    text_of: Callable[[nn.Module], TextInput | None] = lambda network: None
    untrained: bool = False


class ModelSource(ABC):
    """One kind of model strings.

    A subclass and a line in :data:`spectrascope.loading.models.open.SOURCES` add one to this package. Another
    distribution adds one by an entry point in the group ``spectrascope.models``: it names an instance, and its own
    name is the prefix (``NAME:…``) or the whole string that the instance answers to.
    """

    usage: ClassVar[str]
    """How its strings are written, for the message about a string that nobody knows."""
    prefix: ClassVar[str] = ""
    """Begins all its strings, colon included, where there is such a thing."""
    options: ClassVar[frozenset[str]] = frozenset()
    """Which of ``arch``, ``base`` and ``trust_remote_code`` it has a use for; given others are refused."""

    def owns(self, spec: str) -> bool:
        """Whether a string is its own.

        Every string is asked about, so this imports no library for strings that cannot be its own.
        """
        return bool(self.prefix) and spec.startswith(self.prefix)

    @abstractmethod
    def open(self, request: ModelRequest) -> LoadedModel:
        """Load what one of its strings names.

        Where ``request.headers_only`` is set (``inspect``), names and shapes are enough: the parameters of the network
        are then on the meta device, and nothing large is read or downloaded.

        Raises:
            LoadError: it cannot be loaded; the message says what was expected and what to try.
        """

    def step(self, spec: str) -> int | None:
        """The training step that the weights say they are from, ``None`` where they say nothing.

        Only names and headers are looked at.
        """
        return None

    def architecture(self, name: str) -> Architecture | None:
        """The network that ``--arch NAME`` builds for a checkpoint, ``None`` where the name is not its own.

        Raises:
            LoadError: the name is its own, but there is no such network.
        """
        return None

    def names(self) -> Sequence[str]:
        """Names without a prefix, of which the nearest are offered for a misspelt one."""
        return ()


def require_taken(request: ModelRequest, options: Collection[str]) -> None:
    """Refuse options that a model string has no use for.

    Raises:
        LoadError: one is given that is not among ``options``.
    """
    spec = request.spec
    if request.base is not None and "base" not in options:
        raise LoadError(f"--base goes with a PEFT adapter, but {spec!r} is none; drop --base")
    if request.trust_remote_code and "trust_remote_code" not in options:
        raise LoadError(f"--trust-remote-code goes with a Hugging Face model, but {spec!r} is none; drop it")
    if request.arch is not None and "arch" not in options:
        what = "says itself what it is; drop --arch" if "base" in options else "is a name; pass a file or drop --arch"
        raise LoadError(f"--arch goes with a checkpoint file, but {spec!r} {what}")
