"""Which samples are measured: a fixed, seeded order, left-out bad ones, and what the report says about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectrascope.errors import DataError
from spectrascope.loading.data.source import DataRequest, LoadedData
from spectrascope.losses import require_labels_below
from spectrascope.records.report import DataInfo
from spectrascope.records.values import ALL_SAMPLES, LossName, Missing
from spectrascope.text import printable
from spectrascope.workload import Inputs, SampleSource, shape_of

__all__ = ["Batch", "Chosen", "choose", "choose_readable", "describe", "listed", "shown"]

_NAMED_IN_ERRORS = 3
_NAMED_IN_NOTES = 10


@dataclass(frozen=True)
class Chosen:
    """Numbers of the samples to measure, in order, and notes on the choice."""

    indices: list[int]
    notes: tuple[str, ...] = field(default=())


def shown(name: object) -> str:
    """A file name on one line, whatever characters it has."""
    return printable(str(name), "?")


def listed(names: Sequence[object], limit: int = _NAMED_IN_ERRORS) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - limit
    return ", ".join(shown(name) for name in names[:limit]) + (f", … ({more} more)" if more > 0 else "")


def choose(request: DataRequest, n_available: int, labels: NDArray[np.int64] | None) -> Chosen:
    """Choose samples that need no reading to be known good; see :func:`choose_readable`."""
    return choose_readable(request, n_available, labels, lambda _: [], str, "samples")


def choose_readable(
    request: DataRequest,
    n_available: int,
    labels: NDArray[np.int64] | None,
    read: Callable[[list[int]], list[int]],
    name: Callable[[int], object],
    what: str,
) -> Chosen:
    """Choose samples in the seeded order, replacing unreadable ones by the next where ``skip_bad`` allows.

    A smaller batch with the same seed is the beginning of a larger one, balanced or not. A balanced batch takes
    turns among the classes; a class that runs out is passed over, and a note says so. All samples, balanced, are as
    many of each class as the smallest has.

    Args:
        request: how many, which seed, balanced or not.
        n_available: how many samples there are.
        labels: class of each, ``None`` where samples have none.
        read: reads the samples of these numbers and returns those that cannot be read; called with each once.
        name: how a sample is called in messages.
        what: what the samples are called in messages.

    Raises:
        DataError: unreadable samples without ``skip_bad``, none readable, or a balanced choice without classes.
    """
    if request.balanced and labels is None:
        raise DataError("balanced: these samples have no class labels to balance; leave --balanced out")
    order = np.random.default_rng(request.seed).permutation(n_available)
    bad: set[int] = set()
    seen: set[int] = set()
    while True:
        chosen = _first(order, labels if request.balanced else None, bad, request)
        fresh = [i for i in chosen if i not in seen]
        if not fresh:
            break
        failed = read(fresh)
        seen.update(fresh)
        if failed and not request.skip_bad:
            raise DataError(
                f"{len(failed)} of {len(fresh)} {what} cannot be read: {listed([name(i) for i in failed])}; "
                f"expected intact files, remove or replace these, or leave them out with --skip-bad"
            )
        bad.update(failed)
    if not chosen:
        raise DataError(
            f"none of the {n_available} {what} can be read, among them {listed([name(i) for i in sorted(bad)])}; "
            f"expected intact files"
        )
    notes = []
    if bad:
        names = listed([name(i) for i in sorted(bad)], _NAMED_IN_NOTES)
        notes.append(f"{len(bad)} of {len(seen)} {what} could not be read and were left out: {names}")
    if request.balanced and labels is not None:
        notes += _balance_notes(labels[np.array(chosen)], np.unique(labels))
    return Chosen(chosen, tuple(notes))


def _first(
    order: NDArray[np.int64], labels: NDArray[np.int64] | None, bad: set[int], request: DataRequest
) -> list[int]:
    wanted: list[int] = []
    limit = request.num_samples
    if labels is not None and limit >= ALL_SAMPLES:
        good = np.unique(labels[np.setdiff1d(order, sorted(bad))], return_counts=True)[1]
        limit = len(good) * int(good.min()) if len(good) else 0
    for i in order.tolist() if labels is None else _in_turns(order, labels, bad, request.seed):
        if len(wanted) == limit:
            break
        if i not in bad:
            wanted.append(i)
    return wanted


def _in_turns(order: NDArray[np.int64], labels: NDArray[np.int64], bad: set[int], seed: int) -> Iterator[int]:
    """One sample of each class after the other, the classes in an order drawn anew for every round."""
    good = [i for i in order.tolist() if i not in bad]
    queues: dict[int, list[int]] = {}
    for i in reversed(good):
        queues.setdefault(int(labels[i]), []).append(i)
    classes = np.unique(labels)
    rng = np.random.default_rng([seed, 1])
    while any(queues.values()):
        for label in rng.permutation(classes).tolist():
            if queues.get(label):
                yield queues[label].pop()


def _balance_notes(chosen: NDArray[np.int64], classes: NDArray[np.int64]) -> list[str]:
    counts = {int(label): int((chosen == label).sum()) for label in classes}
    low, high = min(counts.values()), max(counts.values())
    if high - low <= 1:
        return []
    short = [f"class {label} has {count}" for label, count in counts.items() if count < high - 1]
    return [f"not balanced for lack of samples: {listed(short, _NAMED_IN_NOTES)}, where others have up to {high}"]


@dataclass(frozen=True)
class Batch:
    """Samples chosen from ``n_available``, how they are prepared in words, and notes on those left out."""

    source: SampleSource
    n_available: int | Missing
    preprocessing: str
    notes: tuple[str, ...] = ()


def describe(
    request: DataRequest,
    name: str,
    batch: Batch,
    *,
    n_classes: int | Missing,
    label_order: str,
    preprocessing: str | None = None,
    synthetic: bool = False,
    notes: tuple[str, ...] = (),
) -> LoadedData:
    """Bundle samples with their record; class labels become vectors where the loss compares entry by entry.

    Args:
        request: what was asked for.
        name: of the dataset, for the report.
        batch: the samples.
        n_classes: that the dataset has.
        label_order: how its classes were matched to the network's outputs, in words.
        preprocessing: instead of the batch's own words.
        synthetic: whether they are noise.
        notes: before the batch's own.
    """
    source, vectors = _targets_for_loss(request, name, batch.source)
    how = batch.preprocessing if preprocessing is None else preprocessing
    info = DataInfo(
        id=name,
        n=source.n,
        n_available=batch.n_available,
        digest=source.digest(),
        input_shape=shape_of(source.fetch(0, 1)[0]),
        n_classes=n_classes,
        preprocessing=how + ("; equally many samples of each class" if request.balanced else ""),
        label_order=label_order + vectors,
        synthetic=synthetic,
    )
    return LoadedData(source, info, notes + batch.notes)


def _targets_for_loss(request: DataRequest, name: str, source: SampleSource) -> tuple[SampleSource, str]:
    targets = source.fetch(0, 1)[1]
    loss, count = request.usual_loss, request.loaded.num_classes
    if targets.is_floating_point() or targets.dim() != 1:
        return source, ""
    if loss in (LossName.CAUSAL_LM, LossName.MASKED_LM):
        raise DataError(
            f"{name} has one class label a sample, but loss {loss.value} compares tokens; expected text:FILE, or "
            f"another --loss"
        )
    if loss not in (LossName.BCE, LossName.MSE) or count == 1:
        return source, ""
    if count is None:
        raise DataError(
            f"{name}: loss {loss.value} needs one target per output, and {request.network} does not say how many "
            f"outputs it has; give --num-classes"
        )
    return _OneHot(source, count), f"; as vectors of {count}, 1 at the label and 0 elsewhere, for loss {loss.value}"


@dataclass(frozen=True)
class _OneHot(SampleSource):
    """A source's class labels as 0/1 vectors."""

    source: SampleSource
    n_classes: int

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.source.n

    def fetch(self, start: int, stop: int) -> tuple[Inputs, Tensor]:
        """Fetch and spread the labels."""
        inputs, labels = self.source.fetch(start, stop)
        require_labels_below(labels, self.n_classes, ignored=None)
        return inputs, torch.nn.functional.one_hot(labels, self.n_classes).to(torch.float32)
