"""Whatever is written as an option, a rule, a policy or a report: success, or one line with a documented exit code.

By default a few hundred; ``pytest -m slow tests/cli/test_grammar_fuzz.py`` takes thousands.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spectrascope.cli import main
from spectrascope.cli.app import app
from spectrascope.config import find_configuration, read_policy_table
from spectrascope.errors import OptionError, PolicyError, ReportFormatError, SpectrascopeError
from spectrascope.gating.grammar import parse_rule
from spectrascope.gating.policy import POLICY_KEYS, policy_from_table
from spectrascope.records.report import Report
from spectrascope.reports.json import report_from_json, report_to_json
from spectrascope.reports.render import Format, render
from tests.support.made_up_reports import decomposed_report, mixed_report

_QUICK = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]
FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=_QUICK)
MANY = settings(max_examples=2000, deadline=None, suppress_health_check=_QUICK, database=None)


def _one_line(error: SpectrascopeError) -> None:
    assert str(error)
    assert "\n" not in str(error)
    assert error.exit_code in (2, 3)


# --- options ---

_WORDS = [
    "", "-1", "0", "1", "1e999", "nan", "inf", "9" * 5000, "١٢", "²", "auto", "all", "a,b", "0.5,0.5,0.5", ",",
    "folder:", "folder:.", "npz:", "text:nothing", "hf:a/b", "::", "x::y", "cuda:99", "cuda:", "*", "[", "0.*",
    "β", "\udcff", "\x1b[31m", "a\nb", "float64", "json", "csv", "latex", "true", "none", "None", "-", "--",
    "=", "0x10", "1_000", "+5", "1e3", "💥", "x" * 3000, "{}", "beta: +-0.1", "beta", "held-out", "momentum",
    "model", "published", "name",
]  # fmt: skip
# Nothing is measured, downloaded, or written but into the folder that a test runs in.
_ENDS = ("missing.pt", "report.json", "other.json")
_LOOKED_AT = {"weights", "inspect"}  # commands that are quick with a network too
_COMMANDS = {
    name: [p for p in command.params if p.param_type_name == "option" and p.name not in ("help", "download")]
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
}
_SAFE = st.text(st.characters(blacklist_characters="/~\x00", blacklist_categories=()), max_size=12)


@st.composite
def _arguments(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(sorted(_COMMANDS)))
    ends = ("digits-cnn@final", *_ENDS) if command in _LOOKED_AT else _ENDS
    argv = [command, *draw(st.lists(st.sampled_from(ends), min_size=1, max_size=1 if command in _LOOKED_AT else 3))]
    for option in draw(st.lists(st.sampled_from(_COMMANDS[command]), max_size=4)) if _COMMANDS[command] else ():
        name = draw(st.sampled_from([*option.opts, *option.secondary_opts]))
        value = draw(st.one_of(st.sampled_from(_WORDS), _SAFE, st.integers().map(str), st.floats().map(str)))
        argv += [name] if getattr(option, "is_flag", False) else [name, value]
    return argv


def _run(argv: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder) if hasattr(contextlib, "chdir") else _in(folder),
    ):
        Path("report.json").write_text(_DOCUMENT)
        Path("other.json").write_text(_DECOMPOSED)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(argv)
    lines = [line for line in err.getvalue().splitlines() if not line.startswith(("spectrascope: ", "warning: "))]
    assert code in (0, 1, 2, 3), (argv, code, lines)
    assert len(lines) <= 1, (argv, lines)
    assert all(line.startswith(("error: ", "wrote ")) for line in lines) or argv[0] == "gate", (argv, lines)


@contextlib.contextmanager
def _in(folder: str) -> Any:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _test_options(argv: list[str]) -> None:
    _run(argv)


test_options = FEW(given(_arguments())(_test_options))
test_options_all = pytest.mark.slow(MANY(given(_arguments())(_test_options)))


# --- rules ---

_NUMBERS = st.sampled_from([
    "beta", "alpha_g", "h[1]", "pr_h", "summary.beta_median", "loss", "rank_model", "bta", "", "h[0]", "h[-1]",
    "h[99999999999999999999]", "held_out.beta", "beta.r2", "summary.", "[", "σ",
])  # fmt: skip
_LIMITS = st.one_of(
    st.sampled_from([
        "+-0.1", "noise", "-noise", "same", "any", "min 0.9", "max -2.5", "3 stderr", "+20%", "or", "and", "1e999",
        "+-nan", "%", "+-1e999", "min -1e999",
    ]),
    st.floats().map(lambda x: f"+-{x}"),
    st.text(max_size=8),
)  # fmt: skip


@st.composite
def _rules(draw: st.DrawFn) -> str:
    number, limits = draw(_NUMBERS), draw(st.lists(_LIMITS, min_size=1, max_size=3))
    glob = draw(st.sampled_from(["", " @ layer3.*", " @", "@*", " @ [", " @ a:b", " @ (informational)"]))
    words = draw(st.sampled_from([" or ", " and ", "  ", "\n"])).join(limits)
    return (
        number
        + glob
        + draw(st.sampled_from([":", ": ", "", " : "]))
        + words
        + draw(st.sampled_from(["", " (informational)"]))
    )


def _test_rules(text: str) -> None:
    try:
        rule = parse_rule(text)
    except PolicyError as error:
        _one_line(error)
    else:
        assert parse_rule(rule.text) == rule


_RULES = st.one_of(_rules(), st.text(max_size=40))
test_rules = FEW(given(_RULES)(_test_rules))
test_rules_all = pytest.mark.slow(MANY(given(_RULES)(_test_rules)))


# --- policies and project files ---

_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), _rules()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)
_POLICIES = st.dictionaries(st.one_of(st.sampled_from(POLICY_KEYS), st.text(max_size=8)), _VALUES, max_size=4)


def _test_policies(table: dict[str, Any]) -> None:
    try:
        policy_from_table(table, "p.toml")
    except PolicyError as error:
        _one_line(error)


test_policies = FEW(given(_POLICIES)(_test_policies))
test_policies_all = pytest.mark.slow(MANY(given(_POLICIES)(_test_policies)))

_LINES = st.lists(
    st.one_of(
        st.sampled_from([
            "[tool]", "[tool.spectrascope]", "[tool.spectrascope.gate]", "[[tool]]", "[[tool.spectrascope]]",
            "tool = 3", "tool.spectrascope = []", "spectrascope = 1", "gate = 1", "top-k = 3", "top-k = []",
            "layers = ['a', 1]", "dataset = 'folder:x'", "mean = [0.5]", "rules = ['beta: any']",
            "rules = 'beta'", "baseline = 3", "baseline = ''", "false-alarms = nan", "dataset = 2020-01-01",
            "data-root = {}", "x = " + "[" * 500,
        ]),
        st.text(max_size=12),
    ),
    max_size=5,
)  # fmt: skip


def _test_project_files(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pyproject.toml"
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        for read in (lambda: find_configuration(Path(folder)), lambda: policy_from_table(read_policy_table(path), "p")):
            try:
                read()
            except (OptionError, PolicyError) as error:
                _one_line(error)


test_project_files = FEW(given(_LINES)(_test_project_files))
test_project_files_all = pytest.mark.slow(MANY(given(_LINES)(_test_project_files)))


# --- reports ---

_DOCUMENT, _DECOMPOSED = report_to_json(mixed_report()), report_to_json(decomposed_report())
_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
    st.sampled_from([
        [], {}, "", 0, -1, 1e308, 2**70, [[]], {"missing": "why"}, {"missing": 3}, [1, 2], "beta", "\x1b[31m", "\udcff",
    ]),
)  # fmt: skip


@st.composite
def _documents(draw: st.DrawFn) -> str:
    document = json.loads(draw(st.sampled_from([_DOCUMENT, _DECOMPOSED])))
    for _ in range(draw(st.integers(1, 3))):
        holder: Any = document
        for _ in range(draw(st.integers(0, 7))):
            inner = holder[key] if (key := _pick(draw, holder)) is not None else None
            if not isinstance(inner, (dict, list)) or not inner:
                break
            holder = inner
        key = _pick(draw, holder)
        if key is None:
            continue
        how = draw(st.sampled_from(["other", "other", "gone", "twin"]))
        if how == "gone":
            del holder[key]
        elif how == "twin":
            twin = copy.deepcopy(holder[key])
            holder.append(twin) if isinstance(holder, list) else holder.__setitem__(f"{key}x", twin)
        else:
            holder[key] = draw(_LEAVES)
    return json.dumps(document)


def _pick(draw: st.DrawFn, holder: Any) -> Any:
    if not holder:
        return None
    return draw(st.sampled_from(sorted(holder))) if isinstance(holder, dict) else draw(st.integers(0, len(holder) - 1))


def _test_reports(text: str) -> None:
    try:
        report = report_from_json(text)
    except ReportFormatError as error:
        _one_line(error)
        return
    assert isinstance(report, Report)
    for form in Format:
        try:
            render(report, form, width=80)
        except SpectrascopeError as error:
            _one_line(error)


test_reports = FEW(given(_documents())(_test_reports))
test_reports_all = pytest.mark.slow(MANY(given(_documents())(_test_reports)))


@pytest.mark.parametrize(
    "text", ["", "[", "[" * 100_000, "NaN", '{"schema_version": ' + "9" * 5000 + "}", '"x"', "\ufeff{}", "{} {}"]
)
def test_texts_that_are_no_reports(text: str) -> None:
    with pytest.raises(ReportFormatError) as caught:
        report_from_json(text)
    _one_line(caught.value)
