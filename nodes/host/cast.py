"""Several prompts in one picture, each in its place, inside a UNet's cross-attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.patcher_extension
import comfy.utils
import torch

from ...vcd_core.cast import at_size
from .model import Model
from .ui import warn
from .wrappers import with_wrapper

CAST = "vcd_cast"  # in a conditioning: "person" or "everybody"; in transformer options: the bound casts by uuid
KEY = "vcd_cast"
_SHARED = ("area", "control", "hooks", "strength", "gligen", "timestep_start", "timestep_end")


@dataclass
class Bound:
    """The entries of a conditioning that are drawn as one.

    Attributes:
        contexts: the text of each [1 or F, tokens, width], the first is the one that the sampler knows.
        weights: what each counts at each place of the latent [entries, 1 or F, h, w]; they sum to 1.
        nobodys: how many of the first are of what is nobody's.
    """

    contexts: list[torch.Tensor]
    weights: torch.Tensor
    nobodys: int = 0
    sized: dict[int, torch.Tensor] = field(default_factory=dict)

    def at(self, positions: int) -> torch.Tensor:
        """The weights [entries, 1 or F, positions] in an attention over so many places."""
        if positions not in self.sized:
            height, width = self.weights.shape[-2:]
            while height * width > positions:  # as the UNet's own strides do
                height, width = -(-height // 2), -(-width // 2)
            self.sized[positions] = at_size(self.weights, height, width).flatten(-2)
        return self.sized[positions]

    def people_at(self, positions: int) -> torch.Tensor:
        """As :meth:`at`, of the people alone."""
        return self.at(positions)[self.nobodys :]

    @property
    def more(self) -> int:
        """How many tokens stand behind those that the sampler knows."""
        return sum(context.shape[1] for context in self.contexts[1:])


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
    if _joined not in options.get("patches", {}).get("attn2_patch", ()):
        model.set_model_attn2_patch(_joined)
    for place in places:
        for kind, ours, replace in (
            ("attn2", partial(_Blended, contrast), model.set_model_attn2_replace),
            ("attn1", partial(_Parted, apart), model.set_model_attn1_replace),
        ):
            earlier = options.get("patches_replace", {}).get(kind, {}).get(place)
            replace(ours(earlier.earlier if isinstance(earlier, _Replaced) else earlier), *place)
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
    group.sort(key=lambda entry: entry[CAST] != "everybody")  # its text is what ControlNets see
    first, *others = group
    if any(other.get(name) is not first.get(name) and other.get(name) != first.get(name)
           for other in others for name in _SHARED):  # fmt: skip
        warn("VCD Cast: people differ in their ControlNets, hooks or ranges, so they are drawn by masks alone.")
        return entries
    masks = torch.stack([comfy.utils.repeat_to_batch_size(e["mask"], _most(group)) for e in group]).to(x)
    weights = masks / masks.sum(0).clamp(min=1e-6)
    texts = [entry["model_conds"]["c_crossattn"].cond for entry in group]
    casts[first["uuid"]] = Bound(texts, weights, sum(entry[CAST] == "everybody" for entry in group))
    rest = [entry for entry in entries or () if not entry.get(CAST)]
    return [{name: value for name, value in first.items() if name not in ("mask", "mask_strength")}, *rest]


def _most(group: list[Any]) -> int:
    return max(len(entry["mask"]) for entry in group)


def _check_ours(options: dict[str, Any]) -> None:
    """Raise where another node took the place of what binds people."""
    found = options.get("patches_replace", {}).get("attn2", {})
    if not found or not all(isinstance(patch, _Replaced) for patch in found.values()):
        raise ValueError(
            "A node behind VCD Cast replaced the model's cross-attention (as IPAdapter does), so people are not bound to "
            "their places. Put that node before VCD Cast."
        )


def _casts_in(batch: int, options: dict[str, Any]) -> list[tuple[slice, Bound | None]]:
    """The rows of each conditioning in a batch, and its cast."""
    casts, uuids = options.get(CAST) or {}, options.get("uuids") or []
    rows = batch // max(1, len(uuids))
    return [(slice(i * rows, (i + 1) * rows), casts.get(uuid)) for i, uuid in enumerate(uuids)]


def _longest(parts: list[tuple[slice, Bound | None]]) -> int:
    return max((bound.more for _, bound in parts if bound), default=0)


def _joined(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, options: dict[str, Any]) -> Any:
    """The cross-attention's inputs with everybody's texts behind the text that the sampler knows."""
    parts = _casts_in(len(context), options)
    longest = _longest(parts)
    if not longest:
        return n, context, value
    more = context.new_zeros(len(context), longest, context.shape[2])
    for rows, bound in parts:
        if bound:
            count = rows.stop - rows.start
            texts = [comfy.utils.repeat_to_batch_size(text.to(more), count) for text in bound.contexts[1:]]
            more[rows, : bound.more] = torch.cat(texts, 1)
    return n, torch.cat([context, more], 1), torch.cat([value, more], 1)


@dataclass
class _Replaced:
    """What stands in place of a block's attention; ``earlier``: what another node put there, which is called on."""

    earlier: Any = None

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        if self.earlier is not None:
            done: torch.Tensor = self.earlier(q, k, v, options)
            return done
        found: torch.Tensor = attention.optimized_attention(
            q, k, v, options["n_heads"], attn_precision=options.get("attn_precision"), transformer_options=options
        )
        return found


class _Blended(_Replaced):
    """A cross-attention in which each place attends to its people's texts."""

    def __init__(self, contrast: float = 0.0, earlier: Any = None) -> None:
        super().__init__(earlier)
        self.contrast = contrast

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        parts = _casts_in(len(q), options)
        known = k.shape[1] - _longest(parts)
        out = self._attend(q, k[:, :known], v[:, :known], options)
        for rows, bound in parts:
            if bound:
                out[rows] = self._of_places(out[rows], bound, q[rows], k[rows, known:], v[rows, known:], options)
        return out

    def _of_places(
        self, first: torch.Tensor, bound: Bound, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        options: dict[str, Any],
    ) -> torch.Tensor:  # fmt: skip
        weights = contrasted(bound.at(q.shape[1]), bound.nobodys, self.contrast)
        weights = comfy.utils.repeat_to_batch_size(weights.movedim(0, 1), len(q))[..., None].to(q)
        total, at = first * weights[:, 0], 0
        for i, context in enumerate(bound.contexts[1:], 1):
            here = slice(at, at + context.shape[1])
            total = total + weights[:, i] * self._attend(q, k[:, here], v[:, here], options)
            at = here.stop
        return total


class _Parted(_Replaced):
    """A self-attention in which people look less at each other, in every conditioning's rows alike."""

    def __init__(self, apart: float, earlier: Any = None) -> None:
        super().__init__(earlier)
        self.apart = apart

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        casts = list((options.get(CAST) or {}).values())
        if not casts or not self.apart or k.shape != q.shape:
            return self._attend(q, k, v, options)
        parts = _casts_in(len(q), options)
        people = [(bound or casts[0]).people_at(q.shape[1]) for _, bound in parts]
        if any(shares.shape[-1] != q.shape[1] for shares in people):
            return self._attend(q, k, v, options)  # cut up by another node
        rows = [comfy.utils.repeat_to_batch_size(one.movedim(0, 1), len(q) // len(parts)) for one in people]
        return self._with_scores(q, k, v, parting(torch.cat(rows).to(q), self.apart), options)

    def _with_scores(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, more: tuple[torch.Tensor, torch.Tensor],
        options: dict[str, Any],
    ) -> torch.Tensor:  # fmt: skip
        """Attention whose scores are higher by the products of some more channels: any kernel does it, without a mask
        of all places by all places."""
        heads = options["n_heads"]
        width = q.shape[2] // heads
        wider = -(-(width + more[0].shape[2]) // 8) * 8

        def widened(x: torch.Tensor, channels: torch.Tensor | None, factor: float) -> torch.Tensor:
            out = x.new_zeros(*x.shape[:2], heads, wider)
            out[..., :width] = x.unflatten(2, (heads, width)) * factor
            if channels is not None:
                out[..., width : width + channels.shape[2]] = channels[:, :, None] * factor
            return out.flatten(2)

        root = wider**0.5  # of which attention takes the inverse, here in place of that of the width
        asked = widened(q, more[0] * width**0.5, root / width**0.5)
        found = self._attend(asked, widened(k, more[1], 1.0), widened(v, None, 1.0), {**options, "dim_head": wider})
        return found.unflatten(2, (heads, wider))[..., :width].flatten(2)


def contrasted(weights: torch.Tensor, nobodys: int, contrast: float) -> torch.Tensor:
    """Weights that lead away from what is somebody else's; their sum stays.

    A person's attention A_i becomes ``A_i + contrast * (A_i - mean_{j != i} A_j)``.

    Args:
        weights: [entries, ..., positions], the first ``nobodys`` of what is nobody's.

    Example:
        >>> contrasted(torch.tensor([[1.0, 0.25], [0.0, 0.75]]), 0, 0.5).tolist()
        [[1.5, 0.0], [-0.5, 1.0]]
    """
    people = weights[nobodys:]
    if len(people) < 2 or not contrast:
        return weights
    others = (people.sum(0, keepdim=True) - people) / (len(people) - 1)
    return torch.cat([weights[:nobodys], people + contrast * (people - others)])


def parting(people: torch.Tensor, apart: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Channels [n, positions, people + 1] of queries and of keys whose products lower scores between two people.

    The product at places q and k is ``-apart * sum_{i != j} w_i(q) w_j(k)``: nothing between a person's own places and
    for what is nobody's.

    Args:
        people: [n, people, positions], the share of each at each place.

    Example:
        >>> asked, answered = parting(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), 3.0)
        >>> (asked @ answered.mT)[0].add(0).tolist()
        [[0.0, -3.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    people = people.mT
    somebody = people.sum(2, keepdim=True)
    return torch.cat([people, somebody], 2), torch.cat([people, -somebody], 2) * apart
