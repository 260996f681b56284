"""How tests are shared out where they run side by side, and the server that they share."""

import pytest
from served import ade, bench, full_size, oldest_bench, pack, tiny

__all__ = ["ade", "bench", "full_size", "oldest_bench", "pack", "tiny"]

LARGE = {"test_graphs_run.py", "test_motion_nodes.py"}  # these load a model of full size: not both at once


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay together, and those of the files that need much memory."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0].split("/")[-1]
            return "large" if file in LARGE else file

    return ByFile(config, log)
