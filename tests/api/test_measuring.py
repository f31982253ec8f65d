"""The Python functions take by keyword what a measurement can be asked for, visibly."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.api.options import ProbeKeywords
from spectrascope.records.report import ProbeOptions

BATCH = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)


def test_keywords_are_the_fields_of_the_options() -> None:
    keywords = [
        name for name in ProbeKeywords.__annotations__ if name not in ("momentum", "scores")
    ]  # tensors, so no option
    assert keywords == [item.name for item in fields(ProbeOptions)]


@pytest.mark.parametrize("function", [spectrascope.probe, spectrascope.decompose])
def test_signatures_are_spelled_out(function) -> None:
    shown = inspect.signature(function).parameters
    assert list(shown)[:3] == ["model", "batches", "loss_fn"]
    defaults = {name: parameter.default for name, parameter in shown.items()}
    expected = {item.name: item.default for item in fields(ProbeOptions)} | {"dtype": None, "on_progress": None}
    assert {name: defaults[name] for name in expected} == expected
    assert all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in shown.values())


@pytest.mark.parametrize("function", [spectrascope.probe, spectrascope.decompose])
def test_an_unknown_keyword_is_refused(function) -> None:
    with pytest.raises(TypeError, match=rf"{function.__name__}\(\) got an unexpected keyword argument 'topk'"):
        function(nn.Linear(3, 2), BATCH, topk=3)


def test_every_keyword_is_documented() -> None:
    for name in inspect.signature(spectrascope.probe).parameters:
        assert f"        {name}: " in (spectrascope.probe.__doc__ or "")
