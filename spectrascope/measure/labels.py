"""Labels in place of the data's: drawn from the model's own softmax, or the data's permuted.

With labels drawn from the model the true gradient is exactly zero, whatever the weights: what is then measured is what
sampling noise alone gives on this network and these inputs. Reference: SIGNAL section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectrascope.errors import OptionError
from spectrascope.losses import BinaryCrossEntropy, aligned, weighing_of
from spectrascope.records.signal import LabelSource
from spectrascope.workload import Inputs, SampleSource, Workload

__all__ = ["relabel"]

_BATCH = 64


@dataclass(frozen=True)
class RelabelledSamples(SampleSource):
    """The inputs of a source with other targets."""

    source: SampleSource
    targets: Tensor

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.source.n

    def fetch(self, start: int, stop: int) -> tuple[Inputs, Tensor]:
        """The source's inputs, these targets."""
        return self.source.fetch(start, stop)[0], self.targets[start:stop]

    def fetch_targets(self, start: int, stop: int) -> Tensor:
        """These targets."""
        return self.targets[start:stop]


def relabel(
    workload: Workload, labels: LabelSource, seed: int, progress: Callable[[float, int], None] | None = None
) -> Workload:
    """Replace the labels of a workload's samples.

    Args:
        workload: the model in eval mode.
        labels: ``data`` changes nothing, ``model`` draws from the model's softmax (or sigmoid), ``shuffled`` permutes.
        seed: of the draws.
        progress: called with (samples done, samples in all).

    Raises:
        OptionError: ``model`` with outputs or a loss from which no labels can be drawn.

    Cost: a forward pass over the batch for ``model``. Memory: the targets of all samples.
    """
    if labels is LabelSource.DATA:
        return workload
    n, generator = workload.source.n, torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, n, _BATCH):
        stop = min(start + _BATCH, n)
        if labels is LabelSource.MODEL:
            parts.append(_draw(workload, start, stop, generator))
            if progress is not None:
                progress(stop, n)
        else:
            parts.append(workload.source.fetch_targets(start, stop))
    targets = torch.cat(parts)
    if labels is LabelSource.SHUFFLED:
        targets = targets[torch.randperm(n, generator=generator)]
    return replace(workload, source=RelabelledSamples(workload.source, targets))


def _draw(workload: Workload, start: int, stop: int, generator: torch.Generator) -> Tensor:
    """Targets of a few samples as the model itself would give them."""
    inputs, targets = workload.fetch(start, stop)
    loss = workload.loss_fn
    with torch.no_grad():
        scores = workload.forward(inputs)
    if not isinstance(scores, Tensor):
        raise OptionError(f"--labels model draws from class scores; this network returns {type(scores).__name__}")
    scores, targets = scores.detach().cpu().double(), targets.detach().cpu().clone()
    if isinstance(loss, BinaryCrossEntropy):
        return (torch.rand(targets.shape, generator=generator) < scores.reshape(targets.shape).sigmoid()).to(targets)
    weighing = weighing_of(loss)
    plain = weighing is None or (weighing.weight is None and not weighing.label_smoothing)
    if targets.is_floating_point() or not plain:
        raise OptionError(
            "--labels model needs a loss of class labels without weights or smoothing: "
            f"{getattr(loss, 'label', 'this loss')} has no labels that a softmax could draw; try --labels shuffled"
        )
    found, labelled = aligned(scores, targets, loss)
    tokens_last = found.shape[:-1] == labelled.shape
    if not tokens_last and found.shape[:1] + found.shape[2:] == labelled.shape:
        found = found.movedim(1, -1)
    elif not tokens_last:
        raise OptionError(
            f"--labels model: scores {tuple(scores.shape)} and labels {tuple(targets.shape)} do not belong together"
        )
    if weighing is None or weighing.logs or found.shape[-1] < 2:
        raise OptionError("--labels model draws from a softmax over classes, which this loss and output have not")
    drawn = torch.multinomial(found.reshape(-1, found.shape[-1]).softmax(-1), 1, generator=generator)
    labelled.copy_(torch.where(labelled == weighing.ignore_index, labelled, drawn.view_as(labelled)))
    return targets  # ``labelled`` is a view of it
