"""What is measured: samples by index, a ``Workload`` on one device and dtype, and the ``Run`` that asks for it.

The samples are fetched by index range, twice per measurement, so a source must return the same tensors every
time; nothing here shuffles or augments.
"""

from __future__ import annotations

import functools
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from spectrascope.errors import DataError
from spectrascope.losses import ignored_by, loss_label, require_labels_below, scores_of, takes_scores
from spectrascope.numerics.lifted import Lifted, format_of, wide
from spectrascope.records.report import DataInfo, ModelInfo, ProbeOptions

__all__ = [
    "FirstSamples",
    "Inputs",
    "LossFunction",
    "OnProgress",
    "PickedSamples",
    "Run",
    "SampleSource",
    "StageClock",
    "TensorSource",
    "Workload",
    "shape_of",
    "silent",
    "source_from_batches",
]

Inputs: TypeAlias = "Tensor | Mapping[str, Tensor]"
"""One tensor (b, …), passed to the model as it is, or several by keyword (``input_ids``, ``attention_mask``)."""

LossFunction = Callable[[Any, Tensor], Tensor]
"""(model output, targets) -> scalar, the MEAN over the samples it is given; what torch's losses weigh by is known."""

OnProgress = Callable[[str, float, int], None]
"""(stage, done, total), called as a stage advances; ``done`` may be a fraction, ``total`` 0 where it is not known.

Stages of a measurement: check, gradient, directions, curvature, factors (``decompose`` alone), self-check, across
weights (where asked for).
"""


def silent(stage: str, done: float, total: int) -> None:
    """Take note of progress that nobody watches."""


@dataclass
class StageClock:
    """Seconds per stage: by the wall, unless another clock is given."""

    seconds: dict[str, float] = field(default_factory=dict)
    now: Callable[[], float] = time.perf_counter

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to stage ``name``."""
        began = self.now()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - began


class SampleSource(ABC):
    """Samples by index, on the CPU: a fixed, ordered, finite batch that need not fit in memory at once."""

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of samples."""

    @abstractmethod
    def fetch(self, start: int, stop: int) -> tuple[Inputs, Tensor]:
        """Return samples ``start … stop−1``: inputs (b, …), a tensor or several by name, and targets (b, …).

        The same range must give the same tensors every time.
        """

    def fetch_targets(self, start: int, stop: int) -> Tensor:
        """Return the targets alone, where inputs would cost time."""
        return self.fetch(start, stop)[1]

    def all_targets(self, chunk: int = 64) -> Iterator[tuple[int, Tensor]]:
        """Yield the targets of all samples, a chunk at a time, each with the number of its first sample."""
        for start in range(0, self.n, chunk):
            yield start, self.fetch_targets(start, min(start + chunk, self.n))

    def digest(self, chunk: int = 256) -> str:
        """Hash inputs and targets in order: a sha256, as hex."""
        sha = hashlib.sha256()
        for start in range(0, self.n, chunk):
            inputs, targets = self.fetch(start, min(start + chunk, self.n))
            for tensor in (*_tensors_of(inputs), targets):
                sha.update(str((tensor.dtype, tuple(tensor.shape[1:]))).encode())
                # by bytes: NumPy has no bfloat16
                sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


def _tensors_of(inputs: Inputs) -> list[Tensor]:
    return [inputs] if isinstance(inputs, Tensor) else [inputs[name] for name in sorted(inputs)]


def shape_of(inputs: Inputs) -> tuple[int, ...]:
    """Return the shape of one sample: of the tensor, or of the first of several by name."""
    tensor = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    return tuple(tensor.shape[1:])


@dataclass(frozen=True)
class TensorSource(SampleSource):
    """Samples held in tensors of equal length."""

    inputs: Inputs
    targets: Tensor

    def __post_init__(self) -> None:
        for tensor in _tensors_of(self.inputs):
            if len(tensor) != len(self.targets):
                raise DataError(f"inputs and targets differ in length: {len(tensor)} and {len(self.targets)}")

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.targets)

    def fetch(self, start: int, stop: int) -> tuple[Inputs, Tensor]:
        """Return views of the tensors."""
        if isinstance(self.inputs, Tensor):
            return self.inputs[start:stop], self.targets[start:stop]
        return {name: tensor[start:stop] for name, tensor in self.inputs.items()}, self.targets[start:stop]

    def fetch_targets(self, start: int, stop: int) -> Tensor:
        """Return a view of the targets."""
        return self.targets[start:stop]


@dataclass(frozen=True)
class FirstSamples(SampleSource):
    """The first samples of a source."""

    source: SampleSource
    size: int

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.size

    def fetch(self, start: int, stop: int) -> tuple[Inputs, Tensor]:
        """Return the same samples as the whole source does."""
        return self.source.fetch(start, stop)

    def fetch_targets(self, start: int, stop: int) -> Tensor:
        """Return the same targets as the whole source does."""
        return self.source.fetch_targets(start, stop)


@dataclass(frozen=True)
class PickedSamples(SampleSource):
    """Some samples of a source in an order of their own: dealt to groups at random, or a part of each group."""

    source: SampleSource
    indices: tuple[int, ...]

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.indices)

    def fetch(self, start: int, stop: int) -> tuple[Inputs, Tensor]:
        """Gather the samples, one run of neighbours at a time."""
        chosen = self.indices[start:stop]
        if isinstance(self.source, TensorSource) and type(self.source).fetch is TensorSource.fetch:  # nobody's own
            index = torch.tensor(chosen, dtype=torch.int64)
            inputs, targets = self.source.inputs, self.source.targets
            if isinstance(inputs, Tensor):
                return inputs[index], targets[index]
            return {name: tensor[index] for name, tensor in inputs.items()}, targets[index]
        parts, first = [], 0
        for i in range(1, len(chosen) + 1):
            if i == len(chosen) or chosen[i] != chosen[i - 1] + 1:
                parts.append(self.source.fetch(chosen[first], chosen[i - 1] + 1))
                first = i
        targets = torch.cat([part[1] for part in parts])
        if isinstance(parts[0][0], Tensor):
            return torch.cat([part[0] for part in parts if isinstance(part[0], Tensor)]), targets
        named = [part[0] for part in parts if not isinstance(part[0], Tensor)]
        return {name: torch.cat([inputs[name] for inputs in named]) for name in named[0]}, targets

    def pick(self, places: Sequence[int]) -> PickedSamples:
        """Some of these, by place."""
        return PickedSamples(self.source, tuple(self.indices[place] for place in places))


class _LiftedLoss:
    """A loss of the user's own whose casts to less than a precision do nothing."""

    def __init__(self, loss_fn: LossFunction, dtype: torch.dtype) -> None:
        functools.update_wrapper(self, loss_fn, updated=())
        self.__name__ = loss_label(loss_fn)
        self.loss_fn, self._dtype = loss_fn, dtype

    def __call__(self, output: Any, targets: Tensor) -> Tensor:
        with Lifted(self._dtype):
            return self.loss_fn(output, targets)


@dataclass(frozen=True)
class Workload:
    """A network on one device and dtype, with its samples and loss.

    ``loss_fn`` is a mean over samples; the model is in whatever mode its owner left it.

    ``n_classes`` is the number of class scores the model gives, where labels must lie below it;
    ``channels_last`` the memory order in which images are handed to the model. ``differentiates``: the model takes
    gradients inside its own forward pass, so that it runs only with grad mode on, whoever calls it. ``scores`` names
    the output that the loss compares, where the model returns several. ``lifts``: its own casts to less than ``dtype``
    are left out. ``owned``: nobody else holds the model, so what it does to its own values need not be undone.
    ``loss_reads_weights``: the loss holds the model's weights itself, so that no copy of it will do.
    ``streamed`` is entered while the model is used, where weights of it lie in the host's memory; ``places`` says in
    words where the model lies, if not on ``device`` alone.
    """

    model: nn.Module
    source: SampleSource
    loss_fn: LossFunction
    device: torch.device
    dtype: torch.dtype
    n_classes: int | None = None
    channels_last: bool = False
    differentiates: bool = False
    scores: str | None = None
    lifts: bool = False
    owned: bool = False
    streamed: AbstractContextManager[object] | None = None
    places: str = ""
    loss_reads_weights: bool = False

    def with_weights(self) -> AbstractContextManager[object]:
        """Enter this to use the model: its weights are then where they are read."""
        return self.streamed or nullcontext()

    @property
    def wide(self) -> torch.dtype:
        """The format of scores, losses and gradients summed: ``dtype``, float32 where that is narrower."""
        return wide(self.dtype)

    def without_casts(self) -> Workload:
        """The same, where casts to less than ``dtype`` that the model or a loss of the user's own makes do nothing."""
        loss_fn = self.loss_fn.loss_fn if isinstance(self.loss_fn, _LiftedLoss) else self.loss_fn
        own = not takes_scores(loss_fn)
        return replace(self, lifts=True, loss_fn=_LiftedLoss(loss_fn, self.dtype) if own else loss_fn)

    def fetch(self, start: int, stop: int) -> tuple[Inputs, Tensor]:
        """Fetch samples ``start … stop−1`` on the workload's device, floating-point inputs in its dtype.

        Raises:
            DataError: a label is outside the model's classes.
        """
        inputs, targets = self.source.fetch(start, stop)
        if self.n_classes is not None:
            require_labels_below(targets, self.n_classes, ignored_by(self.loss_fn))
        if isinstance(inputs, Tensor):
            return self._move(inputs), self._move(targets)
        return {name: self._move(tensor) for name, tensor in inputs.items()}, self._move(targets)

    def _move(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device, format_of(tensor, self.dtype), non_blocking=True)
        if self.channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def forward(self, inputs: Inputs, model: nn.Module | None = None) -> Any:
        """Run the model (or a copy of it): what it returns, or the scores in it if the loss wants just those."""
        model = self.model if model is None else model
        lifted = Lifted(self.dtype) if self.lifts else nullcontext()
        with torch.set_grad_enabled(self.differentiates or torch.is_grad_enabled()), lifted:
            output = model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
        if takes_scores(self.loss_fn) or self.scores is not None:
            output = scores_of(output, self.scores)
        if isinstance(output, Tensor):
            # The loss of a narrow network is not itself narrow; of one spread over devices it is where the labels are.
            return output.to(self.device, self.wide if output.dtype is self.dtype else None)
        return output

    def loss(self, inputs: Inputs, targets: Tensor, model: nn.Module | None = None) -> Tensor:
        """Return the mean loss over a micro-batch, a scalar."""
        return self.loss_fn(self.forward(inputs, model), targets)


@dataclass(frozen=True)
class Run:
    """One measurement asked for: the network as its owner holds it, the samples, the loss, and what to measure.

    Args:
        model: any module; left exactly as found. It is copied first if it must move to another device or dtype.
        source: the fixed samples; all of them are used.
        loss_fn: (output, targets) -> mean loss; when ``None``, what a Hugging Face class name states, else softmax
            cross-entropy.
        options: what to measure and how.
        model_info: provenance of the model.
        data_info: provenance of the samples.
        command: the command line, for the record.
        notes: what the reader of the report must know of the model and the data.
        clock: wall seconds per stage, those of loading included where it was timed.
        on_progress: called as stages advance.
        momentum: an optimizer's momentum by parameter name, where its directions are to be measured.
        scores: the name, or number, of the output that the loss compares, where the model returns several.
        owned: the model was made for this measurement, and nobody else holds it.
    """

    model: nn.Module
    source: SampleSource
    loss_fn: LossFunction | None
    options: ProbeOptions
    model_info: ModelInfo
    data_info: DataInfo
    command: str = ""
    notes: tuple[str, ...] = ()
    clock: StageClock = field(default_factory=StageClock)
    on_progress: OnProgress = silent
    momentum: Mapping[str, Tensor] | None = None
    scores: str | None = None
    owned: bool = False


def source_from_batches(batches: object, num_samples: int | None = None) -> SampleSource:
    """Make a fixed source from whatever holds a user's data.

    Args:
        batches: a ``SampleSource``; an ``(inputs, targets)`` pair, inputs being a tensor or a dict of tensors that
            the model takes by keyword; a dict with ``labels`` among its tensors, as Hugging Face collators make;
            or an iterable (a ``DataLoader``) of any of these. An iterable is read once, in its own order, and
            kept in memory.
        num_samples: stop after this many samples; all of them when ``None``.

    Raises:
        DataError: nothing was found, or the items are not pairs of tensors.
    """
    if isinstance(batches, SampleSource):
        return batches
    if isinstance(batches, Mapping) or _is_pair(batches):
        pairs: Iterable[Any] = [batches]
    elif isinstance(batches, Iterable):
        pairs = batches
    else:
        raise DataError(
            f"batches: expected tensors (inputs, targets) or an iterable of them, got {type(batches).__name__}"
        )
    inputs: list[dict[str, Tensor]] = []
    targets: list[Tensor] = []
    n = 0
    for pair in pairs:
        x, y = _split(pair)
        rest = None if num_samples is None else num_samples - n
        inputs.append({name: tensor[:rest].detach().cpu() for name, tensor in x.items()})
        targets.append(y[:rest].detach().cpu())
        n += len(targets[-1])
        if num_samples is not None and n >= num_samples:
            break
    if n == 0:
        raise DataError("batches: no samples found; pass at least one (inputs, targets) pair")
    joined = {name: _join(name, [x.get(name) for x in inputs]) for name in inputs[0]}
    return TensorSource(joined.get("", joined), _join("targets", targets))


def _is_pair(item: object) -> bool:
    return (
        isinstance(item, (tuple, list))
        and len(item) == 2
        and (isinstance(item[0], Tensor) or _is_dict_of_tensors(item[0]))
        and isinstance(item[1], Tensor)
    )


def _is_dict_of_tensors(item: object) -> bool:
    return isinstance(item, Mapping) and bool(item) and all(isinstance(value, Tensor) for value in item.values())


def _split(item: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Split an item into inputs by name (a lone tensor under the empty name) and targets."""
    if _is_pair(item):
        x, y = item
        return ({"": x} if isinstance(x, Tensor) else dict(x)), y
    if _is_dict_of_tensors(item):
        rest = {name: tensor for name, tensor in item.items() if name not in ("labels", "label")}
        labels = item.get("labels", item.get("label"))
        if labels is not None and rest:
            return rest, labels
        raise DataError(f"batches: expected 'labels' beside the inputs of a dict, got the keys {', '.join(item)}")
    raise DataError(
        "batches: each item must be a pair of tensors (inputs, targets) or a dict of tensors with 'labels', got "
        f"{type(item).__name__}" + ("; torch.from_numpy makes tensors" if _holds_arrays(item) else "")
    )


def _holds_arrays(item: Any) -> bool:
    parts = item if isinstance(item, (tuple, list)) else [item]
    return any(type(part).__module__ == "numpy" for part in parts)


def _join(name: str, parts: list[Any]) -> Tensor:
    shapes = {None if part is None else tuple(part.shape[1:]) for part in parts}
    if None in shapes or len(shapes) > 1:
        found = " and ".join(sorted({str(shape) for shape in shapes})[:2])
        what = name or "inputs"
        raise DataError(
            f"batches: {what} differ in shape from batch to batch ({found}); pad them to one shape, or pass a "
            "SampleSource of your own"
        )
    return torch.cat(parts)
