"""Probing while training: nothing changes, the budget holds, broken probes do not stop the training."""

import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from spectrascope.cli import main
from spectrascope.errors import OptionError, SpectrascopeError
from spectrascope.integrations.budget import Deadline, OutOfTimeError, TimeBudget
from spectrascope.integrations.loggers import JsonLinesLog
from spectrascope.integrations.monitor import CurvatureMonitor
from spectrascope.network.kept import random_state_kept
from spectrascope.records.report import LayerReport
from spectrascope.reports.read import read_report
from tests.support.training_runs import image_task, mini_gpt2, same_weights, small_cnn, token_blocks, train_cnn

PLENTY = 1e9


class HandClock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _monitor(model: nn.Module, **options: object) -> CurvatureMonitor:
    given = {"every": 10, "budget": PLENTY, "num_samples": 48, "top_k": 6, "micro_batch": 16, **options}
    return CurvatureMonitor(model, image_task(), torch.nn.functional.cross_entropy, **given)  # type: ignore[arg-type]


def test_training_is_bit_for_bit_the_same_and_within_the_budget(tmp_path: Path, capsys) -> None:
    plain = train_cnn(300)
    monitors: list[CurvatureMonitor] = []

    def watched(model: nn.Module):
        monitors.append(_monitor(model, every=50, budget=2.0, reports=tmp_path / "reports"))
        return monitors[0].step

    probed = train_cnn(300, watched)
    (monitor,) = monitors
    assert same_weights(plain, probed)
    assert monitor.n_probes >= 2
    assert monitor.n_probes + monitor.n_skipped == 6
    assert 0 < monitor.budget.overhead <= 2.0
    assert "(budget 200 %)" in monitor.describe()
    reports = sorted((tmp_path / "reports").iterdir())
    assert len(reports) == monitor.n_probes
    assert main(["trajectory", *map(str, reports)]) == 0
    table = capsys.readouterr().out
    assert f"{monitor.n_probes} checkpoints, step" in table
    assert "6.weight" in table


def test_mini_gpt2_trains_the_same_through_the_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="Hugging Face's Trainer needs accelerate")
    from transformers import Trainer, TrainingArguments

    from spectrascope.integrations.hf_trainer import CurvatureTrainerCallback

    blocks = token_blocks()
    examples = [{"input_ids": block, "labels": block} for block in blocks]
    log = JsonLinesLog(tmp_path / "log.jsonl")
    callback = CurvatureTrainerCallback(
        {"input_ids": blocks[:8], "labels": blocks[:8]},
        every=60,
        budget=PLENTY,
        logs=[log],
        top_k=4,
        layers=["*.mlp.*"],
        self_check=False,
    )

    def train(callbacks: list[object]) -> nn.Module:
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=200,
            per_device_train_batch_size=8,
            learning_rate=3e-3,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            seed=7,
            use_cpu=True,
        )
        model = mini_gpt2()
        Trainer(model=model, args=arguments, train_dataset=examples, callbacks=callbacks).train()
        return model

    assert same_weights(train([]), train([callback]))
    assert callback.monitor is not None
    assert callback.monitor.n_probes == 3
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [60, 120, 180]
    # Smooth all along: the published beta would be a second pass, so that only held-out numbers are measured.
    assert all("curvature/n_resolved/transformer.h.0.mlp.c_fc.weight" in line for line in lines)
    assert not any("curvature/beta/transformer.h.0.mlp.c_fc.weight" in line for line in lines)


def test_lightning_trains_the_same(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
    from lightning.pytorch.loggers import CSVLogger

    from spectrascope.integrations.lightning import CurvatureCallback

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = small_cnn()

        def training_step(self, batch, _):
            images, labels = batch
            return torch.nn.functional.cross_entropy(self.network(images), labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def train(callbacks: list[object]) -> nn.Module:
        torch.manual_seed(3)
        module = Classifier()
        data = torch.utils.data.TensorDataset(*image_task())
        loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning has much to say of small loaders
            trainer = lightning.Trainer(
                max_epochs=3,
                accelerator="cpu",
                logger=CSVLogger(tmp_path, name="", version=""),
                callbacks=callbacks,
                accumulate_grad_batches=2,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            trainer.fit(module, loader)
        return module

    callback = CurvatureCallback(
        image_task(), "cross-entropy", network=lambda module: module.network, every=6, budget=PLENTY, top_k=5,
        num_samples=32,
    )  # fmt: skip
    assert same_weights(train([]), train([callback]))
    assert callback.monitor is not None
    assert callback.monitor.n_probes == 3  # 18 steps of two batches each
    assert "curvature/beta/6.weight" in (tmp_path / "metrics.csv").read_text()


def test_everything_is_left_as_found() -> None:
    model = small_cnn().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[6].weight.grad = torch.ones_like(model[6].weight)
    gradient = model[6].weight.grad
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    expected = (torch.rand(1).item(), random.random(), np.random.rand())
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)

    def drawing_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        random.random()
        np.random.rand()
        return torch.nn.functional.cross_entropy(scores, labels)

    monitor = _monitor(model)
    monitor._loss_fn = drawing_loss
    with torch.no_grad():  # a loop may call it from anywhere
        report = monitor.measure(40)
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected
    assert [module.training for module in model.modules()] == [True, True, False, True, True, True, True, True]
    assert model[6].weight.grad is gradient
    assert not model[0].weight.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert report.extra["step"] == 40
    assert {row.info.name for row in report.layers if isinstance(row, LayerReport)} == {"0.weight", "6.weight"}


def test_reading_a_shuffled_loader_takes_nothing_from_the_random_state() -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*image_task()), batch_size=8, shuffle=True)
    model = small_cnn()
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    CurvatureMonitor(model, loader, every=5)
    assert torch.equal(torch.rand(1), expected)


def _draw_and_stop() -> None:
    with random_state_kept():
        torch.rand(3)
        raise RuntimeError("stop")


def test_random_state_is_given_back_after_an_error() -> None:
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    with pytest.raises(RuntimeError, match="stop"):
        _draw_and_stop()
    assert torch.equal(torch.rand(1), expected)


def test_steps_are_counted_where_none_is_given() -> None:
    monitor = _monitor(small_cnn(), every=3, layers=["6.weight"])
    found = [monitor.step() is not None for _ in range(7)]
    assert found == [False, False, True, False, False, True, False]


def test_a_probe_is_given_up_at_its_deadline() -> None:
    clock = HandClock()
    model = small_cnn()
    before = model.training
    monitor = _monitor(model, every=1, budget=0.1, clock=clock)

    def slow(value: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        clock.now += 0.4  # each pass of the network
        return torch.nn.functional.cross_entropy(value, labels)

    monitor._loss_fn = slow
    notes: list[tuple[int, str]] = []
    monitor._logs = (_Notes(notes),)
    monitor.step(1)  # no training time yet
    assert notes[-1][1].startswith("0 s are left of the time budget")
    clock.now += 10
    assert monitor.step(2) is None  # 1 s is not enough
    assert notes[-1][0] == 2
    assert "given up, as it would take some" in notes[-1][1]
    assert 1.0 < monitor.budget.spent <= 3.0
    clock.now += 10
    assert monitor.step(3) is None  # the next one waits for as much as this one would have taken
    assert "a probe takes some" in notes[-1][1]
    assert model.training is before
    assert "a probe takes some" in monitor.describe()
    clock.now += 10_000
    assert monitor.step(4) is not None
    assert monitor.budget.overhead <= 0.1
    assert (monitor.n_probes, monitor.n_skipped) == (1, 3)
    assert monitor.describe().endswith("(budget 10 %)")


class _Notes:
    def __init__(self, found: list[tuple[int, str]]) -> None:
        self.found = found

    def write(self, step: int, metrics: object) -> None:
        pass

    def note(self, step: int, text: str) -> None:
        self.found.append((step, text))

    def close(self) -> None:
        pass


def test_a_failing_probe_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = small_cnn()
    monitor = _monitor(model, every=1)
    monitor.step(1)
    with torch.no_grad():
        model[6].weight[0, 0] = float("nan")
    assert monitor.step(2) is None
    (message,) = caplog.messages
    assert message.startswith("no probe at step 2: NonFiniteError: parameter '6.weight' holds NaN or infinity")
    with pytest.raises(SpectrascopeError, match="holds NaN"):
        monitor.measure()
    assert monitor.n_skipped == 1


class _Broken(nn.Module):
    """Fails once it is told to: as a network may that was changed behind the monitor's back."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.fails = inside, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise KeyError("a layer that is not there")
        return self.inside(x)


def _loss_that_fails(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    torch.rand(3)
    raise ZeroDivisionError("of the loss")


def _loss_without_memory(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore of it.")


def _loss_that_recurses(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return _loss_that_recurses(scores, labels)


class _BrokenLog(_Notes):
    def write(self, step: int, metrics: object) -> None:
        raise OSError("no space left on device")

    def note(self, step: int, text: str) -> None:
        raise OSError("no space left on device")

    def close(self) -> None:
        raise OSError("no space left on device")


def _failing_monitor(kind: str, model: nn.Module) -> CurvatureMonitor:
    inputs, labels = image_task()
    options: dict[str, object] = {"every": 10, "budget": PLENTY, "num_samples": 48, "top_k": 3, "layers": ["6.weight"]}
    loss_fn: object = torch.nn.functional.cross_entropy
    if kind == "loss":
        loss_fn = _loss_that_fails
    elif kind == "forward":
        model = _Broken(model)
        model.fails, options["layers"] = True, []
    elif kind == "inputs":
        inputs = inputs[:, :, :5]  # the network does not take them
    elif kind == "log":
        options["logs"] = [_BrokenLog([])]
    elif kind == "memory":
        loss_fn = _loss_without_memory
    elif kind == "recursion":
        loss_fn = _loss_that_recurses
    return CurvatureMonitor(model, (inputs, labels), loss_fn, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["loss", "forward", "inputs", "log", "memory", "recursion"])
def test_whatever_fails_the_training_goes_on_bit_for_bit(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    monitors: list[CurvatureMonitor] = []

    def watched(model: nn.Module):
        monitors.append(_failing_monitor(kind, model))
        return monitors[0].step

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning that is an error must not end the training either
        assert same_weights(train_cnn(40), train_cnn(40, watched))
    assert (monitors[0].n_probes, monitors[0].n_skipped) == (0, 4)
    assert len(caplog.messages) == 1  # four failures of one kind
    assert caplog.messages[0].startswith("no probe at step 10: ")
    monitors[0].close()
    ((name, count),) = monitors[0].skipped.items()
    assert count == 4
    assert f"4 probes left out: 4 × {name}" in caplog.messages
    assert f"0 probes, 4 left out (4 × {name})" in monitors[0].describe()


def test_an_interrupt_is_no_failure() -> None:
    def interrupted(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    monitor = _monitor(small_cnn(), every=1)
    monitor._loss_fn = interrupted
    monitor.budget.start()
    with pytest.raises(KeyboardInterrupt):
        monitor.step(1)


def test_bfloat16_samples_are_measured() -> None:
    images, labels = image_task()
    model = small_cnn()
    given = {"every": 1, "budget": PLENTY, "num_samples": 48, "top_k": 3, "layers": ["6.weight"]}
    monitor = CurvatureMonitor(model, (images.bfloat16(), labels), "cross-entropy", **given)
    rounded = CurvatureMonitor(model, (images.bfloat16().float(), labels), "cross-entropy", **given)
    one, other = monitor.measure(1), rounded.measure(1)
    assert one.layers[1].measurement.sigma == other.layers[1].measurement.sigma
    assert one.provenance.data.digest != other.provenance.data.digest  # other bytes


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"topk": 3}, "no option 'topk': did you mean top_k"),
        ({"zzz": 3}, "no option 'zzz': expected some of num_samples, top_k"),
        ({"estimate": "hold-out"}, "estimate 'hold-out': expected one of both, published, held-out"),
        ({"null_draws": -1}, "^null_draws -1: expected auto or a whole number"),
        ({"curvature_samples": 0}, "^curvature_samples 0: expected auto or all or a whole number"),
        ({"top_k": "three"}, "top_k 'three': expected a whole number"),
        ({"gradient": "momentum"}, "pass momentum="),
        ({"every": 0}, "every must be at least 1 step, got 0"),
        ({"every": 2.5}, "every must be at least 1 step, got 2.5"),
        ({"budget": 0.0}, "time budget must be a positive share"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
    ],
)
def test_options_are_checked_when_the_monitor_is_made(options: dict, match: str) -> None:
    from spectrascope.integrations.monitor import require_monitor_options

    with pytest.raises(OptionError, match=match):
        _monitor(small_cnn(), **options)
    with pytest.raises(OptionError, match=match):
        require_monitor_options({"per_layer": False, **options})


def test_a_loss_that_is_misspelt_is_refused_at_once() -> None:
    from spectrascope.integrations.hf_trainer import CurvatureTrainerCallback

    for make in (lambda loss: CurvatureMonitor(small_cnn(), image_task(), loss), _callback):
        with pytest.raises(OptionError, match="loss 'cross-entropi': expected one of"):
            make("cross-entropi")
        with pytest.raises(OptionError, match="loss_fn is a int: expected a function"):
            make(3)
    with pytest.raises(OptionError, match="every must be at least 1 step"):
        CurvatureTrainerCallback(image_task(), every=0)


def _callback(loss: object) -> object:
    from spectrascope.integrations.hf_trainer import CurvatureTrainerCallback

    return CurvatureTrainerCallback(image_task(), loss)


@pytest.mark.parametrize("option", ["layers", "exclude"])
def test_a_glob_that_matches_no_weight_is_refused_at_once(option: str) -> None:
    with pytest.raises(OptionError, match=r"'fc\.\*' matches none"):
        _monitor(small_cnn(), **{option: ["fc.*"]})


def test_a_monitor_of_a_network_that_cannot_be_measured_yet_can_be_made() -> None:
    monitor = _monitor(nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), every=1)
    monitor.budget.start()
    assert monitor.step(1) is None
    assert monitor.n_skipped == 1


def test_a_step_that_is_no_number_is_a_probe_left_out() -> None:
    monitor = _monitor(small_cnn(), every=1)
    assert monitor.step("ten") is None  # type: ignore[arg-type]
    assert monitor.skipped == {"ValueError": 1}
    assert monitor.step(torch.tensor(3)) is not None


def test_a_callback_trains_on_where_no_monitor_can_be_made(caplog: pytest.LogCaptureFixture) -> None:
    from spectrascope.integrations.monitor import make_monitor

    assert make_monitor(small_cnn(), [], "cross-entropy") is None
    assert caplog.messages[0].startswith("no probes in this training: DataError: batches: no samples found")


@pytest.mark.parametrize(
    ("activation", "estimate"), [(nn.ReLU, "both"), (nn.Tanh, "held-out")], ids=["class factors", "smooth"]
)
def test_what_is_measured_is_chosen_by_its_cost(activation: type, estimate: str) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), activation(), nn.Linear(8, 5))

    report = _monitor(network()).measure(10)
    assert report.options.estimate.value == estimate
    assert all((len(row.measurement.h) > 0) == (estimate == "both") for row in report.layers if row.status == "ok")
    asked = _monitor(network(), estimate="published", null_draws=0).measure(10)
    assert asked.options.estimate.value == "published"
    asked = _monitor(network(), estimate="both", null_draws=1, curvature_samples=32).measure(10)
    (row, *_) = [row for row in asked.layers if isinstance(row, LayerReport)]
    assert len(row.null.h) == 1
    assert asked.options.curvature_samples == 32


def test_budget_arithmetic() -> None:
    clock = HandClock()
    budget = TimeBudget(0.05, clock)
    assert not budget.may_begin()
    budget.start()
    clock.now = 100.0
    budget.start()  # again: no effect
    assert budget.left == pytest.approx(5.0)
    clock.now = 104.0
    budget.spend(4.0, expected=8.0)
    assert budget.expected == 8.0
    assert budget.training == pytest.approx(100.0)
    assert budget.overhead == pytest.approx(0.04)
    assert budget.left == pytest.approx(1.0)
    assert not budget.may_begin()
    clock.now = 104.0 + 140.0
    assert budget.may_begin()
    budget.spend(6.0)
    assert budget.expected == 6.0
    budget.wait()
    assert budget.expected == pytest.approx(5.82)


def test_a_deadline_reads_the_pace_of_the_long_stage() -> None:
    clock = HandClock()
    deadline = Deadline(10.0, clock)
    deadline("gradient", 0, 4)
    clock.now = 2.0
    deadline("curvature", 0, 100)
    clock.now = 3.0
    deadline("curvature", 25, 100)  # 2 + 1·100/25 = 6 s: in time
    clock.now = 7.0
    with pytest.raises(OutOfTimeError) as caught:
        deadline("curvature", 25, 100)  # 2 + 5·100/25 = 22 s: given up at 7 s
    assert caught.value.expected == pytest.approx(22.0)
    clock.now = 11.0
    with pytest.raises(OutOfTimeError) as caught:
        deadline("self-check", 0, 1)
    assert caught.value.expected == pytest.approx(22.0)  # twice what has passed: nothing better is known


@pytest.mark.parametrize("share", [0, -0.1, float("nan")])
def test_impossible_budgets(share: float) -> None:
    with pytest.raises(OptionError, match="must be a positive share"):
        TimeBudget(share)


def test_impossible_options(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="every must be at least 1 step, got 0"):
        _monitor(small_cnn(), every=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot make the folder"):
        _monitor(small_cnn(), reports=tmp_path / "file" / "reports")


def test_out_of_time_is_no_error_of_the_family() -> None:
    assert not issubclass(OutOfTimeError, SpectrascopeError)


def test_reports_say_their_step(tmp_path: Path) -> None:
    monitor = _monitor(small_cnn(), every=2, reports=tmp_path, layers=["6.weight"])
    for step in range(1, 5):
        monitor.step(step)
    assert [read_report(path).extra["step"] for path in sorted(tmp_path.iterdir())] == [2, 4]


@pytest.mark.parametrize(("options", "kept"), [({"layers": "2.*"}, "2.weight"), ({"exclude": "2.weight"}, "0.weight")])
def test_a_string_is_one_glob(options: dict[str, str], kept: str) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    batch = torch.randn(12, 6), torch.arange(12) % 3
    monitor = CurvatureMonitor(model, batch, "cross-entropy", every=1, **options)
    monitor.budget.share = 1e9
    report = monitor.step(1)
    assert report is not None
    assert [row.info.name for row in report.layers if isinstance(row, LayerReport)] == [kept]
