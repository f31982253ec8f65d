"""Ways to damage a file: bits, bytes, numbers, words, headers, archives; and files made to run code."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import random
import subprocess
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

Files = dict[str, bytes]


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
    names = [key for key in document if not key.startswith("__")] if isinstance(document, dict) else []
    if not names:
        return _flip(data, rng)
    name = rng.choice(names)
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


def _splice(data: bytes, rng: random.Random) -> bytes:
    """A piece of the file written over another."""
    size = rng.choice((1, 16, 500))
    start, to = rng.randrange(len(data)), rng.randrange(len(data))
    piece = data[start : start + size]
    return data[:to] + piece + data[to + len(piece) :]


class _Attack:
    """Unpickling this leaves a file behind."""

    def __init__(self, trace: Path, rng: random.Random) -> None:
        command = f"touch {trace}"
        self.call = rng.choice([
            (os.system, (command,)),
            (eval, (f"open({str(trace)!r}, 'w')",)),
            (exec, (f"open({str(trace)!r}, 'w')",)),
            (subprocess.getoutput, (command,)),
            (Path.touch, (trace,)),
            (functools.partial(Path.touch, trace), ()),
        ])  # fmt: skip

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


def _hostile(data: bytes, rng: random.Random) -> bytes:
    """A pickle that runs code, in place of the file's or before it; of files without a pickle, one beside the data."""
    attack = _Attack(TRACE, rng)
    if data.startswith(b"PK"):
        out = io.BytesIO()
        wrapped: Any = {"state_dict": {"a.weight": torch.ones(2, 2)}, "extra": attack}
        torch.save(rng.choice([attack, [attack], wrapped, {"a.weight": attack, "a.bias": torch.ones(2)}]), out)
        return out.getvalue()
    pickled = pickle.dumps(attack, protocol=rng.choice((0, 2, 4)))
    return pickled if rng.random() < 0.5 else pickled[:-1] + data if data.startswith(b"\x80") else data + pickled


TRACE = Path(tempfile.gettempdir()) / f"spectrascope-code-ran-{os.getpid()}"
"""What would be there had anything in a file been run."""

DAMAGE = (
    _flip, _flip_early, _truncate, _insert, _drop, _repeat, _numbers, _words, _json, _length, _archive, _splice,
    _hostile,
)  # fmt: skip


def damaged(name: str, files: Files, count: int) -> Iterator[tuple[str, Files]]:
    rng = random.Random(f"spectrascope {name}")
    for i in range(count):
        damage = DAMAGE[i % len(DAMAGE)]
        victim = rng.choice(sorted(files))
        if rng.random() < 0.05:  # lost, or empty
            changed = {key: value for key, value in files.items() if key != victim}
            if rng.random() < 0.5 or not changed:
                changed[victim] = b""
        else:
            changed = {**files, victim: damage(files[victim], rng)}
        yield f"{name} {i} {damage.__name__} of {victim}", changed
