"""Opening a dataset of the Hugging Face Hub, or a local one in its formats, through the extra ``datasets``."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrascope.errors import DataError
from spectrascope.loading.data.sampling import listed, shown
from spectrascope.loading.quiet import brief, quietly

__all__ = ["HubName", "datasets_package", "open_rows", "parse_hub_name"]

_SPLITS = ("validation", "valid", "val", "dev", "test", "train")  # in order of preference: held-out data first
_TIMEOUT = 10.0  # seconds until a Hub that does not answer is given up


@dataclass(frozen=True, slots=True)
class HubName:
    """A dataset, one of its configurations and one of its splits."""

    name: str
    config: str | None
    split: str | None


def parse_hub_name(spec: str) -> HubName:
    """Read ``hf:name[:config][:split]``; one part alone after the name is a split if it is called as splits are.

    >>> parse_hub_name("hf:org/name:test")
    HubName(name='org/name', config=None, split='test')
    >>> parse_hub_name("hf:./folder:plain:train[:10%]")
    HubName(name='./folder', config='plain', split='train[:10%]')

    Raises:
        DataError: it has no name or too many parts.
    """
    whole = spec.removeprefix("hf:")
    cut = re.search(r"\[[^\[\]]*\]$", whole)  # a slice of a split has a colon of its own
    parts = (whole[: cut.start()] if cut else whole).split(":")
    if cut:
        parts[-1] += cut.group()
    if not parts[0] or len(parts) > 3 or not all(parts):
        raise DataError(f"{shown(spec)}: expected hf:name, hf:name:split or hf:name:config:split")
    if len(parts) == 3:
        return HubName(parts[0], parts[1], parts[2])
    if len(parts) == 2:
        is_split = re.match(r"\w+", parts[1]) and re.split(r"[\[_]", parts[1])[0] in _SPLITS
        return HubName(parts[0], None, parts[1]) if is_split else HubName(parts[0], parts[1], None)
    return HubName(parts[0], None, None)


def datasets_package() -> Any:
    """The datasets package.

    Raises:
        DataError: it is not installed, or too old.
    """
    try:
        package: Any = importlib.import_module("datasets")
    except (ImportError, RuntimeError, OSError):
        raise DataError("hf: datasets need the package datasets; pip install 'spectrascope[datasets]'") from None
    if int(package.__version__.split(".")[0]) < 4:  # these run scripts that come with a dataset
        raise DataError(
            f"hf: datasets need version 4 or newer of the package datasets, got {package.__version__}; "
            f"pip install -U 'spectrascope[datasets]'"
        )
    return package


@contextlib.contextmanager
def _reading(package: Any, *, online: bool) -> Iterator[None]:
    """Without chatter, and without a look at the network unless downloads were asked for."""
    from huggingface_hub import constants

    before = package.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    shown_before = package.is_progress_bar_enabled()
    try:
        if not online:
            package.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
            package.disable_progress_bars()
        with quietly():
            yield
    finally:
        package.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
        if shown_before:
            package.enable_progress_bars()


def open_rows(spec: str, parsed: HubName, *, download: bool) -> tuple[Any, str]:
    """The rows of one split, and its name.

    Raises:
        DataError: the dataset is neither here nor to be had, or has no such split.
    """
    package = datasets_package()
    path = Path(parsed.name).expanduser()
    local = path.exists()
    if not local and (parsed.name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", parsed.name)):
        raise DataError(f"{spec}: no {shown(path)}; expected a folder or file of parquet, arrow, csv, json or images")
    online = download and not local
    if online:
        _require_hub(spec, parsed)
    try:
        with _reading(package, online=online):
            if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
                found = package.load_from_disk(str(path))
            elif local and path.is_file():
                kind = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".jsonl": "json", ".json": "json"}
                if path.suffix not in kind:
                    raise DataError(f"{spec}: expected a file ending in {', '.join(kind)}, or a folder")
                found = package.load_dataset(kind[path.suffix], data_files=str(path))
            else:
                found = package.load_dataset(str(path) if local else parsed.name, parsed.config)
            return _pick(spec, found, parsed.split)
    except DataError:
        raise
    except Exception as error:  # not cached, offline, gated, damaged files, an unknown configuration
        if local:
            raise DataError(
                f"{spec}: cannot be read ({shown(brief(error, 120))}); expected a folder or file of parquet, arrow, "
                f"csv, json or images"
            ) from None
        raise DataError(
            f"{spec} is not in the cache{' and could not be downloaded' if online else ''} "
            f"({shown(brief(error, 100))}); {_place(package, parsed)}"
            f"{'' if online else ', or fetch it with --download'}"
        ) from None


def _require_hub(spec: str, parsed: HubName) -> None:
    """Ask the Hub once, since the package retries for half a minute where it cannot be reached."""
    import huggingface_hub

    package = datasets_package()
    try:
        with quietly():
            huggingface_hub.HfApi().dataset_info(parsed.name, timeout=_TIMEOUT)
    except Exception as error:
        with contextlib.suppress(Exception), _reading(package, online=False):
            package.load_dataset(parsed.name, parsed.config)
            return  # it is in the cache, and that will be read below
        raise DataError(
            f"{spec} could not be downloaded ({shown(brief(error, 100))}); {_place(package, parsed)}"
        ) from None


def _place(package: Any, parsed: HubName) -> str:
    folder = Path(package.config.HF_DATASETS_CACHE) / parsed.name.replace("/", "___")
    return f"looked for it in {shown(folder)}; pass a local folder of its parquet files as hf:./folder"


def _pick(spec: str, found: Any, split: str | None) -> tuple[Any, str]:
    if not hasattr(found, "keys"):  # one split saved alone
        if split is not None and split != str(found.split):
            raise DataError(f"{spec}: has no split {split!r}; it is one table without splits, leave the split out")
        return found, str(found.split or "all")
    base, _, piece = (split or "").partition("[")
    if not split:
        base = next((name for name in _SPLITS if name in found), next(iter(found)))
    if base not in found:
        raise DataError(f"{spec}: no split {shown(base)!r}; expected one of {listed(list(found), 8)}")
    rows = found[base]
    if piece:
        limits = re.fullmatch(r"(\d*)(%?):(\d*)(%?)\]", piece)
        if limits is None:
            raise DataError(f"{spec}: cannot read the slice [{shown(piece)}; expected [10:20] or [:10%]")
        start, start_unit, stop, stop_unit = limits.groups()
        ends = [
            min(len(rows), int(value) * len(rows) // 100 if unit else int(value)) if value else usual
            for value, unit, usual in ((start, start_unit, 0), (stop, stop_unit, len(rows)))
        ]
        rows = rows.select(range(ends[0], max(ends)))
    return rows, split or base
