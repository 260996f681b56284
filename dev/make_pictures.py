"""The pictures of the help pages, the templates and the README, all drawn by the tiny model: ``python -m
dev.make_pictures``."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from PIL import Image

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


def save(name: str, page: Image.Image, *graphs: str) -> None:
    """A picture for the help pages, and small for the graphs that it shows."""
    page.save(IMAGES / f"{name}.png", optimize=True)
    for graph in graphs:
        small = page.convert("RGB")
        small.thumbnail((480, 480), Image.Resampling.LANCZOS)
        small.save(WORKFLOWS / f"{graph}.jpg", quality=85)
    print(f"web/docs/images/{name}.png {page.size}", *graphs)


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


OF_FACES = ("05_face_refine", "13_ltx2_with_sound", "14_wan_vace")  # graphs that show the same picture


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
        "01_quickstart",
        "07_full_pipeline",
    )
    animate("stages", [frames, refined, large], 256)
    save("face", grid([("crops before", pairs[:, :, :128]), ("drawn anew", pairs[:, :, 128:])], 4), *OF_FACES)
    left = torch.nn.functional.interpolate(refined.movedim(-1, 1), scale_factor=2.0, mode="bilinear").movedim(1, -1)
    save(
        "tiled",
        grid([("enlarged", left[:, 40:200, 48:208]), ("and refined in tiles", large[:, 40:200, 48:208])], 4, 160),
        "06_tiled_upscale",
        "12_wan22_faces_and_tiles",
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
    save("identity", grid(rows), "04_train_identity", "04_train_identity_sam3")

    gammas = {f"gamma {g:g}": studio.draw(positive, SEED, gamma=g) for g in (0.0, 0.1, 0.4)}
    save(
        "gamma",
        grid([(name, clip) for name, clip in gammas.items()]),
        "02_t2v_builtin_motion",
        "03_t2v_animatediff_evolved",
    )
    figures = {
        name: [
            Figure("dynamics", evaluate.dynamics(clip), "% of the diagonal a frame"),
            Figure("flicker", evaluate.flicker(clip), "255ths"),
            Figure("sharpness", evaluate.sharpness(clip), "variance of the Laplacian"),
        ]
        for name, clip in gammas.items()
    }
    save("evaluate", plots.to_pil(plots.figures_chart(figures, evaluate.PAPER)[0]), "11_evaluate")

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
        "08_two_people",
    )

    schedule = studio.module("nodes.identity").IdTextEncode.execute(
        studio.clip, "0: a photo of a V*, standing on the beach | 8: a photo of a V*, standing at "
                     "night", 16, 4, {"id0": robin}
    ).args[0]  # fmt: skip
    save(
        "schedule",
        grid([("a prompt for each frame: the beach, from frame 8 on the night", studio.draw(schedule, SEED))]),
        "10_emotions",
        "09_long_clip",
    )
    mask = plots.with_masks(taught, torch.stack(pictures_of(person)[1]))
    save("masks", grid([("masks: the subject and not the room", mask)]), "04_prompt_to_segmentation")
    prior = Image.open(IMAGES / "noise_prior.png").convert("RGB")
    prior.thumbnail((480, 480), Image.Resampling.LANCZOS)
    prior.save(WORKFLOWS / "00_noise_prior.jpg", quality=85)


if __name__ == "__main__":
    main()
