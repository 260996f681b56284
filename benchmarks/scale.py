"""How the cost of each stage grows with frames, sides, faces and identities; of the model and the VAE nothing.

Times are those of a unit (a frame, a pixel, a face, an identity) over those at the axis' smallest size, so a straight
line is 1 everywhere and less is better.  Memory is in copies of the clip beside input and output, see bench memory.
Target: no unit costs more than 1.3 times as much at the largest size as at the smallest.

    python run.py bench scale
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch

from dev import random_models
from dev.host import PACK
from dev.server import host_from_environment
from vcd_core import identity, noise

from .measure import interleaved, table

REPEATS, SMALL = 3, 256
FRAMES, SIDES, FACES, IDENTITIES = (16, 64, 256, 512), (256, 512, 1024, 2048), (1, 2, 4, 8), (1, 2, 4, 8)
TARGET = 1.3
Call = Callable[[], object]
Stage = Callable[..., Call]  # of frames, side, faces


def enter() -> SimpleNamespace:
    """The host and the pack in this process, and a tiny text encoder."""
    host = host_from_environment()
    random_models.enter_host(host.comfy)
    sys.path.insert(0, str(host.base / "custom_nodes"))
    pack = {name: __import__(f"{PACK}.nodes.{name}", fromlist=[name]) for name in ("face", "identity", "host.pictures")}
    _, clip, _ = random_models.tiny_sd15(0)
    return SimpleNamespace(face=pack["face"], identity=pack["identity"], pictures=pack["host.pictures"], clip=clip)


def clip_of(frames: int, side: int) -> torch.Tensor:
    return torch.rand(frames, side, side, 3, generator=torch.Generator().manual_seed(0))


def boxes_of(frames: int, side: int, faces: int) -> list[list[dict[str, int]]]:
    """Faces in a row, each moving a little."""
    room = side // 8
    return [
        [{"x": n * room + i % 3, "y": room + i % 2, "width": room - 4, "height": room - 4} for n in range(faces)]
        for i in range(frames)
    ]


def stages(pack: SimpleNamespace) -> dict[str, Stage]:
    """The stages that frames, sides and faces reach: (frames, side, faces) -> a call, its input made."""
    core = pack.face.core

    def prior(frames: int, side: int, faces: int) -> Call:
        return lambda: noise.sample((frames, 4, side // 8, side // 8), 0.1, seed=1)

    def detect(frames: int, side: int, faces: int) -> Call:
        images = clip_of(frames, side)
        return lambda: core.detect.detect(images)

    def track(frames: int, side: int, faces: int) -> Call:
        images, boxes = clip_of(frames, side), boxes_of(frames, side, faces)
        return lambda: pack.face.track_faces(images, bboxes=boxes, min_length=1)

    def crop_and_paste(frames: int, side: int, faces: int) -> Call:
        images = clip_of(frames, side)
        found = pack.face.track_faces(images, bboxes=boxes_of(frames, side, faces), min_length=1)
        turns = core.plan.plan(found, "all", 0, 3.0, 1.0)
        assert len(turns) == faces

        def call() -> None:
            out = images.clone()
            for turn in turns:
                core.crop.paste(images, core.crop.crop(images, turn.windows, (128, 128)), turn.windows, out=out)

        return call

    def enlarge(frames: int, side: int, faces: int) -> Call:
        images = clip_of(frames, side // 2)
        return lambda: pack.pictures.resize(images, side, side)

    return {"noise prior": prior, "detect faces": detect, "link tracks": track, "crop and paste": crop_and_paste,
            "enlarge": enlarge}  # fmt: skip


def encode(pack: SimpleNamespace, count: int) -> Call:
    """A prompt with so many identities."""
    names = [f"p{i}" for i in range(count)]
    vectors = torch.randn(4, pack.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight.shape[1])
    people = {name: pack.identity.Identity(identity.IdTokens(name, vectors), "man") for name in names}
    text = " and ".join(f"a {name}*" for name in names)
    return lambda: pack.identity.encode_prompt(pack.clip, text, people)


def along(sizes: tuple[int, ...], make: Callable[[int], Call], power: int = 1) -> list[float]:
    """Time of a unit at each size over that at the smallest."""
    times = interleaved({str(size): make(size) for size in sizes}, REPEATS)
    each = [times[str(size)] / size**power for size in sizes]
    return [value / each[0] for value in each]


def main() -> int:
    pack = enter()
    made = stages(pack)
    of_faces = {name: made[name] for name in ("link tracks", "crop and paste")}
    axes: dict[str, tuple[tuple[int, ...], int, dict[str, Callable[[int], Call]]]] = {
        "frames": (FRAMES, 1, {name: partial(stage, side=SMALL, faces=1) for name, stage in made.items()}),
        "side": (SIDES, 2, {name: partial(_at_side, stage) for name, stage in made.items()}),
        "faces": (FACES, 1, {name: partial(stage, 16, 1024) for name, stage in of_faces.items()}),
        "identities": (IDENTITIES, 1, {"text with identities": partial(encode, pack)}),
    }
    worst = 0.0
    with torch.inference_mode():
        for axis, (sizes, power, calls) in axes.items():
            found = {name: along(sizes, make, power) for name, make in calls.items()}
            worst = max(worst, *(value for values in found.values() for value in values))
            rows = [[name, *(f"{value:.2f}" for value in values)] for name, values in found.items()]
            table([f"{axis}: time of a unit over the smallest size's", *map(str, sizes)], rows)
            print(flush=True)
    print(f"target under {TARGET}: {'held' if worst < TARGET else 'missed'}")
    return worst >= TARGET


def _at_side(stage: Stage, side: int) -> Call:
    return stage(16, side, 1)


if __name__ == "__main__":
    sys.exit(main())
