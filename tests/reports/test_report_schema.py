"""The published schema is what the code says, accepts what is written and nothing else."""

import copy
import json
from importlib.resources import files

import jsonschema
import pytest

from spectrascope.reports.codec import LAYER_BLOCKS
from spectrascope.reports.json import report_to_json
from spectrascope.reports.schema import report_schema
from tests.support.made_up_reports import make_info, make_layer, make_measurement, make_report, mixed_report

VALIDATOR = jsonschema.Draft202012Validator(report_schema())


def test_the_shipped_file_is_the_schema() -> None:
    shipped = files("spectrascope.reports").joinpath("report.schema.json").read_text(encoding="utf-8")
    assert json.loads(shipped) == report_schema(), "run python -m spectrascope.reports.schema"


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(report_schema())


@pytest.mark.parametrize(
    "report",
    [
        mixed_report(),
        make_report(()),
        make_report((make_layer(make_info("wide"), make_measurement(k=44), top_k=44),)),
    ],
    ids=["mixed", "empty", "quartiles"],
)
def test_reports_are_valid(report) -> None:
    VALIDATOR.validate(json.loads(report_to_json(report)))


def _objects(value: object, path: tuple = ()) -> list[tuple]:
    found = []
    if isinstance(value, dict):
        found.append(path)
        for key, inner in value.items():
            found += _objects(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += _objects(inner, (*path, index))
    return found


def _at(document: object, path: tuple) -> dict:
    for key in path:
        document = document[key]
    return document


OPEN = {"seconds", "engines", "versions", "bic_wins", "well_conditioned_median"}


def test_a_missing_or_unknown_key_anywhere_is_invalid() -> None:
    document = json.loads(report_to_json(mixed_report()))
    document["layers"] = [document["layers"][0], document["layers"][3], document["layers"][5]]
    places = [path for path in _objects(document) if not OPEN & set(path)]
    assert len(places) > 20
    for path in places:
        changed = copy.deepcopy(document)
        _at(changed, path)["surprise"] = 1
        assert not VALIDATOR.is_valid(changed), path
        for key in _at(document, path).keys() - LAYER_BLOCKS.keys():
            changed = copy.deepcopy(document)
            del _at(changed, path)[key]
            assert not VALIDATOR.is_valid(changed), (path, key)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 1),
        (("provenance", "loss"), None),
        (("provenance", "accuracy"), "0.8"),
        (("options", "engine"), "magic"),
        (("options", "top_k"), 1.5),
        (("layers", 0, "status"), "failed"),
        (("layers", 0, "shape"), [1, 2, 3]),
        (("layers", 0, "sigma", 0), "1"),
        (("layers", 0, "beta", "ci95"), [1.0]),
        (("layers", 0, "pr_h"), None),
        (("layers", 0, "beta"), {"missing": ""}),
        (("layers", 5, "status"), "ok"),
        (("layers", 5, "reason"), ""),
    ],
)
def test_wrong_values_are_invalid(path: tuple, value: object) -> None:
    document = json.loads(report_to_json(mixed_report()))
    _at(document, path[:-1])[path[-1]] = value
    assert not VALIDATOR.is_valid(document)
