"""Checkpoints of one run, measured one after the other; each report is kept, so that a broken run goes on."""

from __future__ import annotations

import glob as globbing
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import typer

from spectrascope.advice.trajectory import STEP_KEY, MeasuredCheckpoint
from spectrascope.cli.measure import measure
from spectrascope.cli.options import Request
from spectrascope.cli.rerun import Kept
from spectrascope.errors import OptionError, ReportFormatError, SpectrascopeError
from spectrascope.records.report import WHERE_IT_FITS, ProbeOptions, Report
from spectrascope.records.values import Missing
from spectrascope.reports.json import report_to_json
from spectrascope.reports.read import read_report
from spectrascope.reports.write import write_text_atomically
from spectrascope.text import file_name

_KEY = "trajectory"  # of Report.extra: what was asked for, and of which bytes
_FAILED_MESSAGE = 200


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where reports are kept, and whether one is measured again although it is there."""

    run: Kept
    folder: Path
    again: bool = False

    def report(self, name: str) -> Path:
        """The file of a checkpoint's report: beside the parts it is made of, where a run is kept."""
        return self.folder / f"{name}.json" if self.run.run is None else self.run.run / name / "report.json"


def expand_checkpoints(given: Sequence[str], globs: Sequence[str]) -> list[str]:
    """List the checkpoints named and those a pattern finds, each once, in natural order of their names per pattern.

    Raises:
        OptionError: nothing was named, or a pattern finds nothing.
    """
    found = list(given)
    for pattern in globs:
        matches = sorted(globbing.glob(pattern, recursive=True), key=_natural)
        if not matches:
            raise OptionError(f"--glob {pattern!r} finds no file or folder here")
        found += matches
    if not found:
        raise OptionError("name checkpoints (files, folders, saved reports), or --glob 'runs/*.pt'")
    return list(dict.fromkeys(found))


def measure_checkpoints(
    names: Sequence[str],
    target: Request,
    options: ProbeOptions,
    keeping: Keeping,
    context: typer.Context,
    *,
    quiet: bool,
) -> Iterator[MeasuredCheckpoint]:
    """Yield the checkpoints in the order given, each measured or read from where its report is kept.

    A saved report (``.json``) among the names is read as it is. A checkpoint that cannot be measured is yielded with
    the reason, and the others go on.

    Raises:
        ReportFormatError: a saved report cannot be read.
        OptionError: the folder cannot be written.
    """
    labels = _labels(names)
    for number, (name, label) in enumerate(zip(names, labels, strict=True), start=1):
        if _is_report(name):
            yield MeasuredCheckpoint(label.removesuffix(".json"), read_report(Path(name)))
            continue
        place = file_name(label)
        path = keeping.report(place)
        asked = _asked(name, target, options)
        kept = None if keeping.again else _read_kept(path, asked)
        if kept is not None:
            _say(f"{label}: kept in {path}", number, len(names), quiet)
            yield MeasuredCheckpoint(label, kept)
            continue
        _say(label, number, len(names), quiet)
        try:
            report = measure(replace(target, model=name), options, context, quiet=quiet, kept=keeping.run, place=place)
        except OptionError:
            raise  # an option that is wrong for one is wrong for all
        except SpectrascopeError as error:
            reason = " ".join(str(error).split())[:_FAILED_MESSAGE]
            _say(f"{label}: FAILED, {reason}", number, len(names), quiet)
            yield MeasuredCheckpoint(label, Missing(reason))
            continue
        report = replace(report, extra={**_step_of(name), **report.extra, _KEY: asked})
        _make(path.parent)
        write_text_atomically(path, report_to_json(report) + "\n")
        yield MeasuredCheckpoint(label, report)


def _step_of(name: str) -> dict[str, int]:
    """The step that a checkpoint's weights say they are from, as reports of callbacks have it."""
    from spectrascope.loading.models.open import find_step

    step = find_step(name)
    return {} if step is None else {STEP_KEY: step}


def _is_report(name: str) -> bool:
    return name.endswith(".json") and not name.endswith(".index.json") and Path(name).is_file()


def _asked(name: str, target: Request, options: ProbeOptions) -> dict[str, Any]:
    """What a kept report must have been asked for to be used again: the same options of the same bytes."""
    wanted = {"target": asdict(replace(target, model=None)), "options": asdict(options)}
    for free in WHERE_IT_FITS:
        del wanted["options"][free]
    text = json.dumps(wanted, sort_keys=True, default=str)
    return {"checkpoint": _digest(name), "options": hashlib.sha256(text.encode()).hexdigest()}


def _digest(name: str) -> str:
    """Sha256 over the files of a checkpoint; of a name that is no file, over the name."""
    path = Path(name.partition("::")[0])
    sha = hashlib.sha256(name.partition("::")[2].encode())
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        sha.update(name.encode())
        files = []
    for file in files:
        sha.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                sha.update(chunk)
    return sha.hexdigest()


def _read_kept(path: Path, asked: dict[str, Any]) -> Report | None:
    if not path.exists():
        return None
    try:
        report = read_report(path)
    except ReportFormatError:
        return None  # from another release, or no report: it is measured again
    return report if report.extra.get(_KEY) == asked else None


def _labels(names: Sequence[str]) -> list[str]:
    """Short names of the checkpoints, their paths where those are not distinct."""
    short = [Path(name.partition("::")[0]).name or name for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _natural(path: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path)]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def _say(text: str, number: int, total: int, quiet: bool) -> None:
    if not quiet:
        print(f"spectrascope: checkpoint {number} of {total}: {text}", file=sys.stderr, flush=True)
