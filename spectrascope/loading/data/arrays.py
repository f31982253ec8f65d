"""Samples in one file of arrays: NumPy's ``.npz`` or a PyTorch file."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectrascope.errors import DataError, LoadError
from spectrascope.loading.checkpoints.pickles import require_plain_archive
from spectrascope.loading.data.images import array_pictures, read_images
from spectrascope.loading.data.sampling import Batch, choose, describe, listed, shown
from spectrascope.loading.data.source import DataRequest, DataSource, LoadedData
from spectrascope.loading.data.tokens import require_in_vocabulary, require_known
from spectrascope.loading.quiet import brief, quietly
from spectrascope.losses import IGNORED, require_labels_below
from spectrascope.records.values import LossName, Missing, Task
from spectrascope.workload import Inputs, TensorSource

__all__ = ["ARRAYS"]

_INPUTS = ("x", "inputs", "images")
_TARGETS = ("y", "targets", "labels", "label")
_SLACK = 1 << 20  # bytes that an array may be larger than its file
_EXPECTED = "arrays x and y (or inputs and targets, images and labels)"


@dataclass(frozen=True)
class _Content:
    """Inputs by name (one without a name under ``""``), targets, and names that were not used."""

    inputs: dict[str, Tensor]
    targets: Tensor
    unused: tuple[str, ...]


def _array_file(spec: str, request: DataRequest) -> LoadedData:
    """``npz:PATH`` or ``pt:PATH``.

    Floating-point inputs are used as they are, 8-bit images go through the network's preprocessing, integers are
    tokens.

    Raises:
        DataError: no such file, damaged, or arrays that are no samples of the network.
    """
    kind, _, rest = spec.partition(":")
    path = Path(rest).expanduser()
    name = f"{kind}:{shown(path)}"
    if not path.is_file():
        raise DataError(f"{name}: no such file; expected one with {_EXPECTED}")
    content = _read(name, _load_npz if kind == "npz" else _load_pt, path, request)
    _require_samples(name, content)
    n = len(content.targets)
    x = content.inputs.get("")
    if x is not None and x.dtype == torch.uint8 and x.dim() in (3, 4) and request.loaded.text is None:
        return _images(name, x, content, request)
    request.require_no_image_options(name, "holds inputs that are used as they are")
    labels = _labels(content.targets)
    _require_targets(name, content, request)
    how = [_describe_input(name, key, tensor, request) for key, tensor in content.inputs.items()]
    chosen = choose(request, n, labels)
    rows = torch.tensor(chosen.indices)
    picked = {key: _as_input(tensor[rows]) for key, tensor in content.inputs.items()}
    inputs: Inputs = picked.get("", picked)
    source = TensorSource(inputs, _as_target(content.targets[rows], request))
    return describe(
        request,
        name,
        Batch(source, n, "; ".join(how) + ", not normalised", chosen.notes),
        n_classes=_n_classes(labels, request),
        label_order="targets as in the file",
        notes=_unused_note(content),
    )


def _images(name: str, x: Tensor, content: _Content, request: DataRequest) -> LoadedData:
    labels = _labels(content.targets)
    if labels is None:
        raise DataError(
            f"{name}: 8-bit images with targets that are not one class number each; expected floating-point inputs, "
            f"ready for the network, with such targets"
        )
    _require_targets(name, content, request)
    batch = read_images(request, array_pictures(_channels_last(name, x), "image"), labels)
    return describe(
        request,
        name,
        batch,
        n_classes=_n_classes(labels, request),
        label_order="class numbers as in the file",
        preprocessing=f"8-bit images; {batch.preprocessing}",
        notes=_unused_note(content),
    )


def _channels_last(name: str, x: Tensor) -> NDArray[np.uint8]:
    """Images as PIL takes them: (n, h, w) or (n, h, w, 3 or 4)."""
    pixels: NDArray[np.uint8] = x.numpy()
    if pixels.ndim == 3:
        return pixels
    last, first = pixels.shape[3] in (1, 3, 4), pixels.shape[1] in (1, 3, 4)
    if last == first:
        raise DataError(
            f"{name}: 8-bit images of shape {tuple(pixels.shape)}; expected (n, h, w), (n, h, w, channels) or "
            f"(n, channels, h, w) with 1, 3 or 4 channels, told apart by them"
        )
    if first:
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    return pixels[..., 0] if pixels.shape[3] == 1 else pixels


def _load_npz(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):
            raise ValueError("not an .npz archive" if path.stat().st_size else "the file is empty")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except zipfile.BadZipFile:
        raise ValueError("truncated or damaged; copy or download it again") from None


def _load_pt(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped:
        try:
            require_plain_archive(path)
        except LoadError as error:
            raise ValueError(str(error).removeprefix(str(path)).strip(": ")) from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"it pickles {_what_is_pickled(path)}, not tensors alone") from None
    size = path.stat().st_size
    held = found.values() if isinstance(found, Mapping) else found if isinstance(found, (tuple, list)) else ()
    inner = [value for part in held if isinstance(part, Mapping) for value in part.values()]
    for value in (*held, *inner):  # one stored value may be spread over any shape
        if isinstance(value, Tensor) and value.numel() * value.element_size() > size + _SLACK:
            raise ValueError(f"an array of shape {tuple(value.shape)} in a file of {size} bytes")
    return found


def _what_is_pickled(path: Path) -> str:
    """Name what of a file torch would have to run code for."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the same file in the older format, or none of torch's
        names = []
    return listed(sorted(names), 3) or "objects"


def _read(name: str, load: Callable[[Path], Any], path: Path, request: DataRequest) -> _Content:
    try:
        with quietly():  # torch warns of unusual pickle protocols
            found = load(path)
    except Exception as error:  # truncated or foreign files, pickled objects, arrays too large for memory
        raise DataError(
            f"{name}: cannot be read ({shown(brief(error, 100))}); expected {_EXPECTED}, plain numbers without pickled "
            f"objects"
        ) from None
    if isinstance(found, (tuple, list)) and len(found) == 2:
        found = {"x": found[0], "y": found[1]}
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise DataError(f"{name}: holds {type(found).__name__}; expected {_EXPECTED}")
    return _split(name, dict(found), request)


def _split(name: str, found: dict[str, Any], request: DataRequest) -> _Content:
    targets = [key for key in _TARGETS if key in found]
    main = [key for key in _INPUTS if key in found]
    rest = [key for key in found if key not in targets and key not in main]
    if len(targets) > 1 or len(main) > 1:
        twice = targets if len(targets) > 1 else main
        raise DataError(f"{name}: both {' and '.join(twice[:2])}; expected {_EXPECTED}, one of each")
    unused: tuple[str, ...] = ()
    inputs: dict[str, Any]
    if main and isinstance(found[main[0]], Mapping):
        inputs = dict(found[main[0]])
    elif main:
        inputs, unused = {"": found[main[0]]}, tuple(rest)
    else:
        inputs = {key: found[key] for key in rest}
    if not targets and len(inputs) >= 1 and request.usual_loss is LossName.CAUSAL_LM:
        tokens = inputs.get("", inputs.get("input_ids"))
        found, targets = {**found, "y": tokens}, ["y"] if tokens is not None else []
    if not inputs or not targets:
        raise DataError(f"{name}: holds {listed(list(found), 6) or 'nothing'}; expected {_EXPECTED}")
    tensors = {key: _tensor(name, key or main[0], value) for key, value in inputs.items()}
    return _Content(tensors, _tensor(name, targets[0], found[targets[0]]), unused)


def _tensor(name: str, key: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "u" and value.dtype.itemsize > 1 and int(value.max(initial=0)) < 1 << 63:
            value = value.astype(np.int64)  # torch can hold them, but hardly compute with them
        if value.dtype.kind not in "fiub" or value.dtype == np.uint64:
            raise DataError(f"{name}: {shown(key)} holds {value.dtype}; expected plain numbers (float, int or bool)")
        if value.dtype.kind == "f" and value.dtype.itemsize > 8:
            value = value.astype(np.float64)
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
    if not isinstance(value, Tensor) or value.is_complex() or value.is_quantized or value.layout != torch.strided:
        kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"{name}: {shown(key)} holds {kind}; expected a plain array of numbers")
    return value.detach()


def _require_samples(name: str, content: _Content) -> None:
    everything = [(key or "x", tensor) for key, tensor in content.inputs.items()] + [("y", content.targets)]
    for key, tensor in everything:
        if tensor.dim() == 0 or (key == "x" and tensor.dim() == 1):
            shape = tuple(tensor.shape)
            raise DataError(f"{name}: {shown(key)} has shape {shape}; expected samples along its first axis")
    for key, tensor in everything:
        label = shown(key)
        if len(tensor) != len(content.targets):
            raise DataError(
                f"{name}: {label} has {len(tensor)} samples and y {len(content.targets)}; expected as many of both"
            )
        if tensor.numel() == 0:
            raise DataError(f"{name}: {label} has shape {tuple(tensor.shape)}; expected at least one sample")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            wrong = int((~torch.isfinite(tensor)).sum())
            raise DataError(f"{name}: {label} holds {wrong} values that are NaN or infinite; expected finite numbers")


def _describe_input(name: str, key: str, tensor: Tensor, request: DataRequest) -> str:
    label = shown(key) or "x"
    if tensor.is_floating_point():
        return f"{label} as in the file"
    text = request.loaded.text
    if text is None and key == "" and request.loaded.info.task is Task.IMAGE_CLASSIFICATION:
        raise DataError(
            f"{name}: x holds integers of shape {tuple(tensor.shape)}, but {request.network} reads images; expected "
            f"8-bit images or floating-point inputs"
        )
    if text is not None and key in ("", "input_ids"):
        longest = text.max_length
        if tensor.dim() != 2 or (longest is not None and tensor.shape[1] > longest):
            most = f" with t at most {longest}" if longest is not None else ""
            raise DataError(f"{name}: tokens of shape {tuple(tensor.shape)}; expected (n, t){most}")
        tokens = tensor.numpy().astype(np.int64)
        require_in_vocabulary(tokens, text, name, request.network)
        require_known(tokens.astype(np.int32), text, name, request.network)
    return f"{label} as tokens in the file" if key in ("", "input_ids") else f"{label} as in the file"


def _labels(targets: Tensor) -> NDArray[np.int64] | None:
    """Class numbers, one a sample, where the targets are such."""
    if targets.is_floating_point() or targets.dim() != 1:
        return None
    labels: NDArray[np.int64] = targets.numpy().astype(np.int64)
    return labels


def _compares_classes(request: DataRequest) -> bool:
    return request.usual_loss is LossName.CROSS_ENTROPY


def _n_classes(labels: NDArray[np.int64] | None, request: DataRequest) -> int | Missing:
    if labels is None or not _compares_classes(request):
        return Missing("targets are not one class number a sample")
    return request.loaded.num_classes or int(labels.max()) + 1


def _as_input(tensor: Tensor) -> Tensor:
    """Integers as embeddings take them; numbers as they are."""
    return tensor if tensor.is_floating_point() else tensor.to(torch.int64)


def _as_target(targets: Tensor, request: DataRequest) -> Tensor:
    if targets.is_floating_point():
        return targets
    vectors = request.usual_loss in (LossName.BCE, LossName.MSE)
    as_numbers = vectors and (targets.dim() > 1 or request.loaded.num_classes in (None, 1))
    return targets.to(torch.float32 if as_numbers else torch.int64)


def _require_targets(name: str, content: _Content, request: DataRequest) -> None:
    """Refuse targets that the loss cannot compare with the network's outputs."""
    y, loss, text = content.targets, request.usual_loss, request.loaded.text
    shape = tuple(y.shape)
    if loss in (LossName.CAUSAL_LM, LossName.MASKED_LM):
        tokens = content.inputs.get("", content.inputs.get("input_ids"))
        if y.is_floating_point() or (tokens is not None and y.shape != tokens.shape):
            raise DataError(
                f"{name}: y of shape {shape} holds {y.dtype}; loss {loss.value} expects a token number for each "
                f"input token"
            )
        if text is not None:
            require_in_vocabulary(y[y != IGNORED].numpy().astype(np.int64), text, f"{name} (y)", request.network)
    elif loss is LossName.CROSS_ENTROPY and y.is_floating_point() and y.dim() == 1:
        raise DataError(
            f"{name}: y holds {y.dtype}; loss cross-entropy expects whole class numbers (or a probability per class), "
            f"convert them or use --loss mse"
        )
    elif loss is LossName.CROSS_ENTROPY and y.is_floating_point() and not _are_probabilities(y):
        raise DataError(
            f"{name}: y of shape {shape} holds {y.dtype} that are no probabilities (0 … 1, summing to 1 over the "
            f"classes), as loss cross-entropy expects; use --loss mse, or --loss bce for several labels a sample"
        )
    elif loss is LossName.BCE and y.is_floating_point() and not bool(((y >= 0) & (y <= 1)).all()):
        raise DataError(f"{name}: y holds values outside 0 … 1; loss bce expects 0 and 1, use --loss mse")
    elif loss is LossName.CROSS_ENTROPY and not y.is_floating_point() and request.loaded.num_classes is not None:
        try:
            require_labels_below(y, request.loaded.num_classes)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None


def _are_probabilities(y: Tensor) -> bool:
    """Whether each sample has one probability per class; a little rounding, of half precision too, is no matter."""
    return bool((y >= 0).all()) and bool(((y.double().sum(1) - 1).abs() < 1e-2).all())


def _unused_note(content: _Content) -> tuple[str, ...]:
    return (f"not used: {listed(content.unused, 6)}",) if content.unused else ()


ARRAYS = DataSource(("npz:PATH", "pt:PATH"), _array_file)
