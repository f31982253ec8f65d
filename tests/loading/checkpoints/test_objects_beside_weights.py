"""Objects that training scripts save beside the weights: the weights are read, and nothing else is run or built."""

import argparse
import builtins
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import logging
import os
import pathlib
import random
import re
import subprocess
import types
import uuid
import zoneinfo
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.read import read_checkpoint


class Settings:
    """A script's own class, with slots, a nested list and itself inside."""

    def __init__(self) -> None:
        self.items = [Path("a"), {"b": self}]


class OwnDict(dict):
    """A dict with attributes, as configurations are."""


class Hostile:
    """Unpickling this runs whatever it was given, at any of the places where a pickle may."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Stateful:
    """Its ``__setstate__`` would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __setstate__(self, state) -> None:
        Path(state["trace"]).touch()


Point = collections.namedtuple("Point", "x y")


class Mode(enum.Enum):
    A = 1


@dataclasses.dataclass(frozen=True)
class Settled:
    lr: float = 0.1


class Slots:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1


class Kept:
    """An average of weights, as an object of a script's own."""

    def __init__(self) -> None:
        self.shadow = [torch.ones(2)]


class OwnInt(int):
    pass


class OwnStr(str):
    pass


class OwnList(list):
    pass


class OwnTuple(tuple):
    pass


class OwnSet(set):
    pass


def own_dict() -> OwnDict:
    found = OwnDict(lr=0.1)
    found.frozen = True
    return found


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, path=Path("x"), nested=argparse.Namespace(a=1)),
    "numpy scalar": np.float64(3.5),
    "numpy array": np.arange(6.0).reshape(2, 3),
    "path": pathlib.PurePosixPath("runs/1"),
    "datetime": datetime.datetime(2024, 5, 6, tzinfo=datetime.timezone.utc),
    "timedelta": datetime.timedelta(3),
    "deque": collections.deque([1, 2, 3], maxlen=5),
    "slice": slice(1, 2),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "class": nn.ReLU,
    "function": torch.relu_,
    "partial": functools.partial(nn.GELU, approximate="tanh"),
    "settings": Settings(),
    "own dict": own_dict(),
    "range and frozenset": [range(3), frozenset({1})],
    "zone": datetime.datetime(2024, 5, 6, tzinfo=zoneinfo.ZoneInfo("UTC")),
    "dict kinds": [collections.Counter("aab"), collections.ChainMap({"a": 1}), collections.UserDict(a=1)],
    "records": [types.SimpleNamespace(a=1), Point(1, 2), Settled(), Mode.A, Slots()],
    "kinds of its own": [OwnInt(3), OwnStr("a"), OwnList([1]), OwnTuple((1,)), OwnSet({1})],
    "numbers": [decimal.Decimal("0.1"), fractions.Fraction(1, 3), uuid.UUID(int=1), ipaddress.ip_address("1.1.1.1")],
    "numpy kinds": [np.dtype("f4"), np.array(["a", {}], dtype=object), np.random.RandomState(0), np.datetime64("2024")],
    "generators": [random.Random(1), np.random.default_rng(0), random.getstate()],
    "patterns and errors": [re.compile("a"), ValueError("a"), logging.getLogger("x"), list[int], ...],
    "of torch": [torch.device("cpu"), torch.float16, torch.distributions.Normal(0.0, 1.0), torch.Size([1])],
    "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1),
    "holds tensors": Kept(),
}


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {"layers.0.weight": torch.randn(3, 5), "layers.0.bias": torch.randn(3)}


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("headers_only", [True, False])
@pytest.mark.parametrize("what", list(BESIDE))
def test_weights_are_read_beside(what: str, headers_only: bool, written: bool, tmp_path: Path, weights) -> None:
    path = tmp_path / "net.pt"
    if not written and what in ("class", "partial"):
        pytest.skip("the format before torch 1.6 keeps a class's source beside its name: refused")
    before = set(torch.serialization.get_safe_globals())
    torch.save(
        {"args": BESIDE[what], "state_dict": weights, "also": [BESIDE[what]]}, path,
        _use_new_zipfile_serialization=written,
    )  # fmt: skip
    read = read_checkpoint(path, headers_only=headers_only)
    assert read.place == "state_dict"
    assert list(read.state_dict) == list(weights)
    for name, tensor in read.state_dict.items():
        assert tensor.is_meta if headers_only else torch.equal(tensor, weights[name])
    assert set(torch.serialization.get_safe_globals()) == before


def test_all_of_them_beside_a_bare_state_dict(tmp_path: Path, weights) -> None:
    torch.save({**weights, **BESIDE}, tmp_path / "net.pt")
    assert list(read_checkpoint(tmp_path / "net.pt").state_dict) == list(weights)


def test_an_omegaconf_node(tmp_path: Path, weights) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    torch.save({"cfg": omegaconf.OmegaConf.create({"a": [1, {"b": 2}]}), "model": weights}, tmp_path / "net.pt")
    assert list(read_checkpoint(tmp_path / "net.pt").state_dict) == list(weights)


def test_a_state_dict_in_a_defaultdict(tmp_path: Path, weights) -> None:
    torch.save({"model": collections.defaultdict(list, weights)}, tmp_path / "net.pt")
    assert list(read_checkpoint(tmp_path / "net.pt").state_dict) == list(weights)


# --- nothing runs ---


def hostile(trace: Path) -> dict[str, object]:
    touch = f"touch {trace}"
    code = f"open({str(trace)!r}, 'w').close()"
    return {
        "os.system": Hostile(os.system, touch),
        "eval": Hostile(eval, code),
        "exec": Hostile(exec, code),
        "subprocess": Hostile(subprocess.call, ["touch", str(trace)]),
        "import": Hostile(builtins.__import__, "antigravity"),
        "path": Hostile(Path.touch, trace),
        "nested": [Hostile(list, (Hostile(functools.partial, Path.touch, trace),)), {"a": Hostile(eval, code)}],
        "setstate": Stateful(trace),
        "getattr": Hostile(getattr, Hostile(functools.partial, print), "func"),
    }


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("what", list(hostile(Path())))
def test_nothing_runs(what: str, written: bool, tmp_path: Path, weights) -> None:
    trace, path = tmp_path / "ran", tmp_path / "net.pt"
    content = {"state_dict": weights, "extra": hostile(trace)[what]}
    torch.save(content, path, _use_new_zipfile_serialization=written)
    for headers_only in (True, False):
        try:
            assert list(read_checkpoint(path, headers_only=headers_only).state_dict) == list(weights)
        except LoadError as error:
            assert "asks to run" in str(error)  # noqa: PT017 - refused or read over, and either way not run
            assert "\n" not in str(error)  # noqa: PT017
    assert not trace.exists()


def test_the_malicious_files_are_really_malicious(tmp_path: Path) -> None:
    """Guards the test above: an ordinary unpickler does run them."""
    for what in ("eval", "exec", "path", "setstate"):
        trace = tmp_path / what
        torch.save(hostile(trace)[what], tmp_path / "net.pt")
        torch.load(tmp_path / "net.pt", weights_only=False)
        assert trace.exists(), what


@pytest.mark.parametrize("call", [os.system, eval, exec, subprocess.call])
def test_code_is_named_and_refused(call, tmp_path: Path, weights) -> None:
    torch.save({"state_dict": weights, "extra": Hostile(call, "1")}, tmp_path / "net.pt")
    with pytest.raises(LoadError, match=rf"asks to run '.*{call.__name__}'; nothing was run"):
        read_checkpoint(tmp_path / "net.pt")


# --- what is needed stays refused ---


class OwnTensor(torch.Tensor):
    pass


class Made:
    """Something that is made of a tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("value", [torch.ones(2, 2).as_subclass(OwnTensor), Made(torch.ones(2, 2)), np.ones((2, 2))])
def test_a_weight_that_needs_a_name_is_refused(value, tmp_path: Path, weights) -> None:
    torch.save({"state_dict": {**weights, "layers.1.weight": value}}, tmp_path / "net.pt")
    with pytest.raises(LoadError, match=r"asks to run '[\w.]+'; nothing was run"):
        read_checkpoint(tmp_path / "net.pt")


@pytest.mark.parametrize("nest", [lambda net: net, lambda net: {"model": net, "epoch": 1}, lambda net: [net]])
def test_a_whole_network_is_refused(nest, tmp_path: Path) -> None:
    torch.save(nest(nn.Sequential(nn.Linear(2, 2))), tmp_path / "net.pt")
    with pytest.raises(LoadError, match=r"whole pickled network \(torch\.nn\.modules|holds a list"):
        read_checkpoint(tmp_path / "net.pt")


def test_a_network_beside_its_state_dict_is_not_needed(tmp_path: Path, weights) -> None:
    torch.save({"net": nn.Linear(2, 2), "state_dict": weights}, tmp_path / "net.pt")
    assert list(read_checkpoint(tmp_path / "net.pt").state_dict) == list(weights)
