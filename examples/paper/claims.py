"""The paper's claims as ranges of measured quantities: stated here, judged by :mod:`examples.paper.rules`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from examples.paper.arrays import Arrays, effective_rank_tells_in
from examples.paper.quantities import (
    Quantity,
    alignment,
    beta,
    effective_rank_tells,
    factor_matches,
    participation,
    quartile_spread,
    rank_share,
    resampled_share,
    step_exponent,
    triangle_error,
    zeta_holds,
)
from examples.paper.rules import Maybe
from spectrascope.records.values import RankModel

ANY = math.inf


@dataclass(frozen=True)
class Claim:
    """A quantity of one network, and the range that bears the claim out."""

    place: str
    claim: str
    paper: str
    allowed: tuple[float, float]
    network: str
    quantity: Quantity
    held_out: Quantity | None = None
    released: str | Callable[[Arrays], Maybe] = ""  # a check's claim, or what finds the figure in the arrays
    top_k: int = 20


CONV = ("*conv*", "*features*", "*downsample*")
HEAD = ("fc2*", "fc.*", "linear*", "classifier*")
QKV, PROJ, UP, DOWN = ("*qkv*",), ("*proj*",), ("*up*",), ("*down*",)

CLAIMS = (
    Claim("Table 1", "convolutions have β near 2", "1.97 to 2.17 ± 0.12", (1.85, 2.29), "cnn", beta(*CONV),
          step_exponent(*CONV), "ResNet-18 on CIFAR-10, convolutions: mean β"),
    Claim("Table 1", "… of a VGG, without residual connections", "1.97 to 2.17 ± 0.12", (1.85, 2.29), "vgg",
          beta(*CONV), step_exponent(*CONV), "VGG-11 on CIFAR-10, convolutions: mean β"),
    Claim("Table 1", "… with 200 classes", "1.94 ± 0.15", (1.79, 2.09), "conv-200", beta(*CONV), step_exponent(*CONV),
          "ResNet-50 on Tiny-ImageNet, 49 convolutions: mean β"),
    Claim("Table 1", "dense layers of a plain MLP have β near 2.2", "2.18 ± 0.10", (1.98, 2.38), "mlp",
          beta("1.*", "3.*", "5.*"), step_exponent("1.*", "3.*", "5.*")),
    Claim("Table 1", "a ten-class classifier has β below 2", "1.23 to 1.65 ± 0.07", (1.09, 1.79), "cnn",
          beta(*HEAD), step_exponent(*HEAD)),
    Claim("Table 1", "… and that of a VGG", "1.23 ± 0.07", (1.09, 1.79), "vgg", beta(*HEAD), step_exponent(*HEAD),
          "VGG-11 classifier: β"),
    Claim("Table 1", "a head of 200 classes has β near 0.9", "0.90", (0.6, 1.2), "conv-200", beta(*HEAD),
          step_exponent(*HEAD), "… their head (200 classes): β"),
    Claim("Table 1", "a head of 1 000 classes has β near 2.8", "2.83", (2.5, 3.2), "head-1000", beta(*HEAD),
          step_exponent(*HEAD), "… their head (1 000 classes): β"),
    Claim("Table 1", "attention of a GPT-2 has β near 1.3", "1.30 ± 0.15", (1.0, 1.6), "gpt",
          beta(*QKV, *PROJ), step_exponent(*QKV, *PROJ)),
    Claim("Table 1", "the MLP of a GPT-2 has β near 1", "1.00 ± 0.18", (0.64, 1.36), "gpt", beta(*UP, *DOWN),
          step_exponent(*UP, *DOWN), "GPT-2, MLP: mean β"),
    Claim("Table 1", "the head of a GPT-2 has β above 2", "4.53", (2.5, ANY), "gpt", beta("head*"),
          step_exponent("head*")),
    Claim("Theorem 3", "with LayerNorm ρ^A does not depend on the direction", "slope about 0", (-0.25, 0.25), "gpt",
          alignment(lambda a: a.beta_rho_a, *QKV, *UP)),
    Claim("Proposition 5", "with residual connections ρ^δ does not depend on the direction", "slope about 0",
          (-0.25, 0.25), "gpt", alignment(lambda a: a.beta_rho_delta, *PROJ, *DOWN)),
    Claim("Appendix D", "the concentration ratio of convolutions is of order 1", "0.59 to 0.98", (0.3, 3.0), "cnn",
          alignment(lambda a: a.concentration_ratio, *CONV), None, "layer2.0.conv1: concentration ratio"),
    Claim("Appendix D", "χ of convolutions is large (10³ to 10⁷)", "10³ to 10⁷", (1e3, 1e7), "cnn",
          alignment(lambda a: a.chi_median, *CONV)),
    Claim("Appendix F", "β is the same over quarters of the spectrum", "2.07 to 2.59 over quarters", (0.0, 0.72), "mlp",
          quartile_spread, top_k=50),
    Claim("Appendix F", "… on convolutions", "2.07 to 2.59 over quarters", (0.0, 0.72), "cnn-wide",
          quartile_spread, top_k=50),
    Claim("Appendix G", "σ is log-normal in rank on most layers", "21 of 24", (0.5, 1.0), "cnn",
          rank_share(RankModel.LOGNORMAL), None, "CIFAR: layers that are log-normal in rank"),
    Claim("Appendix G", "… and on most resamples of the samples", "not given", (0.5, 1.0), "cnn",
          resampled_share(RankModel.LOGNORMAL)),
    Claim("Appendix H", "α_H = β·α_G to 2 % in the median", "1.9 %", (0.0, 0.03), "cnn", triangle_error, None,
          "CIFAR triangle, “20 layers”: median error"),
    Claim("Appendix H", "… on a GPT-2", "1.9 %", (0.0, 0.03), "gpt", triangle_error),
    Claim("Appendix H", "… on an MLP", "1.9 %", (0.0, 0.03), "mlp", triangle_error),
    Claim("Theorem 9", "the zeta bound holds", "all layers", (0.9, 1.0), "cnn", zeta_holds),
    Claim("Theorem 9", "… at every width from 64 to 512, five seeds each", "all layers", (0.9, 1.0), "widths",
          zeta_holds),
    *(
        Claim("Appendix I", f"at width {width} the participation ratio is near 3", "2.5 to 3.3", (2.0, 3.8),
              f"mlp-{width}", participation("1.*"), None,
              "width 512: curvature participation ratio" if width == 512 else "")
        for width in (64, 128, 256, 512)
    ),
    Claim("Section 7.2", "curvature lies in about one direction", "1.0 to 1.8", (1.0, 2.0), "cnn",
          participation(*CONV), None, "ResNet conv1: curvature participation ratio"),
    Claim("Appendix L", "the Kronecker product's curvature follows σ²", "r = 0.974", (0.92, 1.0), "cnn",
          alignment(lambda a: a.r_h_kron_sigma2), None, "ResNet-50: mean correlation of h_Kron with σ²"),
    Claim("Appendix L", "a factor has the gradient's rank model", "87 %", (0.6, 1.0), "cnn", factor_matches, None,
          "… layers where a factor has the gradient's rank model"),
    Claim("Appendix L", "an effective rank below 10 makes it exponential, above log-normal", "4.7 and 19.4 in the mean",
          (0.6, 1.0), "cnn", effective_rank_tells, None, effective_rank_tells_in),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """The sign of a difference of one quantity between two networks."""

    place: str
    claim: str
    paper: str
    allowed: tuple[float, float]
    after: str
    before: str
    quantity: Quantity
    held_out: Quantity | None = None


COMPARISONS = (
    Comparison("Theorem 3", "LayerNorm lowers the slope of ρ^A", "lower with it", (-ANY, 0.0), "gpt", "gpt-no-norm",
               alignment(lambda a: a.beta_rho_a, *QKV, *UP)),
    Comparison("Theorem 3", "LayerNorm lowers β", "lower with it", (-ANY, 0.0), "gpt", "gpt-no-norm",
               beta("blocks*"), step_exponent("blocks*")),
    Comparison("Proposition 5", "residual connections lower the slope of ρ^δ", "lower with them", (-ANY, 0.0), "gpt",
               "gpt-no-residual", alignment(lambda a: a.beta_rho_delta, *PROJ, *DOWN)),
    Comparison("Proposition 5", "residual connections lower β", "lower with them", (-ANY, 0.0), "gpt",
               "gpt-no-residual", beta("blocks*"), step_exponent("blocks*")),
    Comparison("Appendix C", "100 classes instead of 10 lower β of a ViT", "2.25 to 1.74, 2.12 to 1.62", (-ANY, 0.0),
               "vit-100", "vit-10", beta("blocks*"), step_exponent("blocks*")),
    Comparison("Appendix C", "two classes instead of a language model raise β of the MLP", "0.73 to 1.59",
               (0.0, ANY), "gpt-classes", "gpt", beta(*UP, *DOWN), step_exponent(*UP, *DOWN)),
    Comparison("Appendix E", "β of convolutions rises while training", "1.45 to 1.81", (0.0, ANY), "digits-cnn",
               "digits-cnn-early", beta("conv*"), step_exponent("conv*")),
    Comparison("Appendix E", "β of the classifier falls while training", "1.99 to 1.57", (-ANY, 0.0), "digits-cnn",
               "digits-cnn-early", beta("fc2*"), step_exponent("fc2*")),
    Comparison("Appendix E", "β of convolutions is higher than at initialisation", "1.45 to 1.81, 1.85 to 2.12",
               (0.0, ANY), "vgg", "vgg-untrained", beta(*CONV), step_exponent(*CONV)),
    Comparison("Appendix E", "β of the classifier is lower than at initialisation", "1.99 to 1.57", (-ANY, 0.0), "vgg",
               "vgg-untrained", beta(*HEAD), step_exponent(*HEAD)),
    Comparison("Appendix K", "fewer layers are log-normal in rank after training", "11 to 6 of 15", (-ANY, 0.0), "gpt",
               "gpt-untrained", rank_share(RankModel.LOGNORMAL)),
    Comparison("Appendix K", "… of a VGG, in shares of resamples", "11 to 6 of 15", (-ANY, 0.0), "vgg", "vgg-untrained",
               resampled_share(RankModel.LOGNORMAL)),
    Comparison("Appendix G", "more layers of it are exponential in rank after training", "6 to 15 of 54", (0.0, ANY),
               "vgg", "vgg-untrained", resampled_share(RankModel.EXPONENTIAL)),
    Comparison("Appendix I", "the participation ratio grows by less than 1 from width 64 to 512", "2.5 to 3.3",
               (-ANY, 1.0), "mlp-512", "mlp-64", participation("1.*")),
)  # fmt: skip

OPTIMIZERS = (
    ("Table 3", "Spectral Newton beats AdamW (accuracy, %)", "+1.1 to +3.5 %", (0.0, ANY), "SN, paper", "AdamW"),
    ("Table 3", "… with damping relative to the gradient", "+1.1 to +3.5 %", (0.0, ANY), "SN, β = 2", "AdamW"),
    ("Table 3", "… and Muon", "not compared", (0.0, ANY), "SN, β = 2", "Muon"),
    ("Section 7.3", "held-out exponents are not behind Muon", "not claimed", (-0.5, ANY), "SN, held-out β", "Muon"),
    ("Appendix M", "one learning rate per layer from α_H changes nothing (accuracy, %)", "at most 0.2 %", (-0.5, 0.5),
     "scalar control", "AdamW"),
)  # fmt: skip

OPEN = (
    Claim("Section 8", "attention of a ViT-Large lies in the range of LayerNorm networks", "β 1.3 to 1.8", (1.3, 1.8),
          "vit-large-block", beta(*QKV, *PROJ), step_exponent(*QKV, *PROJ)),
    Claim("Section 8", "the MLP of a LLaMA-7B has β near 1", "β about 1", (0.64, 1.36), "llama-block",
          beta("*gate*", *UP, *DOWN), step_exponent("*gate*", *UP, *DOWN)),
)  # fmt: skip
"""Predictions of networks whose trained weights are not here: the null alone is known, of a block of random weights."""
