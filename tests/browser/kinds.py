"""Both kinds of nodes that the page draws."""

import pytest

both_kinds_of_nodes = pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes 2.0"])
