"""Fixtures of made-up reports; imported by name, because doctest collection allows one ``conftest`` only."""

import pytest

from spectrascope.records.bench import BenchReport
from spectrascope.records.report import Report
from tests.support.made_up_reports import big_report as make_big_report
from tests.support.made_up_reports import made_up_bench, mixed_report


@pytest.fixture(scope="session")
def report() -> Report:
    """Ok, skipped and failed layers; names that look like markup, hold a pipe, or are 119 characters long."""
    return mixed_report()


@pytest.fixture(scope="session")
def big_report() -> Report:
    """Three hundred layers with long names."""
    return make_big_report()


@pytest.fixture(scope="session")
def bench() -> BenchReport:
    """A made-up benchmark."""
    return made_up_bench()
