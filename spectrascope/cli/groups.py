"""Groups of options that commands share, and what each group adds up to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from spectrascope.cli import options as o
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import EngineName, LossName
from spectrascope.reports.render import Format
from spectrascope.reports.write import check_writable

__all__ = ["Request", "Result", "measurement", "network_and_data", "result", "window"]


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure, as named on the command line."""

    model: str | None
    arch: str | None = None
    base: str | None = None
    num_classes: int | None = None
    trust_remote_code: bool = False
    dataset: str | None = None
    data_root: Path | None = None
    download: bool = False
    image_size: int | None = None
    block_size: int | None = None
    balanced: bool = False
    skip_bad: bool = False
    loss: LossName = LossName.AUTO
    label_smoothing: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """Where the result goes, and in what form."""

    format: Format
    output: Path | None
    quiet: bool


def network_and_data(
    model: o.Model = None,
    arch: o.Arch = None,
    base: o.Base = None,
    num_classes: o.NumClasses = None,
    trust_remote_code: o.TrustRemoteCode = False,
    dataset: o.Dataset = None,
    data_root: o.DataRoot = None,
    download: o.Download = False,
    image_size: o.ImageSize = None,
    block_size: o.BlockSize = None,
    balanced: o.Balanced = False,
    skip_bad: o.SkipBad = False,
    loss: o.Loss = LossName.AUTO,
    label_smoothing: o.LabelSmoothing = 0.0,
) -> Request:
    """The network, the samples and the loss."""
    return Request(
        model,
        arch,
        base,
        num_classes,
        trust_remote_code,
        dataset,
        data_root,
        download,
        image_size,
        block_size,
        balanced,
        skip_bad,
        loss,
        label_smoothing,
    )


def measurement(
    num_samples: o.NumSamples = 2048,
    top_k: o.TopK = 20,
    layers: o.Layers = None,
    exclude: o.Exclude = None,
    split_fused: o.SplitFused = True,
    engine: o.Engine = EngineName.AUTO,
    device: o.Device = "auto",
    dtype: o.Dtype = o.DtypeName.FLOAT32,
    micro_batch: o.MicroBatch = "auto",
    seed: o.Seed = 0,
) -> ProbeOptions:
    """What is computed, and how."""
    return ProbeOptions(
        num_samples=num_samples,
        top_k=top_k,
        layers=tuple(layers or ()),
        exclude=tuple(exclude or ()),
        engine=engine,
        device=device,
        dtype=dtype.value,
        micro_batch=micro_batch if micro_batch == "auto" else int(micro_batch),
        seed=seed,
        split_fused=split_fused,
    )


@dataclass(frozen=True, slots=True)
class Window:
    """What the fits look at."""

    min_rank: int
    groups: int

    def of(self, options: ProbeOptions) -> ProbeOptions:
        """The options with this window."""
        return replace(options, min_rank=self.min_rank, groups=self.groups)


def window(min_rank: o.MinRank = 1, groups: o.Groups = 16) -> Window:
    """The fits."""
    return Window(min_rank, groups)


def result(
    format: o.FormatOption = None,
    json: o.Json = False,
    output: o.Output = None,
    quiet: o.Quiet = False,
) -> Result:
    """The form of the result and its place, which is checked before any long work.

    Raises:
        OptionError: the file cannot be written, or ``--json`` contradicts ``--format``.
    """
    form = o.choose_format(format, json, output)
    if output is not None:
        check_writable(output)
    return Result(form, output, quiet)
