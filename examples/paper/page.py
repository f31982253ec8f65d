"""The rows as one Markdown table and one HTML page that opens offline."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence

from examples.paper.arrays import Check
from examples.paper.rows import TriangleRow
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
    if isinstance(figure, Missing):
        return f"– ({figure.reason})"
    return f"{figure}, n = {figure.n}" if figure.n > 1 else str(figure)


def _check_cells(check: Check) -> tuple[str, ...]:
    agrees = {True: "agrees", False: "differs", None: "not released"}[check.agrees]
    return (check.place, check.claim, f"{check.paper:.3g}", _say(check.recomputed), agrees, check.reading)


CHECK_HEADS = ("where", "claim", "paper", "recomputed from its arrays", "", "reading")


TRIANGLE_HEADS = ("network", "weight", "β", "α_G", "β·α_G", "α_H", "error")


def _triangle_cells(row: TriangleRow) -> tuple[str, ...]:
    exponents = (row.beta, row.alpha_g, row.beta * row.alpha_g, row.alpha_h)
    return (row.network, row.weight, *(f"{value:.2f}" for value in exponents), f"{row.error:.1%}")


def summary_line(rows: Sequence[Row]) -> str:
    """How many claims came out how."""
    counts = Counter(row.verdict for row in rows)
    hold, noise, fail, left = (counts[verdict] for verdict in Verdict)
    return (
        f"Claims: {len(rows)}. Hold: {hold}; hold by noise alone: {noise}; do not hold: {fail}; undetermined: {left}."
    )


def markdown(rows: Sequence[Row], checks: Sequence[Check], triangle: Sequence[TriangleRow], setting: str) -> str:
    """All tables."""
    lines = ["# The paper, measured", "", setting, "", summary_line(rows), "", *_table(HEADS, map(cells, rows))]
    lines += ["", "## Its figures, from its released arrays", ""]
    lines += _table(CHECK_HEADS, map(_check_cells, checks))
    if triangle:
        lines += ["", "## The triangle, weight by weight", "", *_table(TRIANGLE_HEADS, map(_triangle_cells, triangle))]
    return "\n".join([*lines, "", "## Rules", "", *(RULES or "").strip().splitlines(), ""])


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]


def _rows(rows: Iterable[Sequence[str]]) -> str:
    return "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)


def page(rows: Sequence[Row], checks: Sequence[Check], triangle: Sequence[TriangleRow], setting: str) -> str:
    """One HTML file, readable on a phone and in the dark."""
    colours = {verdict.value: colour for verdict, colour in _COLOURS.items()}
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in found[:-1])
        + f'<td class="verdict" style="--tone:{colours[found[-1]]}">{html.escape(found[-1])}</td></tr>'
        for found in map(cells, rows)
    )  # fmt: skip
    tested, sides = _rows(map(_check_cells, checks)), _rows(map(_triangle_cells, triangle))
    heads, check_heads, side_heads = (
        "".join(f"<th>{html.escape(h)}</th>" for h in found) for found in (HEADS, CHECK_HEADS, TRIANGLE_HEADS)
    )
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
<h2>The triangle, weight by weight</h2><details><summary>{len(triangle)} weights</summary>
<div class="scroll"><table><thead><tr>{side_heads}</tr></thead><tbody>{sides}</tbody></table></div></details>
<h2>Rules, stated beforehand</h2>{rules}
</body></html>
"""
