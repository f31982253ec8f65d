"""Optimizers that treat each singular direction of a gradient by its own curvature.

``SpectralNewton`` is a ``torch.optim.Optimizer``; ``parameter_groups`` makes its groups from what ``spectrascope
suggest-beta`` recommends; ``apply_transfer`` is the matrix function underneath.
"""

from __future__ import annotations

from spectrascope.optim.groups import parameter_groups
from spectrascope.optim.matrix_transfer import Precision, Route, apply_transfer
from spectrascope.optim.spectral_newton import SpectralNewton

__all__ = ["Precision", "Route", "SpectralNewton", "apply_transfer", "parameter_groups"]
