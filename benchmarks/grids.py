"""Fixed and moving grids of tiles on the tiny model: distance to the untiled sampler, flicker and seams, by cost.

Clips of 128 pixels are enlarged to 256 and refined in tiles of 128. The distance to the untiled result and its flicker
(the distance's change from frame to frame) are shares of what the stage changes; the seam is the steepest column of the
distance over the median one. ``.host/bench/grids`` gets a frame of each way: untiled, then the grids as in the table.

    python run.py bench grids
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch

from dev.host import HOST
from dev.studio import Studio
from vcd_core import plots
from vcd_core import tiled as core

from .measure import interval, table

FRAMES, TIMES, TILE = 8, 2, 16  # the tile in cells
CAPTIONS = (
    "a close-up of a man with black hair, waving on the beach",
    "a close-up of a woman with red hair, walking in the forest",
    "a man with a hat, waving in the snow",
)
SETTINGS = ((4, 0.2), (10, 0.2))  # steps and denoise
GRIDS = [("fixed", 0), ("fixed", 4), ("fixed", 8), ("moving", 0), ("moving", 2), ("moving", 4)]  # overlap in cells


class Stage:
    """One clip, enlarged, and the stage on it in several ways."""

    def __init__(self, studio: Studio, caption: str, seed: int) -> None:
        self.studio = studio
        clip = studio.draw(studio.prompt(caption), seed)[:FRAMES]
        large = torch.nn.functional.interpolate(clip.movedim(-1, 1), scale_factor=float(TIMES), mode="bicubic")
        pictures = studio.module("nodes.host.pictures")
        unseen = studio.module("nodes.host.ui").Unseen()
        self.latent = pictures.encode(studio.vae, large.clamp(0, 1).movedim(1, -1), unseen)
        self.noise = studio.module("vcd_core.noise").sample(self.latent.shape, 0.1, seed)
        self.prompts = studio.prompt(caption), studio.prompt("")

    def drawn(self, steps: int, denoise: float, grid: tuple[str, int] | None = None) -> tuple[torch.Tensor, float]:
        """The stage's latents, and how many cells the model saw over the picture's."""
        costs: list[float] = []
        model = self.studio.moving_tiles
        if grid is not None:
            kind, overlap = grid

            def at(shape: Sequence[int], step: int) -> core.Grid:
                height, width = shape[-2:]
                made = (
                    core.moving_grid(height, width, TILE, overlap, step)
                    if kind == "moving"
                    else core.grid(height, width, TILE, overlap)
                )
                costs.append(made.cost)
                return made

            model = self.studio.module("nodes.host.tiles").with_tiles(model, "bench", at)
        sampling = self.studio.module("nodes.host.sampling")
        settings = sampling.Sampling(steps, 1.0, "euler", "normal", denoise, 3)
        out = sampling.sample(model, self.noise, *self.prompts, self.latent, settings, lambda *_: None)
        return out, mean(costs[1:]) if costs else 1.0  # the first is asked for before the sampling

    def figures(self, out: torch.Tensor, whole: torch.Tensor) -> tuple[float, float, float]:
        """Distance, flicker and seam."""
        changed, apart = (whole - self.latent).pow(2).mean().sqrt(), out - whole
        columns = apart.diff(dim=-1).abs().mean((0, 1, 2))
        return (
            float(apart.pow(2).mean().sqrt() / changed),
            float(apart.diff(dim=0).pow(2).mean().sqrt() / changed),
            float(columns.max() / columns.median()),
        )


def measured(studio: Studio) -> dict[tuple[int, float, str, int], list[tuple[float, ...]]]:
    """Cost, distance, flicker and seam of each setting and grid, one for each clip."""
    folder = HOST / "bench" / "grids"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[int, float, str, int], list[tuple[float, ...]]] = {}
    for number, caption in enumerate(CAPTIONS):
        stage = Stage(studio, caption, 5 + number)
        for steps, denoise in SETTINGS:
            whole, _ = stage.drawn(steps, denoise)
            shown = [whole]
            for grid in GRIDS:
                out, cost = stage.drawn(steps, denoise, grid)
                found.setdefault((steps, denoise, *grid), []).append((cost, *stage.figures(out, whole)))
                shown.append(out)
            pictures = torch.cat([studio.vae.decode(one[:1]) for one in shown]).float().cpu()
            plots.to_pil(torch.cat(list(pictures), 1)).save(folder / f"clip{number}_{steps}_{denoise}.png")
        print(f"clip {number + 1} of {len(CAPTIONS)}: done", flush=True)
    return found


def costs() -> list[list[str]]:
    """What the model sees over the picture's pixels at the nodes' defaults, a mean over 20 steps, by the picture's
    side: tiles of 512 with an overlap of 64 fixed, and of 32 moving."""
    rows = []
    for side in (1024, 1536, 2048):
        cells = side // 8
        moving = mean(core.moving_grid(cells, cells, 64, 4, step).cost for step in range(20))
        rows.append([str(side), f"{core.grid(cells, cells, 64, 8).cost:.2f}", f"{moving:.2f}"])
    return rows


def main() -> int:
    table(["side, tiles of 512", "fixed, overlap 64", "moving, overlap 32"], costs())
    with torch.inference_mode():
        found = measured(Studio())
    for steps, denoise in SETTINGS:
        rows: list[list[Any]] = []
        for kind, overlap in GRIDS:
            cost, *figures = zip(*found[steps, denoise, kind, overlap], strict=True)
            rows.append([f"{kind}, overlap {8 * overlap}", f"{mean(cost):.2f}", *(interval(f) for f in figures)])
        print(f"\n{steps} steps, denoise {denoise}")
        table(["tiles of 128 over 256", "cost", "distance to untiled", "its flicker", "its steepest column"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
