"""How tests are shared out where they run side by side."""

import pytest

FULL_SIZE = "full size"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A file's tests stay together; those that load a model of full size run one after the other, for its memory."""
    for item in items:
        large = "full_size" in getattr(item, "fixturenames", ()) or item.path.name == "test_graphs_run.py"
        item.add_marker(pytest.mark.xdist_group(FULL_SIZE if large else item.path.name))
