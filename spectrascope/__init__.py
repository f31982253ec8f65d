"""Spectral diagnostics of neural-network loss landscapes.

``spectrascope.probe(model, batches, loss_fn)`` measures how the loss curves along each weight's gradient singular
directions and returns a :class:`Report`, which shows itself in a notebook and has ``to_frame()``, ``plot()``,
``to_html()``, ``save()`` and ``report["name.weight"]``. ``decompose`` does the same and says why each beta is what it
is; ``weights`` fits tails to the weights' spectra; ``inspect`` says what would be measured.

``load`` reads a saved report; ``gate``, ``compare``, ``suggest`` and ``trajectory`` say what follows from reports. All
take objects in memory, or paths and names as the command line does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "Report",
    "__version__",
    "compare",
    "decompose",
    "gate",
    "inspect",
    "load",
    "probe",
    "suggest",
    "trajectory",
    "weights",
]

if TYPE_CHECKING:
    from spectrascope.api.judging import compare, gate, suggest, trajectory
    from spectrascope.api.looking import inspect, weights
    from spectrascope.api.measuring import decompose, probe
    from spectrascope.api.results import ProbeReport as Report
    from spectrascope.api.results import load

    __version__: str

_PLACES = {
    "api.judging": ("compare", "gate", "suggest", "trajectory"),
    "api.looking": ("inspect", "weights"),
    "api.measuring": ("decompose", "probe"),
    "api.results": ("load",),
}


def __getattr__(name: str) -> Any:  # torch is imported only when a measurement is asked for
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import version

        return version("spectrascope")
    if name == "Report":
        return import_module("spectrascope.api.results").ProbeReport
    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"spectrascope.{place}"), name)
    raise AttributeError(f"module 'spectrascope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
