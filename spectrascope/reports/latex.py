"""Documents as LaTeX: a table per sheet, ready to be included in a paper that loads ``booktabs``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from spectrascope.reports.views.document import Document, Sheet
from spectrascope.reports.views.fit import column_widths, drop_columns, rename, shared_names
from spectrascope.text import printable

__all__ = ["document_latex", "escape_latex"]

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ζ": "zeta", "κ": "kappa", "λ": "lambda",
    "μ": "mu", "ρ": "rho", "σ": "sigma", "χ": "chi", "φ": "varphi", "Δ": "Delta", "Λ": "Lambda", "Φ": "Phi",
    "Σ": "Sigma",
}  # fmt: skip
_MATH = {
    "±": r"\pm", "×": r"\times", "·": r"\cdot", "≤": r"\le", "≥": r"\ge", "≈": r"\approx", "∝": r"\propto", "→": r"\to",
    "−": "-", "∞": r"\infty", "‖": r"\|", "ᵀ": r"^{\top}", "√": r"\surd", "÷": r"\div",
}  # fmt: skip
_PLAIN = {
    "–": "--", "—": "---", "…": r"\dots{}", "“": "``", "”": "''", "’": "'", "é": r"\'e", "ö": r'\"o', "ü": r'\"u',
    "\u00a0": "~",
}  # fmt: skip
_SPECIAL = {char: "\\" + char for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}",
}  # fmt: skip
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)) | {"ₖ": "k"}
_GREEK_SUBSCRIPT = re.compile(rf"([{''.join(_GREEK)}])_([A-Za-z0-9{''.join(_GREEK)}])")
_LETTER_SUBSCRIPT = re.compile(r"\b(PR|[hrsuv])_(Kron|GN|eff|weight|[A-Za-z])\b")
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
_SIDE_BY_SIDE = re.compile(r"(?<!\\)\$\$")  # two formulas are one
_PROFILE = frozenset("▁▂▃▄▅▆▇█")
_WIDTH = 84  # characters of eight points on a line of LaTeX's article, 345 points
_LONG = 48  # lines that a page holds
_STYLE = r"\footnotesize\setlength{\tabcolsep}{3.5pt}"


def document_latex(document: Document) -> str:
    r"""Write the sheets of a document as tables with ``booktabs`` rules, one after the other.

    Columns leave by meaning, as in a terminal, until a table fits the text of an article; a comment names them. Facts
    about the measurement stand above as comments, footnotes below their table. Profiles of block characters are left
    out. Whatever is no comment is ASCII. A table longer than a page is a ``longtable``.
    """
    packages = r"\usepackage{booktabs,longtable}" if any(map(_is_long, document.sheets)) else r"\usepackage{booktabs}"
    lines = [f"% {_comment(document.title)}", f"% needs {packages}"]
    lines += [f"% {_comment(label)}: {_comment(value)}" for label, value in document.facts]
    names = shared_names(document)
    for sheet in document.sheets:
        lines += ["", *_table(rename(sheet, names))]
    said = [text for text, _ in (*document.opening, *document.closing)]
    lines += ["", *(f"% {_comment(text)}" for text in said)] if said else []
    return "\n".join(lines)


def _is_long(sheet: Sheet) -> bool:
    return len(sheet.rows) > _LONG


def _table(sheet: Sheet) -> list[str]:
    profiles = [
        index for index in range(len(sheet.columns)) if any(_PROFILE & set(row.cells[index]) for row in sheet.rows)
    ]
    sheet, left_out = drop_columns(sheet, _WIDTH, names=column_widths(sheet)[0], drawn=profiles)
    caption = rf"\caption{{{escape_latex(sheet.title)}}}"
    form = f"{{@{{}}{''.join('r' if column.right else 'l' for column in sheet.columns)}@{{}}}}"
    head = [r"    \toprule", f"    {_line([column.title for column in sheet.columns])}", r"    \midrule"]
    rows = [f"    {_line(row.cells)}" for row in sheet.rows]
    notes = [rf"  \par {escape_latex(note)}" for note in (*sheet.footnotes, *sheet.describe_columns())]
    lines = [f"% left out to fit a page: {_comment(', '.join(left_out))}"] if left_out else []
    if _is_long(sheet):
        head[-1] += r" \endhead"
        body = [rf"  \begin{{longtable}}{form}", rf"    {caption} \\", *head, *rows, r"    \bottomrule"]
        return [*lines, rf"\begingroup{_STYLE}", *body, r"  \end{longtable}", *notes, r"\par\endgroup"]
    body = [rf"  {caption}", rf"  \begin{{tabular}}{form}", *head, *rows, r"    \bottomrule", r"  \end{tabular}"]
    return [*lines, r"\begin{table}", rf"  \centering{_STYLE}", *body, *notes, r"\end{table}"]


def _line(cells: Sequence[str]) -> str:
    return " & ".join(escape_latex(cell.strip()) for cell in cells) + r" \\"


def escape_latex(text: str) -> str:
    r"""Write text so that LaTeX prints it as it is: user strings cannot become commands, Greek letters become math.

    >>> print(escape_latex("α_H ≈ β·α_G, layer_1.weight[q] ±0.2"))
    $\alpha_{H}$ $\approx$ $\beta\cdot\alpha_{G}$, layer\_1.weight{[}q{]} $\pm$0.2
    """
    text = printable(text)
    made: list[str] = []

    def keep(written: str) -> str:
        made.append(written)
        return f"\x00{len(made) - 1}\x00"  # no printable text holds one

    def math(content: str) -> str:
        return keep(f"${content}$")

    def word(letters: str) -> str:
        return letters if len(letters) == 1 else f"\\mathrm{{{letters}}}"

    def greek(letter: str) -> str:
        return f"\\{_GREEK[letter]}" if letter in _GREEK else letter

    if re.fullmatch(r"\d+-\d+", text):
        return text.replace("-", "--")  # from one number to another
    text = _GREEK_SUBSCRIPT.sub(lambda m: math(f"{greek(m[1])}_{{{greek(m[2])}}}"), text)
    text = _LETTER_SUBSCRIPT.sub(lambda m: math(f"\\mathrm{{{m[1]}}}_{{{word(m[2])}}}"), text)
    text = _MINUS.sub(lambda _: math("-"), text)
    text = re.sub("-(?=-)", lambda _: keep("-{}"), text)  # two would print as one long dash
    text = re.sub(f"[{''.join(_RAISED)}]+", lambda m: math(f"^{{{''.join(_RAISED[c] for c in m[0])}}}"), text)
    text = re.sub(f"[{''.join(_LOWERED)}]+", lambda m: math(f"_{{{''.join(_LOWERED[c] for c in m[0])}}}"), text)
    written = "".join(map(_character, text))
    written = re.sub("\x00(\\d+)\x00", lambda m: made[int(m[1])], written)
    return _SIDE_BY_SIDE.sub("", written)


def _character(char: str) -> str:
    if char in _SPECIAL:
        return _SPECIAL[char]
    if char in _PLAIN:
        return _PLAIN[char]
    if char in _MATH or char in _GREEK:
        content = _MATH.get(char) or f"\\{_GREEK[char]}"
        return f"${content}$"
    return char if char.isascii() else rf"\symbol{{{ord(char)}}}" if ord(char) < 256 else "?"


def _comment(text: str) -> str:
    return printable(text)
