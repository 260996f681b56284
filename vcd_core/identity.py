"""The ID file (Magic-Me, sec. 4.2): a few learned vectors that carry a person, pet or thing.

They are of one of two kinds: tokens, as in the paper, which a text encoder reads among the words of a prompt, or
context vectors, which stand beside what it gives.

Read: Magic-Me / A1111 / textual inversion ``.pt`` (``string_to_param``), diffusers ``learned_embeds`` (.bin,
.safetensors), kohya bundles (``bundle_emb.*``), and ComfyUI safetensors (``emb_params``, the name of a text encoder
such as ``clip_l`` or ``t5xxl``, or any single tensor). Written: safetensors that ComfyUI's ``embedding:name`` reads,
with where they come from in the header; context vectors under a key and in a width of which it says that it leaves them
out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import files, schedule
from .words import shown

TOKENS, CONTEXT = KINDS = ("tokens", "context vectors")
CONTEXT_KEY = "vcd_context"  # of context vectors in a file
EXTENSIONS = (".safetensors", ".pt", ".bin")
BRIEF = 80  # characters of what a file says of itself, in prompts and nodes
ENDS = 2  # a prompt's start and end, which no encoder leaves out of its rows
MOST_TOKENS = 75  # a prompt holds 77, two of them its start and end
NOT_BY_NAME = (
    "umt5xxl", "qwen25_7b", "gemma3_12b", "gemma3_4b", "gemma2_2b", "jina_clip_2", "pile_t5xl", "mt5xl", "t5base",
    "qwen25_3b", "qwen3_2b",
)  # text encoders whose tokenizer ComfyUI shows no folder of embeddings: its prompts read none for them  # fmt: skip
ENCODERS = (
    "clip_l", "clip_g", "clip_h", "t5xxl", "llama", "mistral3_24b", "qwen3_06b", "qwen3_4b", "qwen3_8b", "qwen3vl_8b",
    "qwen3vl_32b", *NOT_BY_NAME,
)  # text encoders by the names that ComfyUI's tokenizers give their embeddings  # fmt: skip


@dataclass(frozen=True)
class IdTokens:
    """An identity's vectors.

    ``vectors`` is ``[n, d]`` for a text encoder that nobody named, or one such tensor for each of ``ENCODERS`` it has;
    of the kind ``CONTEXT`` always ``[n, D]``, as wide as what the text encoders give.
    """

    name: str
    vectors: torch.Tensor | dict[str, torch.Tensor]
    provenance: dict[str, str] = field(default_factory=dict)
    kind: str = TOKENS

    def by_encoder(self, encoders: Collection[str] = ("clip_l",)) -> dict[str, torch.Tensor]:
        """The vectors of each text encoder; unnamed ones are for the model's only encoder, or CLIP-L of several.

        Args:
            encoders: those of the model.
        """
        if isinstance(self.vectors, dict):
            return self.vectors
        return {next(iter(encoders)) if len(encoders) == 1 else "clip_l": self.vectors}

    @property
    def count(self) -> int:
        """How many tokens it takes in a prompt."""
        return len(next(iter(self.by_encoder().values())))

    def describe(self) -> str:
        """One line: what is known of its making, then kind, number, width and norm."""
        known = ("class_word", "pictures", "steps", "learning_rate", "date", "base_model")
        said = {key: brief(self.provenance.get(key, "")) for key in known}
        parts = [f"{key.replace('_', ' ')} {text}" for key, text in said.items() if text]
        parts.append(f"{self.count} {self.kind}")
        named = self.vectors if isinstance(self.vectors, dict) else {"": self.vectors}
        for encoder, vectors in named.items():
            norm = vectors.norm(dim=1).mean()
            parts.append(f"{encoder} width {vectors.shape[1]}, norm {norm:.2f}".lstrip())
        return "; ".join(parts)


def brief(text: str) -> str:
    """What a file says of itself, on one line that fits into a prompt and a node.

    Example:
        >>> brief(" a\\nman"), len(brief("x" * 1000000))
        ('a man', 80)
    """
    return " ".join(text[:BRIEF].split())


def load(path: str | Path, token: str = "") -> IdTokens:
    """Read an ID file of any of the formats above, in float32.

    Pickled formats are read with ``weights_only``: a file that would run code is refused, not run.

    Args:
        token: of a file that holds several identities, the name of the one to take.

    Raises:
        ValueError: a file that is not there, cannot be read or holds no token vectors, or one of several identities of
            which ``token`` names none; the message says what was found.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not there.")
    state, provenance = files.read(path, "an embedding")
    chosen = _choose(_identities_in(state, path.name), token.strip(), path.name)
    vectors = {encoder: _as_tokens(tensor, path.name) for encoder, tensor in chosen.items()}
    if len({len(tokens) for tokens in vectors.values()}) > 1:
        counts = " and ".join(f"{len(tokens)} for {encoder or 'clip_l'}" for encoder, tokens in vectors.items())
        raise ValueError(f"{path.name} has not as many tokens for each text encoder: {counts}.")
    if CONTEXT_KEY in vectors:
        rows = vectors[CONTEXT_KEY][:, :-1].contiguous()  # the last column is for others, see save
        return IdTokens(composed(path.stem), rows, provenance, CONTEXT)
    named = {encoder or "clip_l": tokens for encoder, tokens in vectors.items()}
    return IdTokens(composed(path.stem), vectors[UNNAMED] if set(vectors) == {UNNAMED} else named, provenance)


def composed(name: str) -> str:
    """A name with its letters composed (NFC): macOS names files with accents apart, keyboards write them in one."""
    return unicodedata.normalize("NFC", name)


def save(tokens: IdTokens, folder: str | Path, name: str, overwrite: bool = False) -> Path:
    """Write an identity as ``folder/name.safetensors``, whole or not at all.

    Context vectors get a column of zeros behind: ComfyUI takes any tensor of the right width for tokens, and of another
    width it warns that it leaves them out.

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
    path = path_of(folder, name, overwrite)
    state = dict(tokens.vectors) if isinstance(tokens.vectors, dict) else {"emb_params": tokens.vectors}
    state = {key: value.detach().float().clone() for key, value in state.items()}  # text encoders may share one
    about = {**tokens.provenance, "format": "pt"}
    if tokens.kind == CONTEXT:
        rows = state.pop("emb_params")
        state[CONTEXT_KEY] = torch.cat([rows, torch.zeros_like(rows[:, :1])], 1)
        about |= {"kind": CONTEXT, "width": str(rows.shape[1])}
    files.write_whole(path, state, about)
    return path


def path_of(folder: str | Path, name: str, overwrite: bool = True) -> Path:
    """Where :func:`save` writes an identity of this name; prompts end an embedding's name at a space."""
    return files.free_path(Path(folder), "_".join(name.split()), overwrite)


def check_width(tokens: IdTokens, widths: Mapping[str, int]) -> None:
    """Raise ``ValueError`` unless the tokens fit text encoders of these widths; ComfyUI would just leave them out.

    Args:
        widths: of each of the model's text encoders; 0 for one that reads no embeddings.
    """
    if tokens.kind == CONTEXT:
        return _check_encoders(tokens, widths)
    vectors = tokens.by_encoder(widths)
    for encoder, width in widths.items():
        found = vectors.get(encoder)
        if not width:
            sizes = ", ".join(str(v.shape[1]) for v in vectors.values())
            raise ValueError(
                f"The identity '{tokens.name}' ({sizes} wide) cannot stand in this model's prompts: its text encoder "
                f"{encoder} reads no embeddings, of any width."
            )
        if found is None:
            raise ValueError(
                f"The identity '{tokens.name}' has no vectors for {encoder}: it was made for {' and '.join(vectors)} "
                f"({', '.join(str(v.shape[1]) for v in vectors.values())} wide), this model's text encoders are "
                f"{', '.join(f'{k} ({w} wide)' for k, w in widths.items())}."
            )
        if found.shape[1] != width:
            raise ValueError(
                f"The identity '{tokens.name}' is {found.shape[1]} wide and this model's {encoder} text encoder is "
                f"{width} wide. Use it with the kind of model it was made for (768: SD 1.5)."
            )


def _check_encoders(tokens: IdTokens, widths: Mapping[str, int]) -> None:
    """Context vectors are of the space that certain text encoders give; another's may be as wide."""
    learned, found = tokens.provenance.get("text_encoders", ""), ", ".join(widths)
    if learned and learned != found:
        raise ValueError(
            f"The identity '{tokens.name}' holds context vectors for what the text encoders {learned} give "
            f"({tokens.provenance.get('base_model', 'model unknown')}); this model's are {found}. Use it with the kind "
            "of model it was made for."
        )


def beside(
    rows: torch.Tensor, vectors: Sequence[torch.Tensor], weights: Sequence[float], padding: int, empty: torch.Tensor
) -> torch.Tensor:
    """What a text encoder gives for a prompt, with context vectors in the place of its last padding.

    Each identity keeps its place from prompt to prompt: the first has the last rows, so that it stays as it is where a
    schedule blends two prompts.

    Args:
        rows: [..., L, D], the prompt's.
        vectors: of each identity [n, D].
        weights: how much each identity counts: 1 is its vectors, 0 the padding that would stand there.
        padding: how many of the last rows stand for no word. Where the vectors need more, ``empty`` is put behind.
        empty: [..., E, D], the empty prompt's rows.

    Raises:
        ValueError: vectors of another width.

    Example:
        >>> words, empty = torch.zeros(6, 2), torch.full((6, 2), 9.0)
        >>> beside(words, [torch.ones(2, 2)], [1.0], padding=3, empty=empty)[:, 0].tolist()
        [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
        >>> beside(words, [torch.ones(2, 2)], [0.5], padding=1, empty=empty)[:, 0].tolist()[-7:]
        [0.0, 9.0, 9.0, 9.0, 9.0, 5.0, 5.0]
    """
    count = sum(len(table) for table in vectors)
    if padding < count:
        rows = torch.cat([rows] + [empty] * -(-count // (empty.shape[-2] - ENDS)), -2)
    placed = []
    for table, weight in zip(reversed(vectors), reversed(weights), strict=True):
        if table.shape[1] != rows.shape[-1]:
            raise ValueError(
                f"Context vectors {table.shape[1]} wide cannot stand beside a prompt {rows.shape[-1]} wide. Use the "
                "identity with the kind of model it was made for."
            )
        table = table.to(rows)
        if weight != 1:
            instead = empty[..., -1:, :].to(rows).reshape(1, -1)
            table = instead + weight * (table - instead)
        placed.append(table)
    behind = torch.cat(placed).expand(*rows.shape[:-2], count, -1)
    return torch.cat([rows[..., : rows.shape[-2] - count, :], behind], -2)


_MARK = re.compile(r"V\*|<([^<>\n]+)>")


def insert(prompt: str, identities: Mapping[str, str], class_words: Mapping[str, str]) -> str:
    """A prompt with ``V*`` and ``<name>`` replaced by what stands for each identity, its class word behind it.

    Args:
        prompt: what the user wrote.
        identities: name -> what to write for it (``embedding:name``); ``V*`` is the first. In a mark a space of a name
            may be written as ``_``, and its accents composed or not.
        class_words: name -> class word, left out where the user wrote it behind the mark, or behind a weight of the
            mark alone.

    Raises:
        ValueError: ``V*`` without an identity, or a name that is not connected.

    Example:
        >>> insert("photo of V* on the beach", {"me": "embedding:me"}, {"me": "man"})
        'photo of embedding:me man on the beach'
        >>> insert("(<me>:1.2), smiling", {"me": "embedding:me"}, {"me": "man"})
        '(embedding:me man:1.2), smiling'
        >>> insert("(<me>:1.2) man", {"me": "embedding:me"}, {"me": "man"})
        '(embedding:me:1.2) man'
    """

    names = {"_".join(composed(name).split()): name for name in identities} | {composed(n): n for n in identities}

    def put(match: re.Match[str]) -> str:
        called = composed(match.group(1) or "")
        called = called if called in names else "_".join(called.split())
        if called and called not in names:
            if not identities:
                return match.group(0)
            known = ", ".join(f"<{name}>" for name in identities)
            raise ValueError(f"The prompt names <{shown(match[1])}>, which is not connected; connected are {known}.")
        if not identities:
            raise ValueError("The prompt has V* and no identity is connected. Connect a VCD ID Loader.")
        name = names[called] if called else next(iter(identities))
        # the text encoder looks for tokens at the start of a weighted part or behind a space or new line, up to a space
        before, behind = prompt[max(0, match.start() - 2) : match.start()], prompt[match.end() :]
        word = class_words.get(name, "")
        word = "" if not word or _begins_with(behind, word) else f" {word}"
        start = "" if re.search(r"(^|[ \n]|(?<!\\)\()$", before) else " "
        end = "" if re.match(r"\W|$" if word else r"[ \n,)]|:[\d.]+\)|$", behind) else " "
        return start + identities[name] + word + end

    return _MARK.sub(put, prompt)


def _begins_with(text: str, word: str) -> bool:
    """Whether a word follows, brackets that close before it and their weights left out."""
    closed = r"(?:\s*(?::\s*[\d.]+\s*)?[)\]])*"
    return bool(re.match(rf"{closed}\s*{re.escape(word)}(?!\w)", text, re.IGNORECASE))


def parse_schedule(text: str) -> list[tuple[int, str]] | None:
    """A per-frame schedule, ``"0: a man | 8: a man laughing"``, as (frame, prompt) pairs; None for a plain prompt.

    The keys may stand in any of the forms that :func:`vcd_core.schedule.keys` reads, one a line for instance.

    Raises:
        ValueError: a part that cannot be read, or frames that do not begin at 0 or do not rise.

    Example:
        >>> parse_schedule("0: V* man | 8: V* man, laughing")
        [(0, 'V* man'), (8, 'V* man, laughing')]
    """
    keys = schedule.keys(text)
    frames = [frame for frame, _ in keys or ()]
    if keys and (frames[0] != 0 or sorted(set(frames)) != frames):
        raise ValueError(f"The frames of a schedule begin at 0 and rise; found {shown(frames)}.")
    return keys


def schedule_weights(starts: list[int], frames: int, blend: int) -> torch.Tensor:
    """How much each key counts in each frame [frames, keys]: it is held, then blended linearly into the next.

    A blend takes the last ``blend`` frames before a change. It is never longer than the gap between its two keys, so
    each key counts wholly at its own frame.

    Example:
        >>> schedule_weights([0, 4], frames=6, blend=2)[:, 1].tolist()
        [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]
        >>> schedule_weights([0, 2, 6], frames=8, blend=9)[:, 1].tolist()
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    weights = torch.zeros(frames, len(starts))
    for frame in range(frames):
        current = max(i for i, start in enumerate(starts) if start <= frame)
        weights[frame, current] = 1.0
        if current + 1 < len(starts):
            begin, change = starts[current], starts[current + 1]
            share = 1 - (change - frame) / min(blend, change - begin)
            if share > 0:
                weights[frame, current], weights[frame, current + 1] = 1 - share, share
    return weights


Vectors = dict[str, torch.Tensor]  # of each text encoder
UNNAMED = ""  # in place of an encoder's name


def _identities_in(state: object, file: str) -> dict[str, Vectors]:
    """The token vectors in a file's content, under the name of each identity; a file of one may leave out its name."""
    pairs = [pair for part in state for pair in _entries(part)] if isinstance(state, list) else _entries(state)
    if not pairs:
        raise ValueError(f"{file} holds a {type(state).__name__}, expected token vectors.")
    learned = _entries(dict(pairs).get("string_to_param"))
    if learned:
        return {str(name): {UNNAMED: tensor} for name, tensor in learned if torch.is_tensor(tensor)}
    tensors: dict[str, torch.Tensor] = {}
    for key, value in pairs:  # the parts of a list may share a name
        if torch.is_tensor(value):
            tensors[str(key) if key not in tensors else f"{key} {len(tensors) + 1}"] = value
    several = isinstance(state, list) and len(tensors) > 1
    if not several and any(key in tensors for key in ENCODERS):
        return {"": {key: tensors[key] for key in ENCODERS if key in tensors}}
    if not several and CONTEXT_KEY in tensors:
        return {"": {CONTEXT_KEY: tensors[CONTEXT_KEY]}}
    if not several and "emb_params" in tensors:
        return {"": {UNNAMED: tensors["emb_params"]}}
    return _bundled(tensors) or {key: {UNNAMED: tensor} for key, tensor in tensors.items()}


def _entries(value: object) -> list[tuple[object, object]]:
    """The names and values of a dictionary or a ParameterDict, in the layout of any torch; nothing of anything else."""
    value = vars(value).get("_parameters") if isinstance(value, torch.nn.ParameterDict) else value
    return list(value.items()) if isinstance(value, dict) else []


def _bundled(tensors: Mapping[str, torch.Tensor]) -> dict[str, Vectors]:
    """The identities in a LoRA file of kohya's: ``bundle_emb.NAME.string_to_param.*``, ``bundle_emb.NAME.clip_g``."""
    found: dict[str, Vectors] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"bundle_emb\.(.+)\.(string_to_param\.\*|\w+)", key)
        if match and match[2] in ("string_to_param.*", *ENCODERS):
            encoder = match[2] if match[2] in ENCODERS else UNNAMED
            found.setdefault(match[1], {})[encoder] = tensor
    return found


def _choose(found: Mapping[str, Vectors], token: str, file: str) -> Vectors:
    """The identity of that name; without a name the only one.

    Raises:
        ValueError: several and no name, or a name that is not among them; the message lists the names.
    """
    named = {composed(name): vectors for name, vectors in found.items()}
    if composed(token) in named and token:
        return named[composed(token)]
    names = ", ".join(map(shown, list(found)[:8])) + (", ..." if len(found) > 8 else "")
    if token:
        raise ValueError(
            f"{file} has no identity '{shown(token)}'; it has {names or 'one, without a name: leave token empty'}."
        )
    if len(found) == 1:
        return next(iter(found.values()))
    raise ValueError(
        f"{file} holds {len(found)} tensors ({names}); expected token vectors of one name. If it holds several "
        "identities, write the name of the one to take as token."
    )


def _as_tokens(tensor: torch.Tensor, name: str) -> torch.Tensor:
    vectors = tensor.detach()
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not 1 <= len(vectors) <= MOST_TOKENS or vectors.shape[1] < 8:
        raise ValueError(
            f"{name} holds a tensor {list(tensor.shape)}; expected [tokens, width] with 1 to {MOST_TOKENS} tokens."
        )
    vectors = vectors.float()
    if not torch.isfinite(vectors).all():
        raise ValueError(f"{name} holds NaN or infinite values.")
    return vectors.contiguous().clone()  # no view of a file that may be replaced while this is in use


def names_of(files: Iterator[str] | list[str]) -> list[str]:
    """The files that can be ID files."""
    return [file for file in files if file.lower().endswith(EXTENSIONS)]
