"""The time of Tiled VCD beside ComfyUI_UltimateSDUpscale's on the same clip, at both packs' defaults and at one grid.

A tiny SD 1.5 of random weights refines 16 frames at their size, in tiles of 128 pixels: a quarter of both packs'
defaults, and so is what lies around a tile.  Two rounds, the ways in turn; the quicker of each counts.

    VCD_USDU=folder python run.py bench upscalers
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from dev.host import ROOT, link
from dev.server import Server, host_from_environment

from .measure import table

SIDES, ROUNDS, TARGET = (256, 384), 2, 0.6
SHARED = {"cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.2, "steps": 4}
THEIRS = {
    "mode_type": "Linear", "tile_width": 128, "tile_height": 128, "mask_blur": 8, "tile_padding": 8,
    "seam_fix_mode": "None", "seam_fix_denoise": 1.0, "seam_fix_width": 64, "seam_fix_mask_blur": 8,
    "seam_fix_padding": 16, "force_uniform_tiles": True, "tiled_decode": False, "batch_size": 1,
}  # fmt: skip
OURS = {"scale": 1.0, "gamma": 0.1, "tile_size": 128}
WAYS: dict[str, dict[str, Any]] = {
    "untiled": {**OURS, "tile_size": 4096, "overlap": 8},
    "Tiled VCD, moving grid, overlap 8": {**OURS, "overlap": 8, "grid": "moving"},
    "the same with overlap 0": {**OURS, "overlap": 0, "grid": "moving"},
    "fixed grid, overlap 16": {**OURS, "overlap": 16, "grid": "fixed"},
    "UltimateSDUpscale, padding 8": THEIRS,
}
DEFAULT = "Tiled VCD, moving grid, overlap 8"
THEIR_DEFAULT = "UltimateSDUpscale, padding 8"


def graph(way: str, side: int, seed: int) -> dict[str, Any]:
    """The clip at this size through one way."""
    name, images = (
        ("UltimateSDUpscaleNoUpscale", "upscaled_image") if WAYS[way] is THEIRS else ("VCD_TiledDenoise", "images")
    )
    world = {"framing": "medium", "action": "walking", "people": 1, "seed": 1, "frames": 16}
    scaled = {"upscale_method": "bilinear", "width": side, "height": side, "crop": "disabled"}
    model = {"model": ["1", 0], "vae": ["1", 2], "positive": ["2", 0], "negative": ["3", 0]}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("VCDTest_TinySD", {"weights": 0}),
        "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a man"}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
        "4": ("VCDTest_World", world),
        "5": ("ImageScale", {"image": ["4", 0], **scaled}),
        "6": (name, {images: ["5", 0], **model, **WAYS[way], **SHARED, "seed": seed}),
        "7": ("PreviewImage", {"images": ["6", 0]}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def seconds(server: Server, way: str, side: int, seed: int) -> float:
    """What the host says that the graph took; what does not change between seeds it keeps."""
    server.run(graph(way, side, seed), timeout=1800)
    lines = [line for line in server.log.read_text(errors="replace").splitlines() if "Prompt executed in" in line]
    return float(lines[-1].split("executed in")[1].split()[0])


def main() -> int:
    ultimate = os.environ.get("VCD_USDU")
    if not ultimate:
        print("ComfyUI_UltimateSDUpscale was not given (VCD_USDU=folder), so there is nothing to compare with.")
        return 0
    host = host_from_environment()
    link(Path(ultimate).resolve(), host.base / "custom_nodes" / "ComfyUI_UltimateSDUpscale")
    link(ROOT / "tests" / "host" / "vcd_test_nodes", host.base / "custom_nodes" / "vcd_test_nodes")
    with Server(host, arguments=("--disable-api-nodes",)) as server:
        if "UltimateSDUpscaleNoUpscale" not in server.get("/object_info"):
            print("ComfyUI_UltimateSDUpscale did not load.")
            return 1
        seconds(server, DEFAULT, SIDES[0], 0)
        found: dict[tuple[str, int], float] = {}
        for turn in range(1, ROUNDS + 1):
            for way in WAYS:
                for side in SIDES:
                    took = seconds(server, way, side, turn)
                    found[way, side] = min(took, found.get((way, side), took))
    rows = [[way, *(f"{found[way, side] / found[THEIR_DEFAULT, side]:.2f}" for side in SIDES)] for way in WAYS]
    table(["16 frames, 4 steps, tiles of 128: time over UltimateSDUpscale's", *map(str, SIDES)], rows)
    ratios = [found[DEFAULT, side] / found[THEIR_DEFAULT, side] for side in SIDES]
    print(f"target: {DEFAULT} at most {TARGET}: {'held' if max(ratios) <= TARGET else 'missed'}")
    return 0 if max(ratios) <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
