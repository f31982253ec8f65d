"""Every word that the tool prints or takes has a page that says what it means; pages do not go stale."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import typing
from enum import Enum
from pathlib import Path

import pytest
import typer.main

import spectrascope.cli.entry as entry
from spectrascope import errors
from spectrascope.cli.app import app
from spectrascope.errors import OptionError
from spectrascope.records.values import EngineName
from spectrascope.reports.explain import contents, find_pages, pages
from spectrascope.reports.fields import FIELDS
from spectrascope.reports.views import words

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_numbers_of_a_layer() -> None:
    for field in FIELDS:
        if field.flat:
            for name in {field.name, field.flat, field.header, field.spoken}:
                assert find_pages(name), name


def test_columns_of_every_table() -> None:
    titles = set()
    for path in (ROOT / "spectrascope" / "reports" / "views").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Column" and node.args:
                title = node.args[0]
                if isinstance(title, ast.Constant) and title.value:
                    titles.add(title.value)
    assert len(titles) > 60
    for title in sorted(titles):
        find_pages(title)  # which raises where there is none


def _enums(annotation: typing.Any) -> list[type[Enum]]:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [annotation]
    return [kind for part in typing.get_args(annotation) for kind in _enums(part)]


def test_values_of_options() -> None:
    kinds: dict[str, type[Enum]] = {}
    for command in app.registered_commands:
        for name, parameter in inspect.signature(command.callback).parameters.items():  # type: ignore[arg-type]
            kinds.update((name, kind) for kind in _enums(parameter.annotation))
    assert len(kinds) > 10
    spoken = {page.name: page.text for page in pages()}
    for option, kind in kinds.items():
        text = spoken.get(f"--{option.replace('_', '-')}", "") + spoken.get(option, "")
        for value in kind:
            said = re.search(rf"`{re.escape(str(value.value))}`", text)
            assert said or any(value.value in page.names for page in pages()), f"--{option} {value.value}"


def test_engines_errors_and_exit_codes() -> None:
    for engine in EngineName:
        find_pages(engine.value)
    for name in errors.__all__:
        (page,) = find_pages(name)
        if name != "SpectrascopeError":
            assert page.text.startswith(f"Exit {getattr(errors, name).exit_code}.")
    (codes,) = find_pages("exit codes")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", codes.text, re.M)}
    names = ("USAGE_ERROR", "COULD_NOT_MEASURE", "INTERNAL_ERROR", "INTERRUPTED", "BROKEN_PIPE")
    assert documented == {0, 1, *(getattr(entry, name) for name in names)}


def test_warnings() -> None:
    own = [name.casefold() for page in pages() if page.group == "Warnings" for name in page.names if len(name) > 5]
    for function in (words.warn, words._warn_accuracy):
        tree = ast.parse(inspect.getsource(function))
        lines = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        said = ["".join(str(v.value) for v in line.values if isinstance(v, ast.Constant)) for line in lines]
        warnings = [text for text in said if text.endswith((".", ":", ": ", ": .")) and len(text) > 20]
        assert warnings
        for text in warnings:
            assert any(name in text.casefold() for name in own), text


def test_pages_are_whole() -> None:
    names = [page.name for page in pages()]
    assert len(names) == len(set(names))
    for page in pages():
        assert len(page.text) > 40, page.name
        for place in re.findall(r"`(spectrascope/[\w./-]+)`", page.text):
            assert (ROOT / place).exists(), f"{page.name}: {place}"
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.text):
            assert (ROOT / "spectrascope/data/explain/guides" / link).exists(), f"{page.name}: {link}"
        for asked in re.findall(r"`explain ([\w-]+)`", page.text):
            find_pages(asked)
    for name in names:
        assert f"`{name}`" in contents()


def test_a_word_without_a_page() -> None:
    with pytest.raises(OptionError, match="no page 'betta'; nearest: beta"):
        find_pages("betta")
    with pytest.raises(OptionError, match=r"pages that speak of it: .*alpha"):
        find_pages("Clauset")


def test_commands_and_options_of_guides_exist() -> None:
    blocks = [block for page in pages() for block in re.findall(r"```sh\n(.*?)```", page.text, re.S)]
    lines = [line for block in blocks for line in re.findall(r"^spectrascope .*$", block, re.M)]
    assert len(lines) > 15
    for line in lines:
        words_of = shlex.split(line, comments=True)
        known = {option for parameter in COMMANDS[words_of[1]].params for option in parameter.opts}
        assert {word for word in words_of[2:] if word.startswith("--")} <= known, line
