"""What changed between two reports, number by number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spectrascope.errors import OptionError
from spectrascope.gating.conditions import is_number
from spectrascope.gating.layers import pair_layers
from spectrascope.gating.noise import NoiseMeter, StandardError
from spectrascope.gating.numbers import (
    BOTTOM_LINE,
    SUMMARY_HEADLINES,
    headlines,
    layer_value,
    list_numbers,
    report_value,
    same_value,
)
from spectrascope.gating.provenance import find_differences, is_same_batch, name_report
from spectrascope.records.comparison import WHOLE_REPORT, Change, Comparison, Value
from spectrascope.records.report import LayerReport, LayerRow, Report
from spectrascope.records.values import Missing
from spectrascope.reports.select import keep_layers
from spectrascope.text import matches

__all__ = ["compare", "headline_changes"]

STATUS = "status"
"""The number that stands for a layer's being there at all."""


def compare(
    before: Report,
    after: Report,
    *,
    layers: Sequence[str] = (),
    exclude: Sequence[str] = (),
    numbers: Sequence[str] = (),
    precision: int = 4,
    unchanged: bool = False,
) -> Comparison:
    """List what differs between two reports.

    Nothing is refused: where the reports were made differently, ``differences`` says so.

    Args:
        before: the older report.
        after: the newer one.
        layers: globs on the layers to compare; all when empty.
        exclude: globs on layers to leave out.
        numbers: globs on names of numbers; the headlines of a report when empty.
        precision: significant digits a change must show in.
        unchanged: list equal numbers too.

    Returns:
        The comparison: numbers of the whole report first, then layer by layer.

    Raises:
        OptionError: ``numbers`` match nothing.

    Cost: about a millisecond per layer.
    """
    before, after = (keep_layers(report, layers, exclude) for report in (before, after))
    paired = is_same_batch(before, after)
    meter = NoiseMeter(before, after, paired=paired)
    found: list[Change] = []
    for number in SUMMARY_HEADLINES:
        if not numbers or any(matches(glob, number) for glob in numbers):
            values = report_value(before, number), report_value(after, number)
            error = meter.of_report(number)
            found.append(_change(WHOLE_REPORT, number, *values, error))
    for pair in pair_layers(before, after):
        found += _changes_of_layer(pair.name, pair.before, pair.after, numbers, meter)
    if numbers and not any(change.number != STATUS for change in found):
        raise OptionError(f"--number {' '.join(numbers)} matches no number of these reports, such as {headlines()[0]}")
    changed = [change for change in found if _has_changed(change, precision)]
    return Comparison(
        before=name_report(before),
        after=name_report(after),
        differences=find_differences(before, after),
        changes=tuple(found if unchanged else changed),
        n_compared=len(found),
        n_unchanged=len(found) - len(changed),
        paired=paired,
        headlines=headline_changes(before, after, meter),
    )


def headline_changes(before: Report, after: Report, meter: NoiseMeter | None = None) -> tuple[Change, ...]:
    """Put the numbers side by side that a bottom line speaks of: beta, step exponent, what is signal.

    Args:
        before: the older report.
        after: the newer one.
        meter: works out the sampling error of each change; none does without.
    """
    unasked = Missing("its sampling error was not asked for")
    return tuple(
        _change(
            WHOLE_REPORT,
            number,
            report_value(before, number),
            report_value(after, number),
            unasked if meter is None else meter.of_report(number),
        )
        for number in BOTTOM_LINE
    )


def _changes_of_layer(
    name: str, before: LayerRow | None, after: LayerRow | None, numbers: Sequence[str], meter: NoiseMeter
) -> Iterator[Change]:
    if not isinstance(before, LayerReport) or not isinstance(after, LayerReport):
        if isinstance(before, LayerReport) or isinstance(after, LayerReport) or _status(before) != _status(after):
            unknown = Missing("not measured in both reports")
            yield Change(name, STATUS, _status(before), _status(after), unknown, unknown)
        return
    for number in _chosen(before, numbers):
        values = layer_value(before, number), layer_value(after, number)
        yield _change(name, number, *values, meter.of_layer(before, after, number))


def _chosen(row: LayerReport, numbers: Sequence[str]) -> Iterator[str]:
    if not numbers:
        yield from headlines()
        return
    listed = list_numbers(row)
    for glob in numbers:
        yield from [name for name in listed if matches(glob, name)]


def _status(row: LayerRow | None) -> Value:
    return Missing("no such layer") if row is None else row.status.value


def _change(layer: str, number: str, before: Value, after: Value, error: StandardError | Missing) -> Change:
    if not (is_number(before) and is_number(after)):
        unknown = Missing("not a number in both reports")
        return Change(layer, number, before, after, unknown, unknown)
    change = float(after) - float(before)  # type: ignore[arg-type]
    if isinstance(error, Missing):
        return Change(layer, number, before, after, change, error)
    stderrs = error.multiple(float(before), float(after))  # type: ignore[arg-type]
    return Change(layer, number, before, after, change, stderrs)


def _has_changed(change: Change, precision: int) -> bool:
    """Whether a change shows in so many significant digits; by distance, as rounding has cliffs."""
    if isinstance(change.change, Missing):
        return not same_value(change.before, change.after)
    scale = max(abs(float(change.before)), abs(float(change.after)))  # type: ignore[arg-type]
    return abs(change.change) > 0.5 * 10.0 ** (1 - precision) * scale
