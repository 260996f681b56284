"""Several prompts in one picture, each in its place, drawn in one pass of a UNet."""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.patcher_extension
import comfy.utils
import torch

from .attention import CAST, EVERYBODY, Blended, Bound, Parted, Replaced, joined
from .model import Model
from .ui import warn
from .wrappers import with_wrapper

KEY = "vcd_cast"
_SHARED = ("area", "control", "hooks", "strength", "gligen", "timestep_start", "timestep_end")


def with_binding(model: Model, apart: float, contrast: float = 0.0) -> Model | None:
    """A clone that draws the entries of a cast in one pass; None for a model that is no UNet with cross-attention.

    At each place q of the picture the cross-attention gives ``sum_k w_k(q) Attn(q, K_k, V_k)``, K and V from the k-th
    person's own prompt and w from their masks (Mix-of-Show, arXiv 2305.18292, regionally controllable sampling).  The
    negative prompt is as it is.  ``contrast`` moves w towards a person's own text and as far away from the others'
    (:func:`contrasted`).  In self-attention the scores between two people are lowered by ``apart`` (with an
    infinite one it is the mask of Bounded Attention, arXiv 2403.16990); each with what is nobody's are as they are.

    Motion modules and ControlNets see one picture, where ComfyUI's masked conditionings draw one for each person and
    average what they predict.
    """
    net = model.model.diffusion_model
    places = [
        (name, number, depth)
        for name, blocks in (("input", "input_blocks"), ("middle", "middle_block"), ("output", "output_blocks"))
        for number, block in enumerate(_blocks(getattr(net, blocks, ())))
        for part in block
        for depth in range(len(getattr(part, "transformer_blocks", ())))
    ]
    if not places:
        return None
    model = with_wrapper(model, comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, KEY, _bound)
    options = model.model_options["transformer_options"]
    if joined not in options.get("patches", {}).get("attn2_patch", ()):
        model.set_model_attn2_patch(joined)
    for place in places:
        for kind, ours, replace in (
            ("attn2", partial(Blended, contrast), model.set_model_attn2_replace),
            ("attn1", partial(Parted, apart), model.set_model_attn1_replace),
        ):
            earlier = options.get("patches_replace", {}).get(kind, {}).get(place)
            replace(ours(earlier.earlier if isinstance(earlier, Replaced) else earlier), *place)
    return model


def _blocks(found: Any) -> list[Any]:
    """The blocks of a part of the UNet; its middle is one."""
    blocks = list(found)
    return blocks if not blocks or hasattr(blocks[0], "__iter__") else [blocks]


def _bound(executor, *call):  # type: ignore[no-untyped-def]
    """The host's ``calc_cond_batch`` with the entries of each cast as one.

    It is always the innermost, so that what cuts conditionings (tiles) has cut them, wherever its node stands.
    """
    inside = executor.wrappers[executor.idx + 1 :]
    last = partial(_drawn_as_one, executor.original)
    return comfy.patcher_extension.WrapperExecutor.new_executor(last, inside).execute(*call)


def _drawn_as_one(  # type: ignore[no-untyped-def]
    draw, base, conds, x: torch.Tensor, timestep, model_options: dict[str, Any]
) -> Any:
    casts: dict[Any, Bound] = {}
    conds = [_merged(entries, x, casts) for entries in conds]
    if casts:
        options = model_options.get("transformer_options", {})
        _check_ours(options)
        model_options = {**model_options, "transformer_options": {**options, CAST: casts}}
    return draw(base, conds, x, timestep, model_options)


def _merged(entries: list[Any] | None, x: torch.Tensor, casts: dict[Any, Bound]) -> list[Any] | None:
    """A conditioning's entries with those of a cast as one, which is put into ``casts``."""
    group = [entry for entry in entries or () if entry.get(CAST) and "mask" in entry]
    if len(group) < 2:
        return entries
    group.sort(key=lambda entry: entry[CAST] != EVERYBODY)  # its text is what ControlNets see
    first, *others = group
    if any(other.get(name) is not first.get(name) and other.get(name) != first.get(name)
           for other in others for name in _SHARED):  # fmt: skip
        warn("VCD Cast: people differ in their ControlNets, hooks or ranges, so they are drawn by masks alone.")
        return entries
    masks = torch.stack([comfy.utils.repeat_to_batch_size(e["mask"], _most(group)) for e in group]).to(x)
    weights = masks / masks.sum(0).clamp(min=1e-6)
    texts = [entry["model_conds"]["c_crossattn"].cond for entry in group]
    casts[first["uuid"]] = Bound(texts, weights, sum(entry[CAST] == EVERYBODY for entry in group))
    rest = [entry for entry in entries or () if not entry.get(CAST)]
    return [{name: value for name, value in first.items() if name not in ("mask", "mask_strength")}, *rest]


def _most(group: list[Any]) -> int:
    return max(len(entry["mask"]) for entry in group)


def _check_ours(options: dict[str, Any]) -> None:
    """Raise where another node took the place of what binds people."""
    found = options.get("patches_replace", {}).get("attn2", {})
    if not found or not all(isinstance(patch, Replaced) for patch in found.values()):
        raise ValueError(
            "A node behind VCD Cast replaced the model's cross-attention (as IPAdapter does), so people are not bound "
            "to their places. Put that node before VCD Cast."
        )
