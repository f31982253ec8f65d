"""``[tool.spectrascope]`` of a project's pyproject.toml: defaults of options, and the policy of its gate.

The file may come with code of others, so what it can say is limited to numbers, names and places of data: nothing in
it makes spectrascope run Python, trust remote code or reach for the network.
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from spectrascope.errors import OptionError, PolicyError
from spectrascope.records.report import WHERE_IT_FITS, ProbeOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["FROM_BASELINE", "OPTIONS", "Configuration", "find_configuration", "read_policy_table"]

OPTIONS = (
    "num-classes", "dataset", "data-root", "image-size", "resize", "mean", "std", "block-size", "balanced", "skip-bad",
    "loss", "label-smoothing", *(item.name.replace("_", "-") for item in fields(ProbeOptions)),
)  # fmt: skip
"""Options whose defaults a project may set, as on the command line without the dashes."""

FROM_BASELINE = {item.name for item in fields(ProbeOptions)} - {"device", "micro_batch", "self_check", *WHERE_IT_FITS}
"""What a gate measures as its baseline did, rather than as the project would; where and how is its own."""

_FILE = "pyproject.toml"
_WITH_PLACES = ("folder", "text", "npz", "pt", "imagenet", "tiny-imagenet")


@dataclass(frozen=True, slots=True)
class Configuration:
    """Defaults of options, and the gate's policy and baseline, as a project sets them.

    ``path`` is the file, ``None`` where there is none. ``options`` holds defaults by option name (``top-k``);
    ``baseline`` is the gate's baseline; ``policy`` the rest of the gate's table. Places are resolved against the
    file's folder.
    """

    path: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    baseline: Path | None = None
    policy: dict[str, Any] | None = None


def find_configuration(folder: Path) -> Configuration:
    """Read the nearest ``pyproject.toml`` with a ``[tool.spectrascope]`` table, from a folder upward.

    Raises:
        OptionError: that file is no TOML, or has an unknown key or a value of the wrong kind.
    """
    for place in (folder, *folder.parents):
        path = place / _FILE
        if not path.is_file():
            continue
        table = _inside(_read(path), "tool").get("spectrascope")
        if table is not None:
            return _parse(path, table)
    return Configuration()


def read_policy_table(path: Path) -> dict[str, Any]:
    """Read a policy file: a TOML table of policy keys, or a pyproject.toml with ``[tool.spectrascope.gate]``.

    Raises:
        PolicyError: no such file, unreadable, or not TOML.
    """
    try:
        document = _read(path)
    except OptionError as error:
        raise PolicyError(str(error)) from None
    gate: Any = document
    if "tool" in document:
        gate = _inside(_inside(document, "tool"), "spectrascope").get("gate")
    if not isinstance(gate, dict):
        raise PolicyError(f"{path}: no [tool.spectrascope.gate] table in it, expected one or keys such as rules = […]")
    return {key: value for key, value in gate.items() if key != "baseline"}


def _inside(table: dict[str, Any], name: str) -> dict[str, Any]:
    """A table within another; an empty one where something else has its name, as in a file of another tool."""
    inner = table.get(name)
    return inner if isinstance(inner, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return document
    except FileNotFoundError:
        raise OptionError(f"{path}: no such file") from None
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{path}: not TOML (not UTF-8 text)") from error
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"{path}: not TOML: {error}") from error


def _parse(path: Path, table: Any) -> Configuration:
    if not isinstance(table, dict):
        raise OptionError(f"{path}: tool.spectrascope must be a table, found {table!r}")
    options = {key: value for key, value in table.items() if key != "gate"}
    for key, value in options.items():
        if key not in OPTIONS:
            close = difflib.get_close_matches(key, (*OPTIONS, "gate"), n=1)
            hint = f"did you mean {close[0]}?" if close else "give it on the command line"
            raise OptionError(f"{path}: tool.spectrascope cannot set {key!r}; {hint}")
        _require_kind(path, key, value)
    gate = table.get("gate")
    if gate is not None and not isinstance(gate, dict):
        raise OptionError(f"{path}: tool.spectrascope.gate must be a table, found {gate!r}")
    return Configuration(
        path=path,
        options={key: _place(path.parent, key, value) for key, value in options.items()},
        baseline=_baseline(path, gate or {}),
        policy=None if gate is None else {key: value for key, value in gate.items() if key != "baseline"},
    )


def _require_kind(path: Path, key: str, value: Any) -> None:
    listed = key in ("layers", "exclude")
    if listed and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise OptionError(f"{path}: {key} must be a list of strings, found {value!r}")
    if not listed and not isinstance(value, (str, int, float)):
        raise OptionError(f"{path}: {key} must be a single value, found {value!r}")


def _place(folder: Path, key: str, value: Any) -> Any:
    """Resolve paths against the file's folder, wherever the command is run."""
    if key == "data-root":
        return str(folder / str(value))
    kind, colon, place = str(value).partition(":")
    if key == "dataset" and colon and place and kind in _WITH_PLACES:
        return f"{kind}:{folder / Path(place).expanduser()}"
    return value


def _baseline(path: Path, gate: dict[str, Any]) -> Path | None:
    value = gate.get("baseline")
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise OptionError(f"{path}: baseline must be the name of a report, found {value!r}")
    return path.parent / value
