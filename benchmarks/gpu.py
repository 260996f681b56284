"""Time and peak memory of each stage on a GPU, beside AnimateDiff-Evolved, UltimateSDUpscale and untiled.

A random SD 1.5 of full size, 16 frames of 512x512; refined at twice that in tiles of 512, which are both packs'
defaults.  The ways in turn, two rounds after one that loads the models; the quicker of each counts.  Memory is what the
device had in use at most, above what it had before the first graph, read from ComfyUI while it works.

    VCD_USDU=folder python run.py bench gpu --ade DIR
    python -m benchmarks.gpu --side 64 --steps 1    a trial at another size, also without a GPU
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev import random_models
from dev.graph import api_node
from dev.host import ROOT, link
from dev.server import Server, host_from_environment

from .measure import table

ROUNDS = 2
PLAIN, MOTION, EVOLVED = "drawn, no motion", "drawn, AnimateDiff Motion Module", "drawn, AnimateDiff-Evolved"
FACE, UNTILED, TILED = "a face refined", "enlarged and refined, untiled", "enlarged and refined, Tiled VCD"
ULTIMATE = "enlarged and refined, UltimateSDUpscale"
NODES = {
    PLAIN: "KSampler", MOTION: "VCD_MotionModule", EVOLVED: "ADE_AnimateDiffLoaderGen1", FACE: "VCD_FaceRefine",
    UNTILED: "VCD_TiledDenoise", TILED: "VCD_TiledDenoise", ULTIMATE: "UltimateSDUpscaleNoUpscale",
}  # fmt: skip
BESIDE = {MOTION: (PLAIN, EVOLVED), TILED: (UNTILED, ULTIMATE)}
PACKS = {"VCD_ADE": "ComfyUI-AnimateDiff-Evolved", "VCD_USDU": "ComfyUI_UltimateSDUpscale"}


@dataclass
class Case:
    """The graphs of all ways at one size.

    Args:
        info: the server's account of its nodes.
        files: the names of the checkpoint and of the motion module.
        side: of the frames, pixels.
    """

    info: dict[str, Any]
    files: dict[str, str]
    side: int
    steps: int

    def node(self, kind: str, **inputs: Any) -> dict[str, Any]:
        return api_node(self.info, kind, **inputs)

    def graph(self, way: str, seed: int) -> dict[str, Any]:
        """The graph of a way in API form."""
        model = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "seed": seed, "steps": self.steps}
        nodes = {
            "1": self.node("CheckpointLoaderSimple", ckpt_name=self.files["sd15"]),
            "2": self.node("CLIPTextEncode", clip=["1", 1], text="a man on the beach"),
            "3": self.node("CLIPTextEncode", clip=["1", 1], text=""),
            "4": self.node("VCDTest_World", framing="close-up", action="walking", people=1, seed=1, frames=16),
            "5": self.node("ImageScale", image=["4", 0], width=self.side, height=self.side),
            "9": self.node("PreviewImage", images=["8", 0]),
        }
        if way in (PLAIN, MOTION, EVOLVED):
            return nodes | self._drawn(way, model)
        return nodes | self._refined(way, {**model, "vae": ["1", 2]})

    def _drawn(self, way: str, model: dict[str, Any]) -> dict[str, Any]:
        nodes = {
            "6": self.node("EmptyLatentImage", width=self.side, height=self.side, batch_size=16),
            "7": self.node("KSampler", latent_image=["6", 0], **model),
            "8": self.node("VAEDecode", samples=["7", 0], vae=["1", 2]),
        }
        if way != PLAIN:
            file = "motion_module" if way == MOTION else "model_name"
            nodes["10"] = self.node(NODES[way], model=["1", 0], **{file: self.files["motion"]})
            nodes["7"]["inputs"]["model"] = ["10", 0]
        return nodes

    def _refined(self, way: str, model: dict[str, Any]) -> dict[str, Any]:
        if way == FACE:
            return {"8": self.node(NODES[way], images=["5", 0], refine_size=self.side, if_none="stop with an error",
                                   **model)}  # fmt: skip
        large = self.node("ImageScale", image=["5", 0], width=2 * self.side, height=2 * self.side)
        tiles: dict[str, Any] = {"tile_width": self.side, "tile_height": self.side}
        if way != ULTIMATE:
            tiles = {"tile_size": 8 * self.side if way == UNTILED else self.side, "scale": 1.0}
        images = "upscaled_image" if way == ULTIMATE else "images"
        return {"6": large, "8": self.node(NODES[way], **{images: ["6", 0]}, **model, **tiles, denoise=0.2)}


class Watch:
    """What the device has in use at most, from ComfyUI's own account, in bytes."""

    def __init__(self, server: Server) -> None:
        self.server, self.most = server, 0

    def used(self) -> int:
        device = self.server.get("/system_stats")["devices"][0]
        return int(device["vram_total"] - device["vram_free"])

    @contextlib.contextmanager
    def over(self) -> Iterator[None]:
        """Watch while the block runs."""
        self.most, done = self.used(), threading.Event()

        def look() -> None:
            while not done.wait(0.02):
                self.most = max(self.most, self.used())

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def measure(server: Server, case: Case, ways: list[str]) -> dict[str, tuple[float, float]]:
    """Seconds and GiB of each way."""
    watch = Watch(server)
    before = watch.used()
    found: dict[str, tuple[float, float]] = {}
    for turn in range(ROUNDS + 1):
        for way in ways:
            with watch.over():
                server.run(case.graph(way, turn), timeout=3600)
            lines = [
                line for line in server.log.read_text(errors="replace").splitlines() if "Prompt executed in" in line
            ]
            took, gib = float(lines[-1].split("executed in")[1].split()[0]), (watch.most - before) / 2**30
            if turn:
                old = found.get(way, (took, gib))
                found[way] = min(took, old[0]), max(gib, old[1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    trial = parser.parse_args(sys.argv[1:] if sys.argv[0].endswith("gpu.py") else [])
    host = host_from_environment()
    link(ROOT / "tests" / "host" / "vcd_test_nodes", host.base / "custom_nodes" / "vcd_test_nodes")
    for variable, folder in PACKS.items():
        if os.environ.get(variable):
            link(Path(os.environ[variable]).resolve(), host.base / "custom_nodes" / folder)
    files = random_models.full_size(host.base / "models")
    with Server(host, arguments=("--disable-api-nodes",)) as server:
        device = server.get("/system_stats")["devices"][0]
        if device["type"] == "cpu" and trial.side == 512:
            print("There is no GPU here: nothing to measure. For a trial on the CPU give --side 64 --steps 1.")
            return 0
        info = server.get("/object_info")
        ways = [way for way, node in NODES.items() if node in info]
        found = measure(server, Case(info, files, trial.side, trial.steps), ways)
    print(f"{device['name']}, 16 frames of {trial.side}x{trial.side}, {trial.steps} steps")
    rows = []
    for way in ways:
        over = [f"{found[way][0] / found[other][0]:.2f}, {found[way][1] / max(found[other][1], 1e-9):.2f} ({other})"
                for other in BESIDE.get(way, ()) if other in found]  # fmt: skip
        rows.append([way, f"{found[way][0]:.1f}", f"{found[way][1]:.2f}", "; ".join(over)])
    table(["way", "seconds", "GiB", "time and memory over"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
