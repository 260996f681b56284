"""Prompts beside which context vectors stand: identities at the text encoder's output (vcd_core.identity.beside)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import comfy.sd1_clip
import torch

from ...vcd_core.identity import beside
from .text import Tokens, encode_text, text_widths, tokenizer_with, tokenizers


class Context(NamedTuple):
    """Context vectors [n, D], and how much they count."""

    vectors: torch.Tensor
    strength: float = 1.0


def encode_with_context(
    clip: Any,
    text: str,
    context: Mapping[str, Context],
    vectors: dict[str, dict[str, torch.Tensor]],
    strengths: dict[str, float],
) -> Any:
    """The conditioning of a prompt in which ``embedding:name`` may stand for tokens or for context vectors.

    Where context vectors are named nothing is read, so that words and tokens are encoded as without them. A name that
    comes twice stands beside the prompt once, with its larger weight.

    Args:
        context: name -> context vectors, in the order in which they take their places.
        vectors, strengths: tokens, see :func:`encode_text`.

    Raises:
        ValueError: vectors of another width than the model's prompts, text encoders that do not pad their prompts, and
            what :func:`encode_text` raises.
    """
    if not context:
        return encode_text(clip, text, vectors, strengths)
    widths = text_widths(clip)
    if not all(part.pad_to_max_length for part in tokenizers(clip).values()):
        sizes = ", ".join(str(one.vectors.shape[1]) for one in context.values())
        raise ValueError(
            f"Context vectors ({sizes} wide) stand in the padding of prompts, and this model's text encoders "
            f"({', '.join(widths)}) pad none. Use the identity with the kind of model it was made for (768: SD 1.5)."
        )
    marks = {name: {key: torch.empty(0, width) for key, width in widths.items()} for name in context}
    encoded = encode_text(clip, text, {**vectors, **marks}, strengths)
    weights = weights_in(clip, text, context)
    if not weights:
        return encoded
    chosen = [context[name].vectors for name in weights]
    each = [weight * context[name].strength for name, weight in weights.items()]
    empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    room = padding(clip, tokens_beside(clip, text, {**vectors, **marks}))
    return [
        [beside(rows, chosen, each, room, blank), options]
        for (rows, options), (blank, _) in zip(encoded, empty, strict=True)
    ]


def tokens_beside(clip: Any, text: str, vectors: dict[str, dict[str, torch.Tensor]]) -> Tokens:
    """What the text encoders read of a prompt."""
    clip = clip.clone()
    clip.tokenizer = tokenizer_with(clip, vectors)
    found: Tokens = clip.tokenize(text)
    return found


def padding(clip: Any, tokens: Tokens) -> int:
    """How many of a prompt's last rows stand for no word, in every text encoder."""
    free = []
    for part in tokenizers(clip).values():
        for chunks in tokens.values():
            last = [entry[0] for entry in chunks[-1]]
            ends = [i for i, token in enumerate(last) if not torch.is_tensor(token) and token == part.end_token]
            free.append(len(last) - 1 - ends[0] if ends else 0)
    return min(free, default=0)


def weights_in(clip: Any, text: str, names: Mapping[str, object]) -> dict[str, float]:
    """The weight that a prompt gives to each name in it, as the host reads brackets; in the order of ``names``."""
    found: dict[str, float] = {}
    plain = any(getattr(part, "disable_weights", False) for part in tokenizers(clip).values())
    parts = [(text, 1.0)] if plain else comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
    for part, weight in parts:
        for name in re.findall(r"embedding:(\w+)", part):
            found[name] = max(weight, found.get(name, weight))
    return {name: found[name] for name in names if name in found}
