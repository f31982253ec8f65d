"""One dataset string to a fixed, seeded, ordered batch of samples: the registry of sources."""

from __future__ import annotations

from pathlib import Path

from spectrascope.errors import DataError, OptionError
from spectrascope.loading.data.arrays import ARRAYS
from spectrascope.loading.data.folders import FOLDER
from spectrascope.loading.data.hub import HUB
from spectrascope.loading.data.imagenet import IMAGENET, TINY_IMAGENET
from spectrascope.loading.data.sampling import shown
from spectrascope.loading.data.small_images import CIFAR, SHIPPED_DIGITS
from spectrascope.loading.data.source import DataRequest, DataSource, LoadedData
from spectrascope.loading.data.synthetic import SYNTHETIC
from spectrascope.loading.data.text import TEXT
from spectrascope.loading.installed import find_installed, installed_names
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.preprocessing import AskedPreprocessing
from spectrascope.records.values import LossName

__all__ = ["GROUP", "SOURCES", "load_dataset"]

GROUP = "spectrascope.datasets"
"""Of the entry points by which installed distributions add sources."""

SOURCES: tuple[DataSource, ...] = (
    SHIPPED_DIGITS, FOLDER, CIFAR, IMAGENET, TINY_IMAGENET, ARRAYS, TEXT, HUB, SYNTHETIC,
)  # fmt: skip
"""Every built-in source, asked in this order whose a string is; a new one is a file and a name here."""


def load_dataset(
    spec: str | None,
    loaded: LoadedModel,
    *,
    num_samples: int,
    seed: int,
    data_root: Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    resize: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    block_size: int | None = None,
    balanced: bool = False,
    skip_bad: bool = False,
    loss: LossName = LossName.AUTO,
) -> LoadedData:
    """Load ``num_samples`` samples in an order fixed by ``seed``, prepared for the network.

    A smaller batch with the same seed is the beginning of a larger one. Fewer available samples are all used.

    Args:
        spec: written as a source in ``SOURCES`` has it, or ``None`` for the dataset the network implies.
        loaded: the network: input size and normalisation, class names and their number, its tokenizer.
        num_samples: at least 1.
        seed: of the choice and order of samples (and of the noise of ``synthetic`` and the masked tokens).
        data_root: where dataset files are; ``data`` when ``None``.
        download: fetch what is not there.
        image_size: square inputs of this many pixels instead of the network's usual ones.
        resize: images' shorter side becomes that long first; of that the centre is cut out.
        mean: subtracted from images scaled to [0, 1], one value or one per channel, in place of the network's own.
        std: what they are divided by then.
        block_size: tokens per sample of text; 128, or what the network takes if that is less.
        balanced: as many samples of each class as there are.
        skip_bad: leave unreadable images and texts out, with a note, instead of failing.
        loss: what will be measured; decides the form of the targets.

    Raises:
        DataError: no dataset named and none implied, nothing to read, samples that cannot be read, classes
            that do not match the network's, or data of a kind it does not take.
        OptionError: an option about images is impossible, or the data are no images.
    """
    if num_samples < 1:
        raise DataError(f"{num_samples} samples asked for; expected at least 1")
    spec = loaded.default_dataset if spec is None else spec
    if spec is None:
        raise DataError(f"no dataset named, and {loaded.info.id} implies none; pass --dataset {_choices()}")
    asked = AskedPreprocessing(image_size, resize, mean, std)
    if asked.given and loaded.text is not None:
        raise OptionError(f"{asked.given[0]} goes with images, but {loaded.info.id} reads tokens; drop it")
    request = DataRequest(
        loaded,
        asked.applied_to(loaded.preprocessing, loaded.info.id),
        num_samples,
        seed,
        data_root or Path("data"),
        download,
        block_size,
        balanced,
        skip_bad,
        loss,
        asked,
    )
    try:
        return _load(spec, request)
    except OSError as error:  # folders that may not be listed, a disk that fails, a name too long
        reason = error.strerror or type(error).__name__
        raise DataError(f"{shown(spec)[:200]}: cannot be read ({reason}); expected files that may be read") from None


def _load(spec: str, request: DataRequest) -> LoadedData:
    kind = spec.partition(":")[0]
    named = next((source for source in SOURCES if source.is_called(kind)), None)
    source = named if named is not None and named.owns(spec) else None
    if named is None:
        named = source = find_installed(GROUP, spec, DataSource, DataError)
    if named is not None and named.images and request.loaded.text is not None:
        raise DataError(f"{kind} has images, but {request.network} reads tokens; expected {request.suitable_texts}")
    if source is None:
        besides = installed_names(GROUP) if named is None else ""
        raise DataError(f"no dataset named {shown(spec)!r}; expected {_choices()}{besides}{_hint(spec)}")
    return source.open(spec, request)


def _choices() -> str:
    *usages, last = [usage for source in SOURCES for usage in source.usages]
    return f"{', '.join(usages)} or {last}"


def _hint(spec: str) -> str:
    path = Path(spec).expanduser()
    try:
        if path.is_dir():
            return f"; did you mean folder:{shown(spec)}?"
        kind = {".npz": "npz", ".pt": "pt", ".pth": "pt", ".txt": "text"}.get(path.suffix)
        return f"; did you mean {kind}:{shown(spec)}?" if kind is not None and path.is_file() else ""
    except OSError:  # a name too long for the file system
        return ""
