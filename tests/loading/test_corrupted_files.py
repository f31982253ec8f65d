"""Damaged files of every format that is read: each ends in success or in one clear line, in bounds; nothing in it runs.

By default a few of each; ``pytest -m slow -s tests/loading/test_corrupted_files.py`` takes 10 000 and prints how they
ended.
"""

from __future__ import annotations

import io
import json
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from spectrascope.cli import main
from spectrascope.config import find_configuration, read_policy_table
from spectrascope.errors import LoadError, SpectrascopeError
from spectrascope.gating.policy import policy_from_table
from spectrascope.loading.checkpoints.momentum import read_momentum
from spectrascope.loading.checkpoints.read import read_checkpoint
from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model
from spectrascope.loading.models.recognise import recognise
from spectrascope.reports.json import report_to_json
from spectrascope.reports.read import read_report
from tests.support.damage import DAMAGE, TRACE, Files, damaged
from tests.support.made_up_reports import mixed_report

HANGS = 120  # seconds of the processor after which a file is taken to hang; by the clock, five times as many
MOST_KB = 400_000  # growth of the whole process, far above what it needs and far below what a lie could ask for
SLOW = 10_000  # files in all

Action = Callable[[Path], object]


@dataclass(frozen=True)
class Format:
    """Whole files, and what reads them; one after the other is taken. ``share`` of the files are of this format."""

    make: Callable[[], Files]
    actions: tuple[Action, ...]
    share: int = 10


class HangError(Exception):
    """Not one of ours, so that a hang fails the test."""


def _alarm(*_: object) -> None:
    raise HangError


# --- whole files ---


def _weights() -> dict[str, torch.Tensor]:
    return load_model("mlp:6-5-4-3@none").model.state_dict()


def _torch_bytes(content: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _index(places: dict[str, str], name: str) -> Files:
    return {name: json.dumps({"metadata": {"total_size": 9}, "weight_map": places}, indent=1).encode()}


def _sharded(suffix: str, dump: Callable[[dict[str, torch.Tensor]], bytes]) -> Files:
    weights = list(_weights().items())
    halves = {f"part-1{suffix}": dict(weights[:3]), f"part-2{suffix}": dict(weights[3:])}
    main = {".safetensors": "model.safetensors", ".bin": "pytorch_model.bin"}[suffix] + ".index.json"
    files = _index({name: file for file, part in halves.items() for name in part}, main)
    return {**files, **{file: dump(part) for file, part in halves.items()}}


def _training() -> dict[str, Any]:
    weights = _weights()
    net = load_model("mlp:6-5-4-3@none").model
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    beside = {"epoch": 3, "args": {"lr": 0.1}, "ema": {"state_dict": weights}, "path": Path("runs")}
    return {**beside, "model": weights, "optimizer": optimizer.state_dict()}


def _hugging_face() -> Files:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    config.architectures = ["GPT2LMHeadModel"]
    network = GPT2LMHeadModel(config)
    state = {name: p.detach().clone() for name, p in network.named_parameters()}
    return {"config.json": config.to_json_string().encode(), "model.safetensors": save(state, {"format": "pt"})}


def _arrays() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(8, 6)).astype(np.float32), generator.integers(0, 3, 8)


def _npz() -> Files:
    buffer = io.BytesIO()
    x, y = _arrays()
    np.savez(buffer, x=x, y=y)
    return {"data.npz": buffer.getvalue()}


def _pictures() -> Files:
    generator = np.random.default_rng(0)
    files = {}
    for kind in ("a", "b", "c"):
        for suffix in ("png", "jpeg", "gif", "tiff", "bmp", "webp"):
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, suffix)
            files[f"{kind}/one.{suffix}"] = buffer.getvalue()
    return files


POLICY = """
[tool.spectrascope]
top-k = 12
layers = ["0.*"]
dataset = "folder:images"
[tool.spectrascope.gate]
rules = ["beta: +-0.1 or noise", "alpha_g @ 0.*: +20% (informational)"]
false-alarms = 0.02
missing = "inform"
exclude = ["*.bias"]
"""


# --- what reads them ---


def _loads(name: str = "") -> Action:
    return lambda folder: load_model(str(folder / name if name else folder))


def _headers(name: str) -> Action:
    return lambda folder: read_checkpoint(folder / name, headers_only=True)


def _as_mlp(name: str) -> Action:
    return lambda folder: load_model(str(folder / name), arch="mlp:6-5-4-3")


def _momentum(name: str) -> Action:
    return lambda folder: read_momentum(folder / name, load_model("mlp:6-5-4-3@none").model)


def _data(kind: str, name: str, model: str) -> Action:
    def act(folder: Path) -> object:
        data = load_dataset(f"{kind}:{folder / name}", load_model(model), num_samples=8, seed=0, image_size=None)
        return data.source.fetch(0, data.source.n)

    return act


def _policy(folder: Path) -> object:
    table = read_policy_table(folder / "pyproject.toml")
    find_configuration(folder)
    return policy_from_table(table, "pyproject.toml")


def _command(*arguments: str) -> Action:
    """The whole way, by the command line: one line on stderr and a documented exit code."""

    def act(folder: Path) -> object:
        words = [argument.format(folder=folder) for argument in arguments]
        out, err = io.StringIO(), io.StringIO()
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = out, err
        try:
            code = main(words)
        finally:
            sys.stdout, sys.stderr = before
        lines = [line for line in err.getvalue().splitlines() if not line.startswith("spectrascope: ")]
        assert code in (0, 2, 3), f"exit code {code}: {lines}"
        if code:
            assert len(lines) == 1, lines
            raise SpectrascopeError(lines[0])
        return code

    return act


FORMATS: dict[str, Format] = {
    "zip": Format(
        lambda: {"net.pt": _torch_bytes(_training())},
        (_loads("net.pt"), _headers("net.pt"), _as_mlp("net.pt"), _momentum("net.pt"), _loads()),
        20,
    ),
    "legacy": Format(
        lambda: {"net.pth": _torch_bytes(_weights(), zipped=False)},
        (_loads("net.pth"), _headers("net.pth"), _as_mlp("net.pth")),
    ),
    "legacy training": Format(
        lambda: {"net.pth": _torch_bytes(_training(), zipped=False)},
        (_loads("net.pth"), _headers("net.pth"), _momentum("net.pth")),
    ),
    "safetensors": Format(
        lambda: {"net.safetensors": save(_weights(), {"format": "pt"})},
        (_loads("net.safetensors"), _headers("net.safetensors"), _as_mlp("net.safetensors")),
    ),
    "safetensors index": Format(
        lambda: _sharded(".safetensors", save),
        (_loads(), _headers("model.safetensors.index.json"), _as_mlp("model.safetensors.index.json")),
    ),
    "bin index": Format(
        lambda: _sharded(".bin", _torch_bytes),
        (_loads(), _headers("pytorch_model.bin.index.json"), _as_mlp("pytorch_model.bin.index.json")),
    ),
    "optimizer beside": Format(
        lambda: {"net.safetensors": save(_weights()), "optimizer.pt": _torch_bytes(_training()["optimizer"])},
        (_momentum("net.safetensors"),),
        5,
    ),
    "hugging face": Format(_hugging_face, (_loads(),), 5),
    "npz": Format(_npz, (_data("npz", "data.npz", "mlp:6-3@none"),)),
    "pt": Format(
        lambda: {"data.pt": _torch_bytes(tuple(torch.from_numpy(a) for a in _arrays()))},
        (_data("pt", "data.pt", "mlp:6-3@none"),),
    ),
    "pictures": Format(_pictures, (_data("folder", ".", "mlp:192-3@none"),)),
    "text": Format(
        lambda: {"corpus.txt": ("the quick brown fox jumps over the lazy dog\n" * 40).encode()},
        (_data("text", "corpus.txt", "mini-gpt2@none"),),
        1,
    ),
    "report": Format(
        lambda: {"report.json": report_to_json(mixed_report()).encode()},
        (lambda folder: read_report(folder / "report.json"), _command("show", "{folder}/report.json")),
        15,
    ),
    "policy": Format(lambda: {"pyproject.toml": POLICY.encode()}, (_policy,)),
    "command": Format(
        lambda: {"net.pt": _torch_bytes(_training()), "data.npz": _npz()["data.npz"]},
        (
            _command("weights", "{folder}/net.pt", "-q"),
            _command("inspect", "{folder}/net.pt", "--dataset", "npz:{folder}/data.npz", "-q"),
        ),
        4,
    ),
}


# --- what may not happen ---

_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class", "pty.spawn")
_watching: list[str] = []


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and (event in _FORBIDDEN or event == "socket.connect"):
        _watching.append(f"{event} {arguments!r:.200}")


sys.addaudithook(_audit)  # it cannot be taken away again, only be asked nothing


@contextmanager
def _watched() -> Iterator[None]:
    _watching[:] = ["on"]
    try:
        yield
    finally:
        seen = _watching[1:]
        _watching.clear()
    assert not seen, seen


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _outcome(action: Action, folder: Path) -> tuple[str, str]:
    """``read`` or the class of the one line, and what is wrong with that end: any other fails the test."""
    signal.setitimer(signal.ITIMER_PROF, HANGS)
    signal.alarm(5 * HANGS)
    try:
        with _watched():
            action(folder)
    except SpectrascopeError as error:
        text = str(error)
        fine = text and "\n" not in text and len(text) < 1200 and error.exit_code in (2, 3)
        return type(error).__name__, "" if fine else f"{error.exit_code}: {text[:1300]!r}"
    except BaseException as error:
        return "trouble", f"{type(error).__name__}: {error}"[:600]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return "read", ""


@pytest.fixture
def alarms() -> Iterator[None]:
    before = {number: signal.signal(number, _alarm) for number in (signal.SIGALRM, signal.SIGPROF)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _write(files: Files, folder: Path) -> None:
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)


def _count(name: str, *, slow: bool) -> int:
    if not slow:
        return 2 * len(DAMAGE) if FORMATS[name].share > 5 else len(DAMAGE)
    return -(-SLOW * FORMATS[name].share // sum(each.share for each in FORMATS.values()))


def test_there_are_so_many() -> None:
    assert sum(_count(name, slow=True) for name in FORMATS) >= SLOW


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "all"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.usefixtures("alarms")
def test_damaged_files(name: str, slow: bool, tmp_path: Path) -> None:
    form, count = FORMATS[name], _count(name, slow=slow)
    whole = form.make()
    (tmp_path / "whole").mkdir()
    _write(whole, tmp_path / "whole")
    for action in form.actions:  # what is imported and built once is no cost of a damaged file
        action(tmp_path / "whole")
    with pytest.raises(LoadError):
        recognise({"stranger.weight": torch.ones(1)})
    TRACE.unlink(missing_ok=True)
    ends: Counter[str] = Counter()
    trouble: list[str] = []
    start = _peak()
    for i, (what, files) in enumerate(damaged(name, whole, count)):
        folder = tmp_path / str(i)
        folder.mkdir()
        _write(files, folder)
        end, wrong = _outcome(form.actions[i % len(form.actions)], folder)
        ends[end] += 1
        if wrong or TRACE.exists():
            trouble.append(f"{what} ({i % len(form.actions)}): {wrong or 'it ran'}")
            TRACE.unlink(missing_ok=True)
        else:
            shutil.rmtree(folder)
    grown = _peak() - start
    print(f"\n{name}: {count} files, {dict(ends.most_common())}, {grown // 1024} MiB more at the peak")
    assert not trouble, f"{len(trouble)} of {count}:\n" + "\n".join(trouble[:20])
    assert sum(ends.values()) == count
    assert ends["read"] < count, "the damage does no harm: the test tests nothing"
    assert grown < MOST_KB
