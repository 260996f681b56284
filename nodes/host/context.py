"""Prompts beside which context vectors stand: identities at the text encoder's output (vcd_core.identity.beside)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import comfy.sd1_clip
import torch

from ...vcd_core.identity import beside
from .text import Tokens, clip_with, encode_text, tokenizers

MASK = "attention_mask"
Entry = tuple[torch.Tensor, dict[str, Any]]  # a prompt's rows [1, L, D], and what text encoders give with them


class Context(NamedTuple):
    """Context vectors [n, D], and how much they count."""

    vectors: torch.Tensor
    strength: float = 1.0


class Room(NamedTuple):
    """Where vectors have room beside a prompt.

    Attributes:
        padding: how many of its last rows stand for no word.
        sections: whether prompts are read in sections, as CLIP does: vectors that find no room get one more.
    """

    padding: int
    sections: bool


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
        ValueError: vectors of another width than the model's prompts, and what :func:`encode_text` raises.
    """
    if not context:
        return encode_text(clip, text, vectors, strengths)
    plain = without_marks(text, context)
    encoded = encode_text(clip, plain, vectors, strengths)
    weights = weights_in(clip, text, context)
    if not weights:
        return encoded
    chosen = [context[name].vectors for name in weights]
    each = [weight * context[name].strength for name, weight in weights.items()]
    empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    tokens = clip_with(clip, vectors).tokenize(plain)
    return [
        list(put_beside(entry, blank, chosen, each, free_rows(clip, tokens, entry)))
        for entry, (blank, _) in zip(encoded, empty, strict=True)
    ]


def put_beside(
    entry: Entry, blank: torch.Tensor, vectors: Sequence[torch.Tensor], weights: Sequence[float], room: Room
) -> Entry:
    """A prompt with context vectors beside it: in the place of padding, or behind where it has none to spare.

    Args:
        blank: the empty prompt's rows.
        vectors, weights: of each identity, see :func:`vcd_core.identity.beside`.
    """
    rows, options = entry
    count = sum(len(table) for table in vectors)
    if room.sections or room.padding >= count:
        return beside(rows, vectors, weights, room.padding, blank), options
    longer = torch.cat([rows, blank[:, -1:].to(rows).expand(len(rows), count, -1)], 1)
    return beside(longer, vectors, weights, count, blank), _of_longer(options, rows.shape[1], count)


def _of_longer(options: dict[str, Any], length: int, more: int) -> dict[str, Any]:
    """What goes with a prompt's rows, for ``more`` rows behind: they are seen, and of the last row's kind."""
    found = dict(options)
    for name, value in options.items():
        if torch.is_tensor(value) and value.ndim in (1, 2) and value.shape[-1] == length:
            last = torch.ones_like(value[..., -1:]) if name == MASK else value[..., -1:]
            found[name] = torch.cat([value, last.expand(*value.shape[:-1], more)], -1)
    return found


def free_rows(clip: Any, tokens: Tokens, entry: Entry) -> Room:
    """Where vectors have room beside a prompt, from what the text encoders read and what they gave."""
    parts = tokenizers(clip)
    if torch.is_tensor(entry[1].get(MASK)) or not parts:
        return Room(0, False)
    sections = all(part.pad_to_max_length for part in parts.values())
    free = [_padding(_named(parts, encoder), chunks[-1]) for encoder, chunks in tokens.items()]
    return Room(min(free, default=0), sections)


def _named(parts: Mapping[str, Any], encoder: str) -> Any:
    """The tokenizer of a text encoder, whose tokens go without the ``clip_`` of its name."""
    return parts.get(encoder, parts.get(f"clip_{encoder}"))


def _padding(part: Any, read: Sequence[Any]) -> int:
    """How many of the last tokens a tokenizer added to reach its length; 0 for one that nobody knows."""
    if part is None:
        return 0
    pad, count = getattr(part, "pad_token", None), 0
    for token, *_ in reversed(read):
        if torch.is_tensor(token) or token != pad:
            break
        count += 1
    return max(0, count - 1) if pad == part.end_token else count


def without_marks(text: str, names: Collection[str]) -> str:
    """A prompt without these names of embeddings, and without brackets that held nothing else.

    Example:
        >>> without_marks("photo of embedding:me man, ((embedding:me:1.2)) man", ["me"])
        'photo of man, man'
    """
    marks = "|".join(re.escape(name) for name in names)
    found, count = re.subn(rf"embedding:(?:{marks})\b ?", "", text)
    while count:
        found, count = re.subn(r"(?<!\\)\(\s*(?::\s*[\d.]+\s*)?\) ?", "", found)
    return found


def weights_in(clip: Any, text: str, names: Collection[str]) -> dict[str, float]:
    """The weight that a prompt gives to each name in it, as the host reads brackets; in the order of ``names``."""
    found: dict[str, float] = {}
    plain = any(getattr(part, "disable_weights", False) for part in tokenizers(clip).values())
    parts = [(text, 1.0)] if plain else comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
    for part, weight in parts:
        for name in re.findall(r"embedding:(\w+)", part):
            found[name] = max(weight, found.get(name, weight))
    return {name: found[name] for name in names if name in found}
