"""Write pictures into files: which ones, under which names."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from spectrascope.advice.trajectory import MeasuredCheckpoint, build_trajectory, unrelated
from spectrascope.cli.garbage import no_collections
from spectrascope.errors import OptionError
from spectrascope.records.report import Report
from spectrascope.reports.charts.chart import Picture
from spectrascope.reports.charts.layout import picture_width
from spectrascope.reports.charts.pictures import PictureKind, report_pictures
from spectrascope.reports.charts.plots import PICTURE_FORMATS, draw_pages, draw_picture, require_matplotlib
from spectrascope.reports.charts.training_charts import trajectory_pictures
from spectrascope.reports.write import check_writable, write_bytes_atomically

if TYPE_CHECKING:
    from spectrascope.workload import OnProgress

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Destination:
    """A folder for pictures of one format, or a single file, whose suffix then decides, and their look.

    Checked when made. ``title`` stands above every picture in the place of its own, ``width`` is inches or a name.
    """

    path: Path
    format: str
    dpi: int = 150
    dark: bool = False
    title: str | None = None
    width: str | float | None = None

    def __post_init__(self) -> None:
        require_matplotlib()
        picture_width(self.width)
        if self.is_file:
            check_writable(self.path)
        elif not self.path.is_dir() and (self.path.exists() or self.path.suffix[1:].isalpha()):
            wanted = ", ".join(f".{suffix}" for suffix in PICTURE_FORMATS)
            raise OptionError(f"cannot draw into {self.path}: expected a folder or a file ending in {wanted}")

    @property
    def is_file(self) -> bool:
        """Whether this is one file."""
        return self.path.suffix.lower().removeprefix(".") in PICTURE_FORMATS and not self.path.is_dir()


def picture_file(path: Path) -> Destination:
    """A single file to draw into.

    Raises:
        OptionError: its ending is of no picture, or it cannot be written.
    """
    if path.suffix.lower().removeprefix(".") not in PICTURE_FORMATS or path.is_dir():
        wanted = ", ".join(f".{suffix}" for suffix in PICTURE_FORMATS)
        raise OptionError(f"cannot draw into {path}: expected a file ending in {wanted}")
    return Destination(path, "png")


def write_picture(picture: Picture, to: Destination) -> None:
    """Draw one picture into a file."""
    _write(to, iter([picture]))


def write_pictures(
    reports: Sequence[tuple[Path, Report]],
    to: Destination,
    kinds: Sequence[PictureKind] | None,
    *,
    all_layers: bool = False,
    on_progress: OnProgress,
) -> Iterator[Path]:
    """Draw reports and yield each file as it is written.

    Args:
        reports: each with the file it comes from, whose name the pictures carry.
        to: where.
        kinds: which pictures; ``None`` for all, or for the overview in a single PNG or SVG.
        all_layers: every layer, instead of some where there are many.
        on_progress: called before each of several pictures.

    Raises:
        OptionError: several pictures for one PNG or SVG, or a place that cannot be written.
    """
    single = to.is_file and to.path.suffix.lower() != ".pdf"
    over_training = _over_training(reports, kinds)
    if kinds is None:
        kinds = [PictureKind.OVERVIEW] if single else list(PictureKind)
        if single and over_training:
            yield _write(to, iter(over_training[:1]))
            return
    found = [
        (f"{name}-{picture.name}", picture)
        for name, (_, report) in zip(_stems([path for path, _ in reports]), reports, strict=True)
        for picture in report_pictures(report, kinds, all_layers=all_layers)
    ]
    found += [(picture.name, picture) for picture in over_training]
    if not found:
        wanted = ", ".join(kind.value for kind in kinds)
        raise OptionError(f"nothing to draw for --picture {wanted}: no layer of the report has what it shows")
    if to.is_file:
        if single and len(found) > 1:
            raise OptionError(
                f"{len(found)} pictures do not fit into {to.path}: choose one with --picture, name a folder, or a .pdf"
            )
        yield _write(to, _followed([picture for _, picture in found], on_progress))
        return
    try:
        to.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"cannot make the folder {to.path}: {error.strerror or error}") from error
    for name, picture in _followed(found, on_progress):
        path = to.path / f"{name}.{to.format}"
        with no_collections():  # one picture at a time: each leaves a figure behind, in circles
            data = _draw(picture, to, to.format)
        write_bytes_atomically(path, data)
        yield path


def _write(to: Destination, pictures: Iterator[Picture]) -> Path:
    suffix = to.path.suffix.lower().removeprefix(".")
    if suffix == "pdf":
        data = draw_pages((_titled(picture, to) for picture in pictures), dark=to.dark, width=to.width)
    else:
        data = _draw(next(pictures), to, suffix)
    write_bytes_atomically(to.path, data)
    return to.path


def _draw(picture: Picture, to: Destination, suffix: str) -> bytes:
    return draw_picture(_titled(picture, to), suffix, dpi=to.dpi, dark=to.dark, width=to.width)


def _titled(picture: Picture, to: Destination) -> Picture:
    return picture if to.title is None else replace(picture, title=to.title)


def _followed(items: Sequence[_T], on_progress: OnProgress) -> Iterator[_T]:
    """Yield items, and say how far it is where there are several."""
    for done, item in enumerate(items):
        if len(items) > 1:
            on_progress("draw", done, len(items))
        yield item


def _over_training(reports: Sequence[tuple[Path, Report]], kinds: Sequence[PictureKind] | None) -> list[Picture]:
    if kinds is not None or len(reports) < 2:
        return []
    if apart := unrelated([report for _, report in reports]):
        print(f"spectrascope: not drawn over training: {apart}", file=sys.stderr)
        return []
    return trajectory_pictures(build_trajectory([MeasuredCheckpoint(path.stem, report) for path, report in reports]))


def _stems(paths: Sequence[Path]) -> list[str]:
    """Return file names without suffix, numbered where two are the same."""
    seen: dict[str, int] = {}
    names = []
    for path in paths:
        seen[path.stem] = seen.get(path.stem, 0) + 1
        names.append(path.stem if seen[path.stem] == 1 else f"{path.stem}-{seen[path.stem]}")
    return names
