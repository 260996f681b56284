"""How the cost of each stage grows with frames, sides, faces and identities; of the model and the VAE nothing.

Times are those of a unit (a frame, a pixel, a face, an identity) over those at the axis' smallest size, so a straight
line is 1 everywhere and less is better.  What they need of memory is in bench memory.  Target: nowhere above 1.3.
Writes ``benchmarks/results/scale/<axis>.svg``.

    python run.py bench scale
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch

from dev.host import ROOT
from dev.studio import Studio
from vcd_core import charts, noise

from .measure import interleaved, table

REPEATS, SMALL = 3, 256
FRAMES, SIDES, FACES, IDENTITIES = (16, 64, 256, 512), (256, 512, 1024, 2048), (1, 2, 4, 8), (1, 2, 4, 8)
TARGET = 1.3
Call = Callable[[], object]
Stage = Callable[..., Call]  # of frames, side, faces


def clip_of(frames: int, side: int) -> torch.Tensor:
    return torch.rand(frames, side, side, 3, generator=torch.Generator().manual_seed(0))


def boxes_of(frames: int, side: int, faces: int) -> list[list[dict[str, int]]]:
    """Faces in a row, each moving a little."""
    room = side // 8
    return [
        [{"x": n * room + i % 3, "y": room + i % 2, "width": room - 4, "height": room - 4} for n in range(faces)]
        for i in range(frames)
    ]


def stages(studio: Studio) -> dict[str, Stage]:
    """The stages that frames, sides and faces reach: (frames, side, faces) -> a call, its input made."""
    face, pictures = studio.module("nodes.face"), studio.module("nodes.host.pictures")
    core = face.core

    def prior(frames: int, side: int, faces: int) -> Call:
        return lambda: noise.sample((frames, 4, side // 8, side // 8), 0.1, seed=1)

    def detect(frames: int, side: int, faces: int) -> Call:
        images = clip_of(frames, side)
        return lambda: core.detect.detect(images)

    def track(frames: int, side: int, faces: int) -> Call:
        images, boxes = clip_of(frames, side), boxes_of(frames, side, faces)
        return lambda: face.track_faces(images, bboxes=boxes, min_length=1)

    def crop_and_paste(frames: int, side: int, faces: int) -> Call:
        images = clip_of(frames, side)
        found = face.track_faces(images, bboxes=boxes_of(frames, side, faces), min_length=1)
        turns = core.plan.plan(found, "all", 0, 3.0, 1.0)
        assert len(turns) == faces

        def call() -> None:
            out = images.clone()
            for turn in turns:
                core.crop.paste(images, core.crop.crop(images, turn.windows, (128, 128)), turn.windows, out=out)

        return call

    def enlarge(frames: int, side: int, faces: int) -> Call:
        images = clip_of(frames, side // 2)
        return lambda: pictures.resize(images, side, side)

    return {"noise prior": prior, "detect faces": detect, "link tracks": track, "crop and paste": crop_and_paste,
            "enlarge": enlarge}  # fmt: skip


def encode(studio: Studio, count: int) -> Call:
    """A prompt with so many identities."""
    nodes = studio.module("nodes.identity")
    (width,) = studio.module("nodes.host.text").text_widths(studio.clip).values()
    tokens = nodes.core.IdTokens("one", torch.randn(4, width, generator=torch.Generator().manual_seed(0)))
    people = [nodes.Identity(tokens, "man")] * count
    text = " and ".join(f"a <id{i}>" for i in range(count))
    return lambda: studio.prompt(text, *people)


def along(sizes: tuple[int, ...], make: Callable[[int], Call], power: int = 1) -> list[float]:
    """Time of a unit at each size over that at the smallest."""
    times = interleaved({str(size): make(size) for size in sizes}, REPEATS)
    each = [times[str(size)] / size**power for size in sizes]
    return [value / each[0] for value in each]


def main() -> int:
    sys.argv = sys.argv[:1]  # the host reads the command line
    studio = Studio()
    made = stages(studio)
    of_faces = {name: made[name] for name in ("link tracks", "crop and paste")}
    axes: dict[str, tuple[tuple[int, ...], int, dict[str, Callable[[int], Call]]]] = {
        "frames": (FRAMES, 1, {name: partial(stage, side=SMALL, faces=1) for name, stage in made.items()}),
        "side": (SIDES, 2, {name: partial(stage, 16, faces=1) for name, stage in made.items()}),
        "faces": (FACES, 1, {name: partial(stage, 16, 1024) for name, stage in of_faces.items()}),
        "identities": (IDENTITIES, 1, {"text with identities": partial(encode, studio)}),
    }
    worst, folder = 0.0, ROOT / "benchmarks" / "results" / "scale"
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for axis, (sizes, power, calls) in axes.items():
            found = {name: along(sizes, make, power) for name, make in calls.items()}
            worst = max(worst, *(value for values in found.values() for value in values))
            rows = [[name, *(f"{value:.2f}" for value in values)] for name, values in found.items()]
            table([f"{axis}: time of a unit over the smallest size's", *map(str, sizes)], rows)
            print(flush=True)
            curves = {name: list(zip(map(float, sizes), values, strict=True)) for name, values in found.items()}
            title = f"{axis}: time of one over that at {sizes[0]}"
            picture = charts.lines(curves, title, log=True, low=0, ticks=sizes)
            (folder / f"{axis}.svg").write_text(picture + "\n", encoding="utf-8")
    print(f"target under {TARGET}: {'held' if worst < TARGET else 'missed'}")
    return worst >= TARGET


if __name__ == "__main__":
    sys.exit(main())
