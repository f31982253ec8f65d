"""Where metrics go: JSON lines, TensorBoard, Weights & Biases."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from spectrascope.errors import OptionError
from spectrascope.integrations.loggers import JsonLinesLog, TensorBoardLog, WandbLog
from spectrascope.integrations.metrics import report_metrics
from tests.support.gate_reports import network, with_signal
from tests.support.made_up_reports import mixed_report

METRICS = report_metrics(mixed_report())


def test_metrics_are_those_of_the_report() -> None:
    report = mixed_report()
    assert METRICS["curvature/beta/conv1.weight"] == report.layers[0].analysis.beta.value  # type: ignore[union-attr]
    assert METRICS["curvature/beta_median"] == report.summary.overall.beta_median
    assert METRICS["curvature/bic_wins/lognormal"] == 3.0
    assert METRICS["curvature/n_failed"] == 1.0
    assert "curvature/beta/head.weight" not in METRICS  # not measured: no entry, no NaN
    assert "curvature/beta/dead.weight" not in METRICS
    assert not any("conv1" in name for name in report_metrics(report, per_layer=False))


def test_what_is_signal_is_followed() -> None:
    report = with_signal(network())
    metrics, signal = report_metrics(report), report.summary.signal
    assert metrics["curvature/step_exponent"] == signal.step_exponent.value
    assert metrics["curvature/decrease"] == signal.step_exponent.decrease
    assert metrics["curvature/n_resolved"] == signal.n_resolved == 40
    assert metrics["curvature/n_signal"] == signal.n_signal
    assert metrics["curvature/null_beta_median"] == signal.null_beta_median
    row = report.layers[4]
    assert metrics["curvature/step_exponent/fc.weight"] == row.held_out.step_exponent.value
    assert metrics["curvature/decrease/fc.weight"] == row.held_out.step_exponent.decrease
    assert metrics["curvature/n_resolved/fc.weight"] == 8
    assert metrics["curvature/null_beta/fc.weight"] == row.null.beta.value


def test_an_undetermined_exponent_has_no_entry() -> None:
    metrics = report_metrics(with_signal(network(), resolved=0))
    assert metrics["curvature/n_resolved"] == 0
    assert not any("step_exponent" in name for name in metrics)


def test_json_lines_are_whole_and_appended(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    for step in (10, 20):
        log = JsonLinesLog(path)
        log.write(step, METRICS)
        log.note(step + 5, "no time left")
        assert len(path.read_text().splitlines()) % 2 == 0  # before it is closed
        log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 15, 20, 25]
    assert lines[0] == {"step": 10, **METRICS}
    assert lines[1] == {"step": 15, "skipped": "no time left"}


def test_json_lines_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"cannot write .*log\.jsonl"):
        JsonLinesLog(tmp_path / "file" / "log.jsonl")


def test_tensorboard_holds_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(tmp_path)
    log.write(100, METRICS)
    log.write(200, METRICS)
    log.note(300, "no time left")
    log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = events.Scalars("curvature/beta_median")
    assert [event.step for event in scalars] == [100, 200]
    assert scalars[0].value == pytest.approx(METRICS["curvature/beta_median"])
    assert any("skipped" in tag for tag in events.Tags()["tensors"])


def test_a_writer_of_the_user_is_left_open() -> None:
    calls: list[str] = []
    writer = SimpleNamespace(
        add_scalar=lambda *_: calls.append("scalar"),
        flush=lambda: calls.append("flush"),
        close=lambda: calls.append("close"),
    )
    log = TensorBoardLog(writer)
    log.write(1, {"a": 1.0, "b": 2.0})
    log.close()
    assert calls == ["scalar", "scalar", "flush"]


def test_wandb_has_a_step_of_its_own() -> None:
    defined: list[tuple[str, str | None]] = []
    logged: list[dict[str, float]] = []
    run = SimpleNamespace(
        define_metric=lambda name, step_metric=None: defined.append((name, step_metric)),
        log=logged.append,
        summary={},
    )
    log = WandbLog(run)
    log.write(7, {"curvature/beta_median": 1.5})
    log.note(9, "no time left")
    log.close()
    assert defined == [("curvature/step", None), ("curvature/*", "curvature/step")]
    assert logged == [{"curvature/step": 7, "curvature/beta_median": 1.5}]
    assert run.summary == {"curvature/last_skipped": "step 9: no time left"}


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(OptionError, match="no Weights & Biases run is active"):
        WandbLog()
    run = wandb.init(mode="offline", project="spectrascope-tests", settings=wandb.Settings(x_disable_meta=True))
    try:
        WandbLog().write(5, {"curvature/beta_median": 1.5})
        assert run.summary["curvature/beta_median"] == 1.5
        assert run.summary["curvature/step"] == 5
    finally:
        run.finish()


@pytest.mark.parametrize(
    ("module", "make", "what"),
    [
        ("wandb", WandbLog, "Weights & Biases is not installed: pip install 'spectrascope\\[wandb\\]'"),
        (
            "torch.utils.tensorboard",
            lambda: TensorBoardLog("nowhere"),
            "TensorBoard is not installed: pip install 'spectrascope\\[tensorboard\\]'",
        ),
    ],
)
def test_an_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, module: str, make, what: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionError, match=what):
        make()
