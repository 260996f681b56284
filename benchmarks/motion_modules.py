"""Motion modules alone at the shapes of 512x512 pixels beside AnimateDiff-Evolved's: time and peak memory.

Random weights, the same in both, one clip of 16 and of 64 frames at each of SD 1.5's four resolutions.  ``all`` counts
each resolution as often as a motion model has it (five times; the middle once).  Times are taken in turn in one
process, peaks in processes of their own.  Target: at most 0.9 of its time or of its memory, and no more of either.

    python run.py bench motion_modules --ade DIR
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch

from dev.host import ROOT
from dev.random_models import enter_host
from dev.server import host_from_environment
from vcd_core import motion

from .measure import interleaved, table

FRAMES, REPEATS, TARGET = (16, 64), 2, 0.9
PLACES = ((320, 64), (640, 32), (1280, 16), (1280, 8))  # channels and cells a side at 512x512
COUNTS = (5, 5, 5, 6)
Call = Callable[[], torch.Tensor]


def calls(width: int, side: int, frames: int) -> dict[str, Call]:
    """Both packs' module on the same features with the same weights."""
    torch.manual_seed(0)
    ours = motion.MotionModule(width, frames, "down").eval()
    x = torch.randn(frames, width, side, side)
    found: dict[str, Call] = {"ours": lambda: ours(x, frames)}
    if folder := os.environ.get("VCD_ADE"):
        enter_host(host_from_environment().comfy)
        package = types.ModuleType("evolved")  # its modules, without the nodes around them
        package.__path__ = [str(Path(folder) / "animatediff")]
        sys.modules["evolved"] = package
        module = importlib.import_module("evolved.motion_module_ad").VanillaTemporalModule
        theirs = module(width, "down", 0, 0, temporal_pe_max_len=frames, zero_initialize=False).eval()
        theirs.load_state_dict(ours.state_dict())
        theirs.set_video_length(frames, frames)
        found["evolved"] = lambda: theirs(x)
    return found


def peak(width: int, side: int, frames: int, which: str) -> float:
    """What a call takes beside what was there before it, GiB, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.motion_modules", *map(str, (width, side, frames)), which]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.split()[-1])


def resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 2**20


def main() -> int:
    given, sys.argv = sys.argv[1:], sys.argv[:1]  # the host reads the command line
    with torch.inference_mode():
        if len(given) == 4:
            call = calls(*map(int, given[:3]))[given[3]]
            before = resident("VmRSS")
            call()
            print(resident("VmHWM") - before)
            return 0
        rows, held = [], True
        for frames in FRAMES:
            sums: dict[str, float] = {}
            parts: list[float] = []
            for (width, side), count in zip(PLACES, COUNTS, strict=True):
                made = calls(width, side, frames)
                if "evolved" not in made:
                    print("AnimateDiff-Evolved was not given (--ade DIR), so there is nothing to compare with.")
                    return 0
                apart = float((made["ours"]() - made["evolved"]()).abs().max())
                assert apart < 1e-3, f"the packs' modules differ by {apart}"
                times = interleaved(made, REPEATS if frames < 64 else 1)
                peaks = {which: peak(width, side, frames, which) for which in made}
                sums = {which: sums.get(which, 0) + count * seconds for which, seconds in times.items()}
                ratio, memory = (values["ours"] / values["evolved"] for values in (times, peaks))
                parts.append(memory)
                rows.append([str(frames), f"{width}, {side}x{side}", f"{ratio:.2f}", f"{memory:.2f}"])
                print(", ".join(rows[-1]), flush=True)
            time, memory = sums["ours"] / sums["evolved"], max(parts)
            held &= min(time, memory) <= TARGET and max(time, memory) <= 1
            rows.append([str(frames), "all", f"{time:.2f}", f"at most {memory:.2f}"])
    table(["frames", "channels, cells", "time over AnimateDiff-Evolved's", "memory over its"], rows)
    print(f"\ntarget: time or memory at most {TARGET}, neither above 1: {'held' if held else 'missed'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
