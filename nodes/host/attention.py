"""A UNet's attention, in which several people have texts of their own, each in their place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.utils
import torch

from ...vcd_core.cast import at_size, contrasted, parting

CAST = "vcd_cast"  # in a conditioning: PERSON or EVERYBODY; in transformer options: the bound casts by uuid
PERSON, EVERYBODY = "person", "everybody"


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


def _casts_in(batch: int, options: dict[str, Any]) -> list[tuple[slice, Bound | None]]:
    """The rows of each conditioning in a batch, and its cast."""
    casts, uuids = options.get(CAST) or {}, options.get("uuids") or []
    rows = batch // max(1, len(uuids))
    return [(slice(i * rows, (i + 1) * rows), casts.get(uuid)) for i, uuid in enumerate(uuids)]


def _longest(parts: list[tuple[slice, Bound | None]]) -> int:
    return max((bound.more for _, bound in parts if bound), default=0)


def joined(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, options: dict[str, Any]) -> Any:
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
class Replaced:
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


class Blended(Replaced):
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


class Parted(Replaced):
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
