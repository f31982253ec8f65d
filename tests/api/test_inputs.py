"""Python callers pass what they have: modules, paths, names, state dicts; one glob or several; any floating point."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.api.inputs import describe_source
from spectrascope.errors import DataError, LoadError, OptionError
from spectrascope.loading.models.open import load_model
from spectrascope.optim import parameter_groups
from spectrascope.records.report import LayerReport
from spectrascope.workload import FirstSamples, Inputs, SampleSource

FEW = {"num_samples": 32, "top_k": 4, "null_draws": 0, "estimate": "published", "on_progress": False}


@pytest.fixture(scope="module")
def digits_cnn() -> nn.Module:
    return load_model("digits-cnn").model


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(32, 1, 8, 8, generator=generator), torch.randint(0, 10, (32,), generator=generator)


def _sigma(report: spectrascope.Report) -> list[float]:
    return [s for row in report.layers if isinstance(row, LayerReport) for s in row.measurement.sigma]


def test_a_path_a_state_dict_and_a_module_measure_the_same(
    digits_cnn: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "net.pt"
    torch.save({"state_dict": digits_cnn.state_dict(), "epoch": 3}, path)
    found = [
        spectrascope.probe(model, batch, "cross-entropy", micro_batch=32, **FEW)
        for model in (digits_cnn, path, str(path), digits_cnn.state_dict(), torch.load(path))
    ]
    assert all(_sigma(report) == _sigma(found[0]) for report in found[1:])
    assert [report.provenance.model.id for report in found] == ["DigitsCnn", "net.pt", "net.pt", *["state dict"] * 2]


def test_a_name_brings_its_data_and_data_goes_by_name() -> None:
    implied = spectrascope.probe("digits-cnn", layers="fc2.*", **FEW)
    named = spectrascope.probe("digits-cnn", "digits", layers="fc2.*", **FEW)
    assert implied.provenance.data == named.provenance.data
    assert implied.provenance.data.id == "digits"
    assert implied.provenance.command == "spectrascope.probe('digits-cnn')"


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda m, b: spectrascope.probe("no-such.pt", b), LoadError, "no-such.pt: no such file"),
        (lambda m, b: spectrascope.probe(m), DataError, "expected .inputs, targets. tensors or a DataLoader"),
        (lambda m, b: spectrascope.probe(m, "digits"), DataError, "data by name goes with a network by name"),
        (lambda m, b: spectrascope.probe(3, b), OptionError, "a path or name such as .*, got int"),
        (lambda m, b: spectrascope.probe({"epoch": 1}, b), LoadError, "the state dict holds no weights"),
        (lambda m, b: spectrascope.probe({"w": torch.ones(3, 3)}, b), LoadError, "shapes of 1 tensor fit no known"),
        (lambda m, b: spectrascope.probe(m, b, layers=3), OptionError, "layers: expected a glob on names"),
        (lambda m, b: spectrascope.probe(m, b, layers="0.*"), OptionError, "'0.\\*' matches none of the 5 weights"),
        (lambda m, b: spectrascope.probe(m, b, arch="resnet18"), OptionError, "no effect on a network in memory"),
        (lambda m, b: spectrascope.weights({"w": 1}), OptionError, "expected a state dict .*, got a int under 'w'"),
        (lambda m, b: spectrascope.gate(3, "base.json"), Exception, "base.json: no such file"),
        (lambda m, b: spectrascope.load("base.json"), Exception, "base.json: no such file"),
        (lambda m, b: spectrascope.trajectory("none/*.pt"), OptionError, "'none/\\*.pt' finds no file"),
        (lambda m, b: spectrascope.suggest("r.json", num_samples=3), OptionError, "num_samples: no effect on a report"),
    ],
)
def test_what_cannot_be_measured_is_answered_in_a_line(digits_cnn, batch, call, kind, says) -> None:
    with pytest.raises(kind, match=says) as caught:
        call(digits_cnn, batch)
    assert "\n" not in str(caught.value)


def test_arrays_are_told_how_to_become_tensors(digits_cnn: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(DataError, match=r"got ndarray; torch\.from_numpy makes tensors"):
        spectrascope.probe(digits_cnn, tuple(t.numpy() for t in batch))


def test_a_string_is_one_glob(digits_cnn: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    report = spectrascope.probe(digits_cnn, batch, layers="fc*", exclude="fc1.*", **FEW)
    assert [row.info.name for row in report.layers if isinstance(row, LayerReport)] == ["fc2.weight"]
    assert report.options.layers == ("fc*",)
    tails = spectrascope.weights(digits_cnn, layers="fc*", on_progress=False)
    assert [row.info.name for row in tails.rows if row.status.value == "ok"] == ["fc1.weight", "fc2.weight"]
    groups = parameter_groups(digits_cnn, adamw="fc2.*")
    assert sum(p is digits_cnn.get_parameter("fc2.weight") for p in groups[-1]["params"]) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_measured_in_the_dtype_asked_for(digits_cnn, batch, dtype) -> None:
    inputs, labels = batch
    report = spectrascope.probe(digits_cnn, (inputs.to(dtype), labels), "cross-entropy", micro_batch=32, **FEW)
    wide = spectrascope.probe(digits_cnn, (inputs.to(dtype).float(), labels), "cross-entropy", micro_batch=32, **FEW)
    assert report.provenance.dtype == "float32"
    assert _sigma(report) == _sigma(wide)


class _Rows(SampleSource):
    @property
    def n(self) -> int:
        return 40

    def fetch(self, start: int, stop: int) -> tuple[Inputs, torch.Tensor]:
        return torch.arange(start, stop).float()[:, None], torch.zeros(stop - start, dtype=torch.long)


def test_the_first_samples_of_a_source_are_called_by_its_name() -> None:
    about = describe_source(FirstSamples(_Rows(), 8))
    assert (about.id, about.n, about.n_available) == ("_Rows", 8, 40)


def test_a_dry_run_takes_the_same_things(digits_cnn: nn.Module, batch: tuple, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(digits_cnn.state_dict(), path)
    found = [
        spectrascope.inspect(path),
        spectrascope.inspect(str(path), "digits"),
        spectrascope.inspect(digits_cnn, batch),
        spectrascope.inspect(digits_cnn.state_dict(), batch),
    ]
    assert {tuple(w.info.name for w in seen.weights if w.measured) for seen in found} == {
        ("conv1.weight", "conv2.weight", "conv3.weight", "fc1.weight", "fc2.weight")
    }
    assert [seen.inputs for seen in found] == ["1×8×8"] * 4
    assert found[0].loaded == "headers"
    unknown = tmp_path / "unknown.pt"
    torch.save({"a.weight": torch.ones(4, 3)}, unknown)
    assert spectrascope.inspect(unknown).n_measured == 1


def test_a_network_is_gated_as_its_baseline_was_measured(digits_cnn: nn.Module, batch: tuple) -> None:
    base = spectrascope.probe(digits_cnn, batch, "cross-entropy", layers="fc*", micro_batch=32, **FEW)
    verdict = spectrascope.gate(digits_cnn, base, batch, "cross-entropy", micro_batch=32, on_progress=False)
    assert verdict
    assert verdict.outcome.value == "pass"
    strict = spectrascope.gate(base, base, rules="beta: max 0.1", layers="fc1.*")
    assert not strict
    assert {finding.layer for finding in strict.findings if finding.mark.value == "failed"} == {"fc1.weight"}


def test_stages_are_logged_where_nobody_watches(
    digits_cnn: nn.Module, batch: tuple, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {name: value for name, value in FEW.items() if name != "on_progress"}
    with caplog.at_level(logging.INFO, logger="spectrascope"):
        spectrascope.probe(digits_cnn, batch, layers="fc2.*", **few)
    assert [r.message for r in caplog.records if r.name == "spectrascope"][:2] == ["check", "gradient"]
    assert capsys.readouterr() == ("", "")
    caplog.clear()
    seen = []
    with caplog.at_level(logging.INFO, logger="spectrascope"):
        spectrascope.probe(
            digits_cnn, batch, layers="fc2.*", **{**few, "on_progress": lambda *stage: seen.append(stage)}
        )
        spectrascope.probe(digits_cnn, batch, layers="fc2.*", **few, on_progress=False)
    assert seen
    assert not caplog.records


def test_a_notebook_has_one_line_that_is_cleared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from spectrascope.api import progress

    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    with progress.watched(None) as watch:
        watch("gradient", 0, 10)
        watch("curvature", 5, 10)
    lines = capsys.readouterr().err.split("\r")
    assert lines[1:3] == ["gradient 0 %", "curvature 50 %"]
    assert lines[3].strip() == lines[4] == ""


def _public() -> Iterator[str]:
    yield from (name for name in spectrascope.__all__ if name not in ("Report", "__version__"))


def test_what_is_public_is_listed_and_documented() -> None:
    assert set(_public()) == {
        "compare", "decompose", "gate", "inspect", "load", "probe", "suggest", "trajectory", "weights",
    }  # fmt: skip
    assert set(_public()) <= set(dir(spectrascope))
    for name in _public():
        function = getattr(spectrascope, name)
        assert function.__doc__
        parameters = function.__signature__.parameters if hasattr(function, "__signature__") else {}
        assert all(not str(p).startswith("**") for p in parameters)
