"""Conditionings cut to what one call of the model sees: some frames of the clip, a tile of them, or a moving window.

The table ``RULES`` (rules.py) says for each value that a conditioning may hold how it is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...vcd_core.face.crop import Windows, crop
from ...vcd_core.tiled import Tile
from . import rules
from .areas import area_in, mask_of_area, reaches
from .controls import Hints, LatentsKnown, pixels_of_cell, with_hint
from .guides import guides_in, tokens_in
from .pictures import Codec, cell_of, frames_taken, resize, within
from .redrawn import frames_in, is_of, leading, redrawn, redrawn_masks, references_redrawn, resized


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Some frames of a clip, a region of each, at a size.

    Attributes:
        frames: which of the clip's frames, by number; None: all.
        region: a tile in latent cells, or windows in pixels, one for each of the frames; None: the whole picture.
        size: height and width to which windows are resampled.
        length: how many frames the clip has.
        picture: height and width of its whole pictures, in the region's units.
        hints: shared by the cuts of a picture, so that a hint is enlarged and encoded only once.
        vae: the model's VAE, for windows of latents; None: such are refused.
        patch: how many latent cells a side the model takes together.
        own_references: under a tile, whether reference pictures are pictures of the clip, and so cut.
    """

    frames: Sequence[int] | None = None
    region: Tile | Windows | None = None
    size: tuple[int, int] = (0, 0)
    length: int = 1
    picture: tuple[int, int] = (0, 0)
    hints: Hints = field(default_factory=Hints)
    vae: Any = None
    patch: int = 1
    own_references: bool = False
    controls: dict[int, Any] = field(default_factory=dict)  # those cut already: conditionings that share one still do

    def conditioning(self, conditioning: Any) -> Any:
        """A CONDITIONING, as nodes hand it on, cut.

        What then lies nowhere in the region is left out, unless nothing would remain.

        Raises:
            ValueError: it holds a value that no rule knows; the message names it.
        """
        here, elsewhere = [], []
        for tensor, options in conditioning:
            rows, (cut, reached) = self.rows(tensor), self._options(options)
            if reached:
                here.append([rows, cut])
            else:
                elsewhere.append([rows, {name: value for name, value in cut.items() if name != "mask"}])
        return here or elsewhere

    def entries(self, entries: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        """A conditioning as the sampler holds it, cut; entries that do not reach the region are left out.

        The host has turned all but masks, areas, boxes and ControlNets into the model's own inputs (``model_conds``).
        """
        if entries is None:
            return None
        kept = []
        for entry in entries:
            limits: dict[str, Any] = {name: entry[name] for name in rules.LIMITS if name in entry}
            cut, reached = self._options(limits)
            if reached:
                inputs = {name: self._input(name, value) for name, value in entry["model_conds"].items()}
                rest = {name: value for name, value in entry.items() if name not in limits}
                kept.append({**rest, **cut, "model_conds": inputs})
        return kept

    def _options(self, options: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The options cut, and whether any of what they are limited to lies in the region."""
        cut: dict[str, Any] = {}
        reached = True
        for name, value in options.items():
            rule = rules.rule_of(name, value)
            if rule in (rules.MASK, rules.AREA) and value is not None and not isinstance(self.region, Tile):
                continue  # below: an area is a mask in a window
            if rule == rules.MASK:
                cut[name] = self.places(value)
                reached = reached and bool(cut[name].any())
            elif rule == rules.AREA and value is not None and isinstance(self.region, Tile):
                cut[name] = area_in(value, self.region)
                reached = reached and cut[name] is not None
            elif rule == rules.BOXES and value is not None:
                cut |= self._boxes(name, value)
            elif rule == rules.CONTROL and value is not None:
                cut[name] = self.control(value)
            elif self._left_out(rule, value):
                continue
            else:
                cut[name] = self.value(name, value)
        masks = [] if isinstance(self.region, Tile) else self._masks(options)
        if masks:
            cut["mask"] = torch.stack(masks).prod(0).clamp(0, 1)
            reached = reaches(cut["mask"])
        return cut, reached

    def _masks(self, options: dict[str, Any]) -> list[torch.Tensor]:
        """The masks and areas of some options as masks of the frames and the region."""
        masks = [options["mask"]] if options.get("mask") is not None else []
        if options.get("area") is not None:
            masks.append(mask_of_area(options["area"], self.picture))
        return [self.places(self.repeated(mask)[:, None])[:, 0] for mask in masks]

    def _boxes(self, name: str, gligen: Any) -> dict[str, Any]:
        """GLIGEN's boxes within a tile; a window, which is no part of the picture's grid of cells, has none."""
        kind, model, boxes = gligen
        if not isinstance(self.region, Tile):
            return {} if self.region else {name: gligen}
        inside = [(box[0], *area) for box in boxes if (area := area_in(box[1:], self.region))]
        return {name: (kind, model, inside)} if inside else {}

    def _input(self, name: str, value: Any) -> Any:
        """One of the model's inputs, in the host's object around it."""
        found = self.value(name, value.cond)
        return value if found is value.cond else type(value)(found)

    def _left_out(self, rule: str, value: Any) -> bool:
        """Whether a value of the whole picture has no place in a window."""
        of_pictures = rule in (rules.LATENTS, rules.LATENT_MASKS) and torch.is_tensor(value) and value.ndim < 5
        return isinstance(self.region, Windows) and (rule == rules.OF_THE_PICTURE or of_pictures)

    def value(self, name: str, value: Any) -> Any:
        """A value cut by its name's rule."""
        rule = rules.rule_of(name, value)
        if rule == rules.GUIDES:
            return self._guides(name, value)
        if isinstance(value, (list, tuple)) and rule in (*rules.COVERING, rules.BESIDE, rules.OWN_OR_WHOLE):
            return type(value)(self.value(name, one) for one in value)
        if not torch.is_tensor(value):
            return value
        if rule == rules.ROWS:
            return self.rows(value)
        return (
            self._in_tile(rule, name, value) if isinstance(self.region, Tile) else self._in_windows(rule, name, value)
        )

    def _in_tile(self, rule: str, name: str, value: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.region, Tile)
        if rule == rules.BESIDE and not self.own_references:
            return resized(value, self.region.height, self.region.width)
        if rule == rules.TOKENS:
            return tokens_in(value, self.region, self.picture, name)
        own = rule == rules.OWN_OR_WHOLE and value.shape[-3] == self.length and tuple(value.shape[-2:]) == self.picture
        covering = rule in (*rules.COVERING, rules.BESIDE) and value.ndim > 3
        return self.places(value, name) if own or covering else value

    def check(self, conditioning: Any) -> None:
        """Raise ``ValueError`` for what these frames and windows of a conditioning cannot have, before any is cut."""
        for _, options in conditioning:
            for name, value in options.items():
                self._check(rules.rule_of(name, value), name)

    def _check(self, rule: str, name: str) -> None:
        if rule == rules.TOKENS or (rule == rules.OF_ALL_FRAMES and not self._all_frames):
            raise ValueError(
                f"The conditioning holds '{name}', which this pack cannot change to other frames or another size. "
                "Leave out the node that puts it there, or sample without this stage: with Tiled VCD Patch, or between "
                "Face VCD Crop and Face VCD Paste."
            )

    def _in_windows(self, rule: str, name: str, value: torch.Tensor) -> torch.Tensor:
        self._check(rule, name)
        if value.ndim == 5 and rule in (*rules.COVERING, rules.BESIDE, rules.OWN_OR_WHOLE):
            return self._redrawn(rule, name, value)
        return self.places(value, name) if rule in rules.COVERING and value.ndim > 3 else value

    @property
    def _all_frames(self) -> bool:
        return self.frames is None or list(self.frames) == list(range(self.length))

    def _redrawn(self, rule: str, name: str, value: torch.Tensor) -> torch.Tensor:
        """Latents of a clip in the frames and windows; pictures of something else whole, at the windows' size."""
        if self.vae is None:
            raise ValueError(f"The conditioning holds '{name}', latents of a video, which cannot be cut without a VAE.")
        count = frames_in(self.vae, value.shape[2])
        fits = count == frames_taken(self.vae, self.length) and tuple(value.shape[-2:]) == self._cells()
        if self.region is None and fits:
            return value
        if before := leading(self.vae, value, self.length, rule == rules.LATENT_MASKS):
            clip = self._redrawn(rule, name, value[:, :, before:])
            return torch.cat([self._references(rule, name, value[:, :, :before]), clip], 2)
        if rule == rules.LATENT_MASKS:
            return redrawn_masks(self.vae, value, self.length, self._shown, self.patch, name)
        # of the clip's first frames alone, or pictures of something else
        short = count < self.length and not is_of(self.vae, value.shape[2], self.length)
        if rule == rules.BESIDE:
            return references_redrawn(self.vae, value, self.size, self.patch, name)
        if rule == rules.OWN_OR_WHOLE and short:
            return redrawn(self.vae, value, count, lambda images: within(images, *self.size), self.patch, name)
        if short and not self._among(count):
            return torch.zeros(1, value.shape[1], 1, *self._cells())
        return redrawn(self.vae, value, count if short else self.length, self._shown, self.patch, name)

    def _references(self, rule: str, name: str, value: torch.Tensor) -> torch.Tensor:
        """Reference pictures that stand before a clip, or the masks over them."""
        if rule == rules.LATENT_MASKS:
            return value[..., :1, :1].expand(-1, -1, -1, *self._cells())
        return references_redrawn(self.vae, value, self.size, self.patch, name)

    def _among(self, count: int) -> list[int]:
        """The chosen frames that are among the clip's first."""
        return [frame for frame in self.frames or range(self.length) if frame < count]

    def _cells(self) -> tuple[int, int]:
        """Height and width of latents of ``size``."""
        _, height, width = Codec(self.vae, 1, *self.size, self.patch).taken
        return height // cell_of(self.vae), width // cell_of(self.vae)

    def _shown(self, images: torch.Tensor) -> torch.Tensor:
        """The frames and windows of IMAGE [n, H, W, 3], the clip's first frames or all."""
        images = images[self._among(len(images))]
        if not isinstance(self.region, Windows):
            return resize(images, *self.size)
        windows = replace(self.region, centres=self.region.centres[: len(images)])
        return crop(resize(images, *self.picture), windows, self.size)

    def _guides(self, name: str, entries: Any) -> Any:
        if entries is None or not isinstance(self.region, Tile):
            return entries  # a window refuses the coordinates beside them
        return guides_in(entries, self.region, lambda mask: self.places(mask, name))

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """The frames' rows of ``values`` [clip, ...]; one row, or rows for something else, as they are."""
        if self.frames is None or self.length == 1 or len(values) != self.length:
            return values
        return values[torch.as_tensor(list(self.frames))]

    def repeated(self, values: torch.Tensor) -> torch.Tensor:
        """The frames' rows of masks or hints; fewer rows than frames in the clip are repeated, as the host does."""
        if self.frames is None:
            return values
        return values[torch.as_tensor(list(self.frames)) % len(values)]

    def places(self, values: torch.Tensor, name: str = "mask") -> torch.Tensor:
        """The region of ``values`` [..., H, W] that cover the whole picture, at its size or a whole number of times it;
        those of one cell hold in every tile.

        Raises:
            ValueError: values of another size under a tile.
        """
        if isinstance(self.region, Tile) and values.shape[-2:] != (1, 1):
            height, width = values.shape[-2:]
            sides = [side * width / self.picture[1] for side in self.region]
            least = 0 if rules.RULES.get(name) == rules.COARSE else 1
            fits = height * self.picture[1] == width * self.picture[0] and width >= least * self.picture[1]
            if not fits or any(side % 1 for side in sides):
                raise ValueError(
                    f"'{name}' in the conditioning has size {[height, width]}, which does not fit the latent's "
                    f"{list(self.picture)}; expected that size or a whole number of times it."
                )
            return Tile(*map(int, sides)).cut(values)
        if isinstance(self.region, Windows):
            same = torch.nn.functional.interpolate(values.float().cpu(), size=self.picture, mode="bilinear")
            return crop(same.movedim(1, -1), self.region, self.size, limits=None).movedim(-1, 1)
        return values

    def control(self, control: Any) -> Any:
        """A copy of a ControlNet and of its chain that sees this cut of its hint; the weights are shared."""
        if id(control) not in self.controls:
            self.controls[id(control)] = with_hint(control, self._hint, self._vae)
        return self.controls[id(control)]

    def _hint(self, control: Any, hint: torch.Tensor) -> torch.Tensor:
        """The frames and the region of a hint [F, C, H, W]."""
        return self.repeated(hint) if self.region is None else self.places(self._whole(control, hint), "control")

    def _whole(self, control: Any, hint: torch.Tensor) -> torch.Tensor:
        """The frames of a hint at the picture's size."""
        times = pixels_of_cell(control) if isinstance(self.region, Tile) else 1
        return self.hints.of_size(control, self.repeated(hint), *(side * times for side in self.picture))

    def _vae(self, control: Any) -> Any:
        """The VAE of a ControlNet; under a tile, one that gives the tile's part of the whole hint's latent."""
        if not isinstance(self.region, Tile):
            return control.vae
        latent = self.hints.latent_of(control, self._whole(control, control.cond_hint_original))
        return LatentsKnown(control.vae, self.places(latent, "control"))
