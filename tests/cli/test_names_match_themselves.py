"""A weight named on the command line is that weight, brackets and all, in every command that takes ``--layers``."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectrascope.cli import main
from spectrascope.network.layers import find_layers
from spectrascope.optim.groups import parameter_groups
from spectrascope.records.report import Report
from spectrascope.reports.json import report_to_json
from spectrascope.reports.select import select_layers
from tests.support.made_up_reports import make_info, make_layer, make_measurement, make_report

NAMES = ("a.in_proj_weight[q]", "a.in_proj_weight[k]", "a.out_proj.weight")


@pytest.fixture(scope="module")
def attention() -> Report:
    return make_report(tuple(make_layer(make_info(name), make_measurement()) for name in NAMES))


@pytest.fixture
def saved(attention: Report, tmp_path: Path) -> Path:
    path = tmp_path / "attention.json"
    path.write_text(report_to_json(attention), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_layers_of_a_report(attention: Report, name: str) -> None:
    assert [row.info.name for row in select_layers(attention, [name]).layers] == [name]
    assert [row.info.name for row in select_layers(attention, exclude=[name]).layers] == [n for n in NAMES if n != name]


def test_plot(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    path = tmp_path / "q.svg"
    assert main(["plot", str(saved), "-o", str(path), "--picture", "curvature", "--layers", NAMES[0]]) == 0
    assert "in_proj" in path.read_text()


def test_gate(saved: Path, attention: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = attention.layers[1:]
    moved = make_layer(make_info(NAMES[0]), make_measurement(beta=1.0))
    worse = tmp_path / "worse.json"
    worse.write_text(report_to_json(replace(attention, layers=(moved, *others))), encoding="utf-8")
    given = ["gate", str(worse), "--baseline", str(saved), "--format", "json", "--rule"]
    assert main([*given, "beta: any", "--rule", f"beta @ {NAMES[0]}: +-0.1", "--layers", NAMES[0]]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {finding["layer"] for finding in findings} == {"", NAMES[0]}
    main([*given, "beta: +-0.1", "--exclude", NAMES[0]])
    assert NAMES[0] not in {finding["layer"] for finding in json.loads(capsys.readouterr().out)["findings"]}


def test_compare(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(saved), str(saved), "--all", "--json", "--layers", NAMES[1]]) == 0
    assert {change["layer"] for change in json.loads(capsys.readouterr().out)["changes"]} == {"", NAMES[1]}


def test_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "experts.safetensors"
    torch.manual_seed(0)
    save_file({"mlp.experts.gate_up_proj": torch.randn(3, 30, 40), "head.weight": torch.randn(24, 9)}, path)
    assert main(["weights", str(path), "--format", "csv", "--layers", "mlp.experts.gate_up_proj[1]", "-q"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["name"] for row in rows if row["status"] == "ok"] == ["mlp.experts.gate_up_proj[1]"]


def test_measuring() -> None:
    net = torch.nn.ModuleDict({"a": torch.nn.MultiheadAttention(4, 1)})
    wanted = [layer for layer in find_layers(net, [NAMES[0]]) if not hasattr(layer, "reason")]
    assert [layer.info.name for layer in wanted] == [NAMES[0]]


def test_an_optimizer() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter("w[q]", torch.nn.Parameter(torch.randn(3, 3)))

    (group,) = parameter_groups(Odd(), adamw=["w[q]"])
    assert group["beta"] is None
