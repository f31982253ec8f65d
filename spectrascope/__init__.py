"""Spectral diagnostics of neural-network loss landscapes.

``spectrascope.probe(model, batches, loss_fn)`` measures how the loss curves along each weight's gradient
singular directions and returns a :class:`spectrascope.records.report.Report`; ``spectrascope.decompose``
does the same and says why each beta is what it is; ``spectrascope.weights(model)`` fits tails to the weights' spectra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Report", "__version__", "decompose", "probe", "weights"]

if TYPE_CHECKING:
    from spectrascope.api import decompose, probe, weights
    from spectrascope.records.report import Report

    __version__: str


def __getattr__(name: str) -> Any:  # torch is imported only when a measurement is asked for
    if name in ("decompose", "probe", "weights"):
        from spectrascope import api

        return getattr(api, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("spectrascope")
    if name == "Report":
        from spectrascope.records.report import Report

        return Report
    raise AttributeError(f"module 'spectrascope' has no attribute {name!r}")
