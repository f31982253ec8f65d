"""``spectrascope gate``: hold a network or a saved report to a baseline."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectrascope.cli import options as o
from spectrascope.cli.measure import measure
from spectrascope.cli.output import emit, tell
from spectrascope.cli.parsers import parse_output, require_ending
from spectrascope.cli.rerun import Kept
from spectrascope.cli.saved import given_options, require_meaningful
from spectrascope.config import FROM_BASELINE, find_configuration, read_policy_table
from spectrascope.errors import OptionError
from spectrascope.records.report import ProbeOptions, Report
from spectrascope.reports.read import is_saved_report, read_report
from spectrascope.reports.refit import refit
from spectrascope.reports.render import Format, render
from spectrascope.reports.write import write_text_atomically

if TYPE_CHECKING:
    from spectrascope.records.verdict import GatePolicy, Verdict

_option = partial(typer.Option, rich_help_panel="Gate")

_OF_A_SAVED_REPORT = {"model", "top_k", "min_rank", "layers", "exclude", "format", "json", "output", "quiet"} | {
    "html", "baseline", "policy", "rule", "force", "all", "junit", "markdown",
}  # fmt: skip

_ModelOrReport = Annotated[
    str,
    typer.Argument(
        metavar="REPORT.json|MODEL",
        help="A saved report, or a network as for probe, measured as the baseline was.",
    ),
]


def gate(
    context: typer.Context,
    model: _ModelOrReport,
    target: o.Request,
    options: o.FitOptions,
    kept: Kept,
    result: o.Result,
    baseline: Annotated[Path | None, _option(metavar="BASE.json", help="The report to hold it to.")] = None,
    policy: Annotated[
        Path | None,
        _option(
            metavar="FILE.toml",
            help="Rules; without it [tool.spectrascope.gate] of pyproject.toml, else the default policy.",
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        _option(
            metavar="RULE",
            help="One more rule, such as 'beta @ layer3.*: +-0.15', that wins over the policy's; may be repeated.",
        ),
    ] = None,
    force: Annotated[bool, _option("--force", help="Compare reports that were made differently.")] = False,
    all: Annotated[bool, _option("--all", help="List checks that passed too.")] = False,
    junit: Annotated[
        Path | None, _option(metavar="FILE", parser=parse_output, help="Write the verdict as JUnit XML here.")
    ] = None,
    markdown: Annotated[
        Path | None, _option(metavar="FILE", parser=parse_output, help="Write it as Markdown here (CI summary).")
    ] = None,
    save_report: Annotated[
        Path | None,
        _option(
            metavar="FILE",
            parser=parse_output,
            help="Write the report of the network measured here: the next baseline.",
        ),
    ] = None,
) -> None:
    """Fail where curvature has changed against a baseline: exit code 0 pass, 1 fail, 3 inconclusive.

    The default policy lets pass what the samples explain. JSON and CSV hold every check.
    """
    # Policy and baseline are read first: a slip in them costs no measurement.
    for path, what, ending in (
        (junit, "JUnit XML", ".xml"), (markdown, "Markdown", ".md"), (save_report, "a report", ".json"),
    ):  # fmt: skip
        require_ending(path, what, ending)
    given, asked = given_options(context), options.asked
    rules = _look_at(_read_policy(policy, rule or []), asked, given)
    base = _read_baseline(baseline)
    if is_saved_report(model):
        require_meaningful(given, _OF_A_SAVED_REPORT, model)
        report = read_report(Path(model))
    else:
        report = measure(target, _as_baseline(base.options, asked, given), context, quiet=result.quiet, kept=kept)
        if save_report is not None:
            _save(report, save_report)
    if given & {"top_k", "min_rank"}:
        top_k = asked.top_k if "top_k" in given else None
        min_rank = asked.min_rank if "min_rank" in given else None
        report, base = (refit(item, top_k=top_k, min_rank=min_rank) for item in (report, base))
    from spectrascope.gating.judgement import judge

    verdict = judge(report, base, rules, force=force)
    kept.keep(context, verdict)
    _write_copies(verdict, junit=junit, markdown=markdown, every=all)
    emit(verdict, result, every=all)
    tell((f"wrote {path}" for path in (junit, markdown, save_report) if path is not None), quiet=result.quiet)
    raise typer.Exit(verdict.outcome.exit_code)


def _read_policy(path: Path | None, rules: list[str]) -> GatePolicy:
    from spectrascope.gating.policy import add_rules, default_policy, policy_from_table

    if path is not None:
        policy = policy_from_table(read_policy_table(path), str(path))
    else:
        project = find_configuration(Path.cwd())
        found = project.policy is not None
        policy = policy_from_table(project.policy or {}, str(project.path)) if found else default_policy()
    return add_rules(policy, rules)


def _look_at(policy: GatePolicy, options: ProbeOptions, given: set[str]) -> GatePolicy:
    """Turn the policy to the layers that the command line names."""
    layers = options.layers if "layers" in given else policy.layers
    exclude = (*policy.exclude, *options.exclude) if "exclude" in given else policy.exclude
    return replace(policy, layers=layers, exclude=exclude)


def _read_baseline(path: Path | None) -> Report:
    path = path or find_configuration(Path.cwd()).baseline
    if path is None:
        raise OptionError(
            "no baseline: pass --baseline BASE.json, a report that `spectrascope probe … --json -o BASE.json` wrote, "
            "or name one as baseline in [tool.spectrascope.gate] of pyproject.toml"
        )
    return read_report(path)


def _as_baseline(baseline: ProbeOptions, wanted: ProbeOptions, given: set[str]) -> ProbeOptions:
    """Measure as the baseline was measured, but for what the command line says."""
    return replace(wanted, **{name: getattr(baseline, name) for name in FROM_BASELINE - given})


def _save(report: Report, path: Path) -> None:
    from spectrascope.reports.json import report_to_json

    write_text_atomically(path, report_to_json(report) + "\n")


def _write_copies(verdict: Verdict, *, junit: Path | None, markdown: Path | None, every: bool) -> None:
    if junit is not None:
        from spectrascope.reports.junit import verdict_to_junit

        write_text_atomically(junit, verdict_to_junit(verdict) + "\n")
    if markdown is not None:
        text = render(verdict, Format.MARKDOWN, every=every)
        write_text_atomically(markdown, f"{text}\n")
