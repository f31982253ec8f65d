"""The rows as one Markdown table and one HTML page that opens offline."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence

from examples.paper.arrays import Check
from examples.paper.rules import Maybe, Row, Verdict
from examples.paper.rules import __doc__ as RULES
from spectrascope.records.values import Missing

HEADS = ("where", "claim", "paper", "its arrays", "measured on", "measured", "null", "held out", "verdict")
_COLOURS = {
    Verdict.HOLDS: "#0a6e3a",
    Verdict.NOISE: "#8a5a00",
    Verdict.FAILS: "#b00020",
    Verdict.UNDETERMINED: "#555555",
}


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, reasons of what is missing in words."""
    figures = (row.recomputed, row.measured, row.null, row.held_out)
    recomputed, measured, null, held_out = (_say(figure) for figure in figures)
    return (row.place, row.claim, row.paper, recomputed, row.on, measured, null, held_out, row.verdict.value)


def _say(figure: Maybe) -> str:
    return f"– ({figure.reason})" if isinstance(figure, Missing) else str(figure)


def _check_cells(check: Check) -> tuple[str, ...]:
    agrees = {True: "agrees", False: "differs", None: "not released"}[check.agrees]
    return (check.place, check.claim, f"{check.paper:.3g}", _say(check.recomputed), agrees, check.reading)


CHECK_HEADS = ("where", "claim", "paper", "recomputed from its arrays", "", "reading")


def summary_line(rows: Sequence[Row]) -> str:
    """How many claims came out how."""
    counts = Counter(row.verdict for row in rows)
    return f"Of {len(rows)} claims: " + ", ".join(f"{counts[v]} {v.value}" for v in Verdict) + "."


def markdown(rows: Sequence[Row], checks: Sequence[Check], setting: str) -> str:
    """Both tables."""
    lines = ["# The paper, measured", "", setting, "", summary_line(rows), "", *_table(HEADS, map(cells, rows))]
    lines += ["", "## Its figures, from its released arrays", ""]
    lines += _table(CHECK_HEADS, map(_check_cells, checks))
    return "\n".join([*lines, "", "## Rules", "", *(RULES or "").strip().splitlines(), ""])


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]


def page(rows: Sequence[Row], checks: Sequence[Check], setting: str) -> str:
    """One HTML file, readable on a phone and in the dark."""
    colours = {verdict.value: colour for verdict, colour in _COLOURS.items()}
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in found[:-1])
        + f'<td class="verdict" style="--tone:{colours[found[-1]]}">{html.escape(found[-1])}</td></tr>'
        for found in map(cells, rows)
    )  # fmt: skip
    tested = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _check_cells(check)) + "</tr>" for check in checks
    )
    heads, check_heads = ("".join(f"<th>{html.escape(h)}</th>" for h in found) for found in (HEADS, CHECK_HEADS))
    rules = "".join(f"<p>{html.escape(part)}</p>" for part in (RULES or "").strip().split("\n\n"))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>The paper, measured</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }}
body {{ margin: 1.5rem auto; max-width: 90rem; padding: 0 1rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .87rem; min-width: 60rem; }}
th, td {{ text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid #8884; }}
.verdict {{ font-weight: 600; white-space: nowrap; border-left: 4px solid var(--tone); }}
</style></head><body>
<h1>The paper, measured</h1><p>{html.escape(setting)}</p><p><strong>{html.escape(summary_line(rows))}</strong></p>
<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>
<h2>Its figures, from its released arrays</h2>
<div class="scroll"><table><thead><tr>{check_heads}</tr></thead><tbody>{tested}</tbody></table></div>
<h2>Rules, stated beforehand</h2>{rules}
</body></html>
"""
