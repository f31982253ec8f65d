"""The page of the first hour: ten commands, run one after the other, print what it shows."""

from __future__ import annotations

from pathlib import Path

from tests.support.path import prepare, run, skeleton, steps


def test_ten_commands_print_what_the_page_shows(tmp_path: Path) -> None:
    prepare(tmp_path)
    found = steps()
    assert len(found) == 10
    for step in found:
        done = run(step, tmp_path)
        assert done.returncode == step.code, (step.command, done.stderr)
        now, shown = skeleton(done.stdout), skeleton(step.output)
        same = len(set(now) & set(shown))
        assert same >= 0.85 * max(len(set(now)), len(set(shown))), (step.command, set(now) ^ set(shown))
        assert "-o" in step.command or shown
    assert (tmp_path / "base.html").read_text(encoding="utf-8").startswith("<!doctype html>")
