"""How often does the gate cry wolf, and what does it catch? Measured on a network and data of yours.

False alarms: the data are cut into disjoint batches, the same network is measured on each, and every pair of batches
is gated (by force, as the data differ). Every failed gate is a false alarm. Several partitions of the data give more
pairs; pairs are only formed within a partition, where batches share no sample.

Power: Gaussian noise of a stated size, relative to the weight's norm, is added to one layer, and the network is gated
against the untouched one on the same batch, as a pipeline would.

    python examples/ci/measure_false_alarms.py resnet20.th folder:cifar10-test --batch 420 --partitions 4 \
        --layer layer2.1.conv1.weight --noise 0.3 --noise 1

Reports are kept in ``--keep`` and not measured again, so that a broken run resumes.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from scipy import special

import spectrascope
from spectrascope.gating import default_policy, judge
from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model
from spectrascope.records.report import Report
from spectrascope.records.verdict import Mark, Outcome
from spectrascope.reports.json import report_to_json
from spectrascope.reports.read import read_report
from spectrascope.reports.write import write_text_atomically

NOISE_SEED = 99


class Bench:
    """A network and all its samples; measures batches of them and keeps the reports."""

    def __init__(self, model: str, dataset: str, *, batch: int, keep: Path, arch: str | None) -> None:
        loaded = load_model(model, arch=arch)
        data = load_dataset(dataset, loaded, num_samples=10**9, seed=0)
        self.model = loaded.model
        self.inputs, self.targets = data.source.fetch(0, data.source.n)
        self.batch, self.keep = batch, keep
        self.n_batches = data.source.n // batch
        keep.mkdir(parents=True, exist_ok=True)

    def measure(self, partition: int, layer: str = "null", noise: float = 0.0) -> list[Report]:
        """Reports of every batch of one partition, of the network with noise in one layer."""
        order = torch.randperm(len(self.targets), generator=torch.Generator().manual_seed(partition))
        weight = dict(self.model.named_parameters()).get(layer)
        kept = None if weight is None else weight.detach().clone()
        if weight is not None:
            draw = torch.randn(weight.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
            with torch.no_grad():
                weight.add_(noise * draw * weight.norm() / draw.norm())
        reports = []
        for number, chosen in enumerate(order[: self.n_batches * self.batch].split(self.batch)):
            path = self.keep / f"n{self.batch}_s{partition}_e{noise}_{layer}_b{number}.json"
            if not path.exists():
                batch = self.inputs[chosen], self.targets[chosen]
                report = spectrascope.probe(self.model, batch, self_check=False, micro_batch=70)
                write_text_atomically(path, report_to_json(report))
            reports.append(read_report(path))
        if weight is not None and kept is not None:
            with torch.no_grad():
                weight.copy_(kept)
        return reports


def disjoint_pairs(bench: Bench, partitions: range) -> Iterator[tuple[Report, Report]]:
    """Every two batches of the same network that share no sample."""
    for partition in partitions:
        yield from itertools.combinations(bench.measure(partition), 2)


def upper_bound(failures: int, trials: int) -> float:
    """Of a rate, at 95 % (Clopper and Pearson), if trials were independent."""
    return 1.0 if failures == trials else float(special.betaincinv(failures + 1, trials - failures, 0.95))


def of(numbers: Counter[str]) -> str:
    """Say which numbers failed, and in how many comparisons."""
    return "".join(f"; {number} {n}" for number, n in numbers.most_common())


def main() -> None:
    """Measure, and print two small tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--arch")
    parser.add_argument("--batch", type=int, default=420, help="samples per batch")
    parser.add_argument("--partitions", type=int, default=1, help="ways of cutting the data into batches")
    parser.add_argument("--first", type=int, default=1, help="number of the first partition; others are fresh data")
    parser.add_argument("--layer", action="append", default=[], help="weight to put noise in")
    parser.add_argument("--noise", action="append", type=float, default=[], help="size of the noise, of its norm")
    parser.add_argument("--keep", type=Path, default=Path("false-alarms"), help="folder for the reports")
    given = parser.parse_args()
    bench = Bench(given.model, given.dataset, batch=given.batch, keep=given.keep, arch=given.arch)
    policy = default_policy()

    pairs = alarms = 0
    numbers: Counter[str] = Counter()
    for one, other in disjoint_pairs(bench, range(given.first, given.first + given.partitions)):
        verdict = judge(other, one, policy, force=True)
        pairs += 1
        alarms += verdict.outcome is Outcome.FAIL
        numbers.update({finding.number for finding in verdict.findings if finding.mark is Mark.FAILED})
    bound = f"at most {100 * upper_bound(alarms, pairs):.1f} % with 95 % confidence, were pairs independent"
    print(
        f"false alarms: {alarms} of {pairs} pairs of disjoint batches of {given.batch} samples ({bound}){of(numbers)}"
    )

    for layer, noise in itertools.product(given.layer, given.noise):
        caught, named, accuracy = 0, 0, []
        numbers = Counter()
        clean, noisy = bench.measure(1), bench.measure(1, layer, noise)
        for before, after in zip(clean, noisy, strict=True):
            verdict = judge(after, before, policy)
            failed = [finding for finding in verdict.findings if finding.mark is Mark.FAILED]
            caught += verdict.outcome is Outcome.FAIL
            numbers.update({finding.number for finding in failed})
            named += any(finding.layer == layer for finding in failed)
            accuracy.append((before.provenance.accuracy, after.provenance.accuracy))
        means = [sum(column) / len(accuracy) for column in zip(*accuracy, strict=True)]
        print(
            f"noise {noise:g} in {layer}: caught on {caught} of {len(clean)} batches, that layer named on {named}; "
            f"accuracy {means[0]:.3f} to {means[1]:.3f}{of(numbers)}"
        )


if __name__ == "__main__":
    main()
