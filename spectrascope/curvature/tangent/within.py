"""Second-order forms of many tangents at once: within each weight, never across weights, sample group by sample group.

Tangents of several weights travel stacked on one leading axis. What they add to second derivatives is wanted pair by
pair within a weight alone: a batch of small products instead of one large one, most of which would be thrown away.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectrascope.numerics.lifted import wide

__all__ = ["Within", "block_size"]

_BLOCK_BYTES = {"cpu": 1 << 19}
_BLOCK_BYTES_DEVICE = 1 << 28


def block_size(tensor: Tensor, per_unit: int, times: float = 1) -> int:
    """How many units of work to take at a time: what stays in a CPU's cache, far more on a device.

    Args:
        tensor: tells device and bytes per number.
        per_unit: numbers that each unit needs.
        times: how many blocks of the usual size fit.
    """
    size = int(_BLOCK_BYTES.get(tensor.device.type, _BLOCK_BYTES_DEVICE) * times)
    return max(1, size // (tensor.element_size() * max(per_unit, 1)))


@dataclass(frozen=True, slots=True)
class Within:
    """Which weight each of S stacked tangents belongs to, and which sample group each of their entries.

    Every form it gives is (G, W, K, K): per group and weight, K being the most tangents of any; the rest is zero.

    Args:
        counts: tangents of each weight, in the order they are stacked.
        borders: sample numbers 0 … b at which groups begin, the end included. With more than one group the entries of
            a tangent are those of the first sample, then those of the second, and so on.
        rounds: how often that is repeated over: once per token where tokens come before samples.
    """

    counts: tuple[int, ...]
    borders: tuple[int, ...] = (0, 1)
    rounds: int = 1

    @property
    def alone(self) -> Within:
        """The same weights, all entries in one group."""
        return self if len(self.borders) == 2 else Within(self.counts)

    def rows(self) -> Iterator[slice]:
        """The stacked tangents of each weight."""
        stops = [*itertools.accumulate(self.counts)]
        return itertools.starmap(slice, zip([0, *stops], stops, strict=False))

    def in_order(self, x: Tensor, axis: int) -> Tensor:
        """The same with one round along an axis, so that each sample's entries lie together, where groups matter.

        >>> Within((1,), (0, 1, 3), rounds=2).in_order(torch.tensor([10, 20, 30, 11, 21, 31]), 0)
        tensor([10, 11, 20, 21, 30, 31])
        """
        if self.rounds == 1 or len(self.borders) == 2:
            return x
        apart: Tensor = x.unflatten(axis, (self.rounds, self.borders[-1], -1))
        return apart.transpose(axis, axis + 1).flatten(axis, axis + 2)

    def parts(self, units: int) -> list[slice]:
        """Which of so many units, as many of every sample and one sample after another, belong to each group."""
        if len(self.borders) == 2:
            return [slice(0, units)]
        each, rest = divmod(units, self.borders[-1])
        assert rest == 0, f"{units} units of {self.borders[-1]} samples"
        return [slice(first * each, last * each) for first, last in itertools.pairwise(self.borders)]

    def _even(self, units: int) -> bool:
        """Whether there are several groups, of as many samples each."""
        sizes = {last - first for first, last in itertools.pairwise(self.borders)}
        return len(self.borders) > 2 and len(sizes) == 1 and units % self.borders[-1] == 0

    def by_group(self, units: int, form: Callable[[slice], Tensor]) -> Tensor:
        """Forms of each group's units, which lie in order, put together; ``form`` gives (1, W, K, K)."""
        if len(self.borders) == 2:
            return form(slice(0, units))
        return torch.cat([form(part) for part in self.parts(units)])

    def sums(self, x: Tensor) -> Tensor:
        """Sums (G, …) of x (units, …) over each group's units."""
        x = self.in_order(x, 0)
        if self._even(x.shape[0]):
            by_group: Tensor = x.unflatten(0, (len(self.borders) - 1, -1))
            return by_group.sum(1, dtype=wide(x.dtype))
        return torch.stack([x[part].sum(0, dtype=wide(x.dtype)) for part in self.parts(x.shape[0])])

    def padded(self, forms: Sequence[Tensor]) -> Tensor:
        """Forms (G, K, K) of each weight, put together."""
        out = forms[0].new_zeros(len(self.borders) - 1, len(forms), max(self.counts), max(self.counts))
        for i, form in enumerate(forms):
            out[:, i, : form.shape[1], : form.shape[2]] = form
        return out

    def gram(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products of tangents a and b (S, …), entry by entry.

        >>> a, b = torch.tensor([[1.0, 2.0], [1.0, 1.0]]), torch.tensor([[3.0, 4.0], [0.0, 5.0]])
        >>> Within((1, 1)).gram(a, b).flatten()
        tensor([11.,  5.])
        """
        a, b = (self.in_order(t.reshape(t.shape[0], -1), 1) for t in (a, b))
        if self._even(a.shape[1]):
            groups = len(self.borders) - 1
            a, b = (t.unflatten(1, (groups, -1)).transpose(0, 1) for t in (a, b))
            return self.pairs(a, b)
        return self.by_group(a.shape[1], lambda part: self._flat(a[:, part], b[:, part]).unsqueeze(0))

    def weighted(self, x: Tensor, weight: Tensor) -> Tensor:
        """``gram(weight * x, x)``, block by block, so that the product with the weight need not leave the cache.

        Args:
            x: tangents (S, …).
            weight: one entry per entry of a tangent.

        >>> Within((1,)).weighted(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, -1.0])).flatten()
        tensor([-1.])
        """
        flat, entries = self.in_order(x.reshape(x.shape[0], -1), 1), self.in_order(weight.reshape(-1), 0)
        step = block_size(x, x.shape[0])
        if len(self.borders) > 2 and flat.shape[1] <= step and self._even(flat.shape[1]):
            return replace(self, rounds=1).gram(flat * entries, flat)

        def form(part: slice) -> Tensor:
            total: Tensor | None = None
            for start in range(part.start, max(part.stop, part.start + 1), step):
                some = slice(start, min(start + step, part.stop))
                block = flat[:, some]
                more = self._flat(block * entries[some], block)
                total = more if total is None else total.add_(more)
            assert total is not None
            return total.unsqueeze(0)

        return self.by_group(flat.shape[1], form)

    def _flat(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products (W, K, K) of a and b (S, n)."""
        if len(self.counts) == 1:
            a, b = (t.to(wide(t.dtype)) for t in (a, b))
            return (a @ b.T).unsqueeze(0)
        return self.pairs(a.unsqueeze(0), b.unsqueeze(0)).squeeze(0)

    def pairs(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products (B, W, K, K) over the last axis of a and b (B, S, n), batch entry by batch entry."""
        batch, weights, widest = a.shape[0], len(self.counts), max(self.counts)
        a, b = (t.to(wide(t.dtype)) for t in (a, b))
        if min(self.counts) == widest:
            shape = (batch * weights, widest, a.shape[2])
            out = torch.bmm(a.reshape(shape), b.reshape(shape).transpose(1, 2))
            return out.view(batch, weights, widest, widest)
        out = a.new_zeros(batch, weights, widest, widest)
        place = row = 0
        for count, run in itertools.groupby(self.counts):  # neighbours that have as many tangents go together
            many = len([*run])
            rows = slice(row, row + many * count)
            out[:, place : place + many, :count, :count] = Within((count,) * many).pairs(a[:, rows], b[:, rows])
            place, row = place + many, rows.stop
        return out
