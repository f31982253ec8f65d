"""The page of the first hour: ten commands, run one after the other, print what it shows."""

from __future__ import annotations

from difflib import SequenceMatcher, ndiff
from pathlib import Path

import pytest

from spectrascope.cli import main
from tests.support.path import WIDTH, prepare, run, skeleton, steps, words_of


@pytest.mark.usefixtures("one_thread")
def test_ten_commands_print_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first one as a process of its own; nine more would spend most of their time on importing torch."""
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("NO_COLOR", "1")
    found = steps()
    assert len(found) == 10
    for step in found:
        if step is found[0]:
            done = run(step, tmp_path)
            code, out, err = done.returncode, done.stdout, done.stderr
        else:
            code = main(words_of(step))
            out, err = capsys.readouterr()
        assert code == step.code, (step.command, err)
        now, shown = skeleton(out), skeleton(step.output)
        assert SequenceMatcher(None, now, shown, autojunk=False).ratio() > 0.97, (step.command, *ndiff(shown, now))
        assert "-o" in step.command or shown
    assert (tmp_path / "base.html").read_text(encoding="utf-8").startswith("<!doctype html>")
