"""No test asserts seconds: on a busy machine a right program fails such a test, and no one believes the next failure.

Count what makes work slow instead, with ``tests/support/counting.py``: functions called, bytes read, parameters made.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
FILES = sorted(ROOT.rglob("*.py"))
CLOCKS = {
    "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time",
    "process_time_ns", "thread_time", "default_timer", "ru_utime", "ru_stime",
}  # fmt: skip
IN_TEXT = ("perf_counter(", "process_time(", "monotonic(", "time.time(", "ru_utime", "performance.now")


def reads_a_clock(node: ast.AST, timed: set[str]) -> bool:
    """Whether an expression calls a clock, or names what was computed from one."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in timed:
            return True
        if isinstance(part, ast.Attribute) and part.attr in CLOCKS and part.attr.startswith("ru_"):
            return True
        if isinstance(part, ast.Call):
            called = part.func
            if (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) in CLOCKS:
                return True
    return False


def timed_names(tree: ast.AST) -> set[str]:
    """Names bound to a clock's value, or to something computed from one."""
    timed: set[str] = set()
    bindings = [
        (node.targets if isinstance(node, ast.Assign) else [node.target], node.value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr)) and node.value is not None
    ]
    while True:
        found = {
            part.id
            for targets, value in bindings
            if reads_a_clock(value, timed)
            for target in targets
            for part in ast.walk(target)
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
        }
        if found <= timed:
            return timed
        timed |= found


def seconds_asserted(text: str) -> list[int]:
    """Lines on which a test compares seconds, or gives a clock to a process that it starts."""
    tree, lines = ast.parse(text), set()
    for scope in tree.body:  # a name means one thing within a function
        timed = timed_names(scope)
        for node in ast.walk(scope):
            if isinstance(node, ast.Assert) and any(
                isinstance(part, ast.Compare) and reads_a_clock(part, timed) for part in ast.walk(node.test)
            ):
                lines.add(node.lineno)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines |= {node.lineno for clock in IN_TEXT if clock in node.value}
    return sorted(lines)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_no_test_asserts_seconds(path: Path) -> None:
    if path.name != Path(__file__).name:
        assert not seconds_asserted(path.read_text()), (
            f"{path.relative_to(ROOT)} asserts seconds on these lines; count what makes the work slow instead, "
            "with tests/support/counting.py"
        )


@pytest.mark.parametrize(
    "text",
    [
        "def test():\n    began = time.monotonic()\n    assert time.monotonic() - began < 3",
        "def test():\n    a = perf_counter()\n    work()\n    spent = perf_counter() - a\n    assert spent < 3",
        "def test():\n    a = getrusage().ru_utime\n    assert 0 < a < 3",
        "CODE = 'import time; print(time.process_time())'",
    ],
)
def test_seconds_are_seen(text: str) -> None:
    assert seconds_asserted(text)


def test_waiting_for_something_is_no_assertion() -> None:
    text = "def test():\n    until = monotonic() + 60\n    while monotonic() < until:\n        assert whole() == 3"
    assert not seconds_asserted(text)
