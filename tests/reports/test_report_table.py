"""Tables and Markdown: golden text, nothing read as markup, nothing cut where nobody watches."""

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from spectrascope.advice.advise import advise
from spectrascope.records.bench import BenchReport
from spectrascope.records.comparison import Change, Comparison
from spectrascope.records.report import NOT_SELECTED, LayerReport, Report, SkippedLayer
from spectrascope.records.signal import GradientSource, LabelSource
from spectrascope.records.values import EngineName, LayerStatus, Missing, RankModel
from spectrascope.reports.read import read_report
from spectrascope.reports.render import Format, View, render
from spectrascope.reports.views.document import Column, Row, Sheet, Tone
from spectrascope.reports.views.fit import drop_columns
from spectrascope.reports.views.report import build_probe, build_triangle
from spectrascope.reports.views.signal import say_signal
from spectrascope.reports.views.words import say_in_words, warn
from tests.support.counting import calls_of
from tests.support.made_up_reports import (
    LONG_NAME,
    decomposed_report,
    make_info,
    make_layer,
    make_measurement,
    make_report,
    mixed_report,
    with_signal,
)

GOLDEN = Path(__file__).parents[1] / "golden"


def draw(result: RenderableType, width: int | None = None) -> str:
    if isinstance(result, str):
        return result
    stream = io.StringIO()
    Console(file=stream, width=width or 100_000, color_system=None).print(result)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())


def assert_golden(name: str, text: str) -> None:
    """Compare with ``tests/golden/NAME``; SPECTRASCOPE_UPDATE_GOLDEN=1 writes it instead."""
    path = GOLDEN / name
    if os.environ.get("SPECTRASCOPE_UPDATE_GOLDEN") == "1":
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [None, 200, 100])
@pytest.mark.parametrize("view", list(View))
def test_golden_table(report: Report, view: View, width: int | None) -> None:
    shown = decomposed_report() if view is View.DECOMPOSITION else report
    text = draw(render(shown, Format.TABLE, view=view, width=width), width)
    assert_golden(f"{view.value}_table_{width or 'full'}.txt", text)


@pytest.mark.parametrize("view", list(View))
def test_golden_markdown(report: Report, view: View) -> None:
    shown = decomposed_report() if view is View.DECOMPOSITION else report
    assert_golden(f"{view.value}_markdown.md", draw(render(shown, Format.MARKDOWN, view=view)))


@pytest.mark.parametrize(("form", "suffix"), [(Format.TABLE, "table.txt"), (Format.MARKDOWN, "markdown.md")])
def test_golden_bench(bench: BenchReport, form: Format, suffix: str) -> None:
    assert_golden(f"bench_{suffix}", draw(render(bench, form)))


@pytest.mark.parametrize("form", list(Format))
def test_bench_has_every_format(bench: BenchReport, form: Format) -> None:
    assert "my net" in draw(render(bench, form))


def test_names_are_never_markup(report: Report) -> None:
    names = ("[bold]x[/bold]", "[/]", "[link=file:///etc]y", ":smile:", "\x1b[31mred", "two\nlines", "{}%s")
    layer = report.layers[0]
    rows = tuple(replace(layer, info=make_info(name)) for name in names)
    rows += (SkippedLayer(make_info("f"), LayerStatus.FAILED, "[red]because[/red] a|b"),)
    text = draw(render(make_report(rows), Format.TABLE))
    for shown in (*names[:4], "\\x1b[31mred", "two\\nlines", "{}%s", "[red]because[/red] a|b"):
        assert shown in text
    assert text.count("[red]because[/red] a|b") == 2  # the footnote and the closing line
    assert "\x1b" not in text


def test_markdown_cannot_be_broken_out_of() -> None:
    names = ("a|b", "`code`", "<script>", "[x](http://y)", "two\nlines", "back\\slash|")
    layer = make_layer(make_info("x"), make_measurement())
    text = draw(render(make_report(tuple(replace(layer, info=make_info(name)) for name in names)), Format.MARKDOWN))
    table = [line for line in text.splitlines() if line.startswith("|")]
    bars = {line.replace("\\\\", "").replace("\\|", "").count("|") for line in table[: len(names) + 2]}
    assert bars == {28}
    assert "<script>" not in text
    assert "\\[x\\](http" in text
    assert "two\\\\nlines" in text


def test_nothing_is_cut(big_report: Report) -> None:
    text = draw(render(big_report, Format.TABLE))
    for row in big_report.layers:
        assert row.info.name + " " in text


def test_work_on_a_table_is_in_proportion_to_its_rows(big_report: Report) -> None:
    small = replace(big_report, layers=big_report.layers[:30])
    draw(render(small, Format.TABLE))  # imports
    few, many = (calls_of(lambda r=r: draw(render(r, Format.TABLE))) for r in (small, big_report))
    assert many <= 10 * few
    assert many < 2500 * len(big_report.layers)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 250])
def test_a_terminal_table_fits_its_width(report: Report, width: int) -> None:
    lines = draw(render(report, Format.TABLE, width=width), width).splitlines()
    assert max(cell_len(line) for line in lines) <= width
    rows = [line for line in lines if line.startswith(("conv1.weight", "a[red]b|c", "dead.weight"))]
    assert len(rows) == 3  # one line each
    assert "2/20" in rows[0]
    header = next(line for line in lines if line.startswith("layer "))
    hidden = " ".join(lines).split("not shown at")[1]
    for column in build_probe(report).sheets[0].columns:
        assert column.title in header or column.title in hidden
    if width < 200:
        assert LONG_NAME not in "\n".join(lines)
        assert any(line.startswith("backbo") and "…" in line for line in lines)


def test_a_report_without_a_decomposition_has_no_empty_sheets(report: Report) -> None:
    for form in (Format.TABLE, Format.MARKDOWN):
        text = draw(render(report, form, view=View.DECOMPOSITION))
        assert "Where β comes from" in text
        assert "not asked for: see" in text
        assert "Read-out" not in text
        assert "Curvature and its factors" not in text
        assert "Read-out" in draw(render(decomposed_report(), form, view=View.DECOMPOSITION))


def test_every_word_of_a_fact_is_shown(report: Report) -> None:
    text = draw(render(report, Format.TABLE))
    for part in ("accuracy 80.3 %", "loss 0.7123", "2,048 of 10,000 samples", "cpu, float32", "gauss-newton on 3"):
        assert part in text


def _lines(report: Report) -> str:
    return "\n".join(line for line, _ in warn(report))


def test_warnings(report: Report) -> None:
    run = report.provenance
    assert "1 layer FAILED and has no numbers: dead.weight (the gradient is zero everywhere)" in _lines(report)
    chance = replace(report, provenance=replace(run, accuracy=0.11))
    assert "Accuracy 11.0 % is at chance level (10.0 %): check the preprocessing" in _lines(chance)
    below = replace(report, provenance=replace(run, accuracy=0.02))
    assert "Accuracy 2.0 % is below chance level (10.0 %): check" in _lines(below)
    low = replace(report, provenance=replace(run, accuracy=0.4))
    assert "Accuracy 40.0 % is low: check" in _lines(low)
    tokens = replace(low, provenance=replace(low.provenance, loss_name="causal-lm"))
    assert "Accuracy" not in _lines(tokens)  # four tokens of ten are many
    random = replace(low, provenance=replace(low.provenance, model=replace(run.model, weights="random (seed 0)")))
    assert "Accuracy" not in _lines(random)
    noise = replace(report, provenance=replace(run, data=replace(run.data, synthetic=True), accuracy=Missing("noise")))
    assert "SYNTHETIC noise" in draw(render(noise, Format.TABLE))
    assert "accuracy not measured (noise)" in draw(render(noise, Format.TABLE))
    unchecked = replace(report, provenance=replace(run, self_check=Missing("switched off")))
    assert "not self-checked: switched off" in _lines(unchecked)
    assert "No layer was measured." in _lines(make_report(()))
    layer = report.layers[0]
    assert isinstance(layer, LayerReport)
    approximate = replace(layer, measurement=replace(layer.measurement, exact=False))
    assert "Measured with an approximate engine: 1 layer." in _lines(make_report((approximate,)))
    assert "gauss-newton (approximate)" in draw(render(make_report((approximate,)), Format.TABLE))


def test_the_first_line_says_what_can_be_known(report: Report) -> None:
    for view in (View.PROBE, View.TRIANGLE):
        document = (build_probe if view is View.PROBE else build_triangle)(report)
        line, tone = document.opening[0]
        assert (line, tone) == (say_signal(report), Tone.PLAIN)
    assert line == say_in_words(report)[0]
    assert line == (
        "Signal: 6 of 60 directions resolved, on 2 of 3 weights (held-out slope at least 3 standard errors; 8 σ above "
        "noise). Step exponent 0.72 (0.00 to 1.61) on held-out samples; 2 of 3 weights determine their own, median "
        "0.71. Published β 1.64 (median); noise alone gives 2.05, and β is no more than noise gives on 1 of 3 weights."
    )


def test_signal_is_said_with_its_exponent() -> None:
    layer = with_signal(make_layer(make_info("x"), make_measurement()))
    line, tone = build_probe(make_report((layer,))).opening[0]
    assert tone is Tone.PLAIN
    assert line == (
        "Signal: 2 of 20 directions resolved, on 1 of 1 weight (held-out slope at least 3 standard errors; 3 σ above "
        "noise). Step exponent 1.08 (0.33 to 1.83) on held-out samples. Published β 2.00 (median); noise alone gives "
        "2.05, and β is no more than noise gives on 1 of 1 weight."
    )


def test_where_nothing_is_resolved_it_says_so() -> None:
    layer = make_layer(make_info("x"), make_measurement())
    line = say_signal(make_report((with_signal(layer, share=0.2, fall=-0.9, scatter=0.6, seed=1),)))
    assert line.startswith("Undetermined at 2,048 samples: none of 20 directions resolved (held-out slope at least 3 ")


def test_without_null_draws_no_direction_is_said_to_be_above_noise() -> None:
    layer = with_signal(make_layer(make_info("x"), make_measurement()))
    why = Missing("no null draws: see --null-draws")
    layer = replace(layer, null=why, analysis=replace(layer.analysis, n_signal=why))
    line = say_signal(make_report((layer,)))
    assert "above noise" not in line
    assert "noise alone gives about 2" in line


def test_what_is_not_a_trained_network_on_real_data_is_said_in_the_first_line(report: Report) -> None:
    run = report.provenance
    for changed, words in (
        (replace(report, provenance=replace(run, data=replace(run.data, synthetic=True))), "The data are synthetic: "),
        (
            replace(report, provenance=replace(run, model=replace(run.model, weights="random (seed 0)"))),
            "The weights are random: nothing here is about a trained network on real data.",
        ),
        (
            replace(report, options=replace(report.options, labels=LabelSource.MODEL)),
            "The labels are drawn from the model, so that the true gradient is zero: ",
        ),
    ):
        assert words in build_probe(changed).opening[0][0]
        assert build_probe(changed).opening[0][1] is Tone.WARNING
        assert words not in build_probe(report).opening[0][0]


def test_along_momentum_no_sample_chose_the_directions() -> None:
    report = make_report((make_layer(make_info("x"), make_measurement()),))
    assert "from the samples that chose the directions" in say_signal(report)
    options = replace(report.options, gradient=GradientSource.MOMENTUM)
    text = draw(render(replace(report, options=options), Format.TABLE))
    assert "β 2.00 (median) is along the directions of the optimizer's momentum." in text
    assert "samples that chose" not in text


@pytest.mark.parametrize("name", ["report-v1.json", "report-v1-first-release.json"])
def test_a_report_of_version_1_says_once_why_it_does_not_know(name: str) -> None:
    text = draw(render(read_report(GOLDEN / name), Format.TABLE, width=80), 80)
    opening, _, layers = text.partition("Summary:")[0].partition("\nLayers\n")
    reason = "the report was written before held-out numbers were measured: measure again"
    assert layers.count(reason) == 1
    row = next(line for line in layers.splitlines() if line.startswith("conv1.weight"))
    assert row.count("–¹") == 1  # what has no value at all makes room for what has one
    assert "Not known whether this is signal" in opening


@pytest.mark.parametrize("beta", [0.1, 1.1, 1.9, 2.4])
def test_no_step_is_read_off_the_published_beta(beta: float) -> None:
    report = make_report((make_layer(make_info("x"), make_measurement(beta=beta, wobble=0.001)),))
    text = " ".join(draw(render(report, Format.TABLE)).split())
    for claim in ("fit", "Newton-like", "Muon-like", "gradient-descent steps"):
        assert claim not in text.replace("of the straight-line fit", "").replace("fitted", "")
    assert say_in_words(report)[1] == f"Curvature: published β {beta:.2f}."


def test_a_report_in_four_lines(report: Report) -> None:
    _, curvature, spectra, trust = say_in_words(report)
    assert curvature.startswith("Curvature: median published β 1.64 (middle half 1.37 to 1.82); ")
    assert "steepest conv1 (2.00), flattest backbone.very" in curvature
    assert spectra == (
        "Spectra: σ falls with rank as log-normal on 3 of 3 layers; "
        "α_H ≈ β·α_G within 10 % on 3 of 3, median error 0.2 %, as noise gives too."
    )
    assert trust == (
        "Trust: 4 of 6 weights measured, all exactly, self-check 2e-06, 1 FAILED, published β to ±0.05 (median) on "
        "2,048 samples."
    )


def test_a_narrow_format_is_not_called_exact(report: Report) -> None:
    narrow = replace(report, provenance=replace(report.provenance, dtype="bfloat16"))
    assert say_in_words(narrow)[-1].startswith("Trust: 4 of 6 weights measured, all in bfloat16, self-check 2e-06")


@pytest.mark.parametrize("width", [80, 100, 120])
def test_what_can_be_known_stays_in_a_narrow_table(report: Report, width: int) -> None:
    text = draw(render(report, Format.TABLE, width=width), width)
    header = next(line for line in text.splitlines() if line.startswith("layer ")).split("  ")
    shown = [title.strip() for title in header if title.strip()]
    assert [title for title in shown if title not in ("layer", "kind", "m × n")][:4] == [
        "resolved",
        "step exponent",
        "β",
        "null β",
    ]
    row = next(line for line in text.splitlines() if line.startswith("conv1.weight"))
    assert [part in row for part in ("2/20", "1.1 (0.3 to 1.8)", "2.00 ±0.03", "2.05")] == [True] * 4
    assert "undetermined" in next(line for line in text.splitlines() if line.startswith("a[red]b|c"))


def test_rank_models_that_win_equally_often_are_both_named(report: Report) -> None:
    wins = {RankModel.POWER_LAW.value: 1, RankModel.EXPONENTIAL.value: 2, RankModel.LOGNORMAL.value: 2}
    overall = replace(report.summary.overall, bic_wins=wins)
    spectra = say_in_words(replace(report, summary=replace(report.summary, overall=overall)))[2]
    assert "σ falls with rank as exponential or log-normal on 2 each of 5 layers" in spectra


def test_estimates_are_called_so() -> None:
    guessed = replace(make_measurement(), exact=False, engine=EngineName.FINITE_DIFFERENCE)
    exact = make_layer(make_info("a"), make_measurement())
    rows = tuple(make_layer(make_info(name), guessed) for name in "bc")
    assert "2 of 2 weights measured, all by estimates," in say_in_words(make_report(rows))[3]
    assert "3 of 3 weights measured, 1 of them exactly," in say_in_words(make_report((exact, *rows)))[3]


def test_four_lines_without_anything_measured() -> None:
    skipped = SkippedLayer(make_info("b"), LayerStatus.SKIPPED, "1-D parameter")
    assert say_in_words(make_report((skipped,))) == (
        "Nothing is known: no weight was measured.",
        "Curvature: no published β, as no layer has a beta.",
        "Spectra: no rank model could be told; α triangle: no layer has a triangle.",
        "Trust: 0 of 1 weight measured.",
    )


def test_ols_interval_is_marked(report: Report) -> None:
    layer = report.layers[0]
    assert isinstance(layer, LayerReport)
    fit = replace(layer.analysis.beta, jackknife_ci95=Missing("one group"))
    text = draw(render(make_report((replace(layer, analysis=replace(layer.analysis, beta=fit)),)), Format.TABLE))
    assert f"±{(fit.ci95.high - fit.ci95.low) / 2:.2f}*" in text
    assert "β: * half the 95 % interval of the straight-line fit alone" in text


def test_weights_the_user_did_not_select_are_counted_not_listed() -> None:
    chosen = make_layer(make_info("conv1.weight"), make_measurement())
    other = SkippedLayer(make_info("elsewhere.weight"), LayerStatus.SKIPPED, NOT_SELECTED)
    text = draw(render(make_report((chosen, other)), Format.MARKDOWN))
    assert "conv1.weight" in text
    assert "elsewhere.weight" not in text
    assert f"1 of 2 weights {NOT_SELECTED} are not listed." in text


def _comparison(*names: str) -> Comparison:
    numbers = [Change(name, "alpha_g", 1.25, 1.5, 0.25, 3.0) for name in names]
    return Comparison("a.json", "b.json", (), tuple(numbers), len(names), 0, paired=True)


def test_in_a_very_narrow_terminal_the_widest_columns_give_way_and_numbers_stay_whole() -> None:
    lines = draw(render(_comparison("a.very.long.name.of.a.weight"), Format.TABLE, width=45), 45).splitlines()
    assert max(cell_len(line) for line in lines) <= 45
    header, row = next((i, lines[n + 2]) for n, i in enumerate(lines) if i.startswith("layer"))
    assert header.split()[1:] == ["number", "before", "after", "z"]
    assert row.split()[1:] == ["alpha_g", "1.25", "1.5", "+3.0"]
    assert "…" in row.split()[0]
    tiny = draw(render(_comparison("a.weight"), Format.TABLE, width=20), 20).splitlines()
    assert max(cell_len(line) for line in tiny) <= 20


NAMES_OF_BLOCKS = tuple(f"encoder.stages.{i}.blocks.0.conv{j}.weight" for i in range(12) for j in (1, 2))


@pytest.mark.parametrize("width", [45, 60, 80])
def test_in_a_narrow_terminal_no_two_weights_have_the_same_name(width: int) -> None:
    text = draw(render(_comparison(*NAMES_OF_BLOCKS), Format.TABLE, width=width), width)
    rows = text[text.index("───") :].split("not shown")[0].splitlines()[1:]
    start = next(line for line in text.splitlines() if line.startswith("layer")).index("number")
    shown = "\n".join(line[:start] for line in rows if line.strip())
    starts = [line[:start].strip() for line in rows if "alpha_g" in line]
    assert len(starts) == len(NAMES_OF_BLOCKS)
    if "names are shortened: 0.blocks.0.conv1 is encoder.stages.0.blocks.0.conv1.weight" in " ".join(text.split()):
        assert len(set(starts)) == len(NAMES_OF_BLOCKS)
        assert width == 45 or starts == [f"{i}.blocks.0.conv{j}" for i in range(12) for j in (1, 2)]
    elif all("…" in name or name in NAMES_OF_BLOCKS for name in starts):
        assert len(set(starts)) == len(NAMES_OF_BLOCKS)
    else:  # folded: all of every name is there
        assert "".join(shown.split()) == "".join(NAMES_OF_BLOCKS)


def test_what_is_said_of_a_column_goes_with_it() -> None:
    narrow = draw(render(decomposed_report(), Format.TABLE, view=View.DECOMPOSITION, width=80), 80)
    full = draw(render(decomposed_report(), Format.TABLE, view=View.DECOMPOSITION))
    assert "top 1 %: share of the curvature" in full
    assert "top 1 %: share of the curvature" not in narrow
    assert "β_Λ: the part of β" in narrow
    for width in (45, 80, 200):
        text = draw(render(_comparison("fc.weight"), Format.TABLE, width=width), width)
        assert "z: the change over its own standard error" in " ".join(text.split())


def test_the_rank_model_that_wins_stays_in_a_narrow_summary(report: Report) -> None:
    for winner, named in ((RankModel.EXPONENTIAL, "BIC: exponential"), (RankModel.POWER_LAW, "BIC: power law")):
        wins = {model.value: 3 if model is winner else 1 for model in RankModel}
        shown = replace(report, summary=replace(report.summary, overall=replace(report.summary.overall, bic_wins=wins)))
        text = draw(render(shown, Format.TABLE, width=80), 80)
        header = next(line for line in text.splitlines() if line.startswith("kind "))
        assert named in header
        assert header.count("BIC") == 1


def test_wide_characters_keep_columns_in_line() -> None:
    text = draw(render(_comparison("重み", "weight"), Format.TABLE))
    ends = {cell_len(line) for line in text.splitlines() if "alpha_g" in line}
    assert len(ends) == 1


@pytest.mark.parametrize("width", range(70, 180, 10))
def test_columns_that_are_read_together_go_together(width: int) -> None:
    """Predicted decreases of b = 0, 1 and 2 are there to be compared: all of them, or none."""
    titles = ("b = 0", "b = 1", "b = 2", "published β", "noise's β")
    table = draw(render(advise(mixed_report()), Format.TABLE, width=width), width)
    head = next(line for line in table.splitlines() if line.startswith("layer "))
    shown = [title in head for title in titles]
    assert len(set(shown[:3])) == len(set(shown[3:])) == 1


def test_a_footnote_goes_with_its_column() -> None:
    narrow = draw(render(decomposed_report(), Format.TABLE, view=View.DECOMPOSITION, width=100), 100)
    full = draw(render(decomposed_report(), Format.TABLE, view=View.DECOMPOSITION))
    assert "² the weight has rank 1" in full
    assert "s_weight, σ-profile" in " ".join(narrow.split())  # among those not shown
    assert "the weight has rank 1" not in narrow
    assert "³ its factors are not finite" in full
    assert "¹ its factors are not finite" in narrow  # of a column that stays, numbered again


def test_colours_and_weights_of_lines(report: Report) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=200, color_system="standard", force_terminal=True, legacy_windows=False)
    console.print(render(report, Format.TABLE, width=200))
    lines = stream.getvalue().splitlines()
    assert any(line.startswith("\x1b[1mlayer") for line in lines)
    assert any(line.startswith("\x1b[1;31mdead.weight") for line in lines)
    assert any(line.startswith("\x1b[2mhead.bias") for line in lines)
    assert any(line.startswith("conv1.weight") and "\x1b[1m" in line for line in lines)  # β alone is bold


def test_columns_without_a_value_leave_first_and_with_what_is_read_beside_them() -> None:
    columns = (
        Column("layer", right=False), Column("kept", drop_order=9), Column("empty", drop_order=1),
        Column("left", drop_order=2, together="a"), Column("right", drop_order=2, together="a"),
    )  # fmt: skip
    rows = (Row(("a", "1", "–¹", "2", "–")), Row(("b", "1²", "–¹", "2", "–")))
    sheet = Sheet("t", columns, rows, ("¹ gone", "² stays"))
    fitted, hidden = drop_columns(sheet, 26, names=5)
    assert hidden == ["empty"]
    assert [row.cells for row in fitted.rows] == [("a", "1", "2", "–"), ("b", "1¹", "2", "–")]
    assert fitted.footnotes == ("¹ stays",)
    assert drop_columns(sheet, 20, names=5)[1] == ["kept", "empty"]
