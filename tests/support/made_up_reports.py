"""Small made-up reports, for everything downstream of a measurement."""

from dataclasses import replace
from math import exp

import numpy as np

from spectrascope.numerics.alignment import align
from spectrascope.numerics.analysis import analyse
from spectrascope.numerics.signal import draw_signs, null_quantile, read_signal, t_values
from spectrascope.numerics.steps import widen_groups
from spectrascope.numerics.summary import summarise
from spectrascope.records.bench import BenchReport, PeerTimes
from spectrascope.records.decomposition import (
    Concentration,
    Decomposition,
    Factor,
    Factors,
    FisherType,
    PredictedProfile,
    Sharing,
)
from spectrascope.records.report import (
    DataInfo,
    LayerInfo,
    LayerReport,
    LayerRow,
    Measurement,
    ModelInfo,
    ProbeOptions,
    Provenance,
    Report,
    SelfCheck,
    SkippedLayer,
)
from spectrascope.records.signal import NOT_HELD_OUT, HeldOut, NullDraws, RankResamples
from spectrascope.records.values import EngineName, LayerKind, LayerRole, LayerStatus, Missing

LONG_NAME = "backbone." + "very_deep_stage." * 6 + "bottleneck_1.w"


def make_measurement(
    *,
    beta: float = 2.0,
    decay: float = 0.8,
    k: int = 20,
    rank: int | None = None,
    n_negative: int = 0,
    wobble: float = 0.03,
) -> Measurement:
    """Build sigma = k^-decay and h = 3·sigma^beta with a small deterministic wobble, in four sample groups."""
    sigma = tuple((j + 1) ** -decay * exp(-0.004 * j * j) for j in range(k))
    h = tuple(3 * s**beta * (1 + wobble * (-1) ** j) for j, s in enumerate(sigma))
    h = h[: k - n_negative] + tuple(-value for value in h[k - n_negative :])
    scales = (0.96, 1.02, 0.99, 1.03)
    matrix = tuple(tuple(h[i] if i == j else 0.02 * sigma[i] * sigma[j] for j in range(k)) for i in range(k))
    return Measurement(
        sigma=sigma,
        h=h,
        curvature_matrix=matrix,
        group_sizes=(512,) * 4,
        group_sigma=tuple(tuple(s * c**0.5 for s in sigma) for c in scales),
        group_h=tuple(tuple(value * c ** (1 + 0.1 * j) for j, value in enumerate(h)) for c in scales),
        rank=k if rank is None else rank,
        full_rank=64,
        pr_g=12.345678901234567,
        effective_rank_g=20.25,
        noise_floor=0.05,
        engine=EngineName.GAUSS_NEWTON,
        engine_reason="piecewise linear from here to the logits",
        exact=True,
        residual=3.1e-7,
    )


def make_info(name: str, kind: LayerKind = LayerKind.CONV, shape: tuple[int, int] = (64, 576)) -> LayerInfo:
    """Describe a layer of one kind."""
    role = {LayerKind.CONV: LayerRole.CONV, LayerKind.LINEAR: LayerRole.MATRIX}.get(kind, LayerRole.BIAS)
    stored = (shape[0], shape[1] // 9, 3, 3) if kind is LayerKind.CONV else shape
    return LayerInfo(name, kind, role, shape, stored)


def make_layer(info: LayerInfo, measurement: Measurement, *, top_k: int = 20) -> LayerReport:
    """Fit a made-up measurement."""
    return LayerReport(info, measurement, analyse(measurement, top_k=top_k))


def with_signal(
    layer: LayerReport, *, share: float = 0.95, fall: float = 0.8, scatter: float = 0.3, n_null: int = 2, seed: int = 0
) -> LayerReport:
    """Hold out samples of a made-up layer, and draw nulls.

    Args:
        layer: whose h holds on held-out samples too.
        share: of sigma_1 that is slope on held-out samples; noise is the rest.
        fall: factor from one share to the next.
        scatter: of the sample groups' slopes, as a share of sigma, at the first direction.
        n_null: null draws along which curvature was measured, with h ∝ sigma² as noise has it.
        seed: of the scatter.
    """
    measured, rng = layer.measurement, np.random.default_rng(seed)
    k, groups = len(measured.sigma), len(measured.group_sizes)
    sigma = np.asarray(measured.sigma)
    h = np.asarray(measured.h) if measured.h else 3 * sigma**2
    noise = scatter * sigma * (1 + 0.1 * np.arange(k)) * draw_signs(groups, k, seed=seed).T  # of mean 0
    slopes = share * fall ** np.arange(k) * sigma
    group_slopes = slopes + noise * (1 + 0.1 * rng.standard_normal(k))
    matrix = np.diag(h) + 0.01 * np.sqrt(np.abs(np.outer(h, h))) * (1 - np.eye(k))
    held_out = HeldOut(
        n_folds=min(4, groups),
        slopes=tuple(slopes.tolist()),
        t=tuple(t_values(widen_groups(group_slopes, sigma, measured.group_sizes), measured.group_sizes).tolist()),
        h=tuple(h.tolist()),
        curvature_matrix=tuple(map(tuple, matrix.tolist())),
        group_slopes=tuple(map(tuple, group_slopes.tolist())),
        group_h=tuple(tuple((h * scale).tolist()) for scale in np.linspace(0.97, 1.03, groups)),
        beta=NOT_HELD_OUT,
        step_exponent=NOT_HELD_OUT,
    )
    sigma_1 = tuple((0.3 * sigma[0] * np.linspace(0.9, 1.1, 20)).tolist())
    quantile = null_quantile(sigma_1)
    assert isinstance(quantile, float)
    drawn = [0.3 * size * sigma**0.8 for size in np.linspace(0.95, 1.05, n_null)]
    null = NullDraws(
        sigma_1=sigma_1,
        quantile=quantile,
        sigma=tuple(tuple(draw.tolist()) for draw in drawn),
        h=tuple(tuple((8 * draw ** (1.9 + 0.3 * i)).tolist()) for i, draw in enumerate(drawn)),
        beta=Missing("not fitted yet"),
        contains_beta=Missing("not fitted yet"),
    )
    held, null, analysis = read_signal(measured, held_out, null, layer.analysis)
    return replace(layer, held_out=held, null=null, analysis=analysis)


def without_signal(layer: LayerReport) -> LayerReport:
    """Say of a layer that nothing of it could be held out."""
    why = Missing("the gradient of one fold is zero")
    held_out, null, analysis = read_signal(layer.measurement, why, why, layer.analysis)
    return replace(layer, held_out=held_out, null=null, analysis=analysis)


def held_out_only() -> LayerReport:
    """A layer along whose published directions no curvature was measured (``--estimate held-out``)."""
    measured = make_measurement()
    measured = replace(measured, h=(), curvature_matrix=(), group_h=((),) * len(measured.group_sizes))
    return with_signal(make_layer(make_info("conv1.weight"), measured), n_null=0)


def make_report(rows: tuple[LayerRow, ...]) -> Report:
    """Put rows into a report of a made-up run."""
    return Report(
        provenance=Provenance(
            versions={"python": "3.11.2", "torch": "2.9.0"},
            command="spectrascope probe 'my net.pt' --top-k 20",
            created="2026-11-23T12:00:00+00:00",
            model=ModelInfo(
                id="my net[red].pt",
                architecture="resnet20",
                source="checkpoint",
                path="/tmp/my net[red].pt",
                sha256="12fca82f" * 8,
                weights="checkpoint",
                n_parameters=272474,
            ),
            data=DataInfo(
                id="folder:cifar10-test",
                n=2048,
                n_available=10000,
                digest="ab" * 32,
                input_shape=(3, 32, 32),
                n_classes=10,
                preprocessing="scaled to 0 … 1, CIFAR mean and deviation",
                label_order="class folders by name",
                synthetic=False,
            ),
            loss_name="cross-entropy",
            loss=0.71234,
            accuracy=0.8027,
            device="cpu",
            dtype="float32",
            seed=0,
            micro_batch=256,
            memory_format="channels_last",
            threads=2,
            seconds={"load": 0.51, "gradient": 1.9, "curvature": 7.25},
            engines={"gauss-newton": 3},
            self_check=SelfCheck(residual=2.2e-6, tolerance=1e-4, n_pairs=6, n_samples=256),
            notes=("1 bias left out",),
        ),
        options=ProbeOptions(layers=("*.weight",)),
        layers=rows,
        summary=summarise(rows),
    )


def mixed_report() -> Report:
    """Ok, skipped and failed layers; names that look like markup, hold a pipe, or are 120 characters long.

    Of the first and the third the step exponent is determined, of the second it is not, of the fourth nothing was held
    out.
    """
    noisy = make_measurement(beta=1.6, decay=1.2, n_negative=2, wobble=0.4)
    noisy = replace(noisy, residual=Missing("not among the pairs compared"))
    tiny = make_measurement(k=3, rank=3)
    return make_report(
        (
            with_signal(make_layer(make_info("conv1.weight"), make_measurement())),
            with_signal(make_layer(make_info("a[red]b|c"), noisy), share=0.2, fall=-0.9, scatter=0.2, seed=1),
            with_signal(make_layer(make_info(LONG_NAME), make_measurement(beta=1.1, wobble=0.1)), scatter=0.2, seed=2),
            without_signal(make_layer(make_info("head.weight", LayerKind.LINEAR, (10, 64)), tiny)),
            SkippedLayer(make_info("head.bias", LayerKind.BIAS, (10, 1)), LayerStatus.SKIPPED, "1-D parameter"),
            SkippedLayer(make_info("dead.weight"), LayerStatus.FAILED, "the gradient is zero everywhere"),
        )
    )


def decomposed(layer: LayerReport, *, shape: tuple[int, int] = (64, 576), positions: int = 64) -> LayerReport:
    """Give a layer made-up factors: eigenvalues k^-1 and k^-0.6, A aligned, delta halfway, chi flat."""
    measured = layer.measurement
    ranks = range(1, len(measured.sigma) + 1)
    a = tuple(5 * k**-0.6 for k in ranks)
    delta = tuple(h / value / (0.8 + 0.02 * k) for k, h, value in zip(ranks, measured.h, a, strict=True))
    factors = Factors(
        fisher=FisherType.GGN,
        sharing=Sharing.EXPAND,
        columns=9,
        exact=True,
        positions=positions,
        delta=_factor(tuple(2.0 / k for k in range(1, shape[0] + 1))),
        a=_factor(tuple(5 * k**-0.6 for k in range(1, shape[1] + 1))),
        rayleigh_delta=delta,
        rayleigh_a=a,
        h_gn=measured.h,
        group_rayleigh_delta=tuple(tuple(c * value for value in delta) for c in (0.97, 1.01, 0.99, 1.03)),
        group_rayleigh_a=(a,) * 4,
        concentration=Concentration(tuple(1 + 0.01 * k for k in ranks), 0.21, 0.68, 0.75, Missing("one position")),
        profile=PredictedProfile(tuple(k**-0.5 for k in ranks), 3),
        s_weight=Missing("the weight has rank 1"),
    )
    drawn = RankResamples((measured.sigma,) * 20, {"power_law": 5, "exponential": 1, "lognormal": 14})
    found = Decomposition(factors, align(measured, factors, layer.analysis.window))
    return replace(layer, decomposition=found, rank_resamples=drawn)


def _factor(eigenvalues: tuple[float, ...]) -> Factor:
    trace = sum(eigenvalues)
    return Factor(
        dimension=len(eigenvalues),
        eigenvalues=eigenvalues,
        trace=trace,
        effective_rank=trace / eigenvalues[0],
        participation_ratio=trace**2 / sum(value**2 for value in eigenvalues),
        exact=True,
        cross_validated=tuple(value * (1 + 0.01 * k) / 1.3 for k, value in enumerate(eigenvalues)),
    )


def decomposed_report() -> Report:
    """A mixed report whose first row holds a decomposition; of the others one says why not, one has never had any."""
    report = mixed_report()
    first, second, *others = report.layers
    assert isinstance(first, LayerReport)
    assert isinstance(second, LayerReport)
    absent = replace(second, decomposition=Missing("its factors are not finite"))
    return replace(report, layers=(decomposed(first), absent, *others))


def big_report() -> Report:
    """Three hundred layers with long names."""
    measured = make_layer(make_info("x"), make_measurement())
    rows = tuple(
        replace(measured, info=make_info(f"transformer.h.{index}.attention.output_projection.weight"))
        for index in range(300)
    )
    return make_report(rows)


def made_up_bench() -> BenchReport:
    """A made-up benchmark."""
    run = mixed_report().provenance
    absent = Missing("not installed: pip install curvlinops-for-pytorch, or spectrascope[peers]")
    return BenchReport(
        model=run.model,
        data=run.data,
        versions=run.versions,
        device="cpu",
        dtype="float32",
        threads=2,
        clock="processor time",
        engines={"gauss-newton": 20},
        top_k=20,
        n_layers=20,
        n_layers_timed=20,
        n_samples_asked=4096,
        n_samples=2048,
        n_samples_timed=256,
        n_products=400,
        n_products_timed=40,
        extrapolated=True,
        rounds=3,
        micro_batch=256,
        forward_seconds=0.75,
        engine_seconds=10.5,
        reference_seconds=1050.0,
        ratio=100.0,
        ratio_rounds=(98.5, 100.0, 101.25),
        kept_graph_seconds=299.25,
        kept_graph_ratio=28.5,
        engine_forward_equivalents=14.0,
        reference_forward_equivalents=1400.0,
        kept_graph_forward_equivalents=399.0,
        engine_per_product=0.035,
        reference_per_product=3.5,
        kept_graph_per_product=0.9975,
        max_relative_difference=3.25e-6,
        peers=(
            PeerTimes(
                name="PyHessian",
                version="0.1",
                product="dataloader_hv_product, other weights frozen",
                n_products_timed=20,
                n_samples_timed=256,
                seconds=1100.0,
                forward_equivalents=1466.5,
                per_product=3.666,
                ratio=105.0,
                ratio_rounds=(104.0, 105.0, 107.5),
                max_relative_difference=2.5e-5,
            ),
            PeerTimes("curvlinops", "", "HessianLinearOperator", 0, 0, absent, absent, absent, absent, (), absent),
        ),
    )
