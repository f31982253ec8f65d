"""Words and names that every room writes alike."""

from __future__ import annotations

from fnmatch import fnmatchcase

__all__ = ["matches"]


def matches(pattern: str, name: str) -> bool:
    """Say whether a name is the pattern itself or matches it as a shell-style glob.

    Names of weights carry brackets that a glob reads as a set of characters, so a name always matches itself.

    >>> matches("a.in_proj_weight[q]", "a.in_proj_weight[q]"), matches("a.*", "a.bias"), matches("b.*", "a.bias")
    (True, True, False)
    """
    return name == pattern or fnmatchcase(name, pattern)
