"""Results that show themselves: records with a short ``repr``, a display in notebooks, frames, files and figures.

Each class is the record of the same measurement and nothing else is in it, so whatever takes the record takes this.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

from spectrascope.errors import OptionError
from spectrascope.records.advice import Advice, Treatment
from spectrascope.records.comparison import Comparison
from spectrascope.records.inspection import Inspection
from spectrascope.records.report import LayerRow, Report
from spectrascope.records.trajectory import Trajectory
from spectrascope.records.verdict import Verdict
from spectrascope.records.weights import TailFit, WeightsReport, WeightTail
from spectrascope.reports.figures import format_count, format_percent
from spectrascope.reports.read import read_report
from spectrascope.reports.render import BY_ENDING, Format, Rendered, View, document_of, render
from spectrascope.reports.write import write_text_atomically
from spectrascope.text import listed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from spectrascope.api.options import Globs

__all__ = [
    "AdviceResult", "ComparisonResult", "FilePath", "InspectionResult", "Presented", "ProbeReport", "TrajectoryResult",
    "VerdictResult", "WeightsResult", "load", "open_report", "shown",
]  # fmt: skip

FilePath: TypeAlias = "str | os.PathLike[str]"

_WIDTH = 100  # of a repr, in characters


class Presented:
    """What every result can do besides being a record."""

    __slots__ = ()

    @property
    def _record(self) -> Any:
        return self  # subclasses are records too, which no base class can say

    @property
    def headline(self) -> str:
        """What came out, in a sentence or two."""
        document = document_of(self._record)
        return next((text for text, _ in document.bottom_line), document.title)

    def __repr__(self) -> str:
        return _paragraph(document_of(self._record).title, self.headline)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        from spectrascope.reports.html.notebook import notebook_html

        return notebook_html(self._record, self.headline)

    def __eq__(self, other: object) -> bool:
        kind = _record_kind(type(self))
        names = [item.name for item in fields(kind)]
        return isinstance(other, kind) and all(getattr(self, name) == getattr(other, name) for name in names)

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def to_text(self, *, view: View | str = View.PROBE, width: int | None = None, **how: Any) -> str:
        """Return the table of the terminal.

        Args:
            view: of a report: ``probe``, ``triangle`` or ``decomposition``.
            width: columns it may take; everything in full when ``None``.
            how: more of :func:`spectrascope.reports.render.render`: ``sort``, ``every``, ``number``.
        """
        return _text(render(self._record, Format.TABLE, view=_view(view), width=width, **how), width)

    def to_dict(self) -> dict[str, Any]:
        """Return what the JSON form holds, as plain dicts, lists and numbers."""
        found: dict[str, Any] = json.loads(str(render(self._record, Format.JSON)))
        return found

    def to_frame(self, *, view: View | str = View.PROBE) -> Any:
        """Return the CSV form as a data frame: of pandas, or of polars where that is what is installed.

        Args:
            view: of a report: ``probe``, ``triangle`` or ``decomposition``.

        Raises:
            OptionError: neither is installed.
        """
        return _frame(str(render(self._record, Format.CSV, view=_view(view))))

    def to_html(self, path: FilePath | None = None) -> str:
        """Return a page for a browser, one file that opens offline; write it to ``path`` if there is one.

        Raises:
            OptionError: the file cannot be written.
        """
        return _kept(str(render(self._record, Format.HTML)), path)

    def save(self, path: FilePath) -> Path:
        """Write a file, whole or not at all; its ending says the form: .json .csv .md .tex .txt .html.

        Returns:
            The path.

        Raises:
            OptionError: another ending, or the file cannot be written.
        """
        to = Path(path)
        form = BY_ENDING.get(to.suffix.lower())
        if form is None:
            known = ", ".join([*(ending for ending, of in BY_ENDING.items() if of is not Format.HTML), ".html"])
            raise OptionError(f"cannot save as {to.name!r}: expected a name ending in one of {known}")
        if form is Format.HTML:
            self.to_html(to)
            return to
        text = self.to_text() if form is Format.TABLE else str(render(self._record, form))
        write_text_atomically(to, text + "\n")
        return to


class ProbeReport(Presented, Report):
    """A report of ``probe`` or ``decompose``: weights by name, a frame, figures, a page, files.

    ``report["layer1.0.conv1.weight"]`` is the row of that weight, ``for name in report`` goes through all names,
    measured or not, ``len(report)`` counts them. ``report.layers`` are the rows themselves.
    """

    __slots__ = ()

    @classmethod
    def load(cls, path: FilePath) -> ProbeReport:
        """Read a report that :meth:`save` or ``spectrascope probe --json -o`` wrote; needs no torch.

        Raises:
            ReportFormatError: no such file, or not a report.
        """
        return shown(read_report(Path(path)), cls)

    @property
    def headline(self) -> str:
        """What can be known of the network from these samples."""
        from spectrascope.reports.views.words import say_first

        return say_first(self)[0]

    def __repr__(self) -> str:
        run, counts = self.provenance, self.summary
        n = f"{counts.n_ok} of {format_count(len(self.layers), 'weight')} measured"
        failed = f", {counts.n_failed} FAILED" if counts.n_failed else ""
        accuracy = f", accuracy {format_percent(run.accuracy)}" if isinstance(run.accuracy, float) else ""
        data = f"{run.data.n:,} samples of {run.data.id}, loss {run.loss:.4g}{accuracy}"
        return _paragraph(f"spectrascope.Report of {run.model.id}", f"{n}{failed}; {data}", self.headline)

    def __getitem__(self, name: str) -> LayerRow:
        row = next((row for row in self.layers if row.info.name == name), None)
        if row is not None:
            return row
        names = list(self)
        close = [other for other in names if isinstance(name, str) and other == f"{name}.weight"]
        close += [n for n in difflib.get_close_matches(str(name), names, n=3, cutoff=0.5) if n not in close]
        hint = f"nearest: {', '.join(close)}" if close else f"there are {len(names)}, e.g. {', '.join(names[:3])}"
        raise KeyError(f"no weight {name!r}; {hint}")

    def __iter__(self) -> Iterator[str]:
        return (row.info.name for row in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, name: object) -> bool:
        return any(row.info.name == name for row in self.layers)

    def select(self, layers: Globs = (), exclude: Globs = ()) -> ProbeReport:
        """Return the report of some of its weights, the summary made anew.

        Args:
            layers: a glob on names to keep, or several; all when empty.
            exclude: a glob on names to leave out, or several.

        Raises:
            OptionError: no weight is left.
        """
        from spectrascope.reports.select import select_layers

        return shown(select_layers(self, listed(layers, "layers"), listed(exclude, "exclude")), ProbeReport)

    def refit(self, *, top_k: int | None = None, min_rank: int | None = None) -> ProbeReport:
        """Return the report fitted again over the directions ``min_rank`` to ``top_k``; nothing is measured.

        Raises:
            OptionError: more directions than were measured, or none.
        """
        from spectrascope.reports.refit import refit

        return shown(refit(self, top_k=top_k, min_rank=min_rank), ProbeReport)

    def plot(
        self,
        kind: str = "overview",
        *,
        layers: Globs = (),
        exclude: Globs = (),
        title: str | None = None,
        width: str | float | None = None,
        theme: str = "light",
    ) -> Figure:
        """Draw the report.

        Args:
            kind: ``overview``, ``curvature``, ``ranks``, ``step-exponents``, ``triangle``, ``depth``,
                ``participation``, ``rank-models`` or ``decomposition``. Of more than 24 weights, ``curvature`` and
                ``ranks`` show 12, evenly along depth.
            layers: a glob on names of weights to draw, or several; all when empty.
            exclude: a glob on names to leave out, or several.
            title: above the picture; empty for none, the network and what is shown when ``None``.
            width: ``one-column`` (3.4 inches), ``two-column`` (7 inches) or inches; as large as it likes when ``None``.
            theme: ``light`` or ``dark``.

        Returns:
            A matplotlib figure; saved as PDF its fonts are embedded.

        Raises:
            OptionError: no such kind, width or theme, matplotlib is not installed, or nothing in the report to draw.
        """
        from spectrascope.reports.charts.pictures import PictureKind, report_pictures
        from spectrascope.reports.charts.plots import make_figure

        try:
            wanted = PictureKind(kind)
        except ValueError:
            known = ", ".join(item.value for item in PictureKind)
            raise OptionError(f"no picture {kind!r}: expected one of {known}") from None
        chosen = self.select(layers, exclude) if layers or exclude else self
        found = report_pictures(chosen, [wanted])
        if not found:
            raise OptionError(f"nothing to draw for {kind!r}: no weight of the report has what it shows")
        return make_figure(found[0], title=title, width=width, theme=theme)


class TrajectoryResult(Presented, Trajectory):
    """Checkpoints of one run in a row, as ``trajectory`` gives them."""

    __slots__ = ()

    def plot(
        self,
        kind: str = "overview",
        *,
        title: str | None = None,
        width: str | float | None = None,
        theme: str = "light",
    ) -> Figure:
        """Draw numbers over training.

        Args:
            kind: ``overview`` for all, ``loss``, ``rank-models``, or one number: ``step-exponent``, ``beta``, ….
            title: as for :meth:`ProbeReport.plot`.
            width: as there.
            theme: ``light`` or ``dark``.

        Raises:
            OptionError: no such kind, width or theme, or matplotlib is not installed.
        """
        from spectrascope.reports.charts.plots import make_figure
        from spectrascope.reports.charts.training_charts import trajectory_pictures

        pictures = {item.name.removeprefix("training-"): item for item in trajectory_pictures(self)}
        if kind not in pictures:
            raise OptionError(f"no picture {kind!r}: expected one of {', '.join(pictures)}")
        return make_figure(pictures[kind], title=title, width=width, theme=theme)


class VerdictResult(Presented, Verdict):
    """What a gate says: true where it passed."""

    __slots__ = ()

    @property
    def headline(self) -> str:
        """What has changed by more than the rules allow, if anything has."""
        from spectrascope.reports.views.verdict import say_verdict

        return say_verdict(self)

    def __bool__(self) -> bool:
        return self.outcome.exit_code == 0


class AdviceResult(Presented, Advice):
    """An exponent for each weight, or why there is none."""

    __slots__ = ()

    @property
    def headline(self) -> str:
        """How many weights have an exponent, and what can be known of the network."""
        n = {kind: sum(layer.treatment is kind for layer in self.layers) for kind in Treatment}
        counts = f"{n[Treatment.SPECTRAL]} of {format_count(len(self.layers), 'weight')} have an exponent"
        rest = f"{n[Treatment.UNDETERMINED]} are undetermined, {n[Treatment.ADAMW]} go to AdamW"
        return f"{counts}, {rest}. {self.known}"


class ComparisonResult(Presented, Comparison):
    """What changed between two reports."""

    __slots__ = ()

    @property
    def headline(self) -> str:
        """What changed in what matters most."""
        from spectrascope.reports.views.verdict import say_comparison

        return say_comparison(self)


class InspectionResult(Presented, Inspection):
    """What would be measured, by which engine, at what cost."""

    __slots__ = ()


class WeightsResult(Presented, WeightsReport):
    """Tails of the weights' spectra."""

    __slots__ = ()

    @property
    def headline(self) -> str:
        """How many weights have a tail, and its median exponent."""
        tails = [row.tail.alpha for row in self.rows if isinstance(row, WeightTail) and isinstance(row.tail, TailFit)]
        middle = f", median alpha {median(tails):.2f}" if tails else ""
        return f"{len(tails)} of {format_count(len(self.rows), 'weight')} of {self.model.id} have a tail{middle}."


_Kind = TypeVar("_Kind", bound=Presented)


def shown(record: Rendered, kind: type[_Kind]) -> _Kind:
    """Make a result of a record: the same values, not copied."""
    return kind(**{item.name: getattr(record, item.name) for item in fields(record)})


def load(path: FilePath) -> ProbeReport:
    """Read a saved report; needs no torch.

    Raises:
        ReportFormatError: no such file, or not a report.
    """
    return ProbeReport.load(path)


def open_report(report: Report | FilePath) -> Report:
    """Take a report, or read the one saved at a path.

    Raises:
        ReportFormatError: no such file, or not a report.
        OptionError: something else was given.
    """
    if isinstance(report, Report):
        return report
    if isinstance(report, (str, os.PathLike)):
        return read_report(Path(report))
    raise OptionError(f"expected a report, or the path of a saved one, got {type(report).__name__}")


def _record_kind(kind: type) -> Any:
    return next(base for base in kind.__mro__ if "__dataclass_fields__" in vars(base))


def _paragraph(first: str, *sentences: str) -> str:
    lines = [line for text in sentences for line in textwrap.wrap(text, _WIDTH - 2)]
    return "\n  ".join([f"<{first}", *lines]) + ">"


def _view(view: View | str) -> View:
    try:
        return View(view)
    except ValueError:
        raise OptionError(f"no view {view!r}: expected one of {', '.join(item.value for item in View)}") from None


def _text(drawn: Any, width: int | None) -> str:
    if isinstance(drawn, str):
        return drawn
    from spectrascope.reports.table import plain_text

    return plain_text(drawn, width)


def _kept(page: str, path: FilePath | None) -> str:
    if path is not None:
        write_text_atomically(Path(path), page)
    return page


def _frame(text: str) -> Any:
    try:
        import pandas as pd
    except ImportError:
        try:
            import polars as pl
        except ImportError:
            raise OptionError("to_frame needs pandas, or polars: pip install pandas") from None
        return pl.read_csv(text.encode(), infer_schema_length=None)
    return pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""])
