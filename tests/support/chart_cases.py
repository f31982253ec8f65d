"""Reports and trajectories for what draws them."""

from dataclasses import replace

from spectrascope.advice.trajectory import STEP_KEY, MeasuredCheckpoint
from spectrascope.records.decomposition import Decomposition
from spectrascope.records.report import LayerInfo, LayerReport, Report, SkippedLayer
from spectrascope.records.values import LayerKind, LayerStatus, Missing, PowerFit
from tests.support.made_up_reports import LONG_NAME, decomposed, make_info, make_layer, make_measurement, make_report

HOSTILE_NAMES = ("<script>alert(1)</script>", "a&b\"c'd", "$x_1$ {} %s", "\x1b[31mred", "[/bold]", "a</template>b")


def hostile_report() -> Report:
    """Layers whose names would be markup if anything were careless."""
    measured = make_layer(make_info("x"), make_measurement())
    rows = tuple(replace(measured, info=make_info(name)) for name in (*HOSTILE_NAMES, LONG_NAME * 3))
    failed = SkippedLayer(make_info("f"), LayerStatus.FAILED, "<img src=x onerror=alert(1)>")
    return make_report((*rows, failed))


def blocks_report() -> Report:
    """The weights of four blocks, whose names begin alike and are long from the first on."""
    measured = make_layer(make_info("x"), make_measurement())
    names = [f"blocks.{i}.attention.c_{name}.weight" for i in range(4) for name in ("attn_with_a_mask", "proj")]
    return make_report(tuple(replace(measured, info=make_info(name)) for name in (*names, "lm_head.weight")))


def one_layer_report() -> Report:
    """A single layer."""
    return make_report((make_layer(make_info("only.weight", LayerKind.LINEAR), make_measurement(k=6)),))


def skipped_report() -> Report:
    """Nothing was measured."""
    rows = tuple(
        SkippedLayer(make_info(f"n{i}.bias", LayerKind.BIAS), LayerStatus.SKIPPED, "1-D parameter") for i in range(3)
    )
    return make_report(rows)


def decomposed_layer(name: str, parts: tuple[float, float, float]) -> LayerReport:
    """A layer whose β is the sum of three parts."""
    layer = decomposed(make_layer(make_info(name), make_measurement()))
    fit, found = layer.analysis.beta, layer.decomposition
    assert isinstance(fit, PowerFit)
    assert isinstance(found, Decomposition)
    fields = ("beta_lambda", "beta_phi", "beta_chi")
    fits = {field: replace(fit, value=value) for field, value in zip(fields, parts, strict=True)}
    return replace(layer, decomposition=replace(found, alignment=replace(found.alignment, **fits)))


def training_checkpoints() -> list[MeasuredCheckpoint]:
    """Four checkpoints out of order: β of ``a`` falls 2.4, 2.2, 2.0; ``b`` fails once; one file is unreadable."""

    def report(beta: float, decay: float, *, b_fails: bool, step: int) -> Report:
        a = make_layer(make_info("a.weight"), make_measurement(beta=beta, decay=decay, wobble=0.001))
        info: LayerInfo = make_info("b.weight", LayerKind.LINEAR)
        b = make_layer(info, make_measurement(beta=beta / 2, decay=decay, wobble=0.001))
        row = SkippedLayer(info, LayerStatus.FAILED, "the gradient is zero") if b_fails else b
        return replace(make_report((a, row)), extra={STEP_KEY: step})

    return [
        MeasuredCheckpoint("late", report(2.0, 0.8, b_fails=False, step=200)),
        MeasuredCheckpoint("early", report(2.4, 1.6, b_fails=False, step=0)),
        MeasuredCheckpoint("step-150", Missing("the file is empty")),
        MeasuredCheckpoint("middle", report(2.2, 1.2, b_fails=True, step=100)),
    ]
