"""The paper's quantitative claims, recomputed from the arrays it released, with intervals over layers.

Of fits the released σ and h are fitted again by this package; of tables without arrays the released figures are counted
and averaged again. What was not released is Missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.paper.rules import Figure, Maybe, mean_of, median_of, share_of
from spectrascope.numerics import compare_rank_models
from spectrascope.numerics.fits import fit_alpha_g, fit_alpha_h, fit_beta
from spectrascope.records.values import Missing, PowerFit

TABLES = ("tiny_imagenet_alpha_map", "imagenet1k_pretrained")
"""Files of 54 and 15 layers' exponents."""


@dataclass(frozen=True)
class Check:
    """One quantitative claim: where it stands, what it says, and the figure recomputed."""

    place: str
    claim: str
    paper: float
    tolerance: float
    recomputed: Maybe
    reading: str = ""

    @property
    def agrees(self) -> bool | None:
        """Whether the released arrays give the paper's figure; None where nothing was released."""
        if isinstance(self.recomputed, Missing):
            return None
        return abs(self.recomputed.value - self.paper) <= self.tolerance


class Arrays:
    """The released files, read when asked for."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if self.folder is None:
            raise LookupError("the paper's released arrays are not here: give their folder with --results")
        if name not in self._read:
            path = self.folder / f"results_{name}.json"
            if not path.exists():
                raise LookupError(f"{path.name} was not released")
            self._read[name] = json.loads(path.read_text(encoding="utf-8"))
        return self._read[name]

    def figure(self, take: Callable[[Arrays], Maybe]) -> Maybe:
        """What ``take`` finds, Missing where a file is not there."""
        try:
            return take(self)
        except LookupError as error:
            return Missing(str(error.args[0]))


def triangle_layers(arrays: Arrays) -> Iterator[tuple[str, dict[str, Any]]]:
    """The 24 layers of the CIFAR triangle, each with the name of its experiment."""
    for experiment in arrays["alpha_triangle"]:
        for layer in experiment["results"]:
            yield experiment["experiment"], layer


def released_triangles(arrays: Arrays) -> list[tuple[str, dict[str, Any]]]:
    """The exponents of all 93 layers as released, each with the name of its experiment; none without the files."""
    try:
        rest = [(name, layer) for name in TABLES for layer in arrays[name]["results"]]
        return [*triangle_layers(arrays), *rest]
    except LookupError:
        return []


def _exponents(layer: dict[str, Any]) -> tuple[float, float, float]:
    beta, alpha_g = fit_beta(layer["sigma"], layer["h_exact"]), fit_alpha_g(layer["sigma"])
    alpha_h = fit_alpha_h(layer["h_exact"])
    assert isinstance(beta, PowerFit)
    assert isinstance(alpha_g, PowerFit)
    assert isinstance(alpha_h, PowerFit)
    return beta.value, alpha_g.value, alpha_h.value


def _triangle_error(layer: dict[str, Any]) -> float:
    beta, alpha_g, alpha_h = _exponents(layer)
    return abs(alpha_h - beta * alpha_g) / abs(alpha_h)


def _conv(layer: dict[str, Any]) -> bool:
    return "conv" in layer["name"] or "features" in layer["name"] or "downsample" in layer["name"]


def _betas(arrays: Arrays, experiment: str, wanted: Callable[[dict[str, Any]], bool]) -> list[float]:
    return [_exponents(layer)[0] for name, layer in triangle_layers(arrays) if name == experiment and wanted(layer)]


def _wins(arrays: Arrays) -> dict[str, int]:
    counts = {"power_law": 0, "exponential": 0, "lognormal": 0}
    for _, layer in triangle_layers(arrays):
        found = compare_rank_models(layer["sigma"])
        if not isinstance(found, Missing):
            counts[found.best.value] += 1
    return counts


def _count(n: float) -> Figure:
    return Figure(float(n), float(n), float(n))


def _named(layers: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(layer for layer in layers if layer["name"] == name)


def _participation(arrays: Arrays, experiment: int, name: str, key: str) -> Maybe:
    return _count(_named(arrays["intrinsic_dim"][experiment]["results"], name)[key])


def _epoch(arrays: Arrays, epoch: int, model: str) -> Maybe:
    found = next((e for e in arrays["vgg16_trajectory"]["trajectory"] if e["epoch"] == epoch), None)
    return Missing(f"epoch {epoch} was not released") if found is None else _count(found["wins_by_bic"].get(model, 0))


def effective_rank_tells_in(arrays: Arrays) -> Maybe:
    """Share of layers that are exponential where a factor's effective rank is below 10, else log-normal."""
    found = arrays["kronecker_spectral"]["layers"]
    ranks = [min(layer["eff_rank_delta"], layer["eff_rank_A"]) for layer in found]
    told = ["exponential" if rank < 10 else "lognormal" for rank in ranks]
    return share_of(sum(x["sigma_bic_best"] == model for x, model in zip(found, told, strict=True)), len(found))


def _imagenet(arrays: Arrays, *, strict: bool) -> list[dict[str, Any]]:
    """Convolutions of the pretrained ResNet-50: 13 are called so; 12 that a line fits (R² > 0.9)."""
    layers = [layer for layer in arrays["imagenet1k_pretrained"]["results"] if "conv" in layer["name"]]
    return [layer for layer in layers if not strict or layer["r2_alpha"] > 0.9]


def checks(arrays: Arrays) -> list[Check]:
    """27 quantitative claims of the text, in its order, and three stricter readings."""
    of = arrays.figure

    def errors(a: Arrays) -> list[float]:
        return sorted(_triangle_error(layer) for _, layer in triangle_layers(a))

    twenty = of(lambda a: median_of(errors(a)[:20]))
    within = of(lambda a: median_of([error for error in errors(a) if error <= 0.10]))
    everything = of(lambda a: median_of(errors(a)))
    tiny = "tiny_imagenet_alpha_map"

    def conv_of_tiny(a: Arrays) -> list[float]:
        return [x["alpha"] for x in a[tiny]["results"] if len(x["shape"]) == 2 and "conv" in x["name"]]

    def matches(a: Arrays) -> Maybe:
        layers = a["kronecker_spectral"]["layers"]
        hits = sum(x["sigma_bic_best"] in (x["delta_bic_best"], x["A_bic_best"]) for x in layers)
        return share_of(hits, len(layers))

    def effective_ranks(a: Arrays, model: str) -> Maybe:
        return mean_of(
            [
                min(x["eff_rank_delta"], x["eff_rank_A"])
                for x in a["kronecker_spectral"]["layers"]
                if x["sigma_bic_best"] == model
            ]
        )

    def gap(a: Arrays, name: str) -> Maybe:
        found = _named(a["conv_gap_v2"]["conv_results"], name)
        return mean_of(found["concentration_ratio"], "direction")

    def best_of_scalar(a: Arrays) -> Maybe:
        runs = a["preconditioner_summary"]["summary"]
        adam = mean_of(runs["adam_baseline"]["seeds"], "seed")
        best = max((mean_of(runs[name]["seeds"], "seed") for name in runs if name.startswith("spectral")), key=_value)
        assert isinstance(best, Figure)
        assert isinstance(adam, Figure)
        half = ((best.high - best.value) ** 2 + (adam.high - adam.value) ** 2) ** 0.5
        gain = best.value - adam.value
        return Figure(gain, gain - half, gain + half, 3)

    head = "fc.weight"
    return [
        Check("Section 3", "ResNet-18 on CIFAR-10, convolutions: mean β", 2.07, 0.1,
              of(lambda a: mean_of(_betas(a, "resnet18_triangle", _conv))), "the text says 1.97 to 2.17"),
        Check("Section 3", "VGG-11 on CIFAR-10, convolutions: mean β", 2.07, 0.1,
              of(lambda a: mean_of(_betas(a, "vgg11_triangle", _conv))), "the text says 1.97 to 2.17"),
        Check("Table 1", "VGG-11 classifier: β", 1.23, 0.05,
              of(lambda a: mean_of(_betas(a, "vgg11_triangle", lambda x: x["name"] == "classifier.3")))),
        Check("Table 1", "GPT-2, MLP: mean β", 1.00, 0.18,
              of(lambda a: mean_of(_betas(a, "gpt2_triangle", lambda x: ".mlp." in x["name"]))),
              "the arrays of the triangle are of another run than Table 1"),
        Check("Table 1", "ResNet-50 on Tiny-ImageNet, 49 convolutions: mean β", 1.94, 0.005,
              of(lambda a: mean_of(conv_of_tiny(a)))),
        Check("Section 3", "… their median", 1.93, 0.005, of(lambda a: median_of(conv_of_tiny(a)))),
        Check("Table 1", "… their head (200 classes): β", 0.90, 0.005,
              of(lambda a: _count(_named(a[tiny]["results"], head)["alpha"]))),
        Check("Table 1", "ResNet-50 on ImageNet-1K, “14” convolutions: mean β", 2.10, 0.005,
              of(lambda a: mean_of([x["alpha"] for x in _imagenet(a, strict=False)])),
              "the released mean is over 13: a downsampling convolution is not among them"),
        Check("Section 3", "… their median", 2.15, 0.005,
              of(lambda a: median_of([x["alpha"] for x in _imagenet(a, strict=False)]))),
        Check("Table 1", "… their standard deviation", 0.14, 0.03,
              of(lambda a: _count(float(np.std([x["alpha"] for x in _imagenet(a, strict=False)], ddof=1)))),
              "conv1 has β 1.05 at R² 0.39; without it 0.11"),
        Check("Table 1", "… their head (1 000 classes): β", 2.83, 0.005,
              of(lambda a: _count(_named(a["imagenet1k_pretrained"]["results"], head)["alpha"]))),
        Check("Section 7.1", "CIFAR triangle, “20 layers”: median error", 0.019, 0.0005, twenty,
              "of 24 the 20 with the smallest error; 21 lie within 10 %"),
        Check("Section 7.1", "Tiny-ImageNet triangle: median error", 0.010, 0.0005,
              of(lambda a: median_of([x["triangle_relative_error"] for x in a[tiny]["results"]]))),
        Check("Section 7.1", "ImageNet-1K triangle: median error", 0.016, 0.0005,
              of(lambda a: median_of([x["triangle_relative_error"] for x in a["imagenet1k_pretrained"]["results"]]))),
        Check("Abstract", "layers in all", 93, 0.5,
              of(lambda a: _count(24 + len(a[tiny]["results"]) + len(a["imagenet1k_pretrained"]["results"])))),
        Check("Appendix G", "CIFAR: layers that are log-normal in rank", 21, 0.5,
              of(lambda a: _count(_wins(a)["lognormal"]))),
        Check("Appendix G", "… power law", 1, 0.5, of(lambda a: _count(_wins(a)["power_law"]))),
        Check("Appendix G", "Tiny-ImageNet at initialisation: log-normal layers of 54", 39, 0.5,
              Missing("its arrays were not released")),
        Check("Appendix K", "VGG-16 at epoch 0: log-normal layers of 15", 11, 0.5,
              of(lambda a: _epoch(a, 0, "lognormal"))),
        Check("Appendix K", "VGG-16 at epoch 20: power-law layers of 15", 6, 0.5,
              of(lambda a: _epoch(a, 20, "power_law"))),
        Check("Appendix B", "ResNet conv1: curvature participation ratio", 1.7, 0.05,
              of(lambda a: _participation(a, 0, "conv1", "eff_rank_curvature_pr"))),
        Check("Appendix I", "width 512: curvature participation ratio", 3.3, 0.1,
              of(lambda a: _participation(a, 2, "fc1_w512", "eff_rank_curvature_pr"))),
        Check("Appendix L", "ResNet-50: mean correlation of h_Kron with σ²", 0.974, 0.001,
              of(lambda a: mean_of([x["log_hkron_vs_log_sigma2_corr"] for x in a["kronecker_spectral"]["layers"]]))),
        Check("Appendix L", "… layers where a factor has the gradient's rank model", 13 / 15, 0.01, of(matches)),
        Check("Appendix L", "… smaller effective rank of the factors, log-normal layers", 19.4, 0.05,
              of(lambda a: effective_ranks(a, "lognormal"))),
        Check("Appendix D", "layer2.0.conv1: concentration ratio", 0.98, 0.005,
              of(lambda a: gap(a, "layer2.0.conv1"))),
        Check("Appendix M", "best scalar scaling over Adam, per cent", 0.1, 0.1, of(best_of_scalar)),
        Check("stricter reading", "ImageNet-1K: convolutions that a line fits, mean β", 2.10, 0.05,
              of(lambda a: mean_of([x["alpha"] for x in _imagenet(a, strict=True)])), "12 of 13"),
        Check("stricter reading", "CIFAR triangle, the 21 layers within 10 %: median error", 0.019, 0.0005, within,
              "2.1 %, not 1.9"),
        Check("stricter reading", "CIFAR triangle, all 24 layers: median error", 0.019, 0.0005, everything),
    ]  # fmt: skip


def _value(figure: Maybe) -> float:
    return -np.inf if isinstance(figure, Missing) else figure.value
