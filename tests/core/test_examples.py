"""The worked examples in docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import vcd_core

MODULES = sorted(module.name for module in pkgutil.walk_packages(vcd_core.__path__, "vcd_core."))
BENCHMARKS = ["benchmarks.paper_report", "benchmarks.reader"]


@pytest.mark.parametrize("name", MODULES + BENCHMARKS)
def test_examples_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0


def test_there_are_examples():
    found = {name: doctest.DocTestFinder().find(importlib.import_module(name)) for name in MODULES}
    assert sum(bool(test.examples) for tests in found.values() for test in tests) > 20
