"""What ``inspect`` does: read names and shapes, and say what would be measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spectrascope.cli.groups import Request
from spectrascope.cli.load import load_data, load_model, loss_of, own_subject, read_tensors
from spectrascope.cli.progress import follow_progress
from spectrascope.errors import DataError, LoadError, QuantizedError
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import Missing

if TYPE_CHECKING:
    from spectrascope.loading.loaded import LoadedModel
    from spectrascope.records.inspection import Inspection
    from spectrascope.workload import LossFunction, SampleSource

__all__ = ["look_at"]


def look_at(target: Request, options: ProbeOptions, *, command: str, quiet: bool) -> Inspection:
    """Read names and shapes, and say what would be measured.

    Raises:
        SpectrascopeError: something cannot be read.
    """
    with follow_progress(quiet=quiet) as on_progress:
        on_progress("import", 0, 1)
        from spectrascope.measure.inspect import inspect_headers, inspect_model

        on_progress("import", 1, 1)
        on_progress("load", 0, 1)
        try:
            loaded = load_model(target, options, headers_only=True)
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
            source, loss_fn, notes = _shapes(target, options, loaded)
            found = inspect_model(
                loaded.model,
                source,
                loss_fn,
                options=options,
                model_info=loaded.info,
                command=command,
                notes=loaded.notes + notes,
            )
        on_progress("load", 1, 1)
        return found


def _shapes(
    target: Request, options: ProbeOptions, loaded: LoadedModel
) -> tuple[SampleSource | Missing, LossFunction, tuple[str, ...]]:
    """A few samples of the right shape: noise wherever the network says what it reads, else the dataset's own.

    A file of arrays may hold anything, so its own first samples are taken.
    """
    if loaded.workload is not None and target.dataset is None:
        own = own_subject(target, options, loaded, loaded.workload)
        return own.source, own.loss_fn, ()
    loss_fn = loss_of(target, loaded)
    few = replace(options, num_samples=3)
    try:
        named = (target.dataset or "").startswith(("npz:", "pt:"))
        data = load_data(target if named else replace(target, dataset="synthetic", balanced=False), few, loaded)
    except DataError as error:
        if named:
            raise
        if target.dataset in (None, "synthetic"):
            return Missing(str(error)), loss_fn, ()
        data = load_data(replace(target, balanced=False), few, loaded)
    return data.source, loss_fn, () if data.info.synthetic else data.notes
