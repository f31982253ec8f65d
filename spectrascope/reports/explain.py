"""Pages that say what a word of the tables, options, messages and files means: text that ships with the package.

``spectrascope/data/explain/terms`` holds short pages, one under each heading of second order, and ``guides`` long ones,
a file each. A page is named by its heading, by what stands after ``Also:`` below it, and, where it is of a number of a
layer, by all that :data:`spectrascope.reports.fields.FIELDS` calls that number, which also writes its first line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from spectrascope.errors import OptionError
from spectrascope.reports.fields import FIELDS

__all__ = ["Page", "contents", "find_pages", "pages"]

_FOLDER = Path(__file__).parents[1] / "data" / "explain"
_GUIDES = "Guides"
_GREEK = {"α": "alpha", "β": "beta", "δ": "delta", "λ": "lambda", "φ": "phi", "χ": "chi", "ρ": "rho", "σ": "sigma"}


@dataclass(frozen=True, slots=True)
class Page:
    """What one word means, as Markdown below its title; ``names`` are all it can be asked by."""

    name: str
    title: str
    group: str
    text: str
    names: tuple[str, ...]


@cache
def pages() -> tuple[Page, ...]:
    """All pages, group by group, in the order of their files."""
    return (*_terms(), *_guides())


def find_pages(term: str) -> tuple[Page, ...]:
    """The pages that a term names: one, or several where a word has several meanings.

    Raises:
        OptionError: there is none; the message has the nearest names, and the pages that speak of it.
    """
    exactly = tuple(page for page in pages() if term in page.names)
    if exactly and term.startswith("--"):
        return exactly
    wanted = _plain(term)
    found = tuple(page for page in pages() if wanted in {_plain(name) for name in page.names})
    if found:
        return found
    names = {_plain(name): page.name for page in pages() for name in page.names}
    near = dict.fromkeys(names[name] for name in difflib.get_close_matches(wanted, names, n=3, cutoff=0.6))
    spoken = [page.name for page in pages() if wanted and wanted in _plain(page.text)][:5]
    hints = [f"nearest: {', '.join(near)}"] if near else []
    hints += [f"pages that speak of it: {', '.join(spoken)}"] if spoken else []
    raise OptionError("; ".join([f"no page {term!r}", *hints, "`spectrascope explain` lists them all"]))


def contents() -> str:
    """Every page with its first words, by group, as Markdown."""
    lines = ["# spectrascope explain TERM", ""]
    groups = list(dict.fromkeys(page.group for page in pages()))
    for group in groups:
        own = [page for page in pages() if page.group == group]
        lines += [f"## {group}", ""]
        if group == _GUIDES or any(page.title != page.name for page in own):
            lines += [f"- `{page.name}`: {page.title}" for page in own]
        else:
            lines.append(", ".join(f"`{page.name}`" for page in own))
        lines.append("")
    return "\n".join(lines).rstrip()


def _terms() -> Iterator[Page]:
    fields = {field.flat: field for field in FIELDS if field.flat}
    for path in sorted((_FOLDER / "terms").glob("*.md"), key=_place):
        group, *parts = re.split(r"(?m)^## ", path.read_text(encoding="utf-8"))
        title = group.strip().removeprefix("# ").splitlines()[0]
        for part in parts:
            name, _, text = part.partition("\n")
            names, text = _also(text)
            if name in fields:
                field = fields[name]
                own = (field.name, field.header, field.spoken)
                yield Page(name, field.header, title, f"{_sentence(field.about)}\n\n{text}", (name, *own, *names))
            else:
                yield Page(name, name, title, text, (name, *names))


def _guides() -> Iterator[Page]:
    for path in sorted((_FOLDER / "guides").glob("*.md")):
        title, _, text = path.read_text(encoding="utf-8").partition("\n")
        names, text = _also(text.strip())
        yield Page(path.stem, title.removeprefix("# "), _GUIDES, text, (path.stem, title.removeprefix("# "), *names))


_ORDER = ("numbers", "columns", "options", "engines", "warnings", "ends")


def _place(path: Path) -> int:
    return _ORDER.index(path.stem)


def _also(text: str) -> tuple[tuple[str, ...], str]:
    """Further names, and the text without the line that lists them."""
    first, _, rest = text.strip().partition("\n")
    if not first.startswith("Also: "):
        return (), text.strip()
    return tuple(first.removeprefix("Also: ").split(" · ")), rest.strip()


def _sentence(about: str) -> str:
    first = about[0].upper() if about[0].isascii() else about[0]  # β is β
    return f"{first}{about[1:]}."


def _plain(term: str) -> str:
    """A term without what is written one way here and another there: case, dashes, Greek letters.

    >>> _plain("--null-draws"), _plain("null β"), _plain("α_G")
    ('null draws', 'null beta', 'alpha g')
    """
    words = "".join(_GREEK.get(char, char) for char in term.casefold())
    return " ".join(words.lstrip("-").replace("_", " ").replace("-", " ").split())
