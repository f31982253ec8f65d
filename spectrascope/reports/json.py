"""A report as a JSON document: every number exactly, one flat object per layer, and back.

The layout is published as ``report.schema.json`` beside this file. Arrays stand on one line each and
everything else is indented, so that two reports can be compared with ``diff``. Non-ASCII characters are
escaped: the text survives any terminal or file encoding.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

from spectrascope.errors import ReportFormatError
from spectrascope.records.report import Report
from spectrascope.records.values import SCHEMA_VERSION
from spectrascope.reports.codec import encode, encode_layer

if TYPE_CHECKING:
    from spectrascope.records.advice import Advice
    from spectrascope.records.bench import BenchReport
    from spectrascope.records.comparison import Comparison
    from spectrascope.records.inspection import Inspection
    from spectrascope.records.trajectory import Trajectory
    from spectrascope.records.verdict import Verdict
    from spectrascope.records.weights import WeightsReport

__all__ = ["Record", "dump_json", "record_to_json", "report_from_json", "report_to_json"]

Record: TypeAlias = "BenchReport | Inspection | Verdict | Comparison | Trajectory | Advice | WeightsReport"
"""What a command may answer with that is no report."""


def report_to_json(report: Report) -> str:
    """Write a report as strict, indented JSON, ``schema_version`` first, without a final newline.

    Raises:
        NonFiniteError: a number is NaN or infinite; the message names the field.
    """
    document: dict[str, Any] = {"schema_version": report.schema_version}
    for name in ("provenance", "options", "summary"):
        document[name] = encode(getattr(report, name), name)
    document["layers"] = [encode_layer(index, row) for index, row in enumerate(report.layers)]
    if report.extra:
        document["extra"] = encode(report.extra, "extra")
    return dump_json(document)


def record_to_json(record: Record) -> str:
    """Write any other answer than a report as strict, indented JSON, ``schema_version`` first.

    Raises:
        NonFiniteError: a number is NaN or infinite; the message names the field.
    """
    document = encode(record)
    return dump_json({"schema_version": document.pop("schema_version"), **document})


def report_from_json(text: str) -> Report:
    """Read a report back; ``report_from_json(report_to_json(report)) == report``.

    Keys this release does not know are ignored, so that a later one may add some.

    Raises:
        ReportFormatError: not JSON, not a report, a newer schema version, a missing key or a wrong type.
    """
    from spectrascope.reports.validate import validate_report  # pydantic, which --help and writing do without

    document = _parse(text)
    if not isinstance(document, dict) or "schema_version" not in document:
        raise ReportFormatError("not a spectrascope report: no schema_version at the top of the document")
    version = document["schema_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ReportFormatError("schema_version must be a positive integer")
    if version > SCHEMA_VERSION:
        raise ReportFormatError(
            f"the report has schema version {version}, this release reads up to {SCHEMA_VERSION}: upgrade spectrascope"
        )
    for earlier in range(version, SCHEMA_VERSION):
        _UPGRADES[earlier](document)
    _name_the_self_check(document)
    return validate_report(document)


def _to_version_2(document: dict[str, Any]) -> None:
    """Version 2 holds out samples; before, curvature was of the same samples as its directions, and of all of them."""
    options = document.get("options")
    if isinstance(options, dict):
        for name, value in (("estimate", "published"), ("null_draws", 0), ("curvature_samples", "all")):
            options.setdefault(name, value)


def _name_the_self_check(document: dict[str, Any]) -> None:
    """Reports that say yes or no were checked on a few weights, or not at all."""
    options = document.get("options")
    if isinstance(options, dict) and isinstance(options.get("self_check"), bool):
        options["self_check"] = "sampled" if options["self_check"] else "off"


_UPGRADES = {1: _to_version_2}
"""What a document of a version needs to be read as one of the next."""


def _parse(text: str) -> Any:
    """Parse strict JSON four times as fast as the standard library does, which is asked where that refuses.

    It has the last word: it reads file names that are no Unicode (lone surrogates), and says what is wrong.
    """
    from pydantic_core import from_json

    text = text.removeprefix("\ufeff")  # editors on Windows begin files with it
    if not text.strip():
        raise ReportFormatError("the file is empty")
    try:
        return from_json(text, allow_inf_nan=False)
    except (ValueError, TypeError):
        pass
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        cut = text.lstrip().startswith("{") and not text.rstrip().endswith("}")
        what = "not whole, it ends in the middle" if cut else "not JSON"
        raise ReportFormatError(f"{what}: {str(error) or type(error).__name__}") from error


def _refuse_constant(name: str) -> Any:
    raise ReportFormatError(f"not strict JSON: {name} is not a number JSON knows")


def dump_json(document: Any) -> str:
    """Indent objects by two spaces, keep arrays of plain values on one line each."""
    return "".join(_chunks(document, "\n"))


def _chunks(value: Any, newline: str) -> list[str]:
    if _is_flat(value):
        return [json.dumps(value, allow_nan=False)]
    inner = newline + "  "
    pieces: list[str] = []
    if isinstance(value, dict):
        for key, item in value.items():
            pieces += [",", inner, json.dumps(key), ": ", *_chunks(item, inner)]
        return ["{", *pieces[1:], newline, "}"]
    for item in value:
        pieces += [",", inner, *_chunks(item, inner)]
    return ["[", *pieces[1:], newline, "]"]


def _is_flat(value: Any) -> bool:
    if isinstance(value, dict):
        return not value or (len(value) == 1 and not isinstance(next(iter(value.values())), (dict, list)))
    if isinstance(value, list):
        return not any(isinstance(item, (dict, list)) for item in value)
    return True
