"""The command line: parse, call, render, exit.

``main`` is the only place that turns errors into exit codes: 0 fine, 1 the gate failed, 2 usage, 3 could not measure or
the gate is inconclusive, 70 a bug in spectrascope, 130 interrupted, 141 nobody reads the output any more.
"""

from __future__ import annotations

from spectrascope.cli.entry import main

__all__ = ["main"]
