"""A report as a JSON document: every number exactly, one flat object per layer, and back.

The layout is published as ``report.schema.json`` beside this file. Arrays stand on one line each and
everything else is indented, so that two reports can be compared with ``diff``. Non-ASCII characters are
escaped: the text survives any terminal or file encoding.
"""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from spectrascope.errors import ReportFormatError
from spectrascope.records.advice import Advice
from spectrascope.records.bench import BenchReport
from spectrascope.records.comparison import Comparison
from spectrascope.records.inspection import Inspection
from spectrascope.records.report import LayerReport, LayerRow, ProbeOptions, Provenance, Report, Summary
from spectrascope.records.trajectory import Trajectory
from spectrascope.records.values import SCHEMA_VERSION, LayerStatus
from spectrascope.records.verdict import Verdict
from spectrascope.records.weights import WeightsReport
from spectrascope.reports.codec import decode, encode, require_key, require_object
from spectrascope.reports.layer_json import decode_layer, encode_layer

__all__ = ["Record", "dump_json", "record_to_json", "report_from_json", "report_to_json"]

_PARTS = {"provenance": Provenance, "options": ProbeOptions, "summary": Summary}


def report_to_json(report: Report) -> str:
    """Write a report as strict, indented JSON, ``schema_version`` first, without a final newline.

    Raises:
        NonFiniteError: a number is NaN or infinite; the message names the field.
    """
    document: dict[str, Any] = {"schema_version": report.schema_version}
    for name in _PARTS:
        document[name] = encode(getattr(report, name), name)
    document["layers"] = [
        encode_layer(row, _layer_place(index, row.info.name)) for index, row in enumerate(report.layers)
    ]
    if report.extra:
        document["extra"] = encode(report.extra, "extra")
    return dump_json(document)


Record: TypeAlias = BenchReport | Inspection | Verdict | Comparison | Trajectory | Advice | WeightsReport
"""What a command may answer with that is no report."""


def record_to_json(record: Record) -> str:
    """Write any other answer than a report as strict, indented JSON, ``schema_version`` first.

    Raises:
        NonFiniteError: a number is NaN or infinite; the message names the field.
    """
    document = encode(record)
    return dump_json({"schema_version": document.pop("schema_version"), **document})


def report_from_json(text: str) -> Report:
    """Read a report back; ``report_from_json(report_to_json(report)) == report``.

    Raises:
        ReportFormatError: not JSON, not a report, a newer schema version, a missing key or a wrong type.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except ReportFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise ReportFormatError(f"not JSON: {str(error) or type(error).__name__}") from error
    version = _require_version(document)
    parts: dict[str, Any] = {}
    for name, cls in _PARTS.items():
        parts[name] = decode(cls, require_key(document, name, ""), name)
    rows = require_key(document, "layers", "")
    if not isinstance(rows, list):
        raise ReportFormatError("layers must be a list")
    layers = tuple(_decode_row(index, row) for index, row in enumerate(rows))
    extra = require_object(document.get("extra", {}), "extra")
    report = Report(layers=layers, schema_version=version, extra=extra, **parts)
    _require_same_counts(report)
    return report


def _require_version(document: Any) -> int:
    if not isinstance(document, dict) or "schema_version" not in document:
        raise ReportFormatError("not a spectrascope report: no schema_version at the top of the document")
    version = document["schema_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ReportFormatError("schema_version must be a positive integer")
    if version > SCHEMA_VERSION:
        raise ReportFormatError(
            f"the report has schema version {version}, this release reads up to {SCHEMA_VERSION}: upgrade spectrascope"
        )
    return version


def _decode_row(index: int, row: Any) -> LayerRow:
    name = row.get("name") if isinstance(row, dict) else None
    return decode_layer(row, _layer_place(index, name))


def _layer_place(index: int, name: object) -> str:
    return f"layers[{index}] ({name})" if isinstance(name, str) else f"layers[{index}]"


def _require_same_counts(report: Report) -> None:
    """Refuse a summary that contradicts the layers (a hand-edited or merged file)."""
    counted = (
        sum(isinstance(row, LayerReport) for row in report.layers),
        sum(row.status is LayerStatus.SKIPPED for row in report.layers),
        sum(row.status is LayerStatus.FAILED for row in report.layers),
    )
    stated = (report.summary.n_ok, report.summary.n_skipped, report.summary.n_failed)
    if counted != stated:
        raise ReportFormatError(
            f"summary counts {stated} ok, skipped and failed layers, but the report holds {counted}"
        )


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
