"""Memory of the frame stages beside their input and output, in copies of the clip; target: under 1.3.

Each stage runs in a process of its own, on frames of noise with one moving box given as a face, so that the detector's
own memory counts in "track, detecting" alone.  Peaks are the process's, as Linux counts them.

    python run.py bench memory
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from dev.host import PACK, ROOT
from dev.random_models import enter_host
from dev.server import host_from_environment

SIZES = ((48, 1080, 1920), (96, 540, 960), (2000, 144, 256))  # frames, height, width
STAGES = ("track", "track, detecting", "crop", "paste", "refine, crop and paste alone", "tiled, enlarging alone")
TARGET = 1.3


def peak() -> int:
    """The process's largest resident size so far, in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def restart_peak() -> None:
    """Let the largest resident size be counted from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def measured(stage: str, size: tuple[int, int, int]) -> float:
    """Copies of the clip that a stage needs at its peak beside its input and output."""
    host = host_from_environment()
    enter_host(host.comfy)
    sys.path.insert(0, str(host.base / "custom_nodes"))
    face, tiled = (__import__(f"{PACK}.nodes.{name}", fromlist=[name]) for name in ("face", "tiled"))
    with torch.inference_mode():
        call = prepared(stage, face, tiled, size)
        one = 4 * 3 * size[0] * size[1] * size[2]
        warm = prepared(stage, face, tiled, (2, 64, 64))
        warm()
        restart_peak()
        before = peak()
        results = [value for value in call() if torch.is_tensor(value)]
    out = sum(value.numel() * value.element_size() for value in results)
    return (peak() - before - out) / one


def prepared(stage: str, face: Any, tiled: Any, size: tuple[int, int, int]) -> Any:
    """The stage's call, with its input made."""
    frames, height, width = size
    images = torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(0))
    side = height // 4
    boxes = [[{"x": 8 + i % (width - side - 8), "y": 8, "width": side, "height": side}] for i in range(frames)]
    if stage.startswith("track"):
        given = None if "detecting" in stage else boxes
        return lambda: face.FaceTrack.execute(images, "all", 0, 0.6, 8, 1, False, bboxes=given).args
    if stage.startswith("tiled"):
        resize = __import__(f"{PACK}.nodes.host.pictures", fromlist=["pictures"]).resize
        return lambda: [resize(images, height * 2, width * 2)]
    faces = face.track_faces(images, bboxes=boxes, min_length=1)
    crop = lambda: face.FaceCrop.execute(images, faces, 0, 256, 3.0, 1.0).args  # noqa: E731
    if stage == "crop":
        return crop
    crops, window = crop()
    if stage == "paste":
        return lambda: face.FacePaste.execute(images, window, crops, 5.0, 1.6, False).args
    turns = face.core.plan.plan(faces, "all", 0, 3.0, 1.0)

    def both() -> list[torch.Tensor]:
        out = images.clone()
        cut = face.core.crop.crop(images, turns[0].windows, (256, 256))
        return [face.core.crop.paste(images, cut, turns[0].windows, out=out), cut]

    return both


def main() -> int:
    if not Path("/proc/self/clear_refs").exists():
        print("Peaks are read off /proc, which this system does not have.")
        return 0
    worst = 0.0
    print(f"| beside input and output, in copies of the clip | {' | '.join('x'.join(map(str, s)) for s in SIZES)} |")
    print("|---|" + "---|" * len(SIZES))
    for stage in STAGES:
        found = []
        for size in SIZES:
            arguments = json.dumps([stage, size])
            command = [sys.executable, "-m", "benchmarks.memory", arguments]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            found.append(float(done.stdout.split()[-1]))
        worst = max(worst, *found)
        print(f"| {stage} | {' | '.join(f'{value:.2f}' for value in found)} |", flush=True)
    print(f"\ntarget under {TARGET}: {'held' if worst < TARGET else 'missed'}")
    return worst >= TARGET


if __name__ == "__main__":
    if len(sys.argv) > 1:
        chosen, shape = json.loads(sys.argv.pop())
        print(measured(chosen, tuple(shape)))
    else:
        sys.exit(main())
