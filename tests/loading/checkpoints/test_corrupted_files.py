"""2 200 damaged files of every format: each ends in success or in one clear line, and in bounds; a few by default."""

from __future__ import annotations

import io
import json
import random
import resource
import signal
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from spectrascope.errors import LoadError, SpectrascopeError
from spectrascope.loading.checkpoints.read import read_checkpoint
from spectrascope.loading.models.open import load_model
from spectrascope.loading.models.recognise import recognise

HANGS = 120  # seconds of the processor after which a file is taken to hang; by the clock, five times as many
MOST_KB = 400_000  # growth of the whole process, far above what it needs and far below what a lie could ask for
Files = dict[str, bytes]


class HangError(Exception):
    """Not one of ours, so that a hang fails the test."""


def _alarm(*_: object) -> None:
    raise HangError


def _weights() -> dict[str, torch.Tensor]:
    return load_model("mlp:6-5-4-3@none").model.state_dict()


def _torch_bytes(content: object, *, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _index(places: dict[str, str], name: str) -> Files:
    return {name: json.dumps({"metadata": {"total_size": 9}, "weight_map": places}, indent=1).encode()}


def _sharded(suffix: str, dump: Callable[[dict[str, torch.Tensor]], bytes]) -> tuple[str, Files]:
    weights = list(_weights().items())
    halves = {f"part-1{suffix}": dict(weights[:3]), f"part-2{suffix}": dict(weights[3:])}
    main = {".safetensors": "model.safetensors", ".bin": "pytorch_model.bin"}[suffix] + ".index.json"
    files = _index({name: file for file, part in halves.items() for name in part}, main)
    return main, {**files, **{file: dump(part) for file, part in halves.items()}}


def _formats() -> dict[str, tuple[str, Files]]:
    weights = _weights()
    nested = {"epoch": 3, "model": weights, "ema": {"state_dict": weights}, "args": {"lr": 0.1}}
    return {
        "zip": ("net.pt", {"net.pt": _torch_bytes(nested, zipped=True)}),
        "legacy": ("net.pth", {"net.pth": _torch_bytes(weights, zipped=False)}),
        "safetensors": ("net.safetensors", {"net.safetensors": save(weights, {"format": "pt"})}),
        "safetensors index": _sharded(".safetensors", save),
        "bin index": _sharded(".bin", lambda part: _torch_bytes(part, zipped=True)),
    }


# --- damage ---


def _flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _flip_early(data: bytes, rng: random.Random) -> bytes:
    """In the headers, where it hurts."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 4))):
        out[rng.randrange(min(len(out), 400))] = rng.randrange(256)
    return bytes(out)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 3, 8, 200))) + data[at:]


def _drop(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice((1, 2, 8, 100)) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data)), rng.choice((4, 16, 100))
    return data[: at + size] + data[at:]


def _numbers(data: bytes, rng: random.Random) -> bytes:
    """Another number where digits stand (shapes, offsets, lengths in text)."""
    digits = [i for i, byte in enumerate(data[:4000]) if chr(byte).isdigit()]
    if not digits:
        return _flip(data, rng)
    at = rng.choice(digits)
    return (
        data[:at] + rng.choice((b"-1", b"999999999999", b"0", b"1e9", b"18446744073709551616", b"7")) + data[at + 1 :]
    )


def _words(data: bytes, rng: random.Random) -> bytes:
    """Another word where a known one stands: dtypes, keys, places."""
    swaps = [
        (b"F32", b"F64"), (b"F32", b"XX"), (b"F32", b"I8"), (b"F32", b"BF16"), (b"shape", b"shap"),
        (b"dtype", b"dtypo"), (b"data_offsets", b"offsets"), (b"layers.0", b"layers.1"), (b"part-2", b"/etc/passwd"),
        (b"part-1", b"../../etc/part"), (b"part-1", b"part-2"), (b"part-2", b"part-9"), (b"weight", b"qweight"),
        (b"part-1.safetensors", b"model.safetensors.index.json"), (b"weight_map", b"weight_mop"),
        (b"FloatStorage", b"DoubleStorage"), (b"FloatStorage", b"ComplexFloatStorage"), (b"cpu", b"xla"),
        (b"_rebuild_tensor_v2", b"_rebuild_sparse_tensor"), (b"collections", b"subprocess."),
        (b"OrderedDict", b"check_output"), (b"storage", b"storagf"), (b"layers.0.weight", b"layers.0.weigh\xff"),
    ]  # fmt: skip
    rng.shuffle(swaps)
    for old, new in swaps:
        if old in data:
            return data.replace(old, new, rng.choice((1, -1)))
    return _flip(data, rng)


def _json(data: bytes, rng: random.Random) -> bytes:
    """A rewritten header or index: valid JSON that says something else."""
    safetensors = data[8:9] == b"{"
    length = int.from_bytes(data[:8], "little") if safetensors else len(data)
    start = 8 if safetensors else 0
    try:
        document = json.loads(data[start : start + length])
    except ValueError:
        return _flip(data, rng)
    name = rng.choice([key for key in document if not key.startswith("__")])
    value = rng.choice([None, -1, [], {}, "", "x" * 10_000, [2**60, 2**60], 1e300, [[[[]]]], True, [0] * 70, "../x"])
    inner = document[name]
    if isinstance(inner, dict) and inner and rng.random() < 0.8:
        inner[rng.choice(list(inner))] = value
    elif rng.random() < 0.5:
        document[name] = value
    else:
        del document[name]
    text = json.dumps(document)
    if rng.random() < 0.3:
        text = text[:-1] + ", " + text[1:]  # every name twice
    if rng.random() < 0.1:
        text = "[" * 30_000 + text
    raw = text.encode()
    return len(raw).to_bytes(8, "little") + raw + data[start + length :] if safetensors else raw


def _length(data: bytes, rng: random.Random) -> bytes:
    return rng.choice((0, 1, 2**16, 2**31, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little") + data[8:]


def _archive(data: bytes, rng: random.Random) -> bytes:
    """A zip whose members are damaged, compressed, lost, doubled, or claim to be huge."""
    if not data.startswith(b"PK"):
        return _flip(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entries = old.infolist()
        victim = rng.choice(entries).filename
        for entry in entries:
            content = old.read(entry)
            if entry.filename == victim:
                how = rng.randrange(6)
                if how == 0:
                    continue
                if how == 1 and content:
                    content = _flip(content, rng)
                if how == 2:
                    content = bytes(30_000_000)
                if how == 3:
                    content = content[: len(content) // 2]
                if how == 4:
                    new.writestr(entry.filename, content)
                if how == 5:
                    new.writestr("../" + entry.filename, content)
            compression = (
                zipfile.ZIP_DEFLATED if rng.random() < 0.3 or len(content) > 10_000_000 else zipfile.ZIP_STORED
            )
            new.writestr(entry.filename, content, compression)
    return out.getvalue()


DAMAGE = (_flip, _flip_early, _truncate, _insert, _drop, _repeat, _numbers, _words, _json, _length, _archive)


def _cases(name: str, files: Files, count: int) -> Iterator[tuple[str, Files]]:
    rng = random.Random(f"spectrascope {name}")
    for i in range(count):
        damage = DAMAGE[i % len(DAMAGE)]
        victim = rng.choice(list(files))
        if rng.random() < 0.05:  # lost, or empty
            changed = {key: value for key, value in files.items() if key != victim}
            if rng.random() < 0.5 or not changed:
                changed[victim] = b""
        else:
            changed = {**files, victim: damage(files[victim], rng)}
        yield f"{name} {i} {damage.__name__} of {victim}", changed


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _try(action: Callable[[], object], what: str) -> bool:
    """Whether it succeeded; anything but success or one line of ours fails the test."""
    signal.setitimer(signal.ITIMER_PROF, HANGS)
    signal.alarm(5 * HANGS)
    try:
        action()
    except SpectrascopeError as error:
        text = str(error)
        assert text, what
        assert "\n" not in text, what
        assert len(text) < 1200, f"{what}: {len(text)} characters"
        return False
    except BaseException as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return True


@pytest.mark.parametrize("name", ["zip", "legacy", "safetensors", "safetensors index", "bin index"])
@pytest.mark.parametrize("count", [3 * len(DAMAGE), pytest.param(40 * len(DAMAGE), marks=pytest.mark.slow)])
def test_damaged_files(name: str, count: int, tmp_path: Path) -> None:
    main, files = _formats()[name]
    with pytest.raises(LoadError):  # what every stranger is compared with is imported and built once
        recognise({"stranger.weight": torch.ones(1)})
    before = {number: signal.signal(number, _alarm) for number in (signal.SIGALRM, signal.SIGPROF)}
    start, survived, n = _peak(), 0, 0
    try:
        for i, (what, changed) in enumerate(_cases(name, files, count)):
            folder = tmp_path / str(i)
            folder.mkdir()
            for file, content in changed.items():
                (folder / file).write_bytes(content)
            spec = str(folder / main if i % 3 else folder)
            survived += _try(lambda spec=spec: load_model(spec), what)
            _try(lambda spec=spec: read_checkpoint(spec, headers_only=True), f"{what} (headers)")
            n += 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert n == 2 * count
    assert survived < count / 2, "the damage does no harm: the test tests nothing"
    assert _peak() - start < MOST_KB
