"""Files: whole or not at all, and refused in one line."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spectrascope.errors import OptionError, ReportFormatError
from spectrascope.records.report import Report
from spectrascope.reports import check_writable, read_report, report_to_json, write_text_atomically


def test_write_and_read(tmp_path: Path, report: Report) -> None:
    path = tmp_path / "r.json"
    write_text_atomically(path, report_to_json(report))
    assert read_report(path) == report
    assert os.listdir(tmp_path) == ["r.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.txt"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OptionError, match=r"cannot write .*r\.txt: No space left on device"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.txt"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomically(tmp_path / "r.txt", "new")
    assert os.listdir(tmp_path) == []


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from spectrascope.reports import write_text_atomically
path, texts = Path(sys.argv[1]), [letter * 3_000_000 for letter in "ab"]
write_text_atomically(path, texts[0])
print("ready", flush=True)
while True:
    for text in texts:
        write_text_atomically(path, text)
"""


def test_a_killed_writer_and_a_hasty_reader_see_whole_files(tmp_path: Path) -> None:
    """SIGKILL at whatever moment, several times; and reading while it writes."""
    path, whole = tmp_path / "r.txt", {letter * 3_000_000 for letter in "ab"}
    for delay in (0.003, 0.011, 0.02, 0.05):
        writer = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "ready\n"
        until = time.monotonic() + delay
        while time.monotonic() < until:
            assert path.read_text() in whole
        writer.kill()
        writer.communicate()
        assert path.read_text() in whole


def test_links_and_permissions_are_kept(tmp_path: Path) -> None:
    target = tmp_path / "target.txt"
    target.write_text("old")
    target.chmod(0o640)
    link = tmp_path / "link.txt"
    link.symlink_to(target)
    write_text_atomically(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    usual, ours = tmp_path / "usual", tmp_path / "ours"
    usual.write_text("")
    write_text_atomically(ours, "β \udcff")
    assert ours.stat().st_mode == usual.stat().st_mode
    assert ours.read_text(encoding="utf-8") == "β \\udcff"


def test_a_special_file_is_written_to(capfd: pytest.CaptureFixture[str]) -> None:
    check_writable(Path("/dev/null"))
    write_text_atomically(Path("/dev/null"), "x")
    assert Path("/dev/null").exists()
    with pytest.raises(OptionError, match="cannot write /dev/full: No space left"):
        write_text_atomically(Path("/dev/full"), "x")


def test_unwritable_paths_are_refused_beforehand(tmp_path: Path) -> None:
    for call in (check_writable, lambda path: write_text_atomically(path, "x")):
        with pytest.raises(OptionError, match=r"cannot write .*no/r.txt: the folder .*no does not exist"):
            call(tmp_path / "no" / "r.txt")
    with pytest.raises(OptionError, match="it is a folder, name a file in it"):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"cannot write .*Not a directory"):
        check_writable(tmp_path / "file" / "r.txt")


def test_a_read_only_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.txt"
    path.write_text("")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may write anything
    with pytest.raises(OptionError, match=r"cannot write .*: the file is read-only"):
        check_writable(path)


def test_checking_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    check_writable(path)
    assert os.listdir(tmp_path) == []
    path.write_text("old")
    check_writable(path)
    assert path.read_text() == "old"


def test_unreadable_reports(tmp_path: Path) -> None:
    with pytest.raises(ReportFormatError, match=r"no\.json: no such file"):
        read_report(tmp_path / "no.json")
    with pytest.raises(ReportFormatError, match="cannot be read \\(Is a directory\\)"):
        read_report(tmp_path)
    binary = tmp_path / "b.json"
    binary.write_bytes(b"\x80\x02\xff")
    with pytest.raises(ReportFormatError, match=r"b\.json: not a spectrascope report \(not UTF-8 text\)"):
        read_report(binary)
    binary.write_text("{}")
    with pytest.raises(ReportFormatError, match=r"b\.json: not a spectrascope report: no schema_version"):
        read_report(binary)
