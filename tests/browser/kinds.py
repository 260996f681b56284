"""What the tests of the page share."""

import pytest

both_kinds_of_nodes = pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes 2.0"])

ADD = """const add = (type, at, values = {}) => {
  const node = window.LiteGraph.createNode(type);
  node.pos = at;
  window.app.graph.add(node);
  for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name];
  return node;
};"""


def check_outputs(server, entry):
    """Every node of a graph that ran and ends something has an output, and no file is empty; the files."""
    info = server.get("/object_info")
    ends = {key for key, node in entry["prompt"][2].items() if info[node["class_type"]]["output_node"]}
    assert ends
    assert ends <= set(entry["outputs"])
    files = server.outputs(entry)
    assert all(path.stat().st_size for path in files)
    return files
