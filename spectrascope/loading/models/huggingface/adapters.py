"""PEFT adapters, merged onto the network they were trained on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.mapped import in_memory
from spectrascope.loading.checkpoints.read import require_finite
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.models.huggingface.config import read_json
from spectrascope.loading.models.huggingface.hub import fetch_snapshot, parse_hub_spec
from spectrascope.loading.models.huggingface.open import load_huggingface
from spectrascope.loading.models.huggingface.weights import WeightFiles, has_weights
from spectrascope.loading.quiet import brief, quietly, transformers
from spectrascope.records.values import Missing

__all__ = ["is_adapter_alone", "is_adapter_directory", "load_adapter"]

_FETCHING = ("allow_download", "trust_remote_code", "headers_only")

_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def is_adapter_directory(path: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (path / "adapter_config.json").is_file()


def load_adapter(
    spec: str,
    *,
    base: str | None = None,
    num_classes: int | None = None,
    allow_download: bool = True,
    trust_remote_code: bool = False,
    headers_only: bool = False,
) -> LoadedModel:
    """Load a base network and merge an adapter's weights into its own.

    Args:
        spec: a folder with adapter_config.json, or ``hf:org/name`` of one.
        base: the base network (a folder or ``hf:org/name``); the one the adapter names when ``None``.
        num_classes: number of outputs of a classifier; must agree with the base's.
        allow_download: fetch what is not in the local cache.
        trust_remote_code: run Python code that came with the base where transformers has no class for it.
        headers_only: check the adapter's names against the base; the base stays on the meta device, unmerged.

    Raises:
        LoadError: no PEFT, no base, an adapter that cannot be merged or does not fit.
        NonFiniteError: a weight is NaN or infinite.
    """
    peft = _import_peft()
    if spec.startswith("hf:"):
        folder = fetch_snapshot(
            parse_hub_spec(spec), allow_download=allow_download, trust_remote_code=False, headers_only=headers_only
        )
    else:
        folder = Path(spec) if Path(spec).is_dir() else Path(spec).parent
    raw = read_json(folder / "adapter_config.json")
    if raw.get("megatron_config"):
        raise LoadError(f"{folder}/adapter_config.json asks for Megatron layers, whose code it names; they are not run")
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        raise LoadError(f"{folder}: no adapter weights; expected {' or '.join(_FILES)} beside adapter_config.json")
    weights = WeightFiles(file)
    headers = weights.headers()
    loaded = _load_base(
        folder, raw, base, num_classes=num_classes, allow_download=allow_download,
        trust_remote_code=trust_remote_code, headers_only=headers_only,
    )  # fmt: skip
    note = f"adapter {raw.get('peft_type', '')} on {loaded.info.id}".replace("adapter  ", "adapter ")
    _require_sizes(file, headers.state_dict, loaded.model)
    if headers_only:
        _require_targets(file, list(headers.state_dict), loaded.model)
        sha256: str | Missing = Missing("only headers were read")
        note += " (headers only, not merged)"
        network = loaded.model
    else:
        stored, own = weights.stored()
        tensors = {key: in_memory(value, torch.float32) for key, value in stored.items()}
        require_finite(tensors, str(file))
        network, untied = _merge(peft, folder, file, loaded.model, tensors)
        lines = f"adapter:{own}\nbase:{loaded.info.sha256}"
        sha256 = hashlib.sha256(lines.encode()).hexdigest()
        note += f", merged; no longer tied: {untied[0]}" if untied else ", merged"
    info = replace(
        loaded.info,
        id=spec,
        path=str(folder),
        sha256=sha256,
        weights=f"{note}; base: {loaded.info.weights}",
        n_parameters=sum(p.numel() for p in network.parameters()),
    )
    return replace(loaded, model=network, info=info)


def _import_peft() -> Any:
    transformers()
    try:
        with quietly():
            import peft
    except ImportError as error:
        if getattr(error, "name", None) != "peft":
            raise LoadError(f"peft cannot be imported ({brief(error)}); reinstall it") from None
        raise LoadError("PEFT adapters need the package peft; pip install 'spectrascope[peft]'") from None
    return peft


def _load_base(folder: Path, raw: dict[str, Any], base: str | None, **options: Any) -> LoadedModel:
    named = raw.get("base_model_name_or_path")
    if base is None and (not isinstance(named, str) or not named):
        raise LoadError(f"{folder}/adapter_config.json names no base network; pass it with --base")
    spec = base if base is not None else str(named)
    if base is None and not Path(spec).exists():
        beside = folder / spec
        looks_local = spec.startswith((".", "/", "~", "\\")) or spec.count("/") > 1
        if beside.is_dir():
            spec = str(beside)
        elif looks_local:
            raise LoadError(
                f"{folder}: the base network {spec[:120]!r}, which adapter_config.json names, is not here; pass "
                f"its folder or hf:org/name with --base"
            )
        else:
            spec = f"hf:{spec}@{raw['revision']}" if isinstance(raw.get("revision"), str) else f"hf:{spec}"
    try:
        if is_adapter_alone(spec, **{name: options[name] for name in _FETCHING}):
            raise LoadError(f"{spec} is itself an adapter; expected a whole network")
        return load_huggingface(spec, **options)
    except LoadError as error:
        if base is not None:
            raise
        raise LoadError(f"{folder}: its base network cannot be loaded: {error}; or pass another with --base") from None


def is_adapter_alone(spec: str, **fetching: bool) -> bool:
    """Whether a folder or Hub repository holds an adapter and no whole network.

    Args:
        spec: a folder, or ``hf:org/name``.
        fetching: options of :func:`fetch_snapshot`.

    Raises:
        LoadError: the repository cannot be had.
    """
    folder = fetch_snapshot(parse_hub_spec(spec), **fetching) if spec.startswith("hf:") else Path(spec)
    return is_adapter_directory(folder) and not has_weights(folder)


def _merge(
    peft: Any, folder: Path, file: Path, network: nn.Module, tensors: dict[str, Tensor]
) -> tuple[nn.Module, tuple[str, ...]]:
    """Merge the adapter into the base.

    Returns:
        The network, and the names of weights that were tied to another and no longer are.
    """
    names = _names(network)
    try:
        with quietly(), torch.random.fork_rng(devices=[]):  # peft fills the adapter with random values first
            config = peft.PeftConfig.from_pretrained(str(folder), local_files_only=True)
            if config.is_prompt_learning:
                raise LoadError(
                    f"{folder}: {config.peft_type.value} adds inputs, not weights, and cannot be merged; expected an "
                    f"adapter of weights such as LoRA"
                )
            config.inference_mode = True
            adapted = peft.get_peft_model(network, config)
            report = peft.set_peft_model_state_dict(adapted, tensors)
            expected = set(peft.get_peft_model_state_dict(adapted))
            problems = {"missing": sorted(expected - set(tensors)), "unexpected": sorted(report.unexpected_keys)}
            for what, keys in problems.items():
                if keys:
                    raise LoadError(
                        f"{file} does not fit its base and adapter_config.json: {len(keys)} {what} ({keys[0][:80]}); "
                        f"pass the base it was trained on with --base"
                    )
            _untie(peft, adapted)
            merged: nn.Module = adapted.merge_and_unload(safe_merge=True)
    except LoadError:
        raise
    except Exception as error:  # shapes that differ, targets that are not in the base, methods that cannot merge
        raise LoadError(
            f"{folder}: peft cannot merge this adapter onto {type(network).__name__} ({brief(error)}); pass the base "
            f"it was trained on with --base"
        ) from None
    for parameter in merged.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # peft froze the base
    changed = names.keys() ^ _names(merged).keys()
    if changed:
        raise LoadError(f"{folder}: merging changed the names of weights ({sorted(changed)[0]}); expected the base's")
    tied = [name for name, first in _names(merged).items() if name != first]
    return merged.eval(), tuple(name for name, first in names.items() if name != first and name not in tied)


def _names(network: nn.Module) -> dict[str, str]:
    """Every name of every parameter, with the first name of the same parameter."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(p), name) for name, p in network.named_parameters(remove_duplicate=False)}


def _untie(peft: Any, adapted: nn.Module) -> None:
    """Give a layer with an adapter its own copy of a weight that another layer uses too.

    Adding the update to the shared weight would change the other layer as well, which the adapter leaves alone.
    Updates of single tokens are the exception: peft applies them to both layers.
    """
    tuners = peft.tuners
    owners = Counter(id(p) for module in adapted.modules() for p in module.parameters(recurse=False))
    for module in adapted.modules():
        if not isinstance(module, tuners.tuners_utils.BaseTunerLayer):
            continue
        if isinstance(module, tuners.trainable_tokens.TrainableTokensLayer):
            continue
        layer = module.get_base_layer()
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if owners[id(parameter)] > 1:
                setattr(layer, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))


def _require_sizes(file: Path, tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    """A whole weight in an adapter, as of an embedding trained with it, is as large as the base's."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for key, tensor in tensors.items():
        own = parameters.get(key.removeprefix("base_model.model."))
        if own is not None and own.dim() and own.shape != tensor.shape and own.shape[1:] == tensor.shape[1:]:
            raise LoadError(
                f"{file}: {key[:80]!r} is {tuple(tensor.shape)}, the base's is {tuple(own.shape)}: the vocabulary was "
                f"resized before training; do the same to the base (base.resize_token_embeddings({len(tensor)}), then "
                f"base.save_pretrained(FOLDER)) and pass that folder with --base"
            )


def _require_targets(file: Path, keys: list[str], network: nn.Module) -> None:
    """Every stored tensor belongs to a module of the base: ``MODULE.lora_A.weight`` or ``MODULE.weight``."""
    modules = {name for name, _ in network.named_modules() if name}
    for key in keys:
        module = key.removeprefix("base_model.model.").rpartition(".")[0]
        if module not in modules and module.rpartition(".")[0] not in modules:
            raise LoadError(
                f"{file}: {key[:80]!r} belongs to no module of {type(network).__name__}; pass the base it was trained "
                f"on with --base"
            )
