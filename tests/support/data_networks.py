"""Descriptions of networks for the data tests: what a dataset asks of one, around a module that is never run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from spectrascope.errors import DataError
from spectrascope.loading.data.open import LoadedData, load_dataset
from spectrascope.loading.loaded import LoadedModel, TextInput
from spectrascope.loading.preprocessing import Preprocessing
from spectrascope.records.report import ModelInfo
from spectrascope.records.values import Missing, Task


def network(task: Task, num_classes: int | None, text: TextInput | None = None, **fields: Any) -> LoadedModel:
    none = Missing("test")
    info = ModelInfo("net", "net", "python", none, none, "random", 1, task)
    usual: dict[str, Any] = {"preprocessing": Preprocessing(size=None), "class_names": None, "default_dataset": None}
    return LoadedModel(nn.Identity(), info, num_classes=num_classes, text=text, **{**usual, **fields})


def images(num_classes: int | None = 10, **fields: Any) -> LoadedModel:
    return network(Task.IMAGE_CLASSIFICATION, num_classes, **fields)


def reader(
    task: Task = Task.CAUSAL_LM,
    vocab_size: int = 300,
    max_length: int | None = 64,
    encode: Callable[[str], list[int]] | None = None,
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    **tokens: Any,
) -> LoadedModel:
    text = TextInput(vocab_size, max_length, "none in net", encode, **tokens)
    return network(task, num_classes, text, class_names=class_names)


def load(spec: object, loaded: LoadedModel, num_samples: int = 8, seed: int = 0, **options: Any) -> LoadedData:
    return load_dataset(str(spec), loaded, num_samples=num_samples, seed=seed, **options)


def refusal(match: str, spec: object, loaded: LoadedModel, **options: Any) -> str:
    with pytest.raises(DataError, match=match) as error:
        load(spec, loaded, **options)
    text = str(error.value)
    assert "\n" not in text
    assert 20 < len(text) < 700
    return text
