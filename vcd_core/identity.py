"""The ID file (Magic-Me, sec. 4.2): a few learned token vectors that carry a person, pet or thing, read, checked and written.

Read: Magic-Me / A1111 ``.pt`` (``string_to_param``), diffusers ``learned_embeds`` (.bin, .safetensors), kohya bundles, and
ComfyUI safetensors (``clip_l``, ``clip_g``, ``emb_params``, or any single tensor).  Written: safetensors that ComfyUI's
``embedding:name`` reads, with where they come from in the header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import files

EXTENSIONS = (".safetensors", ".pt", ".bin")
MOST_TOKENS = 75  # a prompt holds 77, two of them its start and end
ENCODERS = ("clip_l", "clip_g")


@dataclass(frozen=True)
class IdTokens:
    """An identity's tokens.

    ``vectors`` is ``[n, d]`` for CLIP-L, or one such tensor for each text encoder (``clip_l``, ``clip_g``).
    """

    name: str
    vectors: torch.Tensor | dict[str, torch.Tensor]
    provenance: dict[str, str] = field(default_factory=dict)

    def by_encoder(self) -> dict[str, torch.Tensor]:
        """The vectors of each text encoder; a single tensor is for CLIP-L."""
        return self.vectors if isinstance(self.vectors, dict) else {"clip_l": self.vectors}

    @property
    def count(self) -> int:
        """How many tokens it takes in a prompt."""
        return len(next(iter(self.by_encoder().values())))

    def describe(self) -> str:
        """One line: tokens, width, norm and what is known of its making."""
        parts = [f"{self.count} tokens"]
        for encoder, vectors in self.by_encoder().items():
            norm = vectors.norm(dim=1).mean()
            parts.append(f"{encoder} width {vectors.shape[1]}, norm {norm:.2f}")
        known = ("class_word", "base_model", "steps", "learning_rate", "pictures", "date")
        parts += [f"{key.replace('_', ' ')} {self.provenance[key]}" for key in known if self.provenance.get(key)]
        return "; ".join(parts)


def load(path: str | Path) -> IdTokens:
    """Read an ID file of any of the formats above, in float32.

    Pickled formats are read with ``weights_only``: a file that would run code is refused, not run.

    Raises:
        ValueError: a file that is not there, cannot be read, or holds no token vectors; the message says which and what
            was found.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not there.")
    state, provenance = files.read(path, "an embedding")
    vectors = {name: _as_tokens(tensor, path.name) for name, tensor in _vectors_in(state, path.name).items()}
    if len({len(tokens) for tokens in vectors.values()}) > 1:
        raise ValueError(
            f"{path.name} has {len(vectors['clip_l'])} tokens for CLIP-L and {len(vectors['clip_g'])} for CLIP-G."
        )
    return IdTokens(path.stem, vectors if "clip_g" in vectors else next(iter(vectors.values())), provenance)


def save(tokens: IdTokens, folder: str | Path, name: str, overwrite: bool = False) -> Path:
    """Write an identity as ``folder/name.safetensors``, whole or not at all.

    Args:
        name: a file name, with subfolders if wanted; it must stay inside ``folder``.
        overwrite: replace a file of that name; otherwise the next free number is appended.

    Returns:
        The path that was written.

    Raises:
        ValueError: a name that is empty or leaves the folder. OSError: a full disk; nothing is left half-written.

    Example:
        >>> import tempfile
        >>> mine = IdTokens("me", torch.ones(4, 768), {"class_word": "man"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load(save(mine, folder, "people/me")).vectors.shape
        torch.Size([4, 768])
    """
    path = files.free_path(
        Path(folder), "_".join(name.split()), overwrite
    )  # prompts end an embedding's name at a space
    vectors = tokens.by_encoder()
    state = {"emb_params": vectors["clip_l"]} if set(vectors) == {"clip_l"} else dict(vectors)
    state = {key: value.detach().float() for key, value in state.items()}
    files.write_whole(path, state, {**tokens.provenance, "format": "pt"})
    return path


def check_width(tokens: IdTokens, widths: Mapping[str, int]) -> None:
    """Raise ``ValueError`` unless the tokens fit text encoders of these widths; ComfyUI itself would only leave them out."""
    vectors = tokens.by_encoder()
    for encoder, width in widths.items():
        found = vectors.get(encoder)
        if found is None:
            raise ValueError(
                f"The identity '{tokens.name}' has no vectors for {encoder}: it was made for "
                f"{' and '.join(vectors)} ({', '.join(str(v.shape[1]) for v in vectors.values())} wide), this model's text "
                f"encoders are {', '.join(f'{k} ({w} wide)' for k, w in widths.items())}."
            )
        if found.shape[1] != width:
            raise ValueError(
                f"The identity '{tokens.name}' is {found.shape[1]} wide and this model's {encoder} text encoder is {width} wide. "
                "Use it with the kind of model it was made for (768: SD 1.5)."
            )


_MARK = re.compile(r"V\*|<([^<>\n]+)>")


def place(prompt: str, identities: Mapping[str, str], class_words: Mapping[str, str]) -> str:
    """A prompt with ``V*`` and ``<name>`` replaced by what stands for each identity, its class word behind it.

    Args:
        prompt: what the user wrote.
        identities: name -> what to write for it (``embedding:name``); ``V*`` is the first.  In a mark a space of a name may be
            written as ``_``.
        class_words: name -> class word, left out where the user wrote it behind the mark.

    Raises:
        ValueError: ``V*`` without an identity, or a name that is not connected.

    Example:
        >>> place("photo of V* on the beach", {"me": "embedding:me"}, {"me": "man"})
        'photo of embedding:me man on the beach'
        >>> place("(<me>:1.2) man", {"me": "embedding:me"}, {"me": "man"})
        '(embedding:me:1.2) man'
    """

    names = {"_".join(name.split()): name for name in identities} | {name: name for name in identities}

    def put(match: re.Match[str]) -> str:
        called = match.group(1) or ""
        called = called if called in names else "_".join(called.split())
        if called and called not in names:
            if not identities:
                return match.group(0)
            known = ", ".join(f"<{name}>" for name in identities)
            raise ValueError(f"The prompt names <{match.group(1)}>, which is not connected; connected are {known}.")
        if not identities:
            raise ValueError("The prompt has V* and no identity is connected. Connect a VCD ID Loader.")
        name = names[called] if called else next(iter(identities))
        word = class_words.get(name, "")
        after = prompt[match.end() :]
        written = re.match(rf"(:[\d.]+)?[)\]]*\s*{re.escape(word)}\b", after) if word else True
        inside = re.match(r":[\d.]+\)", after)  # a weight of the mark alone
        word = "" if written or inside else f" {word}"
        # the text encoder looks for tokens at the beginning of a weighted part or behind a space or new line, up to a space
        before, behind = prompt[: match.start()], prompt[match.end() :]
        start = "" if re.search(r"(^|[ \n]|(?<!\\)\()$", before) else " "
        end = "" if re.match(r"\W|$" if word else r"[ \n,)]|:[\d.]+\)|$", behind) else " "
        return start + identities[name] + word + end

    return _MARK.sub(put, prompt)


def parse_schedule(text: str) -> list[tuple[int, str]] | None:
    """A per-frame schedule, ``"0: a man | 8: a man laughing"``, as (frame, prompt) pairs; None for a plain prompt.

    Raises:
        ValueError: frames that do not begin at 0 or do not rise.

    Example:
        >>> parse_schedule("0: V* man | 8: V* man, laughing")
        [(0, 'V* man'), (8, 'V* man, laughing')]
    """
    parts = [part.strip() for part in text.split("|")]
    matches = [re.fullmatch(r"(\d+)\s*:(?!\d)\s*(.*)", part, re.DOTALL) for part in parts]  # 16:9 is no frame
    if not matches[0]:
        return None
    if any(match is None for match in matches):
        raise ValueError(
            f"Every part of a schedule begins with its frame, '8: ...'; found {parts[matches.index(None)]!r}."
        )
    keys = [(int(match.group(1)), match.group(2).strip()) for match in matches if match]
    frames = [frame for frame, _ in keys]
    if frames[0] != 0 or sorted(set(frames)) != frames:
        raise ValueError(f"The frames of a schedule begin at 0 and rise; found {frames}.")
    return keys


def schedule_weights(starts: list[int], frames: int, blend: int) -> torch.Tensor:
    """How much each key counts in each frame [frames, keys]: held, and blended linearly over ``blend`` frames before a change.

    Example:
        >>> schedule_weights([0, 4], frames=6, blend=2)[:, 1].tolist()
        [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]
    """
    weights = torch.zeros(frames, len(starts))
    for frame in range(frames):
        current = max(i for i, start in enumerate(starts) if start <= frame)
        weights[frame, current] = 1.0
        if current + 1 < len(starts) and blend > 1:
            part = 1 - (starts[current + 1] - frame) / blend
            if part > 0:
                weights[frame, current], weights[frame, current + 1] = 1 - part, part
    return weights


def _vectors_in(state: object, name: str) -> dict[str, torch.Tensor]:
    """The token vectors in a file's content, under the encoder they are for."""
    if isinstance(state, list):
        state = {key: value for part in state if isinstance(part, dict) for key, value in part.items()}
    if not isinstance(state, dict):
        raise ValueError(f"{name} holds a {type(state).__name__}, expected token vectors.")
    if isinstance(state.get("string_to_param"), dict):
        return {"clip_l": next(iter(state["string_to_param"].values()))}
    tensors = {str(key): value for key, value in state.items() if torch.is_tensor(value)}
    if any(key in tensors for key in ENCODERS):
        return {key: tensors[key] for key in ENCODERS if key in tensors}
    for key in ("emb_params", *(k for k in tensors if k.startswith("bundle_emb."))):
        if key in tensors:
            return {"clip_l": tensors[key]}
    if len(tensors) == 1:
        return {"clip_l": next(iter(tensors.values()))}
    raise ValueError(
        f"{name} holds {len(tensors)} tensors ({', '.join(list(tensors)[:4])}); expected token vectors of one name."
    )


def _as_tokens(tensor: torch.Tensor, name: str) -> torch.Tensor:
    vectors = tensor.detach().float()
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not 1 <= len(vectors) <= MOST_TOKENS or vectors.shape[1] < 8:
        raise ValueError(
            f"{name} holds a tensor {list(tensor.shape)}; expected [tokens, width] with 1 to {MOST_TOKENS} tokens."
        )
    if not torch.isfinite(vectors).all():
        raise ValueError(f"{name} holds NaN or infinite values.")
    return vectors.contiguous().clone()  # no view of a file that may be replaced while this is in use


def names_of(files: Iterator[str] | list[str]) -> list[str]:
    """The files that can be ID files."""
    return [file for file in files if file.endswith(EXTENSIONS)]
