"""Options that several commands share, each declared once: alone, or in a group that adds up to one value.

A command takes a group as one parameter (see :mod:`spectrascope.cli.compose`). What ``MeasurementOptions`` declares,
all measuring commands take, and it reaches them as the field of that name of ``ProbeOptions``, whose default it has.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from spectrascope.cli import parsers
from spectrascope.cli.completion import complete_data, complete_model
from spectrascope.errors import OptionError
from spectrascope.records.report import ProbeOptions
from spectrascope.records.signal import Estimate, GradientSource, LabelSource
from spectrascope.records.values import CheckScope, DtypeName, EngineName, LossName
from spectrascope.reports.order import Sort
from spectrascope.reports.render import BY_ENDING, Format
from spectrascope.reports.write import is_special

# One kind of option per panel of --help.
input_option = partial(typer.Option, rich_help_panel="Network and data")
measurement_option = partial(typer.Option, rich_help_panel="Measurement")
result_option = partial(typer.Option, rich_help_panel="Result")
_DEFAULT = ProbeOptions()
_Record = TypeVar("_Record")


# -- alone ----------------------------------------------------------------------------------------------------------

Seed = Annotated[int, input_option(min=0, metavar="N", help="Chooses the samples.")]
TopK = Annotated[int, measurement_option(min=1, metavar="K", help="Leading gradient directions per layer.")]
MinRank = Annotated[int, measurement_option(min=1, metavar="K", help="First direction that enters the fits.")]
Layers = Annotated[
    list[str] | None, measurement_option(metavar="GLOB", help="Only parameters whose name matches; may be repeated.")
]
Exclude = Annotated[
    list[str] | None, measurement_option(metavar="GLOB", help="Not parameters whose name matches; repeatable.")
]
SplitFused = Annotated[
    bool,
    measurement_option(
        "--split-fused/--no-split-fused", help="Fused q, k and v as three rows, where their layout is known."
    ),
]
RefitTopK = Annotated[
    int | None, measurement_option("--top-k", min=1, metavar="K", help="Fit again up to this direction.")
]
RefitMinRank = Annotated[
    int | None, measurement_option("--min-rank", min=1, metavar="K", help="Fit again from this direction on.")
]
output_option = partial(result_option, metavar="FILE", parser=parsers.parse_output)
Output = Annotated[
    Path | None,
    output_option(
        "--output",
        "-o",
        help="Write the result here, not to stdout; .json, .csv, .md, .html, .tex and .txt (a table) say the form "
        "where --format does not.",
    ),
]
SortOption = Annotated[Sort, result_option(help="Order of the layers, except in JSON.")]
MODEL_OR_REPORT = typer.Argument(
    metavar="MODEL",
    autocompletion=complete_model,
    help="As for probe, or a report saved as .json: then nothing is measured.",
)
Quiet = Annotated[bool, result_option("--quiet", "-q", help="No progress on stderr.")]


# -- in groups ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Network:
    """Which network, as named on the command line."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete_model,
            help="A checkpoint (.pt .pth .th .safetensors, FILE::key for a place in it, an index or folder of "
            "shards), a torchvision model (resnet50, resnet50@IMAGENET1K_V2, resnet50@none), hf:org/name[@revision] "
            "or a folder of that kind, a PEFT adapter's folder, timm:NAME, a built-in name (digits-cnn@final, "
            "cifar-resnet20, …), or a factory (package.module:function, file.py:function). Without it digits-cnn, the "
            "embedded network early in training, as digits-cnn@early.",
        ),
    ] = None
    arch: Annotated[
        str | None,
        input_option(
            metavar="NAME",
            help="Architecture of a checkpoint: a name, package.module:factory or file.py:factory, which may bring "
            "data and loss: (network, batches, loss). Recognised from keys and shapes if not given.",
        ),
    ] = None
    base: Annotated[
        str | None,
        input_option(metavar="MODEL", help="Network a PEFT adapter was trained on, if not the one it names."),
    ] = None
    num_classes: Annotated[int | None, input_option(min=1, metavar="N", help="Number of the network's outputs.")] = None
    trust_remote_code: Annotated[
        bool, input_option("--trust-remote-code", help="Run Python code that comes with a Hugging Face model.")
    ] = False


@dataclass(frozen=True, slots=True)
class Request(Network):
    """Which network, samples and loss, as named on the command line."""

    dataset: Annotated[
        str | None,
        input_option(
            metavar="DATA",
            autocompletion=complete_data,
            help="digits, cifar10, cifar100, tiny-imagenet, imagenet, folder:PATH (one folder per class), npz:FILE or "
            "pt:FILE (arrays x and y), text:FILE, hf:NAME[:CONFIG][:SPLIT] or synthetic. The one the network implies "
            "if not given.",
        ),
    ] = None
    data_root: Annotated[
        Path | None, input_option(metavar="FOLDER", help="Where dataset files are looked for (default: data).")
    ] = None
    download: Annotated[
        bool, input_option("--download", help="Download the dataset if it is not under --data-root.")
    ] = False
    image_size: Annotated[
        int | None, input_option(min=1, metavar="PIXELS", help="Side of square inputs, if not the usual.")
    ] = None
    resize: Annotated[
        int | None,
        input_option(
            min=1, metavar="PIXELS", help="Images' shorter side first; of that the centre, --image-size wide."
        ),
    ] = None
    mean: Annotated[
        Any,
        input_option(
            metavar="X[,X…]",
            parser=parsers.parse_channels,
            help="Subtracted from images scaled to [0, 1]; one value, or one per channel.",
        ),
    ] = None
    std: Annotated[
        Any,
        input_option(metavar="X[,X…]", parser=parsers.parse_channels, help="Images are divided by it, after --mean."),
    ] = None
    block_size: Annotated[int | None, input_option(min=2, metavar="TOKENS", help="Tokens per sample of text.")] = None
    balanced: Annotated[bool, input_option("--balanced", help="As many samples of each class.")] = False
    skip_bad: Annotated[bool, input_option("--skip-bad", help="Leave unreadable samples out instead of failing.")] = (
        False
    )
    loss: Annotated[LossName, input_option(help="What is differentiated; auto goes by the network's task.")] = (
        LossName.AUTO
    )
    label_smoothing: Annotated[
        float, input_option(min=0.0, max=1.0, metavar="X", help="Of cross-entropy, as in training.")
    ] = 0.0
    scores: Annotated[
        str | None,
        input_option(metavar="NAME|N", help="Which output the loss compares, of a network that returns several."),
    ] = None


@dataclass(frozen=True, slots=True)
class MeasurementOptions:
    """What is computed, and how: fields of :class:`ProbeOptions`."""

    num_samples: Annotated[
        Any,
        input_option(
            metavar="N|all", parser=parsers.parse_num_samples, help="Samples in the fixed batch, or all there are."
        ),
    ] = _DEFAULT.num_samples
    top_k: TopK = _DEFAULT.top_k
    layers: Layers = None
    exclude: Exclude = None
    split_fused: SplitFused = _DEFAULT.split_fused
    engine: Annotated[EngineName, measurement_option(help="How curvature is computed; auto is exact.")] = (
        _DEFAULT.engine
    )
    device: Annotated[
        str,
        measurement_option(metavar="auto|cpu|cuda[:i]|mps", callback=parsers.parse_device, help="Where to compute."),
    ] = _DEFAULT.device
    dtype: Annotated[DtypeName, measurement_option(help="Floating point format of the measurement.")] = (
        DtypeName.FLOAT32
    )
    micro_batch: Annotated[
        Any,  # a number or a word
        measurement_option(
            metavar="auto|N",
            parser=parsers.parse_micro_batch,
            help="Samples computed at once; fewer need less memory. auto goes by timing: runs with N repeat to the "
            "last digit.",
        ),
    ] = _DEFAULT.micro_batch
    memory: Annotated[
        Any,
        measurement_option(
            metavar="auto|8GiB", parser=parsers.parse_memory, help="Most that gradients, then tangents, may take."
        ),
    ] = _DEFAULT.memory
    device_map: Annotated[
        str,
        measurement_option(
            metavar="none|auto|FILE", parser=parsers.parse_device_map, help="Blocks on several GPUs, in host memory."
        ),
    ] = _DEFAULT.device_map
    seed: Seed = _DEFAULT.seed
    estimate: Annotated[
        Estimate,
        measurement_option(
            help="Curvature along directions that the same samples chose (published), that other samples chose "
            "(held-out), or both."
        ),
    ] = _DEFAULT.estimate
    null_draws: Annotated[
        Any,
        measurement_option(
            metavar="auto|R",
            parser=parsers.parse_null_draws,
            help="Draws of the gradient's noise along which curvature is measured; auto is 2 where nearly free.",
        ),
    ] = _DEFAULT.null_draws
    curvature_samples: Annotated[
        Any,
        measurement_option(
            metavar="auto|all|M",
            parser=parsers.parse_curvature_samples,
            help="Samples for curvature; slopes take all. auto is at most 2048, or 512 for smooth networks.",
        ),
    ] = _DEFAULT.curvature_samples
    folds: Annotated[
        int, measurement_option(min=2, metavar="N", help="Parts of the batch that hold out one another.")
    ] = _DEFAULT.folds
    gradient: Annotated[
        GradientSource,
        measurement_option(help="Whose singular directions: the batch's, or those of the checkpoint's momentum."),
    ] = _DEFAULT.gradient
    self_check: Annotated[
        CheckScope,
        measurement_option(help="Weights compared with a reference: every one on two samples, or a few; off is said."),
    ] = _DEFAULT.self_check
    labels: Annotated[
        LabelSource,
        measurement_option(
            help="The data's, draws from the model's own softmax (nothing but noise is left), or shuffled."
        ),
    ] = _DEFAULT.labels

    @property
    def asked(self) -> ProbeOptions:
        """What a measurement is asked for."""
        return record_of(ProbeOptions, self)


@dataclass(frozen=True, slots=True)
class FitOptions(MeasurementOptions):
    """What is computed, and what the fits look at."""

    min_rank: MinRank = _DEFAULT.min_rank
    groups: Annotated[
        int, measurement_option(min=1, metavar="N", help="Sample groups for the jackknife intervals.")
    ] = _DEFAULT.groups


@dataclass(frozen=True, slots=True)
class JointOptions(FitOptions):
    """What is computed, of all weights together too."""

    across_weights: Annotated[
        bool,
        measurement_option("--across-weights", help="How much curvature weights share: a step of all of them at once."),
    ] = _DEFAULT.across_weights
    across_matrix: Annotated[
        bool, measurement_option("--across-matrix", help="The same, with the whole matrix in the JSON.")
    ] = _DEFAULT.across_matrix


@dataclass(frozen=True, slots=True)
class Result:
    """The form of the result and its place, and whether anything is said on the way.

    Raises:
        OptionError: ``--json`` contradicts ``--format``, or nothing says the form of the file.
    """

    format: Annotated[Format | None, result_option(help="Form of the result, a table if not given.")] = None
    json: Annotated[bool, result_option("--json", help="Short for --format json.")] = False
    output: Output = None
    html: Annotated[
        Path | None, output_option("--html", help="Write a page for a browser as well: one file, opens offline.")
    ] = None
    quiet: Quiet = False

    def __post_init__(self) -> None:
        if self.json and self.format not in (None, Format.JSON):
            raise OptionError(f"--json contradicts --format {self.format.value}: give one of them")
        _ = self.form  # refuses a file whose ending says nothing
        parsers.require_ending(self.html, "a page", ".html", ".htm")

    @property
    def form(self) -> Format:
        """What ``--format`` or its shortcut ``--json`` says; where neither is given the file's ending, else a table."""
        if self.json or self.format is not None:
            return self.format or Format.JSON
        if self.output is None or is_special(self.output):
            return Format.TABLE
        found = BY_ENDING.get(self.output.suffix.lower())
        if found is None:
            raise OptionError(
                f"cannot tell the form of {self.output} from its ending: expected one of {', '.join(BY_ENDING)}, or "
                "--format beside it"
            )
        return found


def record_of(kind: type[_Record], group: Any) -> _Record:
    """Make a record of a group's values by name; what was not given has the record's own default."""
    values = {item.name: getattr(group, item.name) for item in fields(group)}
    return kind(**{name: _plain(value) for name, value in values.items() if value is not None})


def _plain(value: Any) -> Any:
    """As records hold it: a repeatable option as a tuple, a floating point format as its name."""
    if isinstance(value, DtypeName):
        return value.value
    return tuple(value) if isinstance(value, list) else value
