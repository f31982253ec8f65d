"""Whose code raised: ours, or what the user named (a factory's network, loss or samples)."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_OURS = Path(__file__).parents[1]
_LIBRARIES = tuple({Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


def users_place(error: BaseException) -> str | None:
    """File, line and function of the user's own code that raised; ``None`` where it was ours or a library's.

    Asked is the innermost frame outside torch and other libraries. It is the user's where it is not ours and was called
    by what loads or measures: commands themselves call nobody's code.
    """
    caller: Path | None = None
    found: traceback.FrameSummary | None = None
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(_OURS):
            caller, found = path, None
        elif not frame.filename.startswith("<") and not any(path.is_relative_to(place) for place in _LIBRARIES):
            found = frame
    if found is None or caller is None or caller.is_relative_to(_OURS / "cli"):
        return None
    return f"{Path(found.filename).name}:{found.lineno} ({found.name})"
