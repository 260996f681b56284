"""Tiles on a video model of real size, Wan 2.1 1.3B with random weights, beside the untiled sampler and the host's own
context windows: what the model sees over the clip's latent, the time outside of it, and the peak beside its weights.

    python run.py bench video
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from dev import video_models
from dev.host import PACK, ROOT
from dev.random_models import enter_host
from dev.server import host_from_environment

from .measure import table
from .memory import peak, restart_peak

KIND = "wan21_1.3b"
FRAMES, SIDE, TILE, OVERLAP, WINDOW, STEPS = 17, 256, 160, 64, 9, 1
WAYS = ("untiled", "Tiled VCD Patch", "the host's context windows")


def with_way(model: Any, way: str) -> Any:
    if way == "Tiled VCD Patch":
        node = __import__(f"{PACK}.nodes.tiled", fromlist=["tiled"]).TiledPatch
        return node.execute(model, TILE, OVERLAP).args[0]
    if way == "the host's context windows":
        from comfy_extras.nodes_context_windows import WanContextWindowsManualNode

        return WanContextWindowsManualNode.execute(
            model=model, context_length=WINDOW, context_overlap=4, context_schedule="standard_static",
            context_stride=1, closed_loop=False, fuse_method="pyramid", freenoise=False,
        ).args[0]  # fmt: skip
    return model


class Timed:
    """The model's calls: how many values they saw, and the time within."""

    def __init__(self) -> None:
        self.values = self.seconds = 0.0

    def __call__(self, apply: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        begin = time.perf_counter()
        out = apply(arguments["input"], arguments["timestep"], **arguments["c"])
        self.values, self.seconds = self.values + arguments["input"].numel(), self.seconds + time.perf_counter() - begin
        return out


def measured(way: str, kind: str) -> dict[str, float]:
    """One way's figures, in a process of its own."""
    host = host_from_environment()
    enter_host(host.comfy)
    sys.path.insert(0, str(host.base / "custom_nodes"))
    import comfy.sample

    with torch.inference_mode():
        model, timed = with_way(video_models.model(kind), way), Timed()
        model.set_model_unet_function_wrapper(timed)
        latent = torch.zeros(1, 16, 1 + (FRAMES - 1) // 4, SIDE // 8, SIDE // 8)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
        prompts = [video_models.prompt(kind, seed) for seed in (1, 2)]
        restart_peak()
        before, begin = peak(), time.perf_counter()
        comfy.sample.sample(model, noise, STEPS, 1.0, "euler", "simple", *prompts, latent, seed=0, disable_pbar=True)
        seconds = time.perf_counter() - begin
    return {
        "calls": timed.values / (latent.numel() * STEPS),
        "model": timed.seconds,
        "outside": (seconds - timed.seconds) / seconds,
        "memory": (peak() - before) / 2**30,
    }


def main() -> int:
    rows: list[list[str]] = []
    base: dict[str, float] = {}
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.video", json.dumps([way, KIND])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        base = base or found
        rows.append([
            way, f"{found['calls']:.2f}", f"{found['model'] / base['model']:.2f}", f"{100 * found['outside']:.1f} %",
            f"{found['memory']:.2f} GiB",
        ])  # fmt: skip
        print(f"{way}: done", flush=True)
    table(
        ["", "values seen over the clip's", "time in the model over untiled's", "time outside the model", "peak"], rows
    )
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(*json.loads(sys.argv.pop()))))
    else:
        sys.exit(main())
