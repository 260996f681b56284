"""Tiles on a video model of real size, Wan 2.1 1.3B with random weights, beside the untiled sampler and the host's own
context windows: what the model sees over the clip's latent, the time outside of it, and the peak beside its weights.
And whether the brightness of a still picture steps with the VAE's blocks of frames in tiles.

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
from dev.still import luma, still

from .measure import table
from .memory import peak, restart_peak

KIND = "wan21_1.3b"
FRAMES, SIDE, TILE, OVERLAP, WINDOW, STEPS = 17, 256, 160, 64, 9, 1
STILL = {
    "scale": 1.0, "overlap": 32, "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal",
    "denoise": 0.4, "gamma": 0.1, "seed": 1,
}  # fmt: skip
PULSE = "pulse"
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


def enter() -> None:
    """The host's modules and the pack in this process."""
    host = host_from_environment()
    enter_host(host.comfy)
    sys.path.insert(0, str(host.base / "custom_nodes"))


def steps_in_brightness(kind: str) -> dict[str, float]:
    """The largest step of the mean brightness from frame to frame, in 1/255, of one still picture drawn with one tile
    and with four; and how far both are apart at most."""
    enter()

    def module(name: str) -> Any:
        return __import__(f"{PACK}.{name}", fromlist=[name])

    with torch.inference_mode():
        held, model, vae, _ = still(module, kind, kept=0.3)
        node, prompt = module("nodes.tiled").TiledDenoise, video_models.prompt(kind)
        one, four = (
            255 * luma(node.execute(held, model, vae, prompt, prompt, tile_size=size, **STILL).args[0])
            for size in (128, 64)
        )
    steps = {name: float(found.diff().abs().max()) for name, found in (("one", one), ("four", four))}
    return {**steps, "apart": float((four - one).abs().max())}


def measured(way: str, kind: str) -> dict[str, float]:
    """One way's figures, in a process of its own."""
    if way == PULSE:
        return steps_in_brightness(kind)
    enter()
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


def in_a_process(way: str, kind: str) -> dict[str, float]:
    """``measured`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.video", json.dumps([way, kind])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    print(f"{kind}, {way}: done", flush=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    found = {way: in_a_process(way, KIND) for way in WAYS}
    base = found[WAYS[0]]["model"]
    table(
        ["", "values seen over the clip's", "time in the model over untiled's", "time outside the model", "peak"],
        [
            [
                way, f"{one['calls']:.2f}", f"{one['model'] / base:.2f}", f"{100 * one['outside']:.1f} %",
                f"{one['memory']:.2f} GiB",
            ]
            for way, one in found.items()
        ],
    )  # fmt: skip
    stills = {kind: in_a_process(PULSE, kind) for kind in ("wan21", "ltxv", "h3")}
    table(
        ["a still picture, in 1/255", "largest step between frames, untiled", "in four tiles", "farthest apart"],
        [[kind, *(f"{one[name]:.4f}" for name in ("one", "four", "apart"))] for kind, one in stills.items()],
    )
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(*json.loads(sys.argv.pop()))))
    else:
        sys.exit(main())
