"""Hugging Face models: a folder or a Hub repository to a network, every weight accounted for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.mapped import keep_in_memory
from spectrascope.loading.checkpoints.read import Checkpoint, require_finite, strip_wrappers
from spectrascope.loading.checkpoints.skeleton import KeyDifference
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.models.huggingface.config import (
    HFClass,
    find_class,
    read_json,
    require_plain_config,
    require_possible_depth,
)
from spectrascope.loading.models.huggingface.hub import fetch_headers, fetch_snapshot, parse_hub_spec
from spectrascope.loading.models.huggingface.images import image_preprocessing
from spectrascope.loading.models.huggingface.initial import one_at_a_time, without_initial_weights, without_storage
from spectrascope.loading.models.huggingface.text import text_input
from spectrascope.loading.models.huggingface.weights import WeightFiles, find_weight_files, has_weights, is_mask
from spectrascope.loading.preprocessing import TOKENS
from spectrascope.loading.quiet import brief, quietly, transformers
from spectrascope.records.report import ModelInfo
from spectrascope.records.values import Task

__all__ = ["is_huggingface_directory", "load_huggingface"]

# Heads of the pretraining task that files of base checkpoints bring along, and that no network here has.
_OTHER_HEADS = re.compile(r"(^|\.)(pooler\.|cls\.seq_relationship\.|sop_classifier\.)")


def is_huggingface_directory(path: Path) -> bool:
    """Whether a folder's config.json names a transformers model."""
    try:
        raw = read_json(path / "config.json")
    except LoadError:
        return False
    return isinstance(raw.get("model_type"), str) or isinstance(raw.get("architectures"), list)


def load_huggingface(
    spec: str,
    *,
    num_classes: int | None = None,
    allow_download: bool = True,
    trust_remote_code: bool = False,
    headers_only: bool = False,
    keep_bfloat16: bool = False,
) -> LoadedModel:
    """Load a Hugging Face model in float32, every weight from its files and none left over.

    Args:
        spec: ``hf:org/name`` or ``hf:org/name@revision``; a folder with a config.json; a weight file or an index in
            such a folder.
        num_classes: number of outputs of a classifier; must agree with the checkpoint's.
        allow_download: fetch a Hub repository that is not in the local cache.
        trust_remote_code: run Python code that came with the checkpoint where transformers has no class for it.
        headers_only: read names and shapes, not tensors; the network stays on the meta device.
        keep_bfloat16: leave a network in bfloat16 all of whose weights are stored in it.

    Raises:
        LoadError: files that are missing, damaged, quantised or do not fit the config; an unsupported task.
        NonFiniteError: a weight is NaN or infinite.
    """
    revision = repository = None
    if spec.startswith("hf:"):
        repository = parse_hub_spec(spec)
        folder = fetch_snapshot(
            repository,
            allow_download=allow_download,
            trust_remote_code=trust_remote_code,
            headers_only=headers_only,
        )
        revision, named = folder.name, None
    else:
        path = Path(spec)
        if not path.exists():
            raise LoadError(f"{spec}: no such file or folder; expected a Hugging Face folder with config.json")
        folder, named = (path, None) if path.is_dir() else (path.parent, path)
    if not (folder / "config.json").is_file():
        raise LoadError(
            f"{spec}: no config.json in it or beside it; expected a transformers network saved with save_pretrained "
            f"(config.json and model.safetensors)"
        )
    raw = read_json(folder / "config.json")
    require_plain_config(raw, str(folder / "config.json"))
    chosen = find_class(folder, raw, trust_remote_code=trust_remote_code, allow_download=allow_download)
    _require_classes(spec, chosen, num_classes)
    if repository is not None and headers_only and not has_weights(folder):
        weights = fetch_headers(repository, folder)
    else:
        weights = find_weight_files(folder, named, headers_only=headers_only)
    headers = weights.headers()
    require_possible_depth(raw, len(headers.state_dict) or len(weights.names), str(folder))
    dtype = torch.bfloat16 if keep_bfloat16 and _is_all_bfloat16(headers) else torch.float32
    network, left_out = _fit(weights, headers, chosen, dtype)
    sha256 = headers.sha256
    if not headers_only:
        stored, sha256 = weights.stored()
        network = _fill(weights.path, stored, chosen, dtype)
    _finish_parameters(network, dtype)
    info = ModelInfo(
        id=spec,
        architecture=chosen.name,
        source="huggingface",
        path=str(weights.path if named is not None else folder),
        sha256=sha256,
        weights=_describe(headers, left_out, revision, dtype, absent=bool(weights.names)),
        n_parameters=sum(p.numel() for p in network.parameters()),
        task=chosen.task,
    )
    return _loaded(network, info, folder, chosen, trust_remote_code=trust_remote_code, headers_only=headers_only)


def _loaded(
    network: nn.Module, info: ModelInfo, folder: Path, chosen: HFClass, *, trust_remote_code: bool, headers_only: bool
) -> LoadedModel:
    classifies = chosen.task in (Task.IMAGE_CLASSIFICATION, Task.SEQUENCE_CLASSIFICATION)
    if chosen.task is Task.IMAGE_CLASSIFICATION:
        preprocessing, text = image_preprocessing(folder, chosen.config), None
    else:
        preprocessing = TOKENS
        text = text_input(folder, chosen.config, trust_remote_code=trust_remote_code, headers_only=headers_only)
    return LoadedModel(
        model=network,
        info=info,
        preprocessing=preprocessing,
        class_names=_class_names(chosen.config) if classifies else None,
        default_dataset=None,
        num_classes=int(chosen.config.num_labels) if classifies else None,
        text=text,
    )


def _require_classes(spec: str, chosen: HFClass, num_classes: int | None) -> None:
    if num_classes is None:
        return
    if chosen.task not in (Task.IMAGE_CLASSIFICATION, Task.SEQUENCE_CLASSIFICATION):
        raise LoadError(f"{spec}: {chosen.name} is a language model and has no classes; drop --num-classes")
    if num_classes != chosen.config.num_labels:
        raise LoadError(
            f"{spec} has {chosen.config.num_labels} outputs, but {num_classes} classes were asked for; drop "
            f"--num-classes or pass a checkpoint trained on {num_classes} classes"
        )


def _class_names(config: Any) -> tuple[str, ...] | None:
    labels = {int(key): str(value) for key, value in (config.id2label or {}).items()}
    names = tuple(labels[key] for key in sorted(labels))
    if sorted(labels) != list(range(config.num_labels)) or all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return None
    return names


class _Stored:
    """A stored tensor of which only the header is known: what the loader makes of it stays on the meta device."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self._dtype = shape, dtype

    def __getitem__(self, key: Any) -> _Stored:
        return self

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.empty(self.shape, dtype=self._dtype, device="meta")


def _fit(
    weights: WeightFiles, headers: Checkpoint, chosen: HFClass, dtype: torch.dtype
) -> tuple[nn.Module, tuple[str, ...]]:
    """Put headers into a network without storage, by the rules tensors are loaded by; refuse where they do not fit.

    Returns:
        The network, on the meta device, and the names of stored tensors it has no use for.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in headers.state_dict.items()}
    if weights.names:
        shapes = _usual_shapes(chosen, weights)
    masks = [key for key, shape in shapes.items() if is_mask(key, shape)]
    stored = {key: _Stored(shape, dtype) for key, shape in shapes.items()}
    cls = without_storage(chosen.cls)
    network, report = _from_pretrained(weights.path, cls, chosen, stored, mismatched=True, dtype=dtype)
    _tie(network)
    unexpected = sorted(key for key in report["unexpected_keys"] if key not in masks and not _is_any_of(key, masks))
    left_out = tuple(key for key in unexpected if _OTHER_HEADS.search(key))
    reshaped = sorted((key, tuple(want), tuple(got)) for key, got, want in report["mismatched_keys"])
    difference = KeyDifference(
        tuple(sorted(report["missing_keys"])),
        tuple(key for key in unexpected if key not in left_out),
        tuple(reshaped),
    )
    if difference.size:
        raise LoadError(
            f"{weights.path} does not fit its config.json ({chosen.name}): {difference}; nothing is left to chance, "
            f"pass a checkpoint whose weights are all there, with the config it was saved with"
        )
    return network, left_out


def _tie(network: Any) -> None:
    """Tie what the config says is tied, also where a file holds both names, unless their values differ.

    Not every transformers 5 does. On the meta device there are no values, and both names mean one weight.
    """
    if not hasattr(network, "get_expanded_tied_weights_keys"):
        return
    for name, source in network.get_expanded_tied_weights_keys(all_submodels=True).items():
        owner, _, attribute = name.rpartition(".")
        ours, other = network.get_parameter(name), network.get_parameter(source)
        if ours.shape == other.shape and (ours.is_meta or torch.equal(ours, other)):
            setattr(network.get_submodule(owner), attribute, other)


def _is_any_of(key: str, masks: list[str]) -> bool:
    """Transformers reports a tensor under the name its class would use, with or without the base's prefix."""
    return any(mask.endswith(key) or key.endswith(mask) for mask in masks)


def _usual_shapes(chosen: HFClass, weights: WeightFiles) -> dict[str, tuple[int, ...]]:
    """Shapes for the names of an index whose files are not here: those the class itself would save."""
    try:
        with quietly(), torch.device("meta"):
            network = chosen.cls(chosen.config)
            state_dict = network.state_dict()
            from transformers.core_model_loading import revert_weight_conversion

            saved = {**state_dict, **revert_weight_conversion(network, dict(state_dict))}
    except Exception as error:
        raise LoadError(f"{weights.path}: {chosen.name} cannot be built from its config ({brief(error)})") from None
    return {
        key: tuple(saved[key].shape) if key in saved else (0,) for key in strip_wrappers(dict.fromkeys(weights.names))
    }


def _is_all_bfloat16(headers: Checkpoint) -> bool:
    weights = [t for key, t in headers.state_dict.items() if not is_mask(key, tuple(t.shape))]
    return all(t.dtype is torch.bfloat16 for t in weights if t.is_floating_point())


def _fill(path: Path, stored: dict[str, Tensor], chosen: HFClass, dtype: torch.dtype) -> nn.Module:
    cls = without_initial_weights(chosen.cls)
    network, report = _from_pretrained(path, cls, chosen, stored, mismatched=False, dtype=dtype)
    on_meta = [name for name, p in network.named_parameters() if p.is_meta]
    if report["missing_keys"] or on_meta:  # the headers fitted, so this is not expected; random weights never pass
        raise LoadError(f"{path}: {[*report['missing_keys'], *on_meta][0]!r} got no weights from the files")
    _tie(network)
    keep_in_memory(network)  # transformers leaves where they were those that it need not convert
    weights = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    require_finite({key: value for key, value in weights.items() if not is_mask(key, tuple(value.shape))}, str(path))
    return network  # type: ignore[no-any-return]


def _from_pretrained(
    path: Path, cls: Any, chosen: HFClass, state_dict: Any, *, mismatched: bool, dtype: torch.dtype
) -> tuple[Any, Any]:
    """Transformers' own loading, which renames, splits and merges stored tensors as each class needs."""
    try:
        with quietly(), one_at_a_time(), torch.random.fork_rng(devices=[]):
            network, report = cls.from_pretrained(
                None,
                config=chosen.config,
                state_dict=state_dict,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=mismatched,
            )
            network.__class__ = chosen.cls
            return network, report
    except Exception as error:  # configs and weights that contradict each other fail in many ways
        version = transformers().__version__
        raise LoadError(
            f"{path}: transformers {version} cannot build {chosen.name} from it and config.json ({brief(error)})"
        ) from None


def _finish_parameters(network: nn.Module, dtype: torch.dtype) -> None:
    network.eval()
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and parameter.dtype is not dtype:
            raise LoadError(f"{name} was built as {parameter.dtype}; expected {dtype}")
        parameter.requires_grad_(parameter.is_floating_point())


def _describe(
    headers: Checkpoint, left_out: tuple[str, ...], revision: str | None, dtype: torch.dtype, *, absent: bool
) -> str:
    text = "checkpoint" if revision is None else f"hub (revision {revision[:12]})"
    other = ", ".join(headers.narrow_dtypes)
    notes = [other + (", converted to float32" if dtype is torch.float32 else "")] if other else []
    if left_out:
        notes.append(f"without {len(left_out)} tensors of other heads: {left_out[0][:60]}, …")
    if absent:
        notes.append("index only, its files are not here")
    return f"{text} ({'; '.join(notes)})" if notes and revision is None else "; ".join([text, *notes])
