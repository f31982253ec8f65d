"""``spectrascope.gate``, ``compare``, ``suggest`` and ``trajectory``: what the commands say about reports, from Python.

Each takes reports, or paths of saved ones; then nothing is measured and torch is not needed. Where a network makes
sense it takes that too, as :func:`spectrascope.probe` does, and measures it first.
"""

from __future__ import annotations

import glob as globbing
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from spectrascope.advice.trajectory import MeasuredCheckpoint, build_trajectory
from spectrascope.api.results import (
    AdviceResult,
    ComparisonResult,
    FilePath,
    TrajectoryResult,
    VerdictResult,
    open_report,
    shown,
)
from spectrascope.api.spelling import in_python
from spectrascope.config import FROM_BASELINE, read_policy_table
from spectrascope.errors import OptionError, SpectrascopeError
from spectrascope.records.advice import ValidateOn
from spectrascope.records.report import Report
from spectrascope.records.values import Missing
from spectrascope.records.verdict import GatePolicy
from spectrascope.reports.read import is_saved_report
from spectrascope.reports.refit import refit
from spectrascope.text import file_name, listed

if TYPE_CHECKING:
    from spectrascope.api.inputs import Network
    from spectrascope.api.options import Globs
    from spectrascope.api.progress import Watch
    from spectrascope.workload import LossFunction

__all__ = ["compare", "gate", "suggest", "trajectory"]

Measured: TypeAlias = "Report | Network"
"""A report, the path of a saved one, or whatever :func:`spectrascope.probe` takes as its model."""


@in_python
def gate(
    model: Measured,
    baseline: Report | FilePath,
    batches: object = None,
    loss_fn: LossFunction | str | None = None,
    *,
    policy: GatePolicy | Mapping[str, Any] | FilePath | None = None,
    rules: Globs = (),
    layers: Globs = (),
    exclude: Globs = (),
    force: bool = False,
    on_progress: Watch = None,
    **options: Any,
) -> VerdictResult:
    """Hold a report or a network to a baseline: has curvature changed by more than the samples explain?

    Args:
        model: a report, the path of a saved one, or a network as for :func:`spectrascope.probe`, measured as the
            baseline was.
        baseline: the report to hold it to, or where it is saved.
        batches: samples for a network, as for :func:`spectrascope.probe`.
        loss_fn: its loss.
        policy: a TOML file of rules, its content as a mapping, or a policy; the default one when ``None``.
        rules: one more rule, such as ``"beta @ layer3.*: +-0.15"``, or several, that win over the policy's.
        layers: a glob on names of weights to judge, or several; all when empty.
        exclude: a glob on names to leave out, or several.
        force: compare reports that were made differently.
        on_progress: as for :func:`spectrascope.probe`.
        options: more of :func:`spectrascope.probe` for a network; what is left out is as the baseline has it.

    Returns:
        A :class:`spectrascope.records.verdict.Verdict` that shows itself; true where it passed. ``verdict.outcome`` is
        ``pass``, ``fail`` or ``inconclusive``.

    Raises:
        SpectrascopeError: one of its kinds, with a one-line message.
    """
    from spectrascope.gating.judgement import judge
    from spectrascope.gating.policy import add_rules

    wanted = add_rules(_policy(policy), list(listed(rules, "rules")))
    if layers or exclude:
        left_out = (*wanted.exclude, *listed(exclude, "exclude"))
        wanted = replace(wanted, layers=listed(layers, "layers") or wanted.layers, exclude=left_out)
    base = open_report(baseline)
    asked = {name: getattr(base.options, name) for name in FROM_BASELINE}
    report = _measured(model, batches, loss_fn, on_progress, asked, options)
    return shown(judge(report, base, wanted, force=force), VerdictResult)


def _policy(policy: GatePolicy | Mapping[str, Any] | FilePath | None) -> GatePolicy:
    from spectrascope.gating.policy import default_policy, policy_from_table

    if policy is None:
        return default_policy()
    if isinstance(policy, GatePolicy):
        return policy
    if isinstance(policy, Mapping):
        return policy_from_table(policy, "policy")
    return policy_from_table(read_policy_table(Path(policy)), str(policy))


@in_python
def compare(
    before: Report | FilePath,
    after: Report | FilePath,
    *,
    layers: Globs = (),
    exclude: Globs = (),
    numbers: Globs = (),
    precision: int = 4,
    unchanged: bool = False,
    top_k: int | None = None,
    min_rank: int | None = None,
) -> ComparisonResult:
    """List what changed between two reports, number by number, beside its standard error.

    Args:
        before: a report, or where one is saved.
        after: another one.
        layers: a glob on names of weights, or several; all when empty.
        exclude: a glob on names to leave out, or several.
        numbers: a glob on names of numbers as in JSON, or several; the usual ones when empty.
        precision: significant digits a change must show in.
        unchanged: list equal numbers too.
        top_k: fit both again up to this direction.
        min_rank: fit both again from this direction on.

    Returns:
        A :class:`spectrascope.records.comparison.Comparison` that shows itself.

    Raises:
        SpectrascopeError: one of its kinds, with a one-line message.
    """
    from spectrascope.gating.changes import compare as list_changes

    one, other = (refit(open_report(report), top_k=top_k, min_rank=min_rank) for report in (before, after))
    found = list_changes(
        one,
        other,
        layers=listed(layers, "layers"),
        exclude=listed(exclude, "exclude"),
        numbers=listed(numbers, "numbers"),
        precision=precision,
        unchanged=unchanged,
    )
    return shown(found, ComparisonResult)


@in_python
def suggest(
    model: Measured,
    batches: object = None,
    loss_fn: LossFunction | str | None = None,
    *,
    train_batch: int | None = None,
    momentum: float = 0.0,
    validate: bool = False,
    validate_on: ValidateOn | str = ValidateOn.HELD_OUT,
    run: FilePath | None = None,
    on_progress: Watch = None,
    **options: Any,
) -> AdviceResult:
    """Suggest an exponent of the step for each weight: 0 gradient descent, 1 Muon, 2 Newton, or between; or none.

    ``spectrascope.optim.parameter_groups(model, advice.parameters)`` makes an optimizer's groups of it.

    Args:
        model: a report, the path of a saved one, or a network as for :func:`spectrascope.probe`, measured first.
        batches: samples for a network, as for :func:`spectrascope.probe`.
        loss_fn: its loss.
        train_batch: samples per training step, for the damping; those of the report when ``None``.
        momentum: of training, 0 or more and below 1: with ``train_batch``, a step averages
            (1 + momentum) / (1 - momentum) batches.
        validate: measure a network on half of the samples, take the steps for real, and report the loss on the others.
        validate_on: whose loss is followed: ``held-out``, the other half, or ``measured``, the measured half itself.
        run: as for :func:`spectrascope.probe`; steps that are taken are taken again.
        on_progress: as for :func:`spectrascope.probe`.
        options: more of :func:`spectrascope.probe` for a network.

    Returns:
        A :class:`spectrascope.records.advice.Advice` that shows itself.

    Raises:
        SpectrascopeError: one of its kinds, with a one-line message.
    """
    from spectrascope.advice.advise import advise

    try:
        on = ValidateOn(validate_on)
    except ValueError as error:
        raise OptionError(
            f"validate_on {validate_on!r}: expected one of {', '.join(o.value for o in ValidateOn)}"
        ) from error
    if validate:
        if _is_report(model):
            raise OptionError("validate takes steps with the network: pass it instead of a report")
        from spectrascope.api.inputs import make_run
        from spectrascope.api.measuring import kept_in
        from spectrascope.api.progress import watched
        from spectrascope.measure.validate import advise_and_validate

        with watched(on_progress) as watch:
            asked = make_run("suggest", model, batches, loss_fn, watch, options)  # type: ignore[arg-type]
            advice = advise_and_validate(
                asked, train_batch=train_batch, momentum=momentum, on=on, division=kept_in(run)
            )
    elif on is not ValidateOn.HELD_OUT:
        raise OptionError("validate_on goes with validate=True")
    else:
        report = _measured(model, batches, loss_fn, on_progress, {}, _with_run(options, run))
        advice = advise(report, train_batch=train_batch, momentum=momentum)
    return shown(advice, AdviceResult)


@in_python
def trajectory(
    checkpoints: str | Sequence[Measured] | Mapping[str, Measured],
    batches: object = None,
    loss_fn: LossFunction | str | None = None,
    *,
    run: FilePath | None = None,
    on_progress: Watch = None,
    **options: Any,
) -> TrajectoryResult:
    """Follow what is signal over training, in the median and weight by weight.

    Args:
        checkpoints: reports, paths of saved ones, or networks as for :func:`spectrascope.probe`, in a list, or in a
            mapping from names; a string is a pattern of files, such as ``"run/*.json"``. They are put in order of the
            step that a report or a name says, as ``step-500``; else they stay as given.
        batches: samples for networks, as for :func:`spectrascope.probe`.
        loss_fn: their loss.
        run: a folder in which each network's measurement is kept as it goes, in a folder of its own; killed and called
            again, it goes on.
        on_progress: as for :func:`spectrascope.probe`.
        options: more of :func:`spectrascope.probe` for networks.

    Returns:
        A :class:`spectrascope.records.trajectory.Trajectory` that shows itself, with ``plot()`` and ``to_html()``.
        A checkpoint that cannot be measured keeps its place, with the reason.

    Raises:
        SpectrascopeError: none has a report, or an option that is wrong for all.
    """
    found = []
    for label, item in _named(checkpoints):
        try:
            own = _with_run(options, None if run is None or _is_report(item) else Path(run) / file_name(label))
            report: Report | Missing = _measured(item, batches, loss_fn, on_progress, {}, own)
        except OptionError:
            raise  # wrong for one is wrong for all
        except SpectrascopeError as error:
            report = Missing(" ".join(str(error).split()))
        found.append(MeasuredCheckpoint(label, report))
    return shown(build_trajectory(found), TrajectoryResult)


def _named(checkpoints: str | Sequence[Measured] | Mapping[str, Measured]) -> list[tuple[str, Any]]:
    if isinstance(checkpoints, Mapping):
        return [(str(name), item) for name, item in checkpoints.items()]
    if isinstance(checkpoints, (str, os.PathLike)):
        paths = sorted(globbing.glob(os.fspath(checkpoints), recursive=True))
        if not paths:
            raise OptionError(f"trajectory: {os.fspath(checkpoints)!r} finds no file or folder here")
        checkpoints = paths
    whole = [
        os.fspath(item) if isinstance(item, (str, os.PathLike)) else str(i) for i, item in enumerate(checkpoints, 1)
    ]
    short = [Path(name).name for name in whole]
    names = short if len(set(short)) == len(short) else whole
    return [(name.removesuffix(".json"), item) for name, item in zip(names, checkpoints, strict=True)]


def _is_report(model: object) -> bool:
    named = isinstance(model, (str, os.PathLike))
    return isinstance(model, Report) or (named and is_saved_report(os.fspath(model)))  # type: ignore[call-overload]


def _with_run(options: Mapping[str, Any], run: FilePath | None) -> dict[str, Any]:
    return {**options, **({} if run is None else {"run": run})}


def _measured(
    model: Measured,
    batches: object,
    loss_fn: LossFunction | str | None,
    on_progress: Watch,
    asked: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Report:
    if _is_report(model):
        if batches is not None or loss_fn is not None or options:
            given = ", ".join([*["batches"] * (batches is not None), *["loss_fn"] * (loss_fn is not None), *options])
            raise OptionError(f"{given}: no effect on a report, nothing is measured")
        return open_report(model)  # type: ignore[arg-type]
    from spectrascope.api.measuring import probe

    return probe(model, batches, loss_fn, on_progress=on_progress, **{**asked, **options})  # type: ignore[arg-type]
