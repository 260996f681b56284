"""Seconds a step and peak memory of the built-in motion module beside AnimateDiff-Evolved, on the same graph.

Random SD 1.5 and motion weights of full size, 64x64, 16 frames, CFG.  Two servers, so that each has a peak of its own,
take turns.  Give AnimateDiff-Evolved's folder with ``--ade DIR``; without it only the model without motion stands
beside ours.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dev.host import ROOT, link
from dev.server import Server, host_from_environment

from .measure import table

STEPS, ROUNDS = 2, 3


def graph(kind: str, seed: int) -> dict[str, Any]:
    """KSampler on the random checkpoint: "none", "ours" or "evolved"."""
    checkpoint, file = "random_sd15.safetensors", "random_mm_v2.safetensors"
    nodes: dict[str, Any] = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": checkpoint}),
        "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a man on the beach"}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
        "4": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 16}),
        "6": (
            "KSampler",
            {
                "model": ["1" if kind == "none" else "5", 0], "positive": ["2", 0], "negative": ["3", 0],
                "latent_image": ["4", 0], "seed": seed, "steps": STEPS, "cfg": 8.0, "sampler_name": "euler",
                "scheduler": "normal", "denoise": 1.0,
            },
        ),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "8": ("PreviewImage", {"images": ["7", 0]}),
    }  # fmt: skip
    if kind == "ours":
        inputs: dict[str, Any] = {"motion_module": file, "strength": 1.0, "beta_schedule": "linear (AnimateDiff)"}
        nodes["5"] = ("VCD_MotionModule", {"model": ["1", 0], **inputs})
    elif kind == "evolved":
        inputs = {"model_name": file, "beta_schedule": "autoselect"}
        nodes["5"] = ("ADE_AnimateDiffLoaderGen1", {"model": ["1", 0], **inputs})
    return {key: {"class_type": kind_, "inputs": inputs_} for key, (kind_, inputs_) in nodes.items()}


def sampling_seconds(server: Server, kind: str, seed: int) -> float:
    """The seconds that KSampler took, from the server's own events."""
    server.run(graph(kind, seed), timeout=1800)
    lines = [line for line in server.log.read_text(errors="replace").splitlines() if "Prompt executed in" in line]
    return float(lines[-1].split("executed in")[1].split()[0])


def peak_gib(server: Server) -> float:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def main() -> int:
    host = host_from_environment()
    ade = os.environ.get("VCD_ADE")
    kinds = ["none", "ours"]
    if ade:
        link(Path(ade).resolve(), host.base / "custom_nodes" / "ComfyUI-AnimateDiff-Evolved")
        kinds.append("evolved")
    models = host.base / "models"
    for kind, path in (("sd15", "checkpoints/random_sd15"), ("motion", "animatediff_models/random_mm_v2")):
        target = models / f"{path}.safetensors"
        if not target.is_file():
            subprocess.run([sys.executable, "-m", "dev.random_models", kind, str(target)], check=True, cwd=ROOT)
    servers = {kind: Server(host, arguments=("--disable-api-nodes",)) for kind in kinds}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    try:
        for kind, server in servers.items():
            server.start()
            sampling_seconds(server, kind, 0)  # loads the model
        for turn in range(1, ROUNDS + 1):
            for kind, server in servers.items():
                times[kind].append(sampling_seconds(server, kind, turn))
                time.sleep(1)
        peaks = {kind: peak_gib(server) for kind, server in servers.items()}
    finally:
        for server in servers.values():
            server.stop()
    base = statistics.median(times["none"])
    rows = [
        [kind, f"{statistics.median(times[kind]) / STEPS:.1f}", f"{statistics.median(times[kind]) / base:.2f}",
         f"{peaks[kind]:.2f}"]
        for kind in kinds
    ]  # fmt: skip
    table(["motion", "seconds a step", "over no motion", "peak memory, GiB"], rows)
    if not ade:
        print("\nAnimateDiff-Evolved was not given (--ade DIR), so there is nothing to compare with.")
        return 0
    ratio = statistics.median(times["ours"]) / statistics.median(times["evolved"])
    larger = peaks["ours"] / peaks["evolved"]
    print(f"\nours / evolved: {ratio:.2f} in time, {larger:.2f} in peak memory; target: neither above 1.05")
    return 0 if ratio <= 1.05 and larger <= 1.05 else 1


if __name__ == "__main__":
    sys.exit(main())
