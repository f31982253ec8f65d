"""What a report document must hold, as a pydantic core schema worked out from the records' own type hints.

One schema builds the records of a parsed document, says in one line what is wrong with it, and is published
(:mod:`spectrascope.reports.schema`). It is written in pydantic's core schema, without a ``TypeAdapter``: that would
take fields with a default for optional, which only those added later are, and neither reads a flat layer; and it takes
twice as long to import and to build, which a small report would feel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from typing import Any, cast, get_args, get_origin

from pydantic_core import ErrorDetails, PydanticCustomError, SchemaValidator, ValidationError, core_schema

from spectrascope.errors import ReportFormatError
from spectrascope.records.report import (
    Analysis,
    LayerInfo,
    LayerReport,
    Measurement,
    ProbeOptions,
    Provenance,
    Report,
    SkippedLayer,
    Summary,
)
from spectrascope.records.values import Interval, LayerStatus, Missing, RankComparison, RankModel, RankModelFit
from spectrascope.reports.codec import (
    GROUP_KEYS,
    LAYER_BLOCKS,
    LAYER_KEYS,
    RANK_SCALARS,
    RANK_TABLES,
    added_later,
    child,
    hints_of,
    is_union,
    layer_place,
)

__all__ = ["EMPTY", "MEASURED", "document_schema", "validate_report"]

MEASURED, EMPTY = "|measured|", "|empty|"
"""Tags of the two kinds of row. Tags stand between bars: they are no keys of the document and no part of a place."""

_SCALARS: dict[Any, core_schema.CoreSchema] = {
    bool: core_schema.bool_schema(strict=True),
    int: core_schema.int_schema(strict=True),
    float: core_schema.float_schema(strict=True, allow_inf_nan=False),
    str: core_schema.str_schema(strict=True),
    Any: core_schema.any_schema(),
}
_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "dataclass_type": "an object",
}


def validate_report(document: dict[str, Any]) -> Report:
    """Build the report that a parsed document describes.

    Raises:
        ReportFormatError: a missing key, a wrong type or a record that contradicts itself, with its place.
    """
    try:
        report: Report = _validator().validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ReportFormatError(_say(first, document)) from None
    _require_same_counts(report)
    return report


@cache
def _validator() -> SchemaValidator:
    return SchemaValidator(document_schema())


def document_schema() -> core_schema.CoreSchema:
    """Return the core schema of a report document, each kind of record in it defined once."""
    records = _Records()
    head = {name: records.field(LayerInfo, name) for name in hints_of(LayerInfo)}
    head |= {"status": _required(records.of(LayerStatus)), "reason": _required(_SCALARS[str])}
    groups = {key: _required(records.of(hints_of(Measurement)[f"group_{key}"])) for key in GROUP_KEYS}
    parts = {name: part for part in (Measurement, Analysis) for name in hints_of(part)}
    measured = head | {
        key: _required(_table(groups)) if key == "groups" else records.field(parts[key], key) for key in LAYER_KEYS
    }
    measured |= {name: records.field(LayerReport, name) for name in LAYER_BLOCKS}
    row = core_schema.tagged_union_schema(
        {MEASURED: _after(_measured_row, _table(measured)), EMPTY: _after(_empty_row, _table(head))},
        lambda row: MEASURED if isinstance(row, dict) and row.get("status") == LayerStatus.OK.value else EMPTY,
    )
    document = {
        "schema_version": _required(_SCALARS[int]),
        "provenance": _required(records.of(Provenance)),
        "options": _required(records.of(ProbeOptions)),
        "summary": _required(records.of(Summary)),
        "layers": _required(core_schema.tuple_schema([row], variadic_item_index=0)),
        "extra": core_schema.typed_dict_field(records.of(dict[str, Any]), required=False),
    }
    report = _after(lambda parts: Report(**parts), _table(document))
    return core_schema.definitions_schema(report, list(records.definitions.values()))


def _required(schema: core_schema.CoreSchema) -> core_schema.TypedDictField:
    return core_schema.typed_dict_field(schema)


def _table(keys: dict[str, core_schema.TypedDictField]) -> core_schema.CoreSchema:
    return core_schema.typed_dict_schema(keys)


def _after(build: Callable[[Any], Any], schema: core_schema.CoreSchema) -> core_schema.CoreSchema:
    return core_schema.no_info_after_validator_function(build, schema)


class _Records:
    """Core schemas of type hints; those of records are ``definitions``, referred to by name."""

    def __init__(self) -> None:
        self.definitions: dict[type, core_schema.CoreSchema] = {}

    def field(self, record: type, name: str) -> core_schema.TypedDictField:
        """A field of a record as a key of a flat object."""
        return core_schema.typed_dict_field(self.of(hints_of(record)[name]), required=name not in added_later(record))

    def of(self, hint: Any) -> core_schema.CoreSchema:
        """Return the schema of the JSON values that a hint describes."""
        if hint in _SCALARS:
            return _SCALARS[hint]
        if is_union(hint):
            return self._union(get_args(hint))
        if get_origin(hint) is tuple:
            return self._tuple(get_args(hint))
        if get_origin(hint) is dict:
            return core_schema.dict_schema(_SCALARS[str], self.of(get_args(hint)[1]))
        if issubclass(hint, Enum):
            return _enum(hint)
        if hint not in self.definitions:
            self.definitions[hint] = {**self._record(hint), "ref": hint.__name__}
        return core_schema.definition_reference_schema(hint.__name__)

    def _union(self, members: tuple[Any, ...]) -> core_schema.CoreSchema:
        tags = {member: f"|{getattr(member, '__name__', member)}|" for member in members}
        others = [member for member in members if member is not Missing]

        def choose(value: Any) -> str:
            if Missing in tags and isinstance(value, dict) and len(value) == 1 and "missing" in value:
                return tags[Missing]
            fitting = (member for member in others if type(value) is member)
            return tags[next(fitting, others[0])]

        return core_schema.tagged_union_schema({tag: self.of(member) for member, tag in tags.items()}, choose)

    def _tuple(self, members: tuple[Any, ...]) -> core_schema.CoreSchema:
        if members[-1] is Ellipsis:
            return core_schema.tuple_schema([self.of(members[0])], variadic_item_index=0)
        n = len(members)
        right_length = core_schema.list_schema(min_length=n, max_length=n)  # else a missing member would be named
        return core_schema.chain_schema([right_length, core_schema.tuple_schema([self.of(item) for item in members])])

    def _record(self, record: type) -> core_schema.CoreSchema:
        if record is Interval:
            return _after(lambda pair: Interval(*pair), self.of(tuple[float, float]))
        if record is RankComparison:
            return self._rank_comparison()
        assert is_dataclass(record), f"{record} is no record"
        later = added_later(record)
        items = []
        for name, hint in hints_of(record).items():
            schema = self.of(hint)
            if name in later:
                schema = core_schema.with_default_schema(schema, default=later[name])
            alias = "missing" if record is Missing else None
            items.append(core_schema.dataclass_field(name, schema, validation_alias=alias, serialization_alias=alias))
        arguments = core_schema.dataclass_args_schema(record.__name__, items)
        checked = hasattr(record, "__post_init__")
        return core_schema.dataclass_schema(record, arguments, list(hints_of(record)), post_init=checked, slots=True)

    def _rank_comparison(self) -> core_schema.CoreSchema:
        fits = hints_of(RankModelFit)
        keys = {name: self.field(RankComparison, name) for name in RANK_SCALARS}
        for name in RANK_TABLES:
            value = self.of(fits[name])  # a model this release does not know holds as good a number as the others
            models = {model.value: _required(value) for model in RankModel}
            keys[name] = _required(core_schema.typed_dict_schema(models, extras_schema=value, extra_behavior="allow"))
        first, *_ = RANK_TABLES  # whose models the others follow
        keys[first] = _required(
            core_schema.dict_schema(_enum(RankModel), self.of(fits[first]), min_length=len(RankModel))
        )
        return _after(_turn, _table(keys))


def _enum(kind: type[Enum]) -> core_schema.CoreSchema:
    members = core_schema.enum_schema(kind, list(kind), sub_type="str")
    known = ", ".join(str(member.value) for member in kind)
    return core_schema.custom_error_schema(members, "one_of", custom_error_message=f"one of {known}")


def _turn(tables: dict[str, Any]) -> RankComparison:
    """Turn tables keyed by model into one fit per model, in the document's order."""
    models: list[RankModel] = list(tables[RANK_TABLES[0]])
    one, two, three = (
        RankModelFit(model=model, **{name: tables[name][model.value] for name in RANK_TABLES}) for model in models
    )
    return RankComparison(**{name: tables[name] for name in RANK_SCALARS}, fits=(one, two, three))


def _empty_row(row: dict[str, Any]) -> SkippedLayer:
    status, reason = row.pop("status"), row.pop("reason")
    if not reason:
        raise _wrong(f" is {status.value} without a reason")
    return SkippedLayer(LayerInfo(**row), status, reason)


def _measured_row(row: dict[str, Any]) -> LayerReport:
    row |= {f"group_{key}": value for key, value in row.pop("groups").items()}

    def part(record: type) -> Any:
        return record(**{name: row[name] for name in hints_of(record) if name in row})

    blocks = {name: row[name] for name in LAYER_BLOCKS if name in row}
    layer = LayerReport(part(LayerInfo), part(Measurement), part(Analysis), **blocks)
    _require_one_per_direction(layer)
    return layer


def _require_one_per_direction(layer: LayerReport) -> None:
    measured, decomposition = layer.measurement, layer.decomposition
    n = len(measured.sigma)
    in_rows = {
        "curvature_matrix": (measured.curvature_matrix, len(measured.h)),
        "groups.sigma": (measured.group_sigma, n),
        "groups.h": (measured.group_h, len(measured.h)),  # none where only held-out directions were measured
    }
    held, null = layer.held_out, layer.null
    if not isinstance(held, Missing):
        for name in ("curvature_matrix", "group_slopes", "group_h"):
            in_rows[f"held_out.{name}"] = (getattr(held, name), len(held.slopes))
    if not isinstance(null, Missing):
        in_rows["null.h"] = (null.h, len(null.sigma[0]) if null.sigma else 0)
    for key, (rows, wanted) in in_rows.items():
        if any(len(row) != wanted for row in rows):
            raise _wrong(f".{key} must have rows of {wanted} values, one per direction")
    if isinstance(decomposition, Missing):
        return
    factors = decomposition.factors
    tables = {
        "rayleigh_delta": (factors.rayleigh_delta,),
        "delta.eigenvalues": (factors.delta.eigenvalues,),
        "a.eigenvalues": (factors.a.eigenvalues,),
        "concentration.ratio": (factors.concentration.ratio,),
        **{
            f"{name}.cross_validated": () if isinstance(found.cross_validated, Missing) else (found.cross_validated,)
            for name, found in (("delta", factors.delta), ("a", factors.a))
        },
        "h_gn": () if isinstance(factors.h_gn, Missing) else (factors.h_gn,),
        "group_rayleigh_delta": factors.group_rayleigh_delta,
        "group_rayleigh_a": factors.group_rayleigh_a,
    }
    for key, rows in tables.items():
        if any(len(row) != n for row in rows):
            raise _wrong(f".decomposition.factors.{key} must have {n} values, one per direction")


def _wrong(what: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", "{what}", {"what": what})


def _require_same_counts(report: Report) -> None:
    """Refuse a summary that contradicts the layers (a hand-edited or merged file)."""
    counted = tuple(sum(row.status is status for row in report.layers) for status in LayerStatus)
    stated = (report.summary.n_ok, report.summary.n_skipped, report.summary.n_failed)
    if counted != stated:
        raise ReportFormatError(
            f"summary counts {stated} ok, skipped and failed layers, but the report holds {counted}"
        )


def _say(error: ErrorDetails, document: dict[str, Any]) -> str:
    """Say in one line where a document is wrong, what was expected and what was found."""
    kind, found, context = error["type"], error["input"], error.get("ctx", {})
    place = _place(error["loc"], document)
    if kind == "missing":
        return f"not a complete spectrascope report: {place} is missing"
    if kind == "value_error":  # the records' own invariants
        return f"{place} contradicts itself: {context['error']}"
    if kind == "contradiction":
        return place + error["msg"]
    if kind in ("too_short", "too_long"):
        n = context.get("min_length", context.get("max_length"))
        return f"{place} must " + (
            f"name {n} models" if isinstance(found, dict) else f"hold {n} values, found {len(found)}"
        )
    if kind == "finite_number" or (kind == "float_type" and type(found) is int):
        return f"{place} is too large for a number, a report holds finite numbers only"
    return f"{place} must be {_EXPECTED.get(kind, error['msg'])}, found {_shorten(found)}"


def _place(steps: tuple[int | str, ...], document: dict[str, Any]) -> str:
    if steps[-1] == "[key]":
        steps = steps[:-2]
    place = ""
    for depth, step in enumerate(steps):
        if depth == 1 and steps[0] == "layers":
            row = document["layers"][step]
            place = layer_place(cast(int, step), row.get("name") if isinstance(row, dict) else None)
        elif not (isinstance(step, str) and step[:1] == step[-1:] == "|"):
            place = child(place, step)
    return place


def _shorten(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
