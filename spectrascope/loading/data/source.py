"""What a source of data is: which strings are its own, and how one becomes samples for a network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spectrascope.errors import DataError, OptionError
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.preprocessing import AskedPreprocessing, Preprocessing
from spectrascope.losses import problem_loss
from spectrascope.records.report import DataInfo
from spectrascope.records.values import LossName, Task
from spectrascope.workload import SampleSource

__all__ = ["DataRequest", "DataSource", "LoadedData"]

_TASK_LOSS = {Task.CAUSAL_LM: LossName.CAUSAL_LM, Task.MASKED_LM: LossName.MASKED_LM}


@dataclass(frozen=True)
class LoadedData:
    """A fixed batch, what the report says about it, and what the reader should know besides."""

    source: SampleSource
    info: DataInfo
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataRequest:
    """What was asked of a dataset, and the network it is for."""

    loaded: LoadedModel
    preprocessing: Preprocessing
    num_samples: int
    seed: int
    data_root: Path
    download: bool = False
    block_size: int | None = None
    balanced: bool = False
    skip_bad: bool = False
    loss: LossName = LossName.AUTO
    asked: AskedPreprocessing = AskedPreprocessing()  # noqa: RUF009 - frozen

    def require_no_image_options(self, name: str, what: str, *, but: str = "") -> None:
        """Refuse options about images for data that are none.

        Args:
            name: of the data.
            what: they are, and are used as.
            but: an option that means something there.

        Raises:
            OptionError: one was given.
        """
        given = [option for option in self.asked.given if option != but]
        if given:
            raise OptionError(
                f"{given[0]} goes with images that are prepared for the network, but {name} {what}; drop it"
            )

    @property
    def network(self) -> str:
        """The network's name for messages."""
        return self.loaded.info.id

    @property
    def usual_loss(self) -> LossName:
        """The loss that will be measured, ``auto`` resolved by the network's task."""
        if self.loss is not LossName.AUTO:
            return self.loss
        stated = problem_loss(self.loaded.model)
        if stated is not LossName.AUTO:
            return stated
        return _TASK_LOSS.get(self.loaded.info.task, LossName.CROSS_ENTROPY)

    @property
    def models_language(self) -> bool:
        """Whether the network predicts tokens, next or masked ones."""
        return self.loaded.info.task in _TASK_LOSS

    @property
    def suitable_texts(self) -> str:
        """What a network that reads text can be measured on, for messages."""
        if self.models_language:
            return "text:FILE, npz:PATH, pt:PATH, hf:NAME or synthetic"
        return "folder:PATH with .txt files, npz:PATH, pt:PATH, hf:NAME or synthetic"

    def require_classes(self, name: str, n_classes: int) -> None:
        """Refuse data with another number of classes than the network has outputs.

        Raises:
            DataError: the numbers differ.
        """
        count = self.loaded.num_classes
        if count is not None and count != n_classes:
            raise DataError(
                f"{name} has {n_classes} classes, but {self.network} has {count} outputs; "
                f"expected as many of both, pass the data the network was trained on"
            )


@dataclass(frozen=True)
class DataSource:
    """One kind of dataset strings.

    One of these and a line in :data:`spectrascope.loading.data.open.SOURCES` add a dataset to this package. Another
    distribution adds one by an entry point in the group ``spectrascope.datasets``: it names one of these, and its own
    name is what stands before the first colon of its strings.

    Args:
        usages: how its strings are written, as the message about an unknown one lists them: ``cifar10`` alone,
            ``folder:PATH`` with something after the colon, ``imagenet[:PATH]`` with or without.
        open: takes one of its strings and the request, and returns the samples, prepared for the network. It reads
            each sample once, so that a bad one is found before anything is measured. ``inspect`` calls it too, for
            one sample, where the network does not say what it reads. A request of ``ALL_SAMPLES`` means all there are.
        images: it has images only; a network that reads text is refused before ``open`` is called.
        unlisted: further usages, understood but left out of messages.
    """

    usages: tuple[str, ...]
    open: Callable[[str, DataRequest], LoadedData]
    images: bool = False
    unlisted: tuple[str, ...] = ()

    def owns(self, spec: str) -> bool:
        """Whether a string is written in one of its ways; nothing is read."""
        return any(_is_written_as(usage, spec) for usage in self.usages + self.unlisted)

    def is_called(self, kind: str) -> bool:
        """Whether strings that begin with this name are its own, well written or not."""
        return kind in {re.split(r"[\[:]", usage)[0] for usage in self.usages + self.unlisted}


def _is_written_as(usage: str, spec: str) -> bool:
    name, _, rest = spec.partition(":")
    if "[:" in usage:
        return name == usage.partition("[")[0]
    if ":" in usage:
        return name == usage.partition(":")[0] and bool(rest)
    return spec == usage
