"""``spectrascope weights``: agreement with WeightWatcher, what counts as a weight, and every form of the result."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import spectrascope
from spectrascope.errors import OptionError
from spectrascope.measure.weights import measure_weight
from spectrascope.numerics.tails import fit_tail
from spectrascope.records.report import LayerInfo, SkippedLayer
from spectrascope.records.values import LayerKind, LayerRole, Missing, PowerFit
from spectrascope.records.weights import ConvView, TailFit, WeightOptions, WeightTail
from spectrascope.reports.render import Format, render

FROZEN = Path(__file__).parents[1] / "frozen" / "weightwatcher.json"


@pytest.mark.parametrize("view", list(ConvView))
@pytest.mark.parametrize("file", ["resnet20-12fca82f.th", "resnet44-014dd654.th"])
def test_tails_are_weightwatchers(shared: Path, file: str, view: ConvView) -> None:
    frozen = json.loads(FROZEN.read_text())["checkpoints"][file][view.value]
    state = torch.load(shared / "checkpoints" / file, map_location="cpu", weights_only=True)["state_dict"]
    small = 0
    for name, row in frozen.items():
        weight = state[f"module.{name}"]
        info = LayerInfo(name, LayerKind.CONV, LayerRole.CONV, tuple(weight.flatten(1).shape), tuple(weight.shape))
        found = measure_weight(info, weight, WeightOptions(conv=view))
        assert isinstance(found, WeightTail)
        assert isinstance(found.tail, TailFit)
        for column in ("num_evals", "stable_rank", "spectral_norm", "norm"):
            assert getattr(found, column) == pytest.approx(row[column], rel=1e-6), (name, column)
        if row["num_evals"] < 20:  # there WeightWatcher 0.7 chooses xmin by a rule of its own
            small += 1
            continue
        for column in ("alpha", "xmin", "xmax", "D", "sigma", "num_pl_spikes"):
            assert getattr(found.tail, column) == pytest.approx(row[column], rel=1e-6), (name, column)
        assert found.alpha_weighted == pytest.approx(row["alpha_weighted"], rel=1e-6, abs=1e-6)
    assert small < len(frozen) / 2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        self.conv = nn.Conv2d(4, 24, 3, groups=2)
        self.attention = nn.MultiheadAttention(16, 2)
        self.norm = nn.LayerNorm(16)
        self.dead = nn.Linear(9, 9)
        nn.init.zeros_(self.dead.weight)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_weights_of_a_network(net: Net) -> None:
    before = {name: p.clone() for name, p in net.named_parameters()}
    report = spectrascope.weights(net, top_k=10)
    rows = {row.info.name: row for row in report.rows}
    assert set(rows) == {
        "embedding.weight", "conv.weight", "attention.in_proj_weight[q]", "attention.in_proj_weight[k]",
        "attention.in_proj_weight[v]", "attention.out_proj.weight", "dead.weight",
    }  # fmt: skip
    assert (report.summary.n_ok, report.summary.n_skipped, report.summary.n_failed) == (5, 1, 1)
    dead = rows["dead.weight"]
    assert isinstance(dead, SkippedLayer)
    assert "exactly zero" in dead.reason
    conv = rows["conv.weight"]
    assert isinstance(conv, WeightTail)
    singular = np.linalg.svd(net.conv.weight.detach().double().flatten(1).numpy(), compute_uv=False)
    assert conv.sigma == pytest.approx(singular[:10], rel=1e-9)
    assert conv.sv_max**2 == pytest.approx(conv.spectral_norm)
    assert conv.stable_rank == pytest.approx((singular**2).sum() / singular[0] ** 2)
    assert isinstance(conv.s_weight, PowerFit)
    slope = np.polyfit(np.log(np.arange(1, 11)), np.log(singular[:10]), 1)[0]
    assert conv.s_weight.value == pytest.approx(-slope)
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())


def test_slices_pool_kernel_positions(net: Net) -> None:
    report = spectrascope.weights(net, layers=["conv.weight"], conv="slices")
    (row,) = [row for row in report.rows if isinstance(row, WeightTail)]
    pieces = net.conv.weight.detach().double().flatten(2).unbind(2)
    pooled = np.concatenate([np.linalg.svd(p.numpy(), compute_uv=False) ** 2 / 2 for p in pieces])
    assert row.num_evals == 9 * 2
    assert row.norm == pytest.approx(pooled.sum())
    assert row.spectral_norm == pytest.approx(pooled.max())


def test_a_file_without_an_architecture(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from spectrascope.cli.app import app

    path = tmp_path / "nobody_knows.safetensors"
    state = {name: tensor.half() for name, tensor in net.state_dict().items()}
    state["experts.up"] = torch.randn(2, 10, 12)
    save_file(state, path)
    run = CliRunner().invoke(app, ["weights", str(path), "--json", "--quiet", "--exclude", "dead*"])
    assert run.exit_code == 0, run.output
    document = json.loads(run.stdout)
    assert document["view"] == "names"
    assert "without the network" in document["notes"][0]
    rows = {row["info"]["name"]: row for row in document["rows"]}
    assert {"experts.up[0]", "experts.up[1]", "conv.weight", "attention.in_proj_weight"} <= set(rows)
    assert "embedding" in rows["embedding.weight"]["reason"]
    assert rows["dead.weight"]["reason"] == "excluded by --exclude"
    known = spectrascope.weights(net.half(), layers=["conv.weight"])
    net.float()
    (row,) = [row for row in known.rows if isinstance(row, WeightTail)]
    assert isinstance(row.tail, TailFit)
    assert rows["conv.weight"]["tail"]["alpha"] == pytest.approx(row.tail.alpha)


def test_alpha_h_of_a_report_stands_beside_s_weight() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12))
    data = (torch.randn(64, 12), torch.randint(0, 12, (64,)))
    measured = spectrascope.probe(model, data, top_k=8, layers=["0.weight"])
    report = spectrascope.weights(model, top_k=8, report=measured)
    first, second = report.rows
    assert isinstance(first, WeightTail)
    assert isinstance(second, WeightTail)
    assert first.alpha_h == measured.layers[0].analysis.alpha_h  # type: ignore[union-attr]
    assert second.alpha_h == Missing("not measured in the report")
    assert isinstance(first.s_weight, PowerFit)
    assert isinstance(first.alpha_h, PowerFit)
    below = first.s_weight.value < first.alpha_h.value
    assert (report.summary.n_compared, report.summary.n_s_weight_below) == (1, int(below))
    renamed = replace(measured.layers[0], info=replace(measured.layers[0].info, name="other"))
    with pytest.raises(OptionError, match="another network"):
        spectrascope.weights(model, report=replace(measured, layers=(renamed,)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ["nothing*"]}, "matches none of the 1 weights"),
        ({"exclude": ["*"]}, "every weight is left out"),
        ({"min_rank": 5, "top_k": 3}, "min_rank 5 must lie between"),
        ({"conv": "round"}, "expected one of flat, slices"),
    ],
)
@pytest.mark.parametrize("as_tensors", [False, True])
def test_refusals(arguments: dict, message: str, as_tensors: bool) -> None:
    model = nn.Linear(20, 30)
    with pytest.raises(OptionError, match=message):
        spectrascope.weights(model.state_dict() if as_tensors else model, **arguments)


def test_every_form_tells_the_same_numbers(net: Net) -> None:
    report = spectrascope.weights(net)
    (table_row,) = [row for row in csv.DictReader(io.StringIO(render(report, Format.CSV))) if
                    row["name"] == "conv.weight"]  # fmt: skip
    document = json.loads(render(report, Format.JSON))
    (json_row,) = [row for row in document["rows"] if row["info"]["name"] == "conv.weight"]
    assert document["schema_version"] == 2
    assert float(table_row["alpha"]) == json_row["tail"]["alpha"]
    assert float(table_row["stable_rank"]) == json_row["stable_rank"]
    assert table_row["missing"].startswith("alpha_h: no report")
    markdown = render(report, Format.MARKDOWN)
    assert f"{json_row['tail']['alpha']:.2f} ±{json_row['tail']['sigma']:.2f}" in markdown
    assert "exactly zero" in markdown
    assert "aspect ratio" in markdown


def _measured(weight: torch.Tensor) -> WeightTail | SkippedLayer:
    info = LayerInfo("w", LayerKind.LINEAR, LayerRole.MATRIX, tuple(weight.shape), tuple(weight.shape))
    return measure_weight(info, weight, WeightOptions())


@pytest.mark.parametrize("size", [64, 300, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_an_orthogonal_weight_has_no_tail(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    row = _measured(nn.init.orthogonal_(torch.empty(size, size)).to(dtype).float())
    assert isinstance(row, WeightTail)
    assert isinstance(row.tail, Missing)
    assert f"all {size} eigenvalues are equal to a relative" in row.tail.reason
    assert isinstance(row.alpha_weighted, Missing)
    assert row.stable_rank == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("sizes", [(32, 32), (20, 20, 24)])
def test_a_few_eigenvalues_repeated_have_no_tail(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    scale = torch.cat([torch.full((n,), 2.0**i) for i, n in enumerate(sizes)])
    turned = nn.init.orthogonal_(torch.empty(64, 64)) * scale @ nn.init.orthogonal_(torch.empty(64, 64))
    row = _measured(turned)
    assert isinstance(row, WeightTail)
    assert isinstance(row.tail, Missing)
    assert f"{len(sizes)} different eigenvalues among 64" in row.tail.reason


def test_a_spectrum_held_twice_keeps_its_tail() -> None:
    """Pairs of equal eigenvalues are a tail of half as many; rounding parts them and changes nothing."""
    weight = torch.randn(40, 60, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.linspace(0.1, 3, 60))
    row = _measured(torch.block_diag(weight, weight))
    assert isinstance(row, WeightTail)
    assert isinstance(row.tail, TailFit)
    values = np.repeat(np.linalg.svd(weight.double().numpy(), compute_uv=False) ** 2, 2)
    truth = fit_tail(values)
    assert isinstance(truth, TailFit)
    assert row.tail.alpha == pytest.approx(truth.alpha, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_one_has_no_tail(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    row = _measured(torch.outer(torch.randn(50), torch.randn(70)).to(dtype))
    assert isinstance(row, WeightTail)
    assert row.matrix_rank == 1
    assert row.tail == Missing("1 positive eigenvalues, a tail needs at least 8")


def test_a_zero_weight_fails() -> None:
    row = _measured(torch.zeros(9, 9))
    assert isinstance(row, SkippedLayer)
    assert row.reason == "the weight is exactly zero: it has no spectrum"
