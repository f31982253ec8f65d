"""JSON: exact, strict, and refusing what is no report with one line that says where."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrascope.errors import NonFiniteError, ReportFormatError
from spectrascope.records.report import (
    Analysis,
    LayerInfo,
    LayerReport,
    Measurement,
    ModelInfo,
    ProbeOptions,
    Provenance,
    Report,
    SelfCheck,
    SkippedLayer,
    Summary,
)
from spectrascope.records.values import Interval, LayerStatus, Missing, PowerFit, ZetaBound
from spectrascope.reports.codec import GROUP_KEYS, LAYER_KEYS, added_later
from spectrascope.reports.json import record_to_json, report_from_json, report_to_json
from tests.support.made_up_reports import (
    decomposed,
    make_info,
    make_layer,
    make_measurement,
    make_report,
    mixed_report,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
reason = st.text(min_size=1)
value_or_missing = st.one_of(finite, st.builds(Missing, reason))


@st.composite
def power_fits(draw: st.DrawFn) -> PowerFit:
    low, high = sorted((draw(finite), draw(finite)))
    interval = Interval(low, high)
    count = st.integers(0, 10**6)
    return PowerFit(
        *(draw(finite) for _ in range(3)),
        ci95=interval,
        jackknife_ci95=draw(st.one_of(st.just(interval), st.builds(Missing, reason))),
        r2=draw(finite),
        n=draw(count),
        n_dropped=draw(count),
    )


def test_round_trip(report: Report) -> None:
    assert report_from_json(report_to_json(report)) == report


def test_round_trip_of_quartiles_extra_and_odd_options() -> None:
    wide = make_layer(make_info("wide"), make_measurement(k=44), top_k=44)
    assert not isinstance(wide.analysis.beta_quartiles, Missing)
    report = replace(
        make_report((wide,)),
        options=ProbeOptions(micro_batch=64, top_k=44, device="cuda:1"),
        extra={"gate": {"limits": [1, 2.5, "x", None, True]}},
    )
    assert report_from_json(report_to_json(report)) == report


def test_round_trip_of_a_decomposition_and_of_estimates() -> None:
    estimated = replace(make_measurement(), exact=False, h_stderr=(0.25,) * 20)
    rows = (
        decomposed(make_layer(make_info("a"), make_measurement()), shape=(20, 20)),
        replace(make_layer(make_info("b"), estimated), decomposition=Missing("its factors are too large")),
    )
    assert report_from_json(report_to_json(make_report(rows))) == make_report(rows)


def test_a_file_name_that_is_no_unicode_comes_back(report: Report) -> None:
    odd = replace(report, provenance=replace(report.provenance, command="spectrascope probe net\udcff.pt"))
    assert report_from_json(report_to_json(odd)) == odd


def test_every_field_of_a_layer_is_written() -> None:
    groups = {f"group_{key}" for key in GROUP_KEYS}
    names = [item.name for part in (Measurement, Analysis) for item in fields(part)]
    assert sorted(LAYER_KEYS) == sorted([*(name for name in names if name not in groups), "groups"])


IMPORTED = """
import sys
from spectrascope.cli import app
from spectrascope.reports import read_report, report_to_json
assert not {"torch", "pydantic", "pydantic_core"} & set(sys.modules)
report_to_json(read_report(__import__("pathlib").Path(sys.argv[1])))
assert "pydantic_core" in sys.modules
assert not {"torch", "pydantic"} & set(sys.modules)
"""


def test_reading_imports_the_core_of_pydantic_and_nothing_else_does() -> None:
    path = Path(__file__).parents[1] / "golden" / "report-v1.json"
    subprocess.run([sys.executable, "-c", IMPORTED, str(path)], check=True)


def test_the_validator_is_built_once(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    text = report_to_json(report)
    report_from_json(text)
    monkeypatch.setattr("spectrascope.reports.validate.document_schema", lambda: pytest.fail("built again"))
    report_from_json(text)


def test_round_trip_without_layers() -> None:
    assert report_from_json(report_to_json(make_report(()))) == make_report(())


@settings(max_examples=60, deadline=None)
@given(
    fit=st.one_of(power_fits(), st.builds(Missing, reason)),
    number=value_or_missing,
    name=st.text(),
    skip=reason,
    negative=st.lists(finite, min_size=20, max_size=20),
)
def test_round_trip_of_any_values(
    fit: PowerFit | Missing, number: float | Missing, name: str, skip: str, negative: list[float]
) -> None:
    layer = make_layer(make_info(name), make_measurement())
    bound = ZetaBound(1.0, number, 2.0, Missing("x"), finite_holds=False)
    changed = replace(
        layer,
        analysis=replace(layer.analysis, beta=fit, pr_h=number, zeta_bound=bound),
        measurement=replace(layer.measurement, residual=number, h=tuple(negative)),
    )
    report = make_report((layer, SkippedLayer(make_info(name), LayerStatus.FAILED, skip)))
    report = replace(report, layers=(changed, report.layers[1]))
    assert report_from_json(report_to_json(report)) == report


def test_order_and_layout(report: Report) -> None:
    text = report_to_json(report)
    document = json.loads(text)
    assert list(document) == ["schema_version", "provenance", "options", "summary", "layers"]
    assert list(document["layers"][0])[:10] == [
        "name",
        "kind",
        "role",
        "shape",
        "stored_shape",
        "tied_names",
        "frozen",
        "parametrized",
        "status",
        "reason",
    ]
    assert list(document["layers"][0]["beta"]) == [
        "value",
        "stderr",
        "ci95",
        "jackknife_ci95",
        "r2",
        "n",
        "n_dropped",
        "intercept",
    ]
    assert text.isascii()
    lines = text.splitlines()
    assert sum(line.startswith('      "sigma": [') and line.endswith("],") for line in lines) == 4
    assert '      "residual": {"missing": "not among the pairs compared"},' in lines


def test_missing_everywhere_is_an_object_with_a_reason(report: Report) -> None:
    tiny = json.loads(report_to_json(report))["layers"][3]
    for key in ("beta", "alpha_g", "alpha_h", "triangle", "rank_models", "beta_quartiles"):
        assert list(tiny[key]) == ["missing"], key
        assert tiny[key]["missing"]


def test_skipped_and_failed_rows_have_the_head_only(report: Report) -> None:
    skipped, failed = json.loads(report_to_json(report))["layers"][4:]
    assert (skipped["status"], skipped["reason"]) == ("skipped", "1-D parameter")
    assert (failed["status"], failed["reason"]) == ("failed", "the gradient is zero everywhere")
    assert len(skipped) == len(failed) == 10


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_number_is_named(report: Report, bad: float) -> None:
    layer = report.layers[0]
    assert isinstance(layer, LayerReport)
    broken = replace(layer, analysis=replace(layer.analysis, pr_h=bad))
    with pytest.raises(NonFiniteError, match=r"^layers\[0\] \(conv1\.weight\)\.pr_h is -?(nan|inf), a report"):
        report_to_json(replace(report, layers=(broken,)))
    with pytest.raises(NonFiniteError, match=r"^provenance\.seconds\.load is"):
        report_to_json(replace(report, provenance=replace(report.provenance, seconds={"load": bad})))
    with pytest.raises(NonFiniteError, match=r"^extra\.list\[1\] is"):
        report_to_json(replace(report, extra={"list": [1, bad]}))


def test_a_tensor_in_a_record_is_refused(report: Report) -> None:
    with pytest.raises(TypeError, match=r"extra\.x: a report cannot hold a object"):
        report_to_json(replace(report, extra={"x": object()}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^the file is empty"),
        ("{", "^not whole, it ends in the middle: "),
        ('{"schema_version": 2, "provenance": {"vers', "^not whole, it ends in the middle: "),
        ("<html>", "^not JSON: "),
        ("[" * 100_000, "^not JSON: "),
        ('{"schema_version": NaN}', "^not strict JSON: NaN is not a number"),
        ("[]", "^not a spectrascope report: no schema_version"),
        ("3", "^not a spectrascope report: no schema_version"),
        ('{"accuracy": 0.9}', "^not a spectrascope report: no schema_version"),
        ('{"schema_version": "1"}', "^schema_version must be a positive integer"),
        ('{"schema_version": true}', "^schema_version must be a positive integer"),
        ('{"schema_version": 99}', "^the report has schema version 99, this release reads up to 2: upgrade"),
        ('{"schema_version": 1}', "^not a complete spectrascope report: provenance is missing"),
    ],
)
def test_what_is_no_report(text: str, message: str) -> None:
    with pytest.raises(ReportFormatError, match=message):
        report_from_json(text)


def test_a_byte_order_mark_is_no_part_of_it(report: Report) -> None:
    assert report_from_json("\ufeff" + report_to_json(report)) == report


_L = "layers[0] (conv1.weight)"
CHANGES = [
    (("layers", 0, "beta", "stderr"), None, f"{_L}.beta.stderr must be a number, found null"),
    (("layers", 0, "beta", "r2"), "0.9", f"{_L}.beta.r2 must be a number, found '0.9'"),
    (("layers", 0, "beta", "n"), 3.5, f"{_L}.beta.n must be an integer, found 3.5"),
    (("layers", 0, "beta", "n"), True, f"{_L}.beta.n must be an integer, found True"),
    (("layers", 0, "beta", "ci95"), [2, 1], f"{_L}.beta.ci95 contradicts itself: interval bounds out of order"),
    (("layers", 0, "beta", "ci95"), [2], f"{_L}.beta.ci95 must hold 2 values, found 1"),
    (("layers", 0, "beta"), {"missing": ""}, f"{_L}.beta contradicts itself: a Missing value needs a reason"),
    (("layers", 0, "beta"), [], f"{_L}.beta must be an object, found a list"),
    (("layers", 0, "kind"), "pool", f"{_L}.kind must be one of linear, conv"),
    (("layers", 0, "exact"), 1, f"{_L}.exact must be true or false, found 1"),
    (("layers", 0, "engine"), {}, f"{_L}.engine must be one of auto"),
    (("layers", 0, "sigma"), 3, f"{_L}.sigma must be a list, found 3"),
    (("layers", 0, "sigma"), [1.0], f"{_L} contradicts itself: 1 singular values but 20"),
    (("layers", 0, "sigma", 0), 10**400, f"{_L}.sigma[0] is too large"),
    (("layers", 0, "curvature_matrix", 3), [1.0], f"{_L}.curvature_matrix must have rows of 20 values"),
    (("layers", 0, "groups", "h", 0), [1.0], f"{_L}.groups.h must have rows of 20 values"),
    (("layers", 0, "groups"), [], f"{_L}.groups must be an object"),
    (("layers", 0, "rank_models", "bic"), {}, f"{_L}.rank_models.bic must name 3 models"),
    (
        ("layers", 0, "rank_models", "aic", "weibull"),
        "low",
        f"{_L}.rank_models.aic.weibull must be a number, found 'low'",
    ),
    (("layers", 0, "rank_models", "params", "weibull"), 1.5, f"{_L}.rank_models.params.weibull must be a list"),
    (("layers", 0, "name"), 7, "layers[0].name must be a string, found 7"),
    (("layers", 0), [], "layers[0] must be an object, found a list"),
    (("layers", 4, "reason"), "", "layers[4] (head.bias) is skipped without a reason"),
    (("layers", 4, "status"), "lost", "layers[4] (head.bias).status must be one of ok, skipped, failed"),
    (("layers",), {}, "layers must be a list"),
    (("summary", "n_ok"), 7, "summary counts (7, 1, 1) ok, skipped and failed layers, but the report holds"),
    (("provenance",), "x", "provenance must be an object, found 'x'"),
    (("provenance", "versions", "torch"), 2, "provenance.versions.torch must be a string, found 2"),
    (("options", "micro_batch"), 1.5, "options.micro_batch must be an integer, found 1.5"),
    (("extra",), [], "extra must be an object"),
]


@pytest.mark.parametrize(("place", "value", "message"), CHANGES, ids=lambda item: repr(item)[:60])
def test_wrong_values_are_named_with_their_place(place: tuple, value: object, message: str) -> None:
    document = json.loads(report_to_json(mixed_report()))
    holder = document
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    with pytest.raises(ReportFormatError) as caught:
        report_from_json(json.dumps(document))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def _paths(value: object, path: tuple = ()) -> list[tuple]:
    found = []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += [(*path, key), *_paths(inner, (*path, key))]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        found += _paths(value[0], (*path, 0))
    return found


def test_every_missing_key_is_named(report: Report) -> None:
    text = report_to_json(report)
    free = {"seconds", "engines", "versions", "bic_wins", "well_conditioned_median"}  # open tables
    paths = [path for path in _paths(json.loads(text)) if not free & set(path[:-1])]
    records = (ModelInfo, ProbeOptions, Provenance, SelfCheck, LayerInfo, Measurement, Analysis, LayerReport, Summary)
    optional = {"schema_version", "missing", *(name for record in records for name in added_later(record))}
    paths = [path for path in paths if path[-1] not in optional]
    assert len(paths) > 100
    for path in paths:
        document = json.loads(text)
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        del holder[path[-1]]
        with pytest.raises(ReportFormatError, match=rf"\b{path[-1]} is missing$|must name 3 models$"):
            report_from_json(json.dumps(document))


def test_keys_of_a_later_release_are_ignored(report: Report) -> None:
    document = json.loads(report_to_json(report))
    document["layers"][0]["beta"]["p_value"] = 0.5
    document["weather"] = "fine"
    assert report_from_json(json.dumps(document)) == report


def test_bench(bench) -> None:
    document = json.loads(record_to_json(bench))
    assert next(iter(document)) == "schema_version"
    assert document["ratio_rounds"] == [98.5, 100.0, 101.25]
    with pytest.raises(NonFiniteError, match=r"^ratio is inf"):
        record_to_json(replace(bench, ratio=float("inf")))


@pytest.mark.parametrize(("said", "read"), [(True, "sampled"), (False, "off")])
def test_a_self_check_that_was_yes_or_no(report: Report, said: bool, read: str) -> None:
    document = json.loads(report_to_json(report))
    document["options"]["self_check"] = said
    assert report_from_json(json.dumps(document)).options.self_check.value == read
