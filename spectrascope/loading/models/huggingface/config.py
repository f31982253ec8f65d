"""From a config.json to a transformers class and the task it is for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrascope.errors import LoadError, QuantizedError
from spectrascope.loading.quiet import brief, quietly, transformers
from spectrascope.records.values import Task

__all__ = ["TASKS", "HFClass", "find_class", "read_json", "require_plain_config", "require_possible_depth"]

_LARGEST_JSON = 64 << 20
_AUTO = {
    Task.IMAGE_CLASSIFICATION: ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "AutoModelForImageClassification"),
    Task.SEQUENCE_CLASSIFICATION: (
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "AutoModelForSequenceClassification",
    ),
    Task.CAUSAL_LM: ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "AutoModelForCausalLM"),
    Task.MASKED_LM: ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "AutoModelForMaskedLM"),
}
TASKS = (
    "image classification (…ForImageClassification), sequence classification (…ForSequenceClassification), causal "
    "(…ForCausalLM, …LMHeadModel) and masked language models (…ForMaskedLM)"
)
# Settings that can name code to fetch or a file to read. A checkpoint does not get to choose those.
_CODE_SETTINGS = (
    "_attn_implementation", "_attn_implementation_internal", "attn_implementation", "_experts_implementation",
    "experts_implementation", "kernel_config", "fusion_config", "transformers_weights",
)  # fmt: skip
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depths")


@dataclass(frozen=True)
class HFClass:
    """A transformers class, the config it is built from and the task it is for."""

    name: str
    task: Task
    cls: Any
    config: Any


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        LoadError: no such file, no JSON, or not an object.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise LoadError(f"{path} has {path.stat().st_size:,} bytes; expected a JSON file of a few kilobytes")
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise LoadError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} is not JSON ({brief(error, 80)}); copy or download it again") from None
    if not isinstance(content, dict):
        raise LoadError(f"{path} holds a JSON {type(content).__name__}; expected an object")
    return content


def require_plain_config(raw: dict[str, Any], where: str) -> None:
    """Refuse quantised networks.

    Raises:
        QuantizedError: the config says its weights are quantised.
    """
    quantised = raw.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown method") if isinstance(quantised, dict) else "unknown method"
        raise QuantizedError(
            f"{where}: the weights are quantised ({str(method)[:40]}), and quantised weights have no second "
            f"derivatives; load the full-precision checkpoint they were made from"
        )


def require_possible_depth(raw: dict[str, Any], n_tensors: int, where: str) -> None:
    """Refuse a config with more layers than the checkpoint has tensors, before time is spent on building it.

    Raises:
        LoadError: it has.
    """
    for name, value in raw.items():
        if isinstance(value, dict):
            require_possible_depth(value, n_tensors, where)
        elif name in _DEPTHS:
            counts = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)]
            if sum(counts) > n_tensors:
                raise LoadError(
                    f"{where}: config.json says {name} = {value}, but the checkpoint holds {n_tensors} tensors; the "
                    f"two do not belong together"
                )


def find_class(folder: Path, raw: dict[str, Any], *, trust_remote_code: bool, allow_download: bool) -> HFClass:
    """Find the class a folder's config is for. The folder's own code runs only where ``trust_remote_code`` is set.

    Raises:
        LoadError: an unsupported task, an unknown model type, code that may not run, a config that does not parse.
    """
    where = str(folder / "config.json")
    package = transformers()
    from transformers.models.auto import configuration_auto, modeling_auto

    model_type = raw.get("model_type")
    named = raw.get("architectures")
    named = [n for n in named if isinstance(n, str)] if isinstance(named, list) else []
    if not isinstance(model_type, str) or model_type not in configuration_auto.CONFIG_MAPPING:
        return _remote_class(folder, raw, trust_remote_code=trust_remote_code, allow_download=allow_download)
    classes: dict[Task, tuple[str, ...]] = {}
    for task, (mapping, _) in _AUTO.items():
        offered = getattr(modeling_auto, mapping).get(model_type, ())
        offered = (offered,) if isinstance(offered, str) else tuple(offered)
        # Some encoder-decoders are filed under language models too; they need inputs this tool does not make.
        offered = tuple(name for name in offered if not name.endswith("ForConditionalGeneration"))
        if offered:
            classes[task] = offered
    if named:
        found = [(task, name) for name in named for task, offered in classes.items() if name in offered]
    else:
        found = [(task, offered[0]) for task, offered in classes.items()]
    if not found and raw.get("auto_map") and named:
        return _remote_class(folder, raw, trust_remote_code=trust_remote_code, allow_download=allow_download)
    if not found:
        what = ", ".join(named)[:80] or f"the model type {model_type!r}"
        raise LoadError(f"{where} is for {what}, which cannot be measured; supported are {TASKS}")
    if not named and len(found) > 1:
        raise LoadError(
            f"{where} names no 'architectures', and {model_type!r} could be {', '.join(name for _, name in found)}; "
            f'add "architectures": ["{found[0][1]}"] or the one it is'
        )
    task, name = found[0]
    try:
        with quietly():
            config = configuration_auto.CONFIG_MAPPING[model_type].from_dict(_without_code_settings(raw))
            cls = getattr(package, name)
    except Exception as error:  # validation errors of many kinds, an import that fails
        raise LoadError(f"{where}: transformers {package.__version__} cannot use it ({brief(error)})") from None
    return HFClass(name, task, cls, config)


def _without_code_settings(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in raw.items() if key not in _CODE_SETTINGS}


def _plain(value: Any) -> Any:
    """Undo how transformers writes infinities (``{"__float__": "Infinity"}``), and look into nested configs."""
    if isinstance(value, dict):
        if set(value) == {"__float__"} and isinstance(value["__float__"], str):
            return float(value["__float__"])
        return _without_code_settings(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _remote_class(folder: Path, raw: dict[str, Any], *, trust_remote_code: bool, allow_download: bool) -> HFClass:
    where = str(folder / "config.json")
    version = transformers().__version__
    auto_map = raw.get("auto_map")
    model_type = raw.get("model_type")
    if model_type is None and isinstance(raw.get("architecture"), str):
        name = "".join(c for c in raw["architecture"][:60] if c.isprintable())
        raise LoadError(f"{where} is timm's, for its network {name!r}, not transformers'; pass timm:{name}")
    if not isinstance(auto_map, dict) or not auto_map:
        raise LoadError(
            f"{where}: transformers {version} knows no model type {model_type!r}; expected one it has, update "
            f"transformers or pass a Python factory (file.py:factory)"
        )
    found = [(task, auto_map[auto]) for task, (_, auto) in _AUTO.items() if isinstance(auto_map.get(auto), str)]
    if not found:
        raise LoadError(f"{where}: its own code is for {', '.join(map(str, auto_map))[:120]}; supported are {TASKS}")
    if not trust_remote_code:
        raise LoadError(
            f"{where}: {model_type!r} needs Python code from the checkpoint ({found[0][1][:60]}), which is not run; "
            f"pass --trust-remote-code if you trust its author"
        )
    try:
        with quietly():
            import transformers as package
            from transformers.dynamic_module_utils import get_class_from_dynamic_module

            local = not allow_download
            config = package.AutoConfig.from_pretrained(str(folder), trust_remote_code=True, local_files_only=local)
            task, reference = found[0]
            cls = get_class_from_dynamic_module(reference, str(folder), local_files_only=local)
    except (Exception, SystemExit) as error:  # someone else's code may raise anything
        raise LoadError(f"{where}: the checkpoint's own code failed ({brief(error)})") from None
    return HFClass(cls.__name__, task, cls, config)
