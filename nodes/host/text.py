"""Prompts through ComfyUI's text encoders, with token vectors that are in no file."""

from __future__ import annotations

import copy
import functools
import itertools
import re
from typing import Any, NamedTuple

import comfy.patcher_extension
import comfy.sd1_clip
import folder_paths
import torch

from .model import Model
from .wrappers import with_wrapper


def tokenizers(clip: Any) -> dict[str, Any]:
    """A CLIP's tokenizers by the key of their embeddings (clip_l, clip_g)."""
    parts = vars(clip.tokenizer).values()
    return {part.embedding_key: part for part in parts if hasattr(part, "embedding_key")}


def text_widths(clip: Any) -> dict[str, int]:
    """The width of each of a CLIP's text encoders; 0 for one that reads no embeddings."""
    others = {n: p for n, p in vars(clip.tokenizer).items() if hasattr(p, "tokenize_with_weights")}
    widths = {name: 0 for name, part in others.items() if not hasattr(part, "embedding_key")}
    for key, part in tokenizers(clip).items():
        encoder = getattr(clip.cond_stage_model, key, None)
        table = encoder.transformer.get_input_embeddings().weight if encoder is not None else None
        widths[key] = part.embedding_size if table is None else table.shape[1]
    return widths or {type(clip.cond_stage_model).__name__: 0}


def encode_text(
    clip: Any, text: str, vectors: dict[str, dict[str, torch.Tensor]], strengths: dict[str, float] | None = None
) -> Any:
    """The conditioning of a prompt in which ``embedding:name`` may stand for vectors that are in no file.

    Args:
        vectors: name -> the token vectors for each text encoder. Without any it is the host's own CLIP Text Encode.
        strengths: name -> what multiplies the weight that its tokens have in the prompt; 1 where it is left out.

    Raises:
        ValueError: the text encoder reads no vectors, or does not get all tokens of a name that the prompt holds.
    """
    if not vectors:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))
    vectors = {name: {key: table.clone() for key, table in tables.items()} for name, tables in vectors.items()}
    clip = clip_with(clip, vectors)
    rows = {
        row.data_ptr(): _Row(name, i, len(table) - 1)
        for name, tables in vectors.items()
        for table in tables.values()
        for i, row in enumerate(table)
    }
    tokens = _tokenized(clip, text)
    if not _whole(tokens, rows):
        for part in tokenizers(clip).values():  # the host tears apart what has as many tokens as this
            part.max_word_length = part.max_length - 1
        tokens = _tokenized(clip, text)
    _check_complete(tokens, rows, text)
    return clip.encode_from_tokens_scheduled(_with_strengths(tokens, rows, strengths or {}))


def _tokenized(clip: Any, text: str) -> Tokens:
    try:
        found: Tokens = clip.tokenize(text)
    except RuntimeError as error:  # Hunyuan's compares every token with a number, which a vector is not
        name = type(clip.tokenizer).__name__
        raise ValueError(
            f"This model's text encoders ({', '.join(text_widths(clip))}) read no embeddings: ComfyUI's {name} stops "
            "at the first. Take an identity of context vectors, which stand beside what they give."
        ) from error
    return found


def check_reads_vectors(clip: Any) -> None:
    """Raise ``ValueError`` for text encoders that read no tokens but their own."""
    widths, name = text_widths(clip), "vcd_tried"
    closed = [encoder for encoder, width in widths.items() if not width]
    if closed:
        raise ValueError(
            f"This model's text encoder {' and '.join(closed)} reads no tokens but its own. Take an identity of "
            "context vectors, which stand beside what it gives."
        )
    tried = {name: {key: torch.zeros(1, width) for key, width in widths.items()}}
    _tokenized(clip_with(clip, tried), f"embedding:{name}")


class _Row(NamedTuple):
    name: str
    number: int  # among the rows of this name
    last: int  # the number of its last row


Rows = dict[int, _Row]  # by the address of the vector
Tokens = dict[str, list[list[tuple[Any, ...]]]]  # encoder -> chunks of a long prompt -> (token, weight, ...)


def _row_of(entry: tuple[Any, ...], rows: Rows) -> _Row | None:
    """Which vector of ours a token is, if it is one."""
    return rows.get(entry[0].data_ptr()) if torch.is_tensor(entry[0]) else None


def _whole(tokens: Tokens, rows: Rows) -> bool:
    """Whether no identity begins in one chunk of a long prompt and ends in another."""
    for chunk in itertools.chain.from_iterable(tokens.values()):
        before: _Row | None = None
        for row in [*(_row_of(entry, rows) for entry in chunk), None]:
            begun = before is not None and before.number < before.last
            expected = before._replace(number=before.number + 1) if before and begun else None
            if row != expected and (expected or (row and row.number)):
                return False
            before = row
    return True


def _check_complete(tokens: Tokens, rows: Rows, text: str) -> None:
    for name, count in {(row.name, row.last + 1) for row in rows.values()}:
        expected = count * len(re.findall(rf"embedding:{name}\b", text))
        for chunks in tokens.values():
            found = [_row_of(entry, rows) for chunk in chunks for entry in chunk]
            number = sum(row is not None and row.name == name for row in found)
            if number != expected or not _whole(tokens, rows):
                raise ValueError(
                    f"Of the {expected} tokens of an identity in the prompt {number} reach the text encoder in one "
                    "piece. Put a space before its mark; a prompt's part holds 75 tokens."
                )


def _with_strengths(tokens: Tokens, rows: Rows, strengths: dict[str, float]) -> Tokens:
    def weighted(entry: tuple[Any, ...]) -> tuple[Any, ...]:
        row = _row_of(entry, rows)
        strength = strengths.get(row.name, 1.0) if row else 1.0
        return entry if strength == 1 else (entry[0], entry[1] * strength, *entry[2:])

    return {key: [[weighted(entry) for entry in chunk] for chunk in chunks] for key, chunks in tokens.items()}


@functools.lru_cache(maxsize=1)
def _stock_tokenizer() -> Any:
    return comfy.sd1_clip.SDTokenizer()


def prompt_reads(text: str, words: str, vectors: torch.Tensor, encoder: str) -> bool:
    """Whether ComfyUI's own prompt nodes read ``text`` as an encoder's vectors [n, d], followed by ``words``."""
    tokenizer = copy.copy(_stock_tokenizer())
    tokenizer.embedding_directory = folder_paths.get_folder_paths("embeddings")
    tokenizer.embedding_size, tokenizer.embedding_key = vectors.shape[1], encoder

    def tokens_of(prompt: str) -> list[Any]:
        found = [token for chunk in tokenizer.tokenize_with_weights(prompt) for token, *_ in chunk]
        ends = (tokenizer.start_token, tokenizer.end_token)
        return [token for token in found if torch.is_tensor(token) or token not in ends]

    found = tokens_of(text)
    learned = [token.detach().float() for token in found[: len(vectors)] if torch.is_tensor(token)]
    same = len(learned) == len(vectors) and torch.equal(torch.stack(learned), vectors)
    return same and found[len(vectors) :] == tokens_of(words)


def _with_vectors(tokenizer: Any, vectors: dict[str, torch.Tensor]) -> Any:
    """A tokenizer that finds these names beside the files it knows."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.embedding_directory = tokenizer.embedding_directory or []
    known = tokenizer._try_get_embedding
    # older hosts give vectors and rest, newer ones the name between them
    names_it = len(known("vcd_no_such_file")) == 3

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


def clip_with(clip: Any, vectors: dict[str, dict[str, torch.Tensor]]) -> Any:
    """A clone of a CLIP in whose prompts ``embedding:name`` may also name vectors that are in no file."""
    clip = clip.clone()
    clip.tokenizer = tokenizer_with(clip, vectors)
    return clip


def blend_conditioning(keys: list[Any], weights: torch.Tensor, empty: Any) -> Any:
    """One conditioning with a row for each frame.

    Args:
        keys: the conditioning of each key: entries [1, tokens, width] with their options; a CLIP with hooks gives
            several, each for its part of the sampling.
        weights: [frames, keys], how much each counts in each frame.
        empty: the empty prompt's conditioning, to bring shorter rows to the longest.

    Raises:
        ValueError: a text encoder that gives more with each prompt than rows can hold.
    """
    return [_blend([key[i] for key in keys], weights, filler) for i, (filler, _) in enumerate(empty)]


ROWS_HELD = "vcd_rows_held"
_OF_ROWS = ("pooled_output", "attention_mask")  # options that are each row's own


def _blend(entries: list[Any], weights: torch.Tensor, filler: torch.Tensor) -> Any:
    longest = max(tensor.shape[1] for tensor, _ in entries)
    options = dict(entries[0][1])
    masked = torch.is_tensor(options.get("attention_mask"))
    padded = [_pad(tensor, longest, torch.zeros_like(filler) if masked else filler) for tensor, _ in entries]
    rows = torch.einsum("fk,ktd->ftd", weights.to(padded[0]), torch.cat(padded))
    for name in options:
        values = [found.get(name) for _, found in entries]
        if name == "pooled_output" and all(torch.is_tensor(value) for value in values):
            options[name] = weights.to(values[0]) @ torch.cat(values)
        elif name == "attention_mask" and masked:
            masks = torch.cat([_pad(mask, longest, torch.zeros_like(mask)) for mask in values])
            counts = (weights.to(masks.device) > 0).float() @ (masks != 0).float()
            options[name] = (counts > 0).to(masks.dtype)  # a token that counts in a frame is seen there
        elif not _all_same(values):
            raise ValueError(
                f"This text encoder gives '{name}' with each prompt, which a schedule cannot give to each frame. Use "
                "one prompt for the whole clip."
            )
    return [rows, options]


def _pad(rows: torch.Tensor, length: int, filler: torch.Tensor) -> torch.Tensor:
    """Rows [1, tokens, ...] made ``length`` tokens long with the last tokens of as many fillers as it takes."""
    missing = length - rows.shape[1]
    if not missing:
        return rows
    more = torch.cat([filler] * -(-missing // filler.shape[1]), 1)
    return torch.cat([rows, more[:, -missing:]], 1)


def _all_same(values: list[Any]) -> bool:
    first = values[0]
    if torch.is_tensor(first):
        return all(torch.is_tensor(value) and torch.equal(value, first) for value in values)
    plain = isinstance(first, (str, int, float, type(None)))
    return all(value is first or (plain and value == first) for value in values)


def with_rows_held(model: Model) -> Model:
    """A clone that fits conditionings with a row for each frame to the number of frames that are sampled.

    A longer clip goes on with the last row, a shorter one takes the first rows. The host would begin again with the
    first row, and so would each context window. Of a video latent, whose frames share one row, it would take the first:
    that is refused.
    """

    def wrapper(executor, noise, *args, **kwargs):  # type: ignore[no-untyped-def]
        in_parts = len(kwargs.get("latent_shapes") or ()) > 1  # a video and its sound
        for conds in executor.class_obj.conds.values():
            for cond in conds or ():
                if in_parts or noise.ndim == 5:
                    check_one_row(cond.get("cross_attn"), "The conditioning")
                else:
                    hold_rows(cond, len(noise))
        return executor(noise, *args, **kwargs)

    return with_wrapper(model, comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, ROWS_HELD, wrapper)


def check_one_row(rows: torch.Tensor | None, name: str) -> None:
    """Raise ``ValueError`` where a conditioning for a video model has a prompt for each frame."""
    if rows is not None and len(rows) != 1:
        raise ValueError(
            f"{name} has {len(rows)} rows, a prompt for each frame. This video model draws all frames from one prompt: "
            "write one without a schedule."
        )


def hold_rows(cond: dict[str, Any], frames: int) -> None:
    """Bring the rows of a sampler's conditioning, if it has several, to this many frames, in place."""
    rows = 1 if cond.get("cross_attn") is None else len(cond["cross_attn"])
    if rows in (1, frames):
        return
    kept = torch.arange(frames).clamp(max=rows - 1)
    for name in ("cross_attn", *_OF_ROWS):
        value = cond.get(name)
        if torch.is_tensor(value) and len(value) == rows:
            cond[name] = value[kept.to(value.device)]
