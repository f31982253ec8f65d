"""An advice as table, Markdown, CSV, JSON, Python and YAML."""

import csv
import io
import json
from dataclasses import replace

import pytest
import torch
import yaml
from rich.console import Console
from torch import nn

from spectrascope.advice.advise import advise
from spectrascope.errors import OptionError
from spectrascope.records.advice import Advice, ParameterExponent, ValidatedStep, ValidateOn, Validation
from spectrascope.records.report import LayerInfo
from spectrascope.records.values import LayerKind, LayerRole, Missing
from spectrascope.reports.charts.validation_chart import validation_picture
from spectrascope.reports.csv import ADVICE_COLUMNS
from spectrascope.reports.emit import Emission, emit_advice, emit_torch, emit_yaml
from spectrascope.reports.render import Format, render
from tests.support.held_out_layers import held_out_layer
from tests.support.made_up_reports import LONG_NAME, make_report, mixed_report


@pytest.fixture(scope="module")
def advice() -> Advice:
    report = mixed_report()
    rows = (held_out_layer("conv1.weight", 2.0), *report.layers[1:])
    return advise(replace(report, layers=rows), train_batch=128)


def _text(advice: Advice, width: int | None) -> str:
    console = Console(width=width or 400, color_system=None, file=io.StringIO())
    console.print(render(advice, Format.TABLE, width=width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def _step_of(name: str, measured: float) -> ValidatedStep:
    return ValidatedStep("conv1.weight", name, 2.0, 0.03, 0.02, measured, 0.9, 0.675, 1.0, 0.5)


def _validated(advice: Advice) -> Advice:
    step = _step_of("1", 0.015)
    found = Validation(
        ValidateOn.HELD_OUT, 1024, 512, 0.71, 1, 0.4, 0.83, {"1": 2.0}, {"1": 1.3, "2": Missing("none")}, 1, (step,)
    )
    return replace(advice, validation=found)


@pytest.mark.parametrize("width", [80, 120, 200, None])
def test_tables_fit_their_terminal_and_keep_what_matters(advice: Advice, width: int | None) -> None:
    text = _text(_validated(advice), width)
    table = [line for line in text.splitlines() if line.startswith(("conv1", "layer", "a[red]"))]
    assert all(len(line.rstrip()) <= (width or 400) for line in table)
    assert "a[red]b|c" in text
    assert "use β" in text
    assert "2.00" in text
    assert "for steps on 128 samples" in text
    assert "r = 0.83" in text
    if width is None:
        for title in ("interval", "from", "meaning", "damping", "published β", "b = 0", "own b", "noise's β"):
            assert title in text
        assert LONG_NAME in text


def test_markdown_escapes_names(advice: Advice) -> None:
    text = render(_validated(advice), Format.MARKDOWN)
    assert isinstance(text, str)
    assert r"a\[red\]b\|c" in text
    assert "### Steps taken for real" in text


def test_csv_and_json_tell_the_same(advice: Advice) -> None:
    rows = list(csv.DictReader(io.StringIO(str(render(advice, Format.CSV)))))
    document = json.loads(str(render(advice, Format.JSON)))
    assert document["schema_version"] == 2
    assert tuple(rows[0]) == ADVICE_COLUMNS
    for row, layer in zip(rows, document["layers"], strict=True):
        assert row["name"] == layer["info"]["name"]
        assert row["treatment"] == layer["treatment"]
        if layer["treatment"] == "spectral":
            assert float(row["beta"]) == layer["beta"]
        else:
            assert row["beta"] == ""
            assert f"beta: {layer['reason']}" in row["missing"]
        if isinstance(layer["efficiencies"], list):
            for step in layer["efficiencies"]:
                cell = row[f"efficiency_{step['name']}"]
                assert cell == "" if isinstance(step["efficiency"], dict) else float(cell) == step["efficiency"]
    assert document["validation"] == {"missing": "not asked for: see --validate"}


class _Odd(nn.Module):
    """Parameters whose names are anything but identifiers."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name: nn.Parameter(torch.randn(6, 6)) for name in names})


def test_emitted_python_runs_and_sets_the_groups() -> None:
    rows = (
        held_out_layer("conv.weight", 1.4),
        replace(
            held_out_layer("up", 1.0),
            info=LayerInfo("up.weight", LayerKind.CONV_TRANSPOSE, LayerRole.CONV, (3, 8), (4, 3, 2)),
        ),
    )
    advice = advise(make_report(rows))
    model = nn.Module()
    model.conv = nn.Conv2d(3, 8, 3)
    model.up = nn.ConvTranspose1d(4, 3, 2)
    model.head = nn.Linear(8, 2)
    scope = {"model": model}
    exec(emit_torch(advice), scope)
    optimizer = scope["optimizer"]
    found = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    conv, up = found[id(model.conv.weight)], found[id(model.up.weight)]
    assert conv["beta"] == advice.parameters[0].beta
    assert conv["damping"] == pytest.approx(advice.parameters[0].relative_damping, rel=1e-2)
    assert conv["scale_free"]
    assert up["layout"] == "conv_transpose"
    assert found[id(model.head.weight)]["beta"] is None
    assert len(found) == len(list(model.parameters()))


def test_names_cannot_become_code_or_break_yaml(advice: Advice) -> None:
    evil = "x'] + __import__('os').system('false') #\n: {"
    poisoned = replace(
        advice,
        model=replace(advice.model, id="evil\nimport os"),
        parameters=(ParameterExponent(evil, 1.0, 0.1, 0.1, "flat"),),
    )
    document = yaml.safe_load(emit_yaml(poisoned))
    assert list(document["parameters"]) == [evil]
    code = emit_torch(poisoned)
    assert "\nimport os" not in code
    model = nn.Module()
    with pytest.raises(KeyError) as caught:
        exec(code, {"model": model})
    assert caught.value.args == (evil,)


def test_yaml_is_what_parameter_groups_loads(advice: Advice, tmp_path) -> None:
    from spectrascope.optim import parameter_groups

    path = tmp_path / "betas.yaml"
    path.write_text(emit_yaml(advice), encoding="utf-8")
    model = _Odd([])
    for p in advice.parameters:
        place = model
        *parents, local = p.name.split(".")
        for parent in parents:
            if not hasattr(place, parent):
                setattr(place, parent, nn.Module())
            place = getattr(place, parent)
        place.register_parameter(local, nn.Parameter(torch.randn(6, 6)))
    groups = parameter_groups(model, path)
    betas = {id(p): group["beta"] for group in groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    for p in advice.parameters:
        assert betas[id(parameters[p.name])] == p.beta
    assert yaml.safe_load(path.read_text())["adamw"] == ["head.bias"]


@pytest.mark.parametrize("form", list(Emission))
def test_every_emission(advice: Advice, form: Emission) -> None:
    text = emit_advice(advice, form)
    assert text.startswith("# exponents for spectrascope.optim.SpectralNewton, measured on my net[red].pt")
    assert "steps on 128 samples" in text


def test_picture_of_steps_taken_for_real(advice: Advice) -> None:
    steps = (_step_of("0", 0.015), _step_of("1", 0.025), _step_of("2", -0.004), _step_of("best", 0.02))
    found = replace(_validated(advice).validation, steps=steps)
    (chart,) = validation_picture(replace(advice, validation=found)).charts
    diagonal, same, held = chart.parts
    assert diagonal.xs == diagonal.ys
    assert (same.xs, same.ys, same.hollow) == ((0.03, 0.03), (0.015, 0.025), True)
    assert (held.xs, held.ys, held.hollow) == ((0.02, 0.02), (0.015, 0.025), False)
    assert chart.note == "1 step without a held-out point: the loss rose, or was predicted to"
    with pytest.raises(OptionError, match="nothing to draw for --validate-plot: not asked for"):
        validation_picture(advice)
