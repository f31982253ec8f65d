"""What the options mean to the layers below."""

from dataclasses import fields
from pathlib import Path

import pytest

from spectrascope.cli import main
from spectrascope.cli.options import JointOptions
from spectrascope.losses import CrossEntropy
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import EngineName, LossName

ALL = [
    *("--arch", "resnet20", "--num-classes", "10", "--dataset", "folder:x", "--data-root", "/d", "--download"),
    *("--base", "b", "--trust-remote-code", "--block-size", "9", "--balanced", "--skip-bad", "--no-split-fused"),
    *("--loss", "cross-entropy", "--label-smoothing", "0.1"),
    *("--image-size", "32", "--resize", "36", "--mean", "0.5,0.4,0.3", "--std", "0.25"),
    *("--num-samples", "64", "--top-k", "7", "--layers", "conv*"),
    *("--layers", "fc*", "--exclude", "*.bias", "--engine", "double-backprop", "--device", "cuda:1"),
    *("--dtype", "float64", "--micro-batch", "16", "--memory", "1.5GiB", "--seed", "3", "-q"),
]


def test_defaults(calls, report) -> None:
    assert main(["probe", "-q"]) == 0
    assert calls.seen["load_model"] == (
        (None,),
        {
            "arch": None,
            "base": None,
            "num_classes": None,
            "seed": 0,
            "trust_remote_code": False,
            "headers_only": False,
            "keep_bfloat16": False,
        },
    )
    (spec, loaded), options = calls.seen["load_dataset"]
    assert spec is None
    assert loaded.model == "model"
    assert options == {
        "num_samples": 2048,
        "seed": 0,
        "data_root": None,
        "download": False,
        "image_size": None,
        "resize": None,
        "mean": None,
        "std": None,
        "block_size": None,
        "balanced": False,
        "skip_bad": False,
        "loss": LossName.AUTO,
    }
    (run, *_), _ = calls.seen["run_probe"]
    assert (run.model, run.source) == ("model", "source")
    assert run.loss_fn == CrossEntropy()
    assert run.options == ProbeOptions()
    assert run.model_info == report.provenance.model
    assert run.notes == ("a note",)
    assert run.data_info == "data info"
    assert run.command == "spectrascope probe -q"
    assert set(run.clock.seconds) == {"import", "load"}


@pytest.mark.parametrize("command", ["probe", "triangle", "bench"])
def test_every_option_arrives(calls, command: str) -> None:
    own = [] if command == "bench" else ["--min-rank", "2", "--groups", "8"]
    assert main([command, "my net.pt", *ALL, *own]) == 0
    assert calls.seen["load_model"] == (
        ("my net.pt",),
        {
            "arch": "resnet20",
            "base": "b",
            "num_classes": 10,
            "seed": 3,
            "trust_remote_code": True,
            "headers_only": False,
            "keep_bfloat16": False,
        },
    )
    assert calls.seen["load_dataset"][0][0] == "folder:x"
    assert calls.seen["load_dataset"][1] == {
        "num_samples": 64,
        "seed": 3,
        "data_root": Path("/d"),
        "download": True,
        "image_size": 32,
        "resize": 36,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.25,),
        "block_size": 9,
        "balanced": True,
        "skip_bad": True,
        "loss": LossName.CROSS_ENTROPY,
    }
    (run, *_), _ = calls.seen["run_bench" if command == "bench" else "run_probe"]
    assert run.loss_fn == CrossEntropy(0.1)
    assert run.options == ProbeOptions(
        num_samples=64,
        top_k=7,
        min_rank=2 if own else 1,
        layers=("conv*", "fc*"),
        exclude=("*.bias",),
        engine=EngineName.DOUBLE_BACKPROP,
        device="cuda:1",
        dtype="float64",
        micro_batch=16,
        memory=3 << 29,
        seed=3,
        groups=8 if own else 16,
        split_fused=False,
    )
    assert run.command.startswith(f"spectrascope {command} 'my net.pt' --arch resnet20")


def test_rounds(calls) -> None:
    assert main(["bench", "-q", "--rounds", "5", "--peers"]) == 0
    assert calls.seen["run_bench"][1] == {"rounds": 5, "peers": True}


def test_progress_goes_to_stderr_and_not_when_quiet(calls, capsys) -> None:
    assert main(["probe", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("{\n")
    assert captured.err.splitlines() == [
        "spectrascope: import",
        "spectrascope: load",
        "spectrascope: check",
        "spectrascope: gradient",
    ]
    assert main(["probe", "--json", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_saved_report_needs_no_measurement(calls, saved: Path, capsys) -> None:
    assert main(["triangle", str(saved), "--top-k", "9", "--sort", "triangle"]) == 0
    assert calls.seen == {}
    captured = capsys.readouterr()
    assert "1-9" in captured.out
    assert "verdict" in captured.out
    assert captured.err == ""


def test_options_without_effect_are_refused(calls, saved: Path, capsys) -> None:
    assert main(["triangle", str(saved), "--num-samples", "9", "--data-root", "."]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: --data-root, --num-samples has no effect on the saved report")
    assert calls.seen == {}


def test_measuring_commands_take_what_a_measurement_can_be_asked_for() -> None:
    """A new field of ``ProbeOptions`` needs its declaration among the options, and nothing else."""
    of_the_api = {"self_check"}
    assert {item.name for item in fields(JointOptions)} | of_the_api == {item.name for item in fields(ProbeOptions)}
    assert JointOptions().asked == ProbeOptions()
