"""The pictures of the help pages, the templates and the README, all drawn by the tiny model: ``python -m
dev.make_pictures``, or ``... cards`` for the templates' alone, which are cut out of the others, or ``... cast``."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image, ImageOps

from vcd_core import evaluate, plots
from vcd_core.evaluate import Figure
from vcd_core.tiny import model as tiny
from vcd_core.tiny import world

from .host import ROOT
from .studio import Studio, pictures_of

IMAGES = ROOT / "web" / "docs" / "images"
WORKFLOWS = ROOT / "workflows"
PROMPT, FACE = "a photo of a V*, waving on the beach", "a close-up of a V*, standing on the beach"
SEED = 2
PAPER = (250, 250, 248)


def grid(rows: Sequence[tuple[str, torch.Tensor]], columns: int = 6, side: int = 128) -> Image.Image:
    """Rows of frames, each under what it is called."""
    page = Image.new("RGB", (columns * (side + 4) + 4, len(rows) * (side + 24) + 4), PAPER)
    draw = plots.ImageDraw.Draw(page)
    for y, (name, frames) in enumerate(rows):
        draw.text((6, y * (side + 24) + 4), name, plots.INK, plots.font(14))
        for x in range(columns):
            frame = plots.to_pil(
                frames[x * (len(frames) - 1) // max(1, columns - 1)] if len(frames) > columns else frames[x]
            )
            page.paste(frame.resize((side, side), Image.Resampling.LANCZOS), (4 + x * (side + 4), y * (side + 24) + 24))
    return page


def save(name: str, page: Image.Image) -> None:
    """A picture for the help pages."""
    page.save(IMAGES / f"{name}.png", optimize=True)
    print(f"web/docs/images/{name}.png {page.size}")


CARD, GAP, CAPTION = 384, 4, 44
Cell = tuple[int, int]  # row and column of a grid
CARDS: dict[str, tuple[str, str, int, tuple[Cell, ...]]] = {  # what is written, a picture of the help pages, its cells
    "01_quickstart": ("Quickstart: the three stages", "stages", 128, ((0, 0), (1, 0), (2, 0), (2, 3))),
    "01_quickstart.app": ("App: the quickstart", "stages", 128, ((2, 1), (2, 4))),
    "02_t2v_builtin_motion": ("Text to video", "gamma", 128, ((1, 0), (1, 2), (1, 3), (1, 5))),
    "03_t2v_animatediff_evolved": ("With AnimateDiff-Evolved", "gamma", 128, ((2, 1), (2, 4))),
    "04_person_to_video.app": ("App: your pictures to a video", "identity", 128, ((0, 0), (0, 3), (1, 1), (1, 2))),
    "04_prompt_to_segmentation": ("Masks from a prompt", "masks", 128, ((0, 0), (0, 1), (0, 3), (0, 4))),
    "04_train_identity": ("Learn a person", "identity", 128, ((0, 0), (0, 1), (1, 0), (1, 3))),
    "04_train_identity_sam3": ("Learn a person: SAM 3", "identity", 128, ((0, 2), (0, 3), (1, 2), (1, 4))),
    "04_train_identity_sdxl": ("Learn a person on SDXL", "identity", 128, ((0, 3), (0, 0), (1, 4), (1, 2))),
    "04_train_identity_tiny": ("Learn a person: no download", "identity", 128, ((0, 4), (1, 1))),
    "04_train_identity_wan": ("Learn a person on Wan", "identity", 128, ((0, 1), (0, 4), (1, 0), (1, 1))),
    "05_face_refine": ("Refine faces", "face", 128, ((0, 0), (1, 0), (0, 2), (1, 2))),
    "05_face_refine.app": ("App: the faces of your video", "face", 128, ((0, 4), (1, 4))),
    "05_face_refine_tiny": ("Refine faces: no download", "face", 128, ((0, 1), (1, 1))),
    "06_tiled_upscale": ("Enlarge in tiles", "tiled", 160, ((0, 0), (1, 0), (0, 3), (1, 3))),
    "06_tiled_upscale_tiny": ("Enlarge: no download", "tiled", 160, ((0, 1), (1, 1))),
    "07_full_pipeline": ("All stages on SD 1.5", "stages", 128, ((0, 2), (1, 2), (2, 2), (2, 5))),
    "08_two_people": ("Two people", "cast", 128, ((2, 0), (2, 2), (2, 3), (2, 5))),
    "09_long_clip": ("Long clips", "gamma", 128, tuple((y, x) for y in (0, 1) for x in range(6))[:9]),
    "10_emotions": ("A prompt for each frame", "schedule", 128, ((0, 0), (0, 2), (0, 3), (0, 5))),
    "12_wan22_faces_and_tiles": ("Wan 2.2: faces and tiles", "tiled", 160, ((0, 2), (1, 2), (0, 0), (1, 0))),
    "13_ltx2_with_sound": ("LTX-2 with its sound", "face", 128, ((0, 3), (1, 3), (0, 1), (1, 1))),
    "14_wan_vace": ("Wan VACE", "face", 128, ((0, 2), (1, 2))),
}  # fmt: skip
WHOLE = {"00_noise_prior": ("3D noise prior", "noise_prior"), "11_evaluate": ("Figures of a clip", "evaluate")}


def card(caption: str, parts: Sequence[Image.Image], columns: int) -> Image.Image:
    """A template's picture: square as the page shows it, parts large enough to read, and what it is above them."""
    page = Image.new("RGB", (CARD, CARD), PAPER)
    plots.ImageDraw.Draw(page).text((10, 8), caption, plots.INK, plots.font(23))
    rows = -(-len(parts) // columns)
    width, height = (CARD - GAP) // columns - GAP, (CARD - CAPTION) // rows - GAP
    for number, part in enumerate(parts):
        y, x = divmod(number, columns)
        fitted = ImageOps.fit(part, (width, height), Image.Resampling.LANCZOS)
        page.paste(fitted, (GAP + x * (width + GAP), CAPTION + y * (height + GAP)))
    return page


def cards() -> None:
    """The templates' pictures, from those of the help pages."""
    for graph, (caption, name, side, cells) in CARDS.items():
        page = Image.open(IMAGES / f"{name}.png").convert("RGB")
        corners = [(4 + x * (side + 4), y * (side + 24) + 24) for y, x in cells]
        parts = [page.crop((x, y, x + side, y + side)) for x, y in corners]
        card(caption, parts, math.isqrt(len(parts) - 1) + 1).save(WORKFLOWS / f"{graph}.jpg", quality=88)
    for graph, (caption, name) in WHOLE.items():
        whole = Image.open(IMAGES / f"{name}.png").convert("RGB")
        fitted = ImageOps.pad(whole, (CARD - 2 * GAP, CARD - CAPTION - GAP), Image.Resampling.LANCZOS, PAPER)
        card(caption, [fitted], 1).save(WORKFLOWS / f"{graph}.jpg", quality=88)
    print(f"workflows/*.jpg: {len(CARDS) + len(WHOLE)}")


def animate(name: str, clips: Sequence[torch.Tensor], side: int) -> None:
    """Clips side by side as an animation."""
    frames = []
    for parts in zip(*clips, strict=True):
        page = Image.new("RGB", (len(parts) * (side + 4) - 4, side), PAPER)
        for x, part in enumerate(parts):
            page.paste(plots.to_pil(part).resize((side, side), Image.Resampling.BICUBIC), (x * (side + 4), 0))
        frames.append(page)
    frames[0].save(
        IMAGES / f"{name}.webp", save_all=True, append_images=frames[1:], duration=125, loop=0, quality=80, method=6
    )
    print(f"web/docs/images/{name}.webp, {len(frames)} frames")


class Painter:
    """The stages on the tiny model, as the quickstart has them."""

    def __init__(self) -> None:
        self.studio = Studio()
        identity = self.studio.module("nodes.identity")
        tokens = self.studio.module("vcd_core.identity").load(tiny.IDENTITY_FILE)
        self.robin = identity.Identity(tokens, world.identities(1)[0].class_word)
        self.negative = self.studio.prompt("")

    @torch.inference_mode()
    def face(self, frames: torch.Tensor, positive: object) -> tuple[torch.Tensor, torch.Tensor]:
        """The frames after Face VCD, and its crops before and after."""
        node = self.studio.module("nodes.face")
        tracked = node.FaceTrack.execute(frames, "largest", 0, 0.5, 8, 3, True).args[0]
        out = node.FaceRefine.execute(
            frames, self.studio.moving, self.studio.vae, positive, self.negative, 20, 2.5, "euler", "normal", 0.6, 0.1,
            SEED, 128, 3.0, 1.0, 5.0, 1.6, False, "largest", 0, tracked,
        )  # fmt: skip
        return out.args[0], out.args[1]

    @torch.inference_mode()
    def tiled(self, frames: torch.Tensor, positive: object) -> torch.Tensor:
        node = self.studio.module("nodes.tiled")
        return node.TiledDenoise.execute(
            images=frames, model=self.studio.moving_tiles, vae=self.studio.vae, positive=positive,
            negative=self.negative, scale=2.0, tile_size=128, overlap=32, steps=20, cfg=1.0, sampler_name="euler",
            scheduler="normal", denoise=0.1, gamma=0.1, seed=SEED,
        ).args[0]  # fmt: skip


def several() -> None:
    """Two people in one clip: by one prompt, and by VCD Cast."""
    painter = Painter()
    studio, people = painter.studio, world.identities(2)
    ids = {}
    for i, person in enumerate(people):
        one = studio.learn(person, seed=i)
        ids[f"id{i}"] = replace(one, tokens=replace(one.tokens, name=f"id{i}"))
    text = "a close-up of a <id0> and a <id1>, waving on the beach"
    mixed = studio.draw(studio.prompt(text, *ids.values()), SEED, steps=20)
    node = studio.module("nodes.cast").Cast
    model, positive, _ = node.execute(
        studio.moving, text, "", world.FRAMES, 0.0, 0.0, 1.0, 3.0, 0.15, True, clip=studio.clip, ids=ids
    ).args
    apart = studio.draw(positive, SEED, steps=20, model=model)
    places = node.execute(
        studio.moving, text, "", world.FRAMES, 0.0, 0.0, 1.0, 3.0, 0.15, True, clip=studio.clip, ids=ids, images=apart
    ).args[2]
    true = torch.stack([torch.tensor(f.image) for f in world.render_take(world.Take(
        tuple(people), "beach", "waving", "close-up", SEED
    ))]).float() / 255  # fmt: skip
    rows = [("the two, as they are", true), ("one prompt", mixed), ("VCD Cast", apart), ("places", places)]
    save("cast", grid(rows))


def main() -> None:
    painter = Painter()
    studio, robin = painter.studio, painter.robin
    person = world.identities(1)[0]
    positive = studio.prompt(PROMPT, robin)
    frames = studio.draw(positive, SEED, steps=20)
    refined, pairs = painter.face(frames, studio.prompt(FACE, robin))
    large = painter.tiled(refined, positive)
    save(
        "stages",
        grid([("T2V VCD", frames), ("Face VCD", refined), ("Tiled VCD, 256x256", large)]),
    )
    animate("stages", [frames, refined, large], 256)
    save("face", grid([("crops before", pairs[:, :, :128]), ("drawn anew", pairs[:, :, 128:])], 4))
    left = torch.nn.functional.interpolate(refined.movedim(-1, 1), scale_factor=2.0, mode="bilinear").movedim(1, -1)
    save(
        "tiled",
        grid([("enlarged", left[:, 40:200, 48:208]), ("and refined in tiles", large[:, 40:200, 48:208])], 4, 160),
    )

    prompts = [f"a {shot} V*, {action}" for shot, action in (
        ("close-up of a", "standing in the forest"), ("photo of a", "walking in the city"),
        ("close-up of a", "waving at night"), ("photo of a", "jumping in the snow"),
        ("close-up of a", "walking on the beach"), ("photo of a", "standing at night"),
    )]  # fmt: skip
    with_id = torch.cat([studio.draw(studio.prompt(p, robin), 3, 1, 0, 20, moving=False) for p in prompts])
    word = [p.replace("V*", person.class_word) for p in prompts]
    without = torch.cat([studio.draw(studio.prompt(p), 3, 1, 0, 20, moving=False) for p in word])
    taught = torch.stack(pictures_of(person)[0])
    rows = [
        ("the pictures it learned from", taught),
        ("V* in new prompts", with_id),
        (f"'{person.class_word}' in its place", without),
    ]
    save("identity", grid(rows))

    gammas = {f"gamma {g:g}": studio.draw(positive, SEED, gamma=g) for g in (0.0, 0.1, 0.4)}
    save(
        "gamma",
        grid([(name, clip) for name, clip in gammas.items()]),
    )
    figures = {
        name: [
            Figure("dynamics", evaluate.dynamics(clip), "% of the diagonal a frame"),
            Figure("flicker", evaluate.flicker(clip), "255ths"),
            Figure("sharpness", evaluate.sharpness(clip), "variance of the Laplacian"),
        ]
        for name, clip in gammas.items()
    }
    save("evaluate", plots.to_pil(plots.figures_chart(figures, evaluate.PAPER)[0]))

    rng = random.Random(4)
    crowd = (world.random_person(rng), world.random_person(rng))
    drawn = [f.image for f in world.render_take(world.Take(crowd, "city", "walking", "close-up", 6))]
    pair = torch.stack([torch.from_numpy(image) for image in drawn]).float() / 255
    node = studio.module("nodes.face")
    save(
        "tracks",
        grid(
            [
                (
                    "Face VCD Track on frames of the drawn world",
                    node.FaceTrack.execute(pair, "all", 0, 0.5, 8, 3, True).args[1],
                )
            ],
            4,
        ),
    )

    schedule = studio.module("nodes.identity").IdTextEncode.execute(
        studio.clip, "0: a photo of a V*, standing on the beach | 8: a photo of a V*, standing at "
                     "night", 16, 4, {"id0": robin}
    ).args[0]  # fmt: skip
    save(
        "schedule",
        grid([("a prompt for each frame: the beach, from frame 8 on the night", studio.draw(schedule, SEED))]),
    )
    mask = plots.with_masks(taught, torch.stack(pictures_of(person)[1]))
    save("masks", grid([("masks: the subject and not the room", mask)]))
    several()
    cards()


PARTS = {"cards": cards, "cast": several}

if __name__ == "__main__":
    PARTS.get("".join(sys.argv[1:]), main)()
