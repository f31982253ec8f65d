"""Options that several commands share, checked where they enter."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from spectrascope.errors import OptionError
from spectrascope.records.values import EngineName, LossName
from spectrascope.reports.order import Sort
from spectrascope.reports.render import Format

__all__ = [
    "INPUT",
    "MEASUREMENT",
    "RESULT",
    "Arch",
    "Balanced",
    "Base",
    "BlockSize",
    "DataRoot",
    "Dataset",
    "Device",
    "Download",
    "Dtype",
    "DtypeName",
    "Engine",
    "Exclude",
    "FormatOption",
    "Groups",
    "ImageSize",
    "Json",
    "LabelSmoothing",
    "Layers",
    "Loss",
    "MicroBatch",
    "MinRank",
    "Model",
    "NumClasses",
    "NumSamples",
    "Output",
    "Quiet",
    "Seed",
    "SkipBad",
    "SortOption",
    "SplitFused",
    "TopK",
    "TrustRemoteCode",
    "choose_format",
    "parse_device",
    "parse_micro_batch",
]

INPUT, MEASUREMENT, RESULT = "Network and data", "Measurement", "Result"  # panels of --help
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


class DtypeName(str, Enum):
    """Floating point formats a measurement can run in."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


def parse_device(text: str) -> str:
    """Return a device name as written.

    Raises:
        typer.BadParameter: not auto, cpu, cuda, cuda:NUMBER or mps.
    """
    if not _DEVICE.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is not one of auto, cpu, cuda, cuda:NUMBER, mps.")
    return text


def parse_micro_batch(text: str) -> str:
    """Return ``auto`` or a whole number from 1 on, as written.

    Raises:
        typer.BadParameter: anything else.
    """
    if text != "auto" and not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise typer.BadParameter(f"{text!r} is neither auto nor a whole number from 1 on.")
    return text


_BY_ENDING = {".json": Format.JSON, ".csv": Format.CSV, ".md": Format.MARKDOWN}


def choose_format(format: Format | None, json: bool, output: Path | None) -> Format:
    """Settle ``--format`` and its shortcut ``--json``; where neither is given the file's ending, else a table.

    Raises:
        OptionError: they contradict each other.
    """
    if json and format not in (None, Format.JSON):
        raise OptionError(f"--json contradicts --format {format.value}: give one of them")
    if json:
        return Format.JSON
    if format is not None:
        return format
    return Format.TABLE if output is None else _BY_ENDING.get(output.suffix.lower(), Format.TABLE)


Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A checkpoint (.pt .pth .th .safetensors, FILE::key for a place in it, an index or folder of shards), a "
        "torchvision model (resnet50, resnet50@IMAGENET1K_V2, resnet50@none), hf:org/name[@revision] or a folder of "
        "that kind, a PEFT adapter's folder, timm:NAME, a built-in name (digits-cnn, cifar-resnet20, …), or a factory "
        "(package.module:function, file.py:function). Without it, the embedded digits-cnn.",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default=False,
        help="Architecture of a checkpoint: a name, package.module:factory or file.py:factory. "
        "Recognised from keys and shapes if not given.",
        rich_help_panel=INPUT,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        show_default=False,
        help="Network a PEFT adapter was trained on, if not the one it names.",
        rich_help_panel=INPUT,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run Python code that comes with a Hugging Face model.", rich_help_panel=INPUT
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", show_default=False, help="Number of the network's outputs.", rich_help_panel=INPUT
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        show_default=False,
        help="digits, cifar10, cifar100, tiny-imagenet, imagenet, folder:PATH (one folder per class), npz:FILE or "
        "pt:FILE (arrays x and y), text:FILE, hf:NAME[:CONFIG][:SPLIT] or synthetic. The one the network implies "
        "if not given.",
        rich_help_panel=INPUT,
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        show_default=False,
        help="Where dataset files are looked for (default: data).",
        rich_help_panel=INPUT,
    ),
]
Download = Annotated[
    bool,
    typer.Option("--download", help="Download the dataset if it is not under --data-root.", rich_help_panel=INPUT),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="PIXELS",
        show_default=False,
        help="Side of square inputs, if not the usual.",
        rich_help_panel=INPUT,
    ),
]
BlockSize = Annotated[
    int | None,
    typer.Option(min=2, metavar="TOKENS", show_default=False, help="Tokens per sample of text.", rich_help_panel=INPUT),
]
Balanced = Annotated[bool, typer.Option("--balanced", help="As many samples of each class.", rich_help_panel=INPUT)]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave unreadable samples out instead of failing.", rich_help_panel=INPUT),
]
Loss = Annotated[
    LossName, typer.Option(help="What is differentiated; auto goes by the network's task.", rich_help_panel=INPUT)
]
LabelSmoothing = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, metavar="X", help="Of cross-entropy, as in training.", rich_help_panel=INPUT),
]
NumSamples = Annotated[int, typer.Option(min=1, metavar="N", help="Samples in the fixed batch.", rich_help_panel=INPUT)]
TopK = Annotated[
    int, typer.Option(min=1, metavar="K", help="Leading gradient directions per layer.", rich_help_panel=MEASUREMENT)
]
MinRank = Annotated[
    int, typer.Option(min=1, metavar="K", help="First direction that enters the fits.", rich_help_panel=MEASUREMENT)
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        show_default=False,
        help="Only parameters whose name matches; may be repeated.",
        rich_help_panel=MEASUREMENT,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        show_default=False,
        help="Not parameters whose name matches; repeatable.",
        rich_help_panel=MEASUREMENT,
    ),
]
SplitFused = Annotated[
    bool,
    typer.Option(
        "--split-fused/--no-split-fused",
        help="Fused q, k and v as three rows, where their layout is known.",
        rich_help_panel=MEASUREMENT,
    ),
]
Engine = Annotated[
    EngineName, typer.Option(help="How curvature is computed; auto is exact.", rich_help_panel=MEASUREMENT)
]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda[:i]|mps", callback=parse_device, help="Where to compute.", rich_help_panel=MEASUREMENT
    ),
]
Dtype = Annotated[
    DtypeName, typer.Option(help="Floating point format of the measurement.", rich_help_panel=MEASUREMENT)
]
MicroBatch = Annotated[
    str,
    typer.Option(
        metavar="auto|N",
        callback=parse_micro_batch,
        help="Samples computed at once; fewer need less memory.",
        rich_help_panel=MEASUREMENT,
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Chooses the samples.", rich_help_panel=INPUT)]
Groups = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="Sample groups for the jackknife intervals.", rich_help_panel=MEASUREMENT),
]
FormatOption = Annotated[
    Format | None,
    typer.Option(show_default=False, help="Form of the result, a table if not given.", rich_help_panel=RESULT),
]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.", rich_help_panel=RESULT)]
SortOption = Annotated[Sort, typer.Option(help="Order of the layers, except in JSON.", rich_help_panel=RESULT)]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        show_default=False,
        help="Write the result here, not to stdout; .json, .csv and .md say the form where --format does not.",
        rich_help_panel=RESULT,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=RESULT)]
