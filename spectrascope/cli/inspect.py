"""``spectrascope inspect``: a dry run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from spectrascope.api.progress import follow_progress
from spectrascope.cli import options as o
from spectrascope.cli.garbage import no_collections
from spectrascope.cli.load import load_model, make_run, read_tensors, refuse_absent
from spectrascope.cli.measure import spell_command
from spectrascope.cli.output import emit
from spectrascope.cli.rerun import KeptWhole
from spectrascope.errors import DataError, LoadError, QuantizedError
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import ALL_SAMPLES, Missing

if TYPE_CHECKING:
    from spectrascope.loading.loaded import LoadedModel
    from spectrascope.records.inspection import Inspection
    from spectrascope.workload import Run


def inspect(
    context: typer.Context, target: o.Request, options: o.MeasurementOptions, kept: KeptWhole, result: o.Result
) -> None:
    """Say what probe would measure, with which engine and at what cost, without measuring.

    Of a checkpoint only names and shapes are read, wherever they tell what the network is. One sample is taken to
    be what the network says it reads; where it says nothing, as --dataset has it.
    """
    refuse_absent(target)
    with no_collections():
        found = _look_at(target, options.asked, command=spell_command(context), quiet=result.quiet)
        kept.keep(context, found)
        emit(found, result)


def _look_at(target: o.Request, options: ProbeOptions, *, command: str, quiet: bool) -> Inspection:
    with follow_progress(quiet=quiet) as on_progress:
        on_progress("import", 0, 1)
        from spectrascope.measure.inspect import inspect_headers, inspect_model

        on_progress("import", 1, 1)
        on_progress("load", 0, 1)
        try:
            loaded = load_model(target, options.seed, headers_only=True, dtype=options.dtype)
        except QuantizedError:  # known well enough: none of its weights would be measured
            raise
        except LoadError as error:
            tensors = read_tensors(target, headers_only=True)
            if tensors is None:
                raise
            content, info = tensors
            why = f"the network is not known: {error}"
            found = inspect_headers(content, why, options=options, model_info=info, command=command)
        else:
            run = _with_few_samples(target, options, loaded)
            if options.num_samples == ALL_SAMPLES:
                options = replace(options, num_samples=_count_all(target, loaded, run))
            found = inspect_model(
                loaded.model,
                run if isinstance(run, Missing) else run.source,
                None if isinstance(run, Missing) else run.loss_fn,
                None if isinstance(run, Missing) else run.scores,
                options=options,
                model_info=loaded.info,
                command=command,
                notes=loaded.notes if isinstance(run, Missing) or run.data_info.synthetic else run.notes,
                owned=loaded.owned,
            )
        on_progress("load", 1, 1)
        return found


def _count_all(target: o.Request, loaded: LoadedModel, run: Run | Missing) -> int:
    """How many samples there are: as the dataset says when three of them are read, ``ALL_SAMPLES`` where it cannot be.

    Raises:
        DataError: there is no end of them.
    """
    own = target.dataset is None and loaded.workload is not None
    if own and not isinstance(run, Missing):
        return run.source.n
    if target.dataset == "synthetic":
        make_run(target, ProbeOptions(num_samples=ALL_SAMPLES), loaded)  # which says why not
    try:
        found = make_run(replace(target, balanced=False), ProbeOptions(num_samples=3), loaded).data_info.n_available
    except DataError:  # not downloaded yet, say: the dry run goes on without
        return ALL_SAMPLES
    return ALL_SAMPLES if isinstance(found, Missing) else found


def _with_few_samples(target: o.Request, options: ProbeOptions, loaded: LoadedModel) -> Run | Missing:
    """Give the network a few samples of the right shape: noise wherever it says what it reads, else the dataset's own.

    A file of arrays may hold anything, so its own first samples are taken.
    """
    if loaded.workload is not None and target.dataset is None:
        return make_run(target, options, loaded)
    few = replace(options, num_samples=3)
    if (target.dataset or "").startswith(("npz:", "pt:")):
        return make_run(target, few, loaded)
    try:
        return make_run(replace(target, dataset="synthetic", balanced=False), few, loaded)
    except DataError as error:
        if target.dataset in (None, "synthetic"):
            return Missing(str(error))
        return make_run(replace(target, balanced=False), few, loaded)
