"""Progress where there is no terminal: a line per stage, and the time left of long ones."""

import pytest

from spectrascope.api.progress import SECONDS_BETWEEN_LINES, follow_progress


def test_long_stages_say_the_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from spectrascope.api import progress

    now = [0.0]
    lines = progress._Lines(clock=lambda: now[0])
    lines("load", 0, 1)
    lines("curvature", 0, 100)
    for done in (1, 10, 20, 50, 100):
        now[0] += 0.6 * SECONDS_BETWEEN_LINES
        lines("curvature", done, 100)
    lines("fits", 0, 0)
    assert capsys.readouterr().err.splitlines() == [
        "spectrascope: load",
        "spectrascope: curvature",
        "spectrascope: curvature, 10 of 100, about 5.4 min left",
        "spectrascope: curvature, 50 of 100, about 72 s left",
        "spectrascope: fits",
    ]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with follow_progress(quiet=True) as on_progress:
        on_progress("load", 0, 1)
    assert capsys.readouterr().err == ""
