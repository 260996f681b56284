"""``python run.py demo``: run a bundled graph on a real server and say where its video lies."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from PIL import Image

from .graph import to_api
from .host import ROOT, step
from .server import Server, host_from_environment

GRAPH = ROOT / "workflows" / "01_quickstart.json"


def main() -> int:
    step("Starting ComfyUI", "10 s")
    with Server(host_from_environment()) as server:
        prompt = to_api(json.loads(GRAPH.read_text(encoding="utf-8")), server.get("/object_info"))
        step(f"Running {GRAPH.name} on the tiny model that ships with the pack", "2 minutes")
        start = time.monotonic()
        entry = asyncio.run(server.watch(prompt, show))
        print(f"\ndone in {time.monotonic() - start:.1f} s")
        files = [path for path in server.outputs(entry) if path.parts[-2] != "temp"]
        files += [contact_sheet(path) for path in files if path.suffix == ".mp4"]
        for path in files:
            print(f"  {path}")
    return 0


def contact_sheet(video: Path, columns: int = 6) -> Path:
    """Some frames of a video side by side, as a picture beside it."""
    import av

    with av.open(str(video)) as file:
        frames = [frame.to_image() for frame in file.decode(video=0)]
    chosen = [frames[i * (len(frames) - 1) // (columns - 1)] for i in range(columns)]
    page = Image.new("RGB", (sum(frame.width for frame in chosen), chosen[0].height))
    for i, frame in enumerate(chosen):
        page.paste(frame, (i * frame.width, 0))
    path = video.with_name(f"{video.stem}_sheet.png")
    page.save(path)
    return path


def show(node: str, value: int, maximum: int) -> None:
    line = f"  {node}" + (f" {value}/{maximum}" if maximum else "")
    print(f"\r{line:<60}", end="" if sys.stdout.isatty() else "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
