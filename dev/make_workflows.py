"""Writes the bundled graphs: ``python -m dev.make_workflows`` with a host set up (``python run.py demo``).

The graphs are drawn here rather than by hand so that widgets, sockets and layout follow the nodes as they are.
"""

from __future__ import annotations

from collections.abc import Callable

from .graph import Graph, Out
from .host import ROOT, prepare
from .server import Server

WORKFLOWS = ROOT / "workflows"


def noise_prior(graph: Graph) -> None:
    graph.column("1. What gamma does", 380)
    graph.note(
        "**3D noise prior.** The initial noise of a clip is correlated along time: `gamma` is how much each frame's "
        "noise keeps of the one before. 0 is ComfyUI's own noise, 0.1 the paper's value, 1 a single noise for all.\n\n"
        "This graph needs no model. Change gamma, queue again, and watch the clip: the noise drifts instead of "
        "flickering."
    )
    preview = graph.add("VCD_NoisePriorPreview", frames=16, gamma=0.8, seed=1, height=420)
    graph.column("2. Keep it", 380)
    graph.add("SaveImage", images=preview, filename_prefix="vcd/noise_prior", height=330)
    video = graph.add("CreateVideo", images=Out(preview.node, 1), fps=8.0)
    graph.add("SaveVideo", video=video, filename_prefix="vcd/noise_prior", height=420)


GRAPHS: dict[str, Callable[[Graph], None]] = {
    "00_noise_prior": noise_prior,
}


def main() -> None:
    WORKFLOWS.mkdir(exist_ok=True)
    with Server(prepare(None), arguments=("--disable-api-nodes",)) as server:
        info = server.get("/object_info")
        for name, draw in GRAPHS.items():
            graph = Graph(info)
            draw(graph)
            graph.save(WORKFLOWS / f"{name}.json")
            print(f"wrote workflows/{name}.json: {len(graph.nodes)} nodes")


if __name__ == "__main__":
    main()
