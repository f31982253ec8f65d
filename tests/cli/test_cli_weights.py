"""``spectrascope weights`` from the command line: forms, exit codes, one line on stderr."""

import csv
import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectrascope.cli import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "some.safetensors"
    torch.manual_seed(0)
    save_file({"a.weight": torch.randn(30, 40), "b.weight": torch.randn(24, 9), "b.bias": torch.randn(24)}, path)
    return path


def test_csv_to_a_file(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "tails.csv"
    assert main(["weights", str(checkpoint), "--format", "csv", "-o", str(output)]) == 0
    assert capsys.readouterr().out == ""
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [(row["name"], row["M"], row["N"], row["num_evals"]) for row in rows] == [
        ("a.weight", "30", "40", "30"),
        ("b.weight", "9", "24", "9"),
    ]
    assert all(float(row["alpha"]) > 1 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no_such.pt"], 3, "no_such.pt"),
        (["{checkpoint}", "--min-rank", "9", "--top-k", "5"], 2, "--min-rank 9 is beyond --top-k 5"),
        (["{checkpoint}", "--layers", "z*"], 2, "matches none of the 2 weights"),
        (["{checkpoint}", "--report", "{saved}"], 2, "another network"),
        (["{checkpoint}", "--conv", "round"], 2, "'round' is not one of"),
    ],
)
def test_refusals_are_one_line(checkpoint, saved, arguments, code, message, capsys) -> None:
    given = [argument.format(checkpoint=checkpoint, saved=saved) for argument in arguments]
    assert main(["weights", *given, "--quiet"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
