"""Conditionings cut to what one call of the model sees: some frames of the clip, a tile of them, or a moving window.

One table, ``RULES``, says for each value that a conditioning may hold how it is cut.  A value that no rule knows is
refused by name: handed on whole it would be silently wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...vcd_core.face.crop import Windows, crop
from ...vcd_core.tiled import Tile
from .areas import area_in, mask_of_area, reaches
from .controls import Hints, LatentsKnown, pixels_of_cell, with_hint
from .text import check_one_row

WHOLE = "whole"  # it has neither frames nor places: a number, a text, a reference picture
ROWS = "rows"  # one row for each frame, or one for all
PLACES = "places"  # a latent of the whole picture, in its cells or finer
OF_THE_PICTURE = "of the whole picture"  # cut by a tile; left out of a window, which has another size
MASK, AREA, BOXES, CONTROL = "mask", "area", "boxes", "control"
LIMITS = ("mask", "area", "gligen", "control")  # what a conditioning is limited to once the sampler holds it

RULES = {
    # what a conditioning is limited to
    "mask": MASK,
    "area": AREA,
    "set_area_to_bounds": OF_THE_PICTURE,  # the host would look for the bounds of the cut mask
    "gligen": BOXES,
    "control": CONTROL,
    # texts
    "cross_attn": ROWS,
    "c_crossattn": ROWS,
    "crossattn_controlnet": ROWS,
    "cross_attn_controlnet": ROWS,
    "pooled_output": ROWS,
    "y": ROWS,  # the pooled text, with SDXL its sizes behind it
    "attention_mask": ROWS,
    "t5xxl_ids": ROWS,
    "t5xxl_weights": ROWS,
    "clip_text": ROWS,
    "clip_text_pooled": ROWS,
    "text_embedding_mask": ROWS,
    "text_embedding_mask_t5": ROWS,
    "encoder_hidden_states_t5": ROWS,
    "encoder_hidden_states_llama3": ROWS,
    "conditioning_llama3": ROWS,
    "conditioning_mt5xl": ROWS,
    "attention_mask_mt5xl": ROWS,
    "conditioning_byt5small": ROWS,
    "txt_byt5": ROWS,
    "time_context": ROWS,
    "time_conditioning": ROWS,
    # latents of the picture that is drawn
    # what inpainting models are shown; without it they draw all of a window anew
    "concat_latent_image": OF_THE_PICTURE,
    "concat_mask": OF_THE_PICTURE,
    "c_concat": PLACES,
    "image_cond": PLACES,
    "denoise_mask": PLACES,
    # pictures to draw from, seen whole whatever is drawn
    "reference_latents": WHOLE,
    "ref_latents": WHOLE,
    "ref_contexts": WHOLE,
    "siglip_feats": WHOLE,
    "clip_vision_output": WHOLE,
    "clip_vision_outputs": WHOLE,
    "unclip_conditioning": WHOLE,
    "clip_img": WHOLE,
    "clip_fea": WHOLE,
    # sound, and what MiniMax H3 draws from
    "audio_denoise_mask": WHOLE,
    "ref_audio": WHOLE,
    **dict.fromkeys(("minimax_payload", "minimax_refs", "minimax_token_tags"), WHOLE),
    "minimax_keyframes": OF_THE_PICTURE,
    # numbers that the host keeps in tensors
    "guidance": WHOLE,
    "image_meta_size": WHOLE,
    "c_size": WHOLE,
    "c_ar": WHOLE,
    "sca": WHOLE,
    "crp": WHOLE,
    # weights that hold for this conditioning
    "hooks": WHOLE,
}


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Some frames of a clip, a region of each, at a size.

    Attributes:
        frames: which of the clip's frames, by number; None: all.
        region: a tile in latent cells, or windows in pixels, one for each of the frames; None: the whole picture.
        size: height and width to which windows are resampled.
        length: how many frames the clip has.
        picture: height and width of its whole pictures, in the region's units.
        hints: shared by the cuts of a picture, which so enlarge and encode a hint once.
    """

    frames: Sequence[int] | None = None
    region: Tile | Windows | None = None
    size: tuple[int, int] = (0, 0)
    length: int = 1
    picture: tuple[int, int] = (0, 0)
    hints: Hints = field(default_factory=Hints)
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
            limits: dict[str, Any] = {name: entry[name] for name in LIMITS if name in entry}
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
            rule = rule_of(name, value)
            if rule in (MASK, AREA) and value is not None and not isinstance(self.region, Tile):
                continue  # below: an area is a mask in a window
            if rule == MASK:
                cut[name] = self.places(value)
                reached = reached and bool(cut[name].any())
            elif rule == AREA and value is not None and isinstance(self.region, Tile):
                cut[name] = area_in(value, self.region)
                reached = reached and cut[name] is not None
            elif rule == BOXES and value is not None:
                cut |= self._boxes(name, value)
            elif rule == CONTROL and value is not None:
                cut[name] = self.control(value)
            elif rule == OF_THE_PICTURE and isinstance(self.region, Windows):
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

    def value(self, name: str, value: Any) -> Any:
        """A value cut by its name's rule."""
        rule = rule_of(name, value)
        if rule == ROWS and torch.is_tensor(value):
            return self.rows(value)
        if rule in (PLACES, OF_THE_PICTURE) and torch.is_tensor(value) and value.ndim > 3:
            return self.places(value, name)
        return value

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
            times = values.shape[-1] // self.picture[1]
            if tuple(values.shape[-2:]) != (times * self.picture[0], times * self.picture[1]) or not times:
                raise ValueError(
                    f"'{name}' in the conditioning has size {list(values.shape[-2:])}, which does not fit the latent's "
                    f"{list(self.picture)}; expected that size or a whole number of times it."
                )
            return Tile(*(side * times for side in self.region)).cut(values)
        if isinstance(self.region, Windows):
            same = torch.nn.functional.interpolate(values.float().cpu(), size=self.picture, mode="bilinear")
            return crop(same.movedim(1, -1), self.region, self.size, limits=None).movedim(-1, 1)
        return values

    def control(self, control: Any) -> Any:
        """A ControlNet, and those chained before it, that sees its hint's frames and region; the net is shared."""
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


def rule_of(name: str, value: Any) -> str:
    """The rule of ``RULES`` for a value; ``WHOLE`` for numbers, texts and lists of them, whatever their name.

    Raises:
        ValueError: no rule knows a value that may have frames or places.
    """
    if name in RULES:
        return RULES[name]
    if is_plain(value):
        return WHOLE
    raise ValueError(
        f"The conditioning holds '{name}' ({type(value).__name__}), which this pack cannot cut to a part of the clip. "
        "Leave out the node that puts it there, or use the stage without it."
    )


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text or nothing, or is made of such alone."""
    if isinstance(value, dict):
        return all(is_plain(part) for part in value.values())
    if isinstance(value, (list, tuple, set)):
        return all(is_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str, bytes))


def check_conditioning(conditioning: Any, frames: int, name: str, of_video: bool = False) -> None:
    """Raise ``ValueError`` where a conditioning has rows for another number of frames than the clip.

    Args:
        of_video: the model draws all frames from one row.
    """
    for tensor, options in conditioning:
        if of_video:
            check_one_row(tensor, name)
        for what, found in (("rows", tensor.shape[0]), ("mask frames", len(options.get("mask", "1")))):
            if found not in (1, frames):
                raise ValueError(
                    f"{name} has {found} {what}, but the clip has {frames} frames; expected 1 or {frames}."
                )
