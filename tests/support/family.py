"""What a family of networks is in the catalogue of :mod:`tests.support.families`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectrascope.losses import CausalLM, CrossEntropy, MaskedLM
from spectrascope.workload import Inputs, LossFunction, TensorSource, Workload
from tests.support.trained_like import no_narrowing, trained_like

N = 3  # samples
CLASSES = 4
VOCABULARY = 23
LENGTH = 6  # tokens

CROSS_ENTROPY, CAUSAL, MASKED = CrossEntropy(), CausalLM(), MaskedLM()


@dataclass(frozen=True)
class Family:
    """One tiny float64 workload; call it to build it anew, always with the same numbers.

    ``kind`` is ``torchvision``, ``huggingface``, ``torch`` or ``timm``. ``model`` builds the network with any
    weights; ``names`` are globs on the names of published models of the family. ``fallback`` names the operation that
    sends some of its weights to double backprop; ``kinks`` says that its loss is piecewise (ReLU, max-pool), so that
    differences of the loss need short steps; ``surrogate`` that autograd's derivative is on purpose not that of the
    loss (a detached branch, a straight-through function), so that differences of the loss say nothing.
    """

    kind: str
    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Inputs, Tensor]]
    loss: LossFunction = CROSS_ENTROPY
    names: tuple[str, ...] = ()
    fallback: str | None = None
    kinks: bool = False
    surrogate: bool = False
    seed: int = 0

    def __call__(self) -> Workload:
        """Build the workload."""
        with torch.random.fork_rng(devices=[]), no_narrowing():
            torch.manual_seed(self.seed)
            inputs, targets = self.batch()
            model = trained_like(self.model(), inputs, self.seed)
        return Workload(model, TensorSource(inputs, targets), self.loss, torch.device("cpu"), torch.float64)


def images(size: int, channels: int = 3) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(N, channels, size, size, dtype=torch.float64), classes())


def vectors(width: int = 6) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(N, width, dtype=torch.float64), classes())


def sequences(width: int = 6) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(N, LENGTH, width, dtype=torch.float64), classes())


def classes() -> Tensor:
    return torch.arange(N) * 7 % 11 % CLASSES


def tokens(length: int = LENGTH) -> Tensor:
    """Token numbers (N, length), none of them 0 … 2, which are padding and the like."""
    return torch.randint(3, VOCABULARY, (N, length))


def padding() -> Tensor:
    """A mask (N, LENGTH) of 1 for tokens and 0 for padding, of another length in each sample."""
    return (torch.arange(LENGTH)[None] < LENGTH - torch.arange(N)[:, None] % 3).long()


def causal() -> tuple[Tensor, Tensor]:
    """Tokens, and labels of which two per sample are left out, at other places in each."""
    ids = tokens()
    labels = ids.clone()
    for i in range(N):
        labels[i, [1 + i % 3, LENGTH - 1 - i % 2]] = -100
    return ids, labels


def padded_causal() -> tuple[Inputs, Tensor]:
    """Padded on the right by another length in each sample; labels are three real tokens of each."""
    mask = padding()
    ids = tokens() * mask
    labels = torch.full_like(ids, -100)
    labels[:, 1:4] = ids[:, 1:4]
    return {"input_ids": ids, "attention_mask": mask}, labels


def masked() -> tuple[Inputs, Tensor]:
    """Padded tokens, two of them masked (token 2) in each sample."""
    mask = padding()
    ids = tokens() * mask
    labels = torch.full_like(ids, -100)
    for i in range(N):
        hidden = [i % 2, 2 + i % 2]
        labels[i, hidden] = ids[i, hidden]
        ids[i, hidden] = 2
    return {"input_ids": ids, "attention_mask": mask}, labels


def padded_classes() -> tuple[Inputs, Tensor]:
    mask = padding()
    return {"input_ids": tokens() * mask, "attention_mask": mask}, classes()
