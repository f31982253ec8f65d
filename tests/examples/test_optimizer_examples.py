"""The optimizer examples run, every contender learns, and the controls are what they say."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "optimizers"
sys.path.insert(0, str(FOLDER))

import contenders  # noqa: E402
import decrease  # noqa: E402
import stages  # noqa: E402
import step_cost  # noqa: E402
import summary  # noqa: E402
import tasks  # noqa: E402
import train  # noqa: E402

MEASURED = contenders.Measured((), {"0.weight": 0.5, "3.weight": 2.0}, ["3.*"], 1.5)


def _compare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    names = ["Muon", "SN, held-out β", "SN, adaptive"]
    arguments = ["digits", "--epochs", "0.15", "--seeds", "2", "--runs", str(folder), "--only", *names]
    arguments += ["--tuning-seed", "4"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "--summary", str(folder / "summary.json")])
    train.main()
    found: dict = json.loads((folder / "summary.json").read_text())
    return found


def test_the_comparison_runs_and_goes_on_where_it_was_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    found = _compare(tmp_path, monkeypatch)
    rows = {(row["contender"], row["budget"]): row for row in found["rows"]}
    others = {(name, budget) for name in ("SN, held-out β", "SN, adaptive") for budget in ("steps", "time")}
    assert rows.keys() == {("Muon", "steps"), *others}
    assert all(row["seeds"] == [5, 6] and len(row["scores"]) == 2 for row in rows.values())
    assert rows["Muon", "steps"]["difference"] is None
    assert all(row["interval"] is not None for key, row in rows.items() if key[0] != "Muon")
    assert all((row["realised"] is not None) == (key[1] == "steps") for key, row in rows.items())  # who is watched
    assert [step for step, _, _ in rows["Muon", "steps"]["along"]] == [0, 1, 2]  # each of three steps is watched
    for name, scores in found["tuning"].items():
        tried = [float(rate) for rate in scores]
        assert len(tried) >= 5
        assert min(tried) < rows[name, "steps"]["rate"] < max(tried) or len(tried) == 11, name
    out = capsys.readouterr().out
    assert out.count("damping") >= 4
    assert "fc2.weight" not in out  # the head is AdamW's
    lost = next((tmp_path / "digits").glob("Muon * seed 6 steps.json"))
    lost.unlink()
    trained = []
    again = train.train
    monkeypatch.setattr(
        train, "train", lambda *given, **options: trained.append(given[1].name) or again(*given, **options)
    )
    monkeypatch.setattr(train, "measure", lambda *_: pytest.fail("measured again"))
    steps = {key: row["scores"] for key, row in rows.items() if key[1] == "steps"}
    after = {(row["contender"], row["budget"]): row["scores"] for row in _compare(tmp_path, monkeypatch)["rows"]}
    assert trained.count("Muon") == 1
    assert {key: after[key] for key in steps} == steps


def test_differences_are_paired_by_seed() -> None:
    folder = [{"score": s, "seconds": 1.0, "watched": [], "rate": 0.1} for s in (3.0, 5.0, 7.0)]
    by_seed = dict(enumerate(folder, 1))
    row = summary._row("SN", "steps", by_seed, {1: 2.0, 2: 4.5, 3: 6.0, 4: 99.0}, 1)
    assert row.difference == pytest.approx(2.5 / 3)
    assert row.interval == pytest.approx((2.5 / 3 - 0.7172, 2.5 / 3 + 0.7172), abs=1e-3)  # 4.303 · 0.2887 / √3
    lower = summary._row("SN", "steps", by_seed, {1: 2.0, 2: 4.5, 3: 6.0}, -1)
    assert lower.difference == pytest.approx(-2.5 / 3)


def test_what_steps_promise_and_keep_is_told_by_step() -> None:
    def run(*found: tuple[int, float]) -> dict:
        watched = [
            {"step": step, "slope": x, "curvature": x, "realised": 0.3 * x, "best_length": 1.0, "at_best_length": x}
            for step, x in found
        ]
        return {"score": 1.0, "seconds": 1.0, "rate": 0.1, "watched": watched}

    row = summary._row("SN", "steps", {1: run((2, 1.0), (5, 4.0)), 2: run((2, 3.0), (5, 6.0))}, {}, 1)
    assert row.along == ((2, 1.0, pytest.approx(0.6)), (5, 2.5, 1.5))


def test_equal_time_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def run(setting: object, contender: contenders.Contender, rate: float, seed: int, steps: int, budget: str) -> dict:
        found.append((contender.name, seed, budget))
        return {"score": -abs(math.log(rate / 0.04)), "seconds": 1.0}

    monkeypatch.setattr(train.Setting, "run", run)
    setting = train.Setting(tasks.digits(False), MEASURED, tmp_path, "cpu", 7, ("steps",))
    train.compare(setting, 2, ["Muon", "SN, β = 1"])
    assert {budget for _, _, budget in found} == {"steps"}
    assert {seed for _, seed, _ in found} == {7, 8, 9}
    found.clear()
    train.compare(replace(setting, rates={"Muon": 0.02}), 2, ["Muon"])
    assert [seed for _, seed, _ in found] == [8, 9]  # nothing is tuned


def test_a_watched_step_is_the_step_and_its_quadratic_model() -> None:
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(32, 3), torch.randn(32, 2)
    optimizers = [torch.optim.SGD(m.parameters(), 0.05) for m in (model, twin)]
    for m in (model, twin):
        nn.functional.mse_loss(m(x), y).backward()
    taken = decrease.watch_step(model, (x, y), nn.functional.mse_loss, 7, optimizers[0].step)
    optimizers[1].step()
    assert torch.equal(model.weight, twin.weight)
    assert torch.equal(model.weight.grad, twin.weight.grad)
    assert taken.predicted == pytest.approx(taken.realised, rel=1e-4)  # a quadratic loss is its own model
    assert taken.at_best_length >= taken.predicted > 0


def test_checkpoints_are_the_networks_of_their_steps_and_steps_are_validated_on_each() -> None:
    task = replace(tasks.digits(False), epochs=0.2, probe_samples=64, curvature_samples=32, top_k=4)
    kept = stages.checkpoints(task, (0.0, 0.5, 1.0), 0.04, 3, "cpu")
    torch.manual_seed(3)
    first = task.make_model()
    assert all(torch.equal(a, b) for a, b in zip(kept[0].parameters(), first.parameters(), strict=True))
    with torch.no_grad():
        losses = [float(tasks.loss_of(model(task.train[0]), task.train[1])) for model in kept]
    assert losses[0] > losses[1] > losses[2]
    runs = [stages.validate(task, model, 3, "cpu") for model in (kept[0], kept[2])]
    assert [run["weights"] for run in runs] == [5, 5]
    assert runs[0]["loss"] > runs[1]["loss"]
    lines = stages.table({"0 %": runs[:1], "100 %": runs[1:]})
    assert len(lines) == 3
    assert " of 5" in lines[2]


def test_the_step_cost_runs(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["step_cost.py", "--shapes", "tiny", "--rounds", "2"])
    step_cost.main()
    assert capsys.readouterr().out.count("× Muon") == 9


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize("contender", contenders.CONTENDERS, ids=[c.name for c in contenders.CONTENDERS])
def test_every_contender_learns(contender: contenders.Contender) -> None:
    if not contender.installed:
        pytest.skip(f"{contender.package} is not installed")
    model = _network()
    inputs = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = (inputs.mean((1, 2, 3)) > 0).long()
    optimizer = contender.make(model, contender.rates[2], MEASURED)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = tasks.loss_of(model(inputs), labels)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < 0.85 * losses[0], losses


def test_a_contender_whose_package_is_missing_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    absent = contenders.Contender("SOAP", (0.1,), lambda *_: pytest.fail("made"), package="no_such_package")
    monkeypatch.setattr(train, "CONTENDERS", (absent,))
    setting = train.Setting(tasks.digits(False), MEASURED, tmp_path, "cpu")
    train.compare(setting, 2, [])
    assert "SOAP: left out, pip install no_such_package" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("measured", "beta"), [(MEASURED, 1.5), (replace(MEASURED, training=None), 1.0)])
def test_half_way_steps_all_weights_by_the_exponent_for_a_training(measured: contenders.Measured, beta: float) -> None:
    (half_way,) = (c for c in contenders.CONTENDERS if c.name == "SN, half-way β")
    groups = half_way.make(_network(), 0.02, measured).param_groups
    assert [(g["beta"], g["damping"], g["scale_free"]) for g in groups if g["beta"] is not None] == [(beta, 1e-4, True)]


def test_muon_steps_the_kernel_itself() -> None:
    model = _network()
    kernel, head = model[0].weight, model[3].weight
    optimizer = contenders.MuonWithAdamW([kernel], [head, model[0].bias, model[3].bias], lr=0.1)
    reference = nn.Parameter(kernel.detach().flatten(1).clone())
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    reference.grad = kernel.grad.flatten(1).clone()
    torch.optim.Muon([reference], lr=0.1, weight_decay=contenders.WEIGHT_DECAY).step()
    optimizer.step()
    assert torch.equal(kernel.detach().flatten(1), reference.detach())


def test_the_scalar_control_scales_learning_rates_by_alpha_h() -> None:
    model = _network()
    optimizer = contenders.ScalarScaledAdamW(model, 0.1, {"0.weight": 0.5, "3.weight": 2.0}, exponent=0.5)
    rates = {id(group["params"][0]): group["lr"] for group in optimizer.param_groups}
    assert rates[id(model[0].weight)] == pytest.approx(0.1 * (0.5 / 1.25) ** 0.5)
    assert rates[id(model[3].weight)] == pytest.approx(0.1 * (2.0 / 1.25) ** 0.5)
    assert rates[id(model[0].bias)] == 0.1


def test_the_mini_gpt_is_causal() -> None:
    torch.manual_seed(0)
    model = tasks.MiniGPT(11, 8, 32, 2).eval()
    ids = torch.randint(0, 11, (2, 8))
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    with torch.no_grad():
        one, other = model(ids), model(changed)
    assert torch.allclose(one[:, :5], other[:, :5], atol=1e-6)
    assert not torch.allclose(one[:, 5:], other[:, 5:], atol=1e-3)


def test_text_and_images_become_tasks(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("to be or not to be, " * 400, encoding="utf-8")
    text = tasks.text(file, full=False)
    assert torch.equal(text.train[0][0, 1:], text.train[1][0, :-1])  # targets are the next characters
    assert text.score(text.make_model(), "cpu") == pytest.approx(math.log(len(set(file.read_text()))), abs=0.2)
    from PIL import Image

    for name in "abcdefghij":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (32, 32), (i * 40, 0, 0)).save(tmp_path / "images" / name / f"{i}.png")
    loaded = tasks.cifar(tmp_path / "images", full=False)
    assert loaded.train[0].shape == (17, 3, 32, 32)
    assert len(loaded.test[1]) == 3
