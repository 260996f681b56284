"""Prompts through ComfyUI's text encoders, with token vectors that are in no file."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch


def _tokenizers(clip: Any) -> dict[str, Any]:
    """A CLIP's tokenizers by the key of their embeddings (clip_l, clip_g)."""
    parts = vars(clip.tokenizer).values()
    return {part.embedding_key: part for part in parts if hasattr(part, "embedding_key")}


def text_widths(clip: Any) -> dict[str, int]:
    """The width of each of a CLIP's text encoders."""
    widths = {}
    for key, part in _tokenizers(clip).items():
        encoder = getattr(clip.cond_stage_model, key, None)
        table = encoder.transformer.get_input_embeddings().weight if encoder is not None else None
        widths[key] = part.embedding_size if table is None else table.shape[1]
    return widths


def encode_text(clip: Any, text: str, vectors: dict[str, dict[str, torch.Tensor]]) -> Any:
    """The conditioning of a prompt in which ``embedding:name`` may stand for vectors that are in no file.

    Args:
        vectors: name -> the token vectors for each text encoder. Without any it is the host's own CLIP Text Encode.
    """
    if not vectors:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))
    clip = clip.clone()
    clip.tokenizer = tokenizer_with(clip, vectors)
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def _with_vectors(tokenizer: Any, vectors: dict[str, torch.Tensor]) -> Any:
    """A tokenizer that finds these names beside the files it knows."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.embedding_directory = tokenizer.embedding_directory or []
    known = tokenizer._try_get_embedding
    names_it = (
        len(known("vcd_no_such_file")) == 3
    )  # older hosts give vectors and rest, newer ones the name between them

    def find(name: str) -> Any:
        first, *rest = name.split()
        match = re.match(r"\w+", first)
        if match and match.group(0) in vectors:
            left = " ".join(part for part in (first[match.end() :], *rest) if part)
            found = vectors[match.group(0)]
            return (found, match.group(0), left) if names_it else (found, left)
        return known(name)

    tokenizer._try_get_embedding = find
    return tokenizer


def tokenizer_with(clip: Any, vectors: dict[str, dict[str, torch.Tensor]]) -> Any:
    """A CLIP's tokenizer to which ``embedding:name`` may also name vectors that are in no file."""
    tokenizer = copy.copy(clip.tokenizer)
    for attribute, part in list(vars(tokenizer).items()):
        if hasattr(part, "embedding_key"):
            setattr(tokenizer, attribute, _with_vectors(part, {n: v[part.embedding_key] for n, v in vectors.items()}))
    return tokenizer


def blend_conditioning(rows: list[Any], weights: torch.Tensor, empty: Any) -> Any:
    """One conditioning with a row for each frame.

    Args:
        rows: conditionings [1, tokens, width] with their options.
        weights: [frames, len(rows)], how much each counts in each frame.
        empty: the empty prompt's conditioning, to bring shorter rows to the longest.
    """
    longest = max(tensor.shape[1] for tensor, _ in rows)
    padded = []
    for tensor, _ in rows:
        missing = (longest - tensor.shape[1]) // empty[0].shape[1]
        padded.append(torch.cat([tensor, *[empty[0]] * missing], 1))
    blended = torch.einsum("fk,ktd->ftd", weights.to(padded[0]), torch.cat(padded))
    options = dict(rows[0][1])
    pooled = [entry.get("pooled_output") for _, entry in rows]
    if all(torch.is_tensor(p) for p in pooled):
        options["pooled_output"] = weights.to(pooled[0]) @ torch.cat(pooled)
    return [[blended, options]]
