"""The one family of errors spectrascope raises on purpose.

Every message is one line that says what went wrong, what was expected, what was found and what to try.
Only ``spectrascope.cli`` catches these; it prints the message and exits with ``exit_code``.
"""

from __future__ import annotations

__all__ = [
    "DataError",
    "LoadError",
    "NonFiniteError",
    "NondeterministicError",
    "OptionError",
    "PolicyError",
    "QuantizedError",
    "ReportFormatError",
    "SelfCheckError",
    "SpectrascopeError",
    "UnsupportedModelError",
]


class SpectrascopeError(Exception):
    """Something could not be measured; the message says what, why and what to try."""

    exit_code: int = 3


class OptionError(SpectrascopeError):
    """An option has a value that cannot be used (unknown name, out of range, no such device)."""

    exit_code = 2


class LoadError(SpectrascopeError):
    """A model or checkpoint could not be loaded."""


class QuantizedError(LoadError):
    """The checkpoint's weights are quantised, so that no loss can be differentiated through them."""


class DataError(SpectrascopeError):
    """A dataset could not be found, read or matched to the model."""


class UnsupportedModelError(SpectrascopeError):
    """The model cannot be measured by the engine that was asked for."""


class NondeterministicError(SpectrascopeError):
    """Two identical passes over the same batch gave different losses."""


class NonFiniteError(SpectrascopeError):
    """Weights, loss, gradient or curvature contain NaN or infinity."""


class SelfCheckError(SpectrascopeError):
    """The fast engine disagrees with plain double backprop on the pairs compared in this run."""


class ReportFormatError(SpectrascopeError):
    """A file is not a spectrascope report, or has a schema version this release cannot read."""


class PolicyError(SpectrascopeError):
    """A gate policy is malformed."""

    exit_code = 2
