"""Records to plain JSON values and back, driven by the records' own type hints.

Three conventions hold everywhere in a report: a :class:`Missing` is ``{"missing": reason}``, an
:class:`Interval` is ``[low, high]``, and the three rank models are tables keyed by model. Errors name the
place in the document, as in ``layers[3] (fc.weight).beta.value``.
"""

from __future__ import annotations

import math
import numbers
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, partial
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from spectrascope.errors import NonFiniteError, ReportFormatError
from spectrascope.records.values import Interval, Missing, PowerFit, RankComparison, RankModel, RankModelFit

__all__ = [
    "RANK_TABLES",
    "added_later",
    "child",
    "decode",
    "encode",
    "hints_of",
    "is_union",
    "require_key",
    "require_object",
]

RANK_TABLES = ("bic", "aic", "rss", "r2", "params")
"""Per-model quantities of a rank comparison, each a table keyed by model."""

_RANK_SCALARS = ("best", "runner_up", "delta_bic", "tie", "best_aic", "n")
_FIT_ORDER = ("value", "stderr", "ci95", "jackknife_ci95", "r2", "n", "n_dropped", "intercept")
Decoder: TypeAlias = Callable[[Any, str], Any]
"""From a JSON value and its place in the document to what it stands for."""

_JSON_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """Field name -> type of a record class, in the order they are written."""
    hints = get_type_hints(cls)
    order = _FIT_ORDER if cls is PowerFit else tuple(item.name for item in fields(cls))
    return {name: hints[name] for name in order}


def child(path: str, key: str | int) -> str:
    """Extend a place in the document by a key or a position."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def encode(value: Any, path: str = "") -> Any:
    """Turn a record into JSON values (dict, list, str, int, float, bool).

    Raises:
        NonFiniteError: a number is NaN or infinite, which strict JSON cannot hold.
        TypeError: something that is no record, named with its place.
    """
    if isinstance(value, Missing):
        return {"missing": value.reason}
    if isinstance(value, Interval):
        return [encode(value.low, child(path, 0)), encode(value.high, child(path, 1))]
    if isinstance(value, RankComparison):
        return _encode_rank_comparison(value, path)
    if is_dataclass(value) and not isinstance(value, type):
        return {name: encode(getattr(value, name), child(path, name)) for name in hints_of(type(value))}
    if isinstance(value, dict):
        return {str(key): encode(item, child(path, str(key))) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item, child(path, index)) for index, item in enumerate(value)]
    return _encode_scalar(value, path)


def _encode_scalar(value: Any, path: str) -> Any:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        if not math.isfinite(value):
            raise NonFiniteError(f"{path or 'value'} is {float(value)}, a report holds finite numbers only")
        return float(value)
    raise TypeError(f"{path or 'value'}: a report cannot hold a {type(value).__name__}")


def _encode_rank_comparison(value: RankComparison, path: str) -> dict[str, Any]:
    record = {name: encode(getattr(value, name), child(path, name)) for name in _RANK_SCALARS}
    for table in RANK_TABLES:
        place = child(path, table)
        record[table] = {
            fit.model.value: encode(getattr(fit, table), child(place, fit.model.value)) for fit in value.fits
        }
    return record


def decode(hint: Any, value: Any, path: str = "") -> Any:
    """Build what a type hint describes from JSON values; the exact inverse of :func:`encode`.

    Keys the hint does not know are ignored, so that a later release may add some.

    Raises:
        ReportFormatError: a missing key, a wrong type or a record that contradicts itself, with its place.
    """
    return _decoder(hint)(value, path)


@cache
def _decoder(hint: Any) -> Decoder:
    """What decodes values of one hint, chosen once: a report holds the same few kinds tens of thousands of times."""
    if hint is Any:
        return lambda value, _: value
    if hint is Missing:
        return _decode_missing
    if hint is Interval:
        return _decode_interval
    if hint is RankComparison:
        return _decode_rank_comparison
    if is_union(hint):
        return _union_decoder(get_args(hint))
    if get_origin(hint) is tuple:
        return _tuple_decoder(get_args(hint))
    if get_origin(hint) is dict:
        item = _decoder(get_args(hint)[1])
        return lambda value, path: {
            key: item(inner, child(path, key)) for key, inner in require_object(value, path).items()
        }
    if isinstance(hint, type) and issubclass(hint, Enum):
        return partial(_decode_enum, hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return _record_decoder(hint)
    return partial(_decode_scalar, hint)


def _decode_missing(value: Any, path: str) -> Any:
    reason = require_key(require_object(value, path), "missing", path)
    return _build(Missing, {"reason": _decode_scalar(str, reason, child(path, "missing"))}, path)


def _decode_interval(value: Any, path: str) -> Any:
    low, high = decode(tuple[float, float], value, path)
    return _build(Interval, {"low": low, "high": high}, path)


def _record_decoder(record_type: type) -> Decoder:
    optional = added_later(record_type)
    parts = [(name, _decoder(hint), name in optional) for name, hint in hints_of(record_type).items()]

    def decode_record(value: Any, path: str) -> Any:
        record = require_object(value, path)
        arguments = {
            name: decode_part(require_key(record, name, path), child(path, name))
            for name, decode_part, may_lack in parts
            if not (may_lack and name not in record)
        }
        return _build(record_type, arguments, path)

    return decode_record


def added_later(record: Any) -> set[str]:
    """Fields of a record type that older reports lack."""
    return {f.name for f in fields(record) if f.metadata.get("added_later")}


def is_union(hint: Any) -> bool:
    """Whether a type hint is ``A | B`` in either spelling."""
    return get_origin(hint) in (Union, types.UnionType)


def require_object(value: Any, path: str) -> dict[str, Any]:
    """Return a JSON object or refuse anything else.

    Raises:
        ReportFormatError: ``value`` is not an object.
    """
    if not isinstance(value, dict):
        raise _wrong_type("an object", value, path)
    return value


def require_key(record: dict[str, Any], key: str, path: str) -> Any:
    """Return ``record[key]``.

    Raises:
        ReportFormatError: there is no such key; the message names it with its place.
    """
    if key not in record:
        raise ReportFormatError(f"not a complete spectrascope report: {child(path, key)} is missing")
    return record[key]


def _build(record_type: Callable[..., Any], arguments: dict[str, Any], path: str) -> Any:
    try:
        return record_type(**arguments)
    except ValueError as error:  # the records' own invariants
        raise ReportFormatError(f"{path or 'report'} contradicts itself: {error}") from error


def _decode_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ReportFormatError(f"{path} is too large for a number, a report holds finite numbers only")
        return number
    if hint is not float and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _wrong_type(_JSON_NAMES[hint], value, path)


def _decode_enum(hint: type[Enum], value: Any, path: str) -> Enum:
    try:
        return hint(value)
    except ValueError:
        known = ", ".join(str(member.value) for member in hint)
        raise ReportFormatError(f"{path} must be one of {known}, found {_shorten(value)}") from None


def _tuple_decoder(arguments: tuple[Any, ...]) -> Decoder:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return partial(_decode_list, arguments[0], _decoder(arguments[0]))
    members = [_decoder(argument) for argument in arguments]

    def decode_members(value: Any, path: str) -> Any:
        if not isinstance(value, list):
            raise _wrong_type("a list", value, path)
        if len(value) != len(members):
            raise ReportFormatError(f"{path} must hold {len(members)} values, found {len(value)}")
        pairs = zip(members, value, strict=True)
        return tuple(decode_member(item, child(path, index)) for index, (decode_member, item) in enumerate(pairs))

    return decode_members


def _decode_list(hint: Any, decode_item: Decoder, value: Any, path: str) -> Any:
    if not isinstance(value, list):
        raise _wrong_type("a list", value, path)
    # Most of a report is plain lists of numbers; one by one they take most of the time of reading it.
    if hint is float and set(map(type, value)) <= {float} and all(map(math.isfinite, value)):
        return tuple(value)
    return tuple(decode_item(item, child(path, index)) for index, item in enumerate(value))


def _union_decoder(members: tuple[Any, ...]) -> Decoder:
    may_miss = Missing in members
    others = [(member, _decoder(member)) for member in members if member is not Missing]

    def decode_member(value: Any, path: str) -> Any:
        if may_miss and isinstance(value, dict) and len(value) == 1 and "missing" in value:
            return _decode_missing(value, path)
        for member, decode_as in others:
            if isinstance(member, type) and isinstance(value, member) and not isinstance(value, bool):
                return decode_as(value, path)
        return others[0][1](value, path)

    return decode_member


def _decode_rank_comparison(value: Any, path: str) -> RankComparison:
    record = require_object(value, path)
    hints, fit_hints = hints_of(RankComparison), hints_of(RankModelFit)
    scalars = {name: decode(hints[name], require_key(record, name, path), child(path, name)) for name in _RANK_SCALARS}
    tables = {
        name: decode(dict[str, fit_hints[name]], require_key(record, name, path), child(path, name))  # type: ignore[valid-type]
        for name in RANK_TABLES
    }
    fits = []
    for model in tables[RANK_TABLES[0]]:
        kind = _decode_enum(RankModel, model, child(path, RANK_TABLES[0]))
        values = {name: require_key(tables[name], model, child(path, name)) for name in RANK_TABLES}
        fits.append(RankModelFit(model=RankModel(kind), **values))
    if len(fits) != len(RankModel):
        raise ReportFormatError(f"{child(path, RANK_TABLES[0])} must name {len(RankModel)} models")
    return RankComparison(**scalars, fits=(fits[0], fits[1], fits[2]))


def _wrong_type(expected: str, value: Any, path: str) -> ReportFormatError:
    return ReportFormatError(f"{path or 'the document'} must be {expected}, found {_shorten(value)}")


def _shorten(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
