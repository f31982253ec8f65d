"""The only door to timm's models; timm is imported when a function is called."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from math import floor
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.skeleton import (
    build_if_shapes_fit,
    build_skeleton,
    compare,
    kinds_of,
    skeleton_from,
)
from spectrascope.loading.data.labels import imagenet_wnids
from spectrascope.loading.downloads import fetch_published
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.models import torchvision as torchvision_models
from spectrascope.loading.models.finish import finish
from spectrascope.loading.models.named import NamedSource, read_cached, require_published_classes
from spectrascope.loading.models.source import Architecture, ModelRequest
from spectrascope.loading.preprocessing import Preprocessing
from spectrascope.loading.quiet import brief, quietly

__all__ = [
    "TIMM",
    "Fit",
    "build_model",
    "class_names_of",
    "fitting",
    "is_installed",
    "list_names",
    "preprocessing_of",
    "require_name",
]

# Constructors of EfficientNets make a small layer to look at, and drop it.
_SPARE = 4
_MODULE_STATE = frozenset(nn.Module().__dict__)
# Without effect in evaluation mode, or on what a network computes from images.
_IDLE = frozenset({"p", "drop_prob", "drop_rate", "drop_path_rate", "pretrained_cfg", "default_cfg", "inplace"})


@dataclass(frozen=True, slots=True)
class Fit:
    """A model whose keys and shapes are a file's; equal ``fingerprint`` means the same code with the same settings."""

    name: str
    num_classes: int
    fingerprint: str


def is_installed() -> bool:
    """Whether timm can be found."""
    return importlib.util.find_spec("timm") is not None


@lru_cache(maxsize=1)
def _timm() -> ModuleType:
    if not is_installed():
        raise LoadError("timm: models need the package timm; pip install 'spectrascope[timm]'")
    try:
        with quietly():
            package = importlib.import_module("timm")
            importlib.import_module("timm.data")
    except Exception as error:  # built for another torch or torchvision
        raise LoadError(f"timm cannot be imported ({brief(error)}); reinstall it") from None
    return package


@lru_cache(maxsize=1)
def list_names() -> tuple[str, ...]:
    """Names of timm's models."""
    return tuple(_timm().list_models())


def require_name(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        LoadError: timm is not installed, or has no such model (the nearest are listed).
    """
    if name not in list_names():
        near = difflib.get_close_matches(name, list_names(), n=3, cutoff=0.5)
        raise LoadError(
            f"timm has no model named {name[:120]!r}"
            + (f"; nearest: {', '.join(near)}" if near else "")
            + "; expected timm:NAME, timm:NAME@TAG or timm:NAME@none"
        )


def build_model(name: str, num_classes: int | None = None) -> nn.Module:
    """Build a model with freshly initialised weights; ``num_classes`` ``None`` for its own number.

    Raises:
        LoadError: no such model, or it cannot be built with that many outputs.
    """
    require_name(name)
    options = {} if num_classes is None else {"num_classes": num_classes}
    try:
        with quietly():
            model: nn.Module = _timm().create_model(name, pretrained=False, **options)
    except Exception as error:
        raise LoadError(f"timm:{name} cannot be built ({brief(error)}); try another number of classes") from None
    return model


def fitting(shapes: Mapping[str, tuple[int, ...]], names: Iterable[str] | None = None) -> list[Fit]:
    """Models, of ``names`` or of all, that have exactly these keys and shapes, but for the size of the head."""
    model_entrypoint = _timm().models.model_entrypoint
    fits, held = [], kinds_of(shapes)
    with quietly():
        for name in list_names() if names is None else [name for name in names if name in list_names()]:
            try:
                network = build_if_shapes_fit(partial(_enter, model_entrypoint(name)), held, _SPARE)
            except Exception:  # a constructor that does not work without storage, or with this number of classes
                continue
            if network is None:
                continue
            num_classes, difference = compare(skeleton_from(network), dict(shapes))
            if difference.size == 0 and num_classes is not None:
                fits.append(Fit(name, num_classes, _fingerprint(network)))
    return fits


def _enter(entrypoint: Callable[..., nn.Module], num_classes: int) -> nn.Module:
    return entrypoint(pretrained=False, num_classes=num_classes)


def _fingerprint(network: nn.Module) -> str:
    """Hash over classes, settings and fixed tensors of all modules: everything that decides what is computed.

    It errs on the side of calling networks different.
    """
    sha = hashlib.sha256()
    for name, module in network.named_modules():
        settings = {
            key: _plain(value)
            for key, value in module.__dict__.items()
            if key not in _MODULE_STATE and key not in _IDLE
        }
        sha.update(repr((name, type(module).__qualname__, sorted(settings.items()))).encode())
        for key in sorted(module._non_persistent_buffers_set):
            buffer = module._buffers.get(key)
            if buffer is not None:
                sha.update(repr((key, tuple(buffer.shape))).encode())
                if not buffer.is_meta:
                    sha.update(buffer.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


def _plain(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_plain(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_plain(item)}' for key, item in value.items())}}}"
    if isinstance(value, partial):
        return f"{_plain(value.func)}{_plain(value.args)}{_plain(value.keywords)}"
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _published_config(name: str, tag: str | None) -> Any:
    """What timm knows of published weights, the default ones for ``None``."""
    timm, what = _timm(), f"timm:{name}"
    tags = [full.partition(".")[2] for full in timm.list_models(f"{name}.*", pretrained=True)]
    tags = [other for other in tags if other]
    if tag is not None and tag not in tags:
        near = difflib.get_close_matches(tag, tags, n=3, cutoff=0.0)
        raise LoadError(f"{what}@{tag[:80]}: no such weights; expected {what}@ one of {', '.join([*near, 'none'])}")
    config = timm.get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    if config is None or not config.has_weights:
        raise LoadError(f"{what}: no weights are published; {what}@none has random ones, or pass a checkpoint file")
    if not config.num_classes:
        raise LoadError(
            f"{what}@{config.tag}: these weights have no classifier; pass a checkpoint with a head, with --arch {what}"
        )
    return config


def _create(what: str, full_name: str, tensors: dict[str, Tensor] | None) -> nn.Module:
    """A new network, filled with the tensors by timm's own conversion where there are some."""
    options = {} if tensors is None else {"pretrained_cfg_overlay": {"state_dict": tensors}}
    try:
        with quietly():
            network: nn.Module = _timm().create_model(full_name, pretrained=tensors is not None, **options)
    except Exception as error:
        if tensors is None:
            raise
        raise LoadError(f"{what}: the weights do not fit the network ({brief(error)}); delete the file") from None
    for module in network.modules():  # else the file stays mapped as long as the network lives
        for name in ("pretrained_cfg", "default_cfg"):
            if isinstance(config := getattr(module, name, None), dict):
                config.pop("state_dict", None)
    return network


def _fetch_from_hub(what: str, hub_id: str, filename: str | None, allow_download: bool) -> Path:
    import huggingface_hub
    from huggingface_hub import constants, errors

    repo, _, revision = hub_id.partition("@")
    wanted = [filename] if filename else ["model.safetensors", "pytorch_model.bin"]
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    place = (
        f"pass {wanted[0]} from https://huggingface.co/{repo} as a local file with --arch {what}, or put it into the "
        f"cache ({folder})"
    )
    download = partial(huggingface_hub.hf_hub_download, repo, revision=revision or None)
    for file in wanted:
        try:
            return Path(download(file, local_files_only=True))
        except Exception:  # not there
            continue
    if not allow_download:
        raise LoadError(f"{what}: its weights are not on this machine and downloads are off; {place}")
    try:
        with quietly():
            # One question with a timeout first: the download itself tries a dead network several times.
            files = huggingface_hub.HfApi().model_info(repo, revision=revision or None, timeout=10.0).siblings or []
            there = [file for file in wanted if file in {sibling.rfilename for sibling in files}]
            if not there:
                raise errors.EntryNotFoundError(f"no {' or '.join(wanted)} in {repo}")
            return Path(download(there[0]))
    except Exception as error:  # offline, not found, a full disk, an interrupted transfer
        raise LoadError(f"{what}: its weights could not be downloaded ({brief(error, 100)}); {place}") from None


def preprocessing_of(network: nn.Module) -> Preprocessing:
    """The evaluation preprocessing timm states for a network it has built."""
    with quietly():
        config = _timm().data.resolve_model_data_config(network)
    channels, height, width = (int(n) for n in config["input_size"])
    resize = floor(height / float(config["crop_pct"]))
    mode = str(config.get("crop_mode", "center"))
    mean, std = tuple(map(float, config["mean"])), tuple(map(float, config["std"]))
    interpolation = str(config["interpolation"])
    if height == width and mode == "center":
        return Preprocessing(
            size=None, channels=channels, mean=mean, std=std, resize=resize, crop=height, interpolation=interpolation
        )
    exact = mode == "squash" and resize == height
    note = "" if exact else f"timm's own crop differs (mode {mode!r}, crop_pct {config['crop_pct']:g})"
    return Preprocessing(
        size=(height, width), channels=channels, mean=mean, std=std, interpolation=interpolation, note=note
    )


def class_names_of(num_classes: int) -> dict[int, tuple[str, ...]]:
    """What 1000 outputs stand for: torchvision's names, if timm numbers the classes as they are numbered there."""
    if num_classes != 1000 or tuple(_timm().data.ImageNetInfo("imagenet-1k").label_names()) != imagenet_wnids():
        return {}
    return {1000: tuple(torchvision_models.find_weights("resnet50", None).meta["categories"])}


class _Timm(NamedSource):
    """``timm:NAME``, ``timm:NAME@TAG`` or timm's own spelling of it, ``timm:NAME.TAG``."""

    usage = "timm:NAME"
    prefix = "timm:"

    def parse(self, spec: str) -> tuple[str, str | None]:
        """The name with its prefix, and the tag of the weights where one is given."""
        name, which = super().parse(spec)
        if which is None:
            name, _, which = name.partition(".")
        return name, which or None

    def architecture(self, name: str) -> Architecture | None:
        """The model of this name."""
        if not name.startswith(self.prefix):
            return None
        plain = name.removeprefix(self.prefix)
        require_name(plain)
        return Architecture(name, "timm", partial(build_model, plain), preprocessing_of, class_names_of)

    def published(self, request: ModelRequest, architecture: Architecture, which: str | None) -> LoadedModel:
        """With the weights of this tag."""
        what, name = architecture.name, architecture.name.removeprefix(self.prefix)
        config = _published_config(name, which)
        count, tag = int(config.num_classes), config.tag or "default"
        require_published_classes(request, architecture, count)
        full_name = f"{name}.{config.tag}" if config.tag else name
        if request.headers_only:
            network = build_skeleton(lambda: _create(what, full_name, None))
            return finish(request.spec, architecture, network, count, weights=tag)
        if config.hf_hub_id:
            url = f"https://huggingface.co/{config.hf_hub_id}"
            file = _fetch_from_hub(what, str(config.hf_hub_id), config.hf_hub_filename, request.allow_download)
        else:
            url = str(config.url)
            file = fetch_published(url, f"{what}: weights {config.tag}", allow_download=request.allow_download)
        network = _create(what, full_name, read_cached(f"{what}: weights {tag}", file, url))
        return finish(request.spec, architecture, network, count, weights=tag, file=file)


TIMM = _Timm()
