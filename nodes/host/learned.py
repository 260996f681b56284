"""What is learned of an identity, and where it stands: tokens before the text encoders, or context vectors behind."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange

from ...vcd_core import identity
from .context import Room, free_rows, put_beside, weights_in, without_marks
from .estimate import Entry
from .model import Model
from .text import check_reads_vectors, text_widths, tokenizer_with, tokenizers
from .training import TrainingModel, of_clip_alone

CLIP_SPREAD = 0.014  # of the numbers in CLIP's vocabulary, for which the paper's learning rate is
CONTEXT_SPREAD = 1.0  # of the numbers that CLIP gives, for which the learning rate of context vectors is


def check_named(clip: Any, text: str) -> None:
    """Raise ``ValueError`` where a text names an embedding that is not there; the host would leave it out."""
    for written in re.findall(r"embedding:((?:\\[()]|[^\s,:()])+)", text):
        name = re.sub(r"\\([()])", r"\1", written)
        if any(part._try_get_embedding(name)[0] is None for part in tokenizers(clip).values()):
            raise ValueError(f"There is no embedding '{name}' in models/embeddings.")


class TokenModel(TrainingModel):
    """A model for whose text encoders tokens are trained, as in the paper.

    A vector holds the parts of all encoders side by side (SDXL: CLIP-L's 768 numbers, then CLIP-G's 1280).
    """

    def __init__(self, model: Model, clip: Any, vae: Any, class_word: str) -> None:
        check_reads_vectors(clip)
        super().__init__(model, clip, vae, class_word)
        self.tables = {name: self._table(name) for name in text_widths(self.clip)}
        self.widths = [table.shape[1] for table in self.tables.values()]
        spread = [1.0 if of_clip_alone(clip) else float(table.std()) / CLIP_SPREAD for table in self.tables.values()]
        self.rates = torch.cat([torch.full((w,), s) for w, s in zip(self.widths, spread, strict=True)])
        norms = [table.norm(dim=1) for table in self.tables.values()]
        self.norm = math.hypot(*(float(norm[norm > 0].mean()) for norm in norms))
        self.try_out()

    def _table(self, name: str) -> torch.Tensor:
        weight = getattr(self.clip.cond_stage_model, name).transformer.get_input_embeddings().weight
        return weight.detach().float().cpu().clone()

    def by_encoder(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parts of vectors [n, d] that each text encoder reads."""
        parts = vectors.split(self.widths, 1)
        return dict(zip(self.tables, parts, strict=True))

    def as_saved(self, vectors: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Vectors as ID files hold them; those of CLIP-L alone go without its name."""
        return vectors if list(self.tables) == ["clip_l"] else self.by_encoder(vectors)

    def words(self, text: str) -> torch.Tensor:
        check_named(self.clip, text)
        found = [self._words(text, name) for name in self.tables]
        count = max(len(rows) for rows in found)
        if not all(len(rows) for rows in found):
            return torch.empty(0, sum(self.widths))
        return torch.cat([rows[[i % len(rows) for i in range(count)]] for rows in found], 1)

    def _words(self, text: str, encoder: str) -> torch.Tensor:
        """The vocabulary's vectors of a text for one text encoder, its start and end left out."""
        part, table = tokenizers(self.clip)[encoder], self.tables[encoder]
        read = [token for section in part.tokenize_with_weights(text) for token, *_ in section]
        ends = {part.start_token, part.end_token, getattr(part, "pad_token", None)}
        kept = [token for token in read if torch.is_tensor(token) or token not in ends]
        rows = [token.detach().float().cpu() if torch.is_tensor(token) else table[int(token)] for token in kept]
        return torch.stack(rows) if rows else table[:0]

    def text(self, captions: Sequence[str], vectors: torch.Tensor) -> list[Entry]:
        tokenizer = tokenizer_with(self.clip, {self.MARK: self.by_encoder(vectors)})
        read = [tokenizer.tokenize_with_weights(self.written(caption)) for caption in captions]
        for caption, tokens in zip(captions, read, strict=True):
            if any(len(sections) != 1 for sections in tokens.values()):
                raise ValueError(
                    f"The caption {caption!r} with {len(vectors)} tokens is too long for one prompt of 75."
                )
        if list(self.tables) != ["clip_l"]:
            return [self.entry(tokens) for tokens in read]
        # sections of one long prompt go through the text encoder side by side
        rows, _ = self.entry({"l": [section for tokens in read for section in tokens["l"]]})
        return [(one, {}) for one in rearrange(rows, "1 (n l) d -> n 1 l d", n=len(captions))]


class ContextModel(TrainingModel):
    """A model beside whose prompts context vectors are trained; no gradient flows through its text encoders.

    What they give is kept for each caption. The vocabulary is what they give for words that stand alone.
    """

    def __init__(self, model: Model, clip: Any, vae: Any, class_word: str) -> None:
        super().__init__(model, clip, vae, class_word)
        self.kept: dict[str, tuple[Entry, Room, float]] = {}
        self.blank = self._encoded("")[0][0]
        self.norm = float(self.blank.norm(dim=-1).mean())
        self.widths = [self.blank.shape[-1]]
        spread = 1.0 if of_clip_alone(clip) else float(self.words(class_word or "a person").std()) / CONTEXT_SPREAD
        self.rates = torch.full((self.blank.shape[-1],), spread)
        self.patchers = [self.model]
        self.try_out()

    def as_saved(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors as ID files hold them."""
        return vectors

    def _encoded(self, caption: str) -> tuple[Entry, Room, float]:
        """What the encoders give for a caption, where vectors have room beside it, and the weight of ``V*`` in it."""
        if caption not in self.kept:
            written = self.written(caption)
            tokens = self.clip.tokenize(without_marks(written, [self.MARK]))
            with torch.no_grad():
                rows, options = self.entry(tokens)
            weight = weights_in(self.clip, written, [self.MARK]).get(self.MARK, 1.0)
            entry = rows.float().cpu().clone(), options
            self.kept[caption] = entry, free_rows(self.clip, tokens, entry), weight
        return self.kept[caption]

    def words(self, text: str) -> torch.Tensor:
        check_named(self.clip, text)
        (rows, _), room, _ = self._encoded(text)
        own = rows[0, : rows.shape[1] - room.padding]
        return own[1:-1] if of_clip_alone(self.clip) and len(own) > 2 else own

    def text(self, captions: Sequence[str], vectors: torch.Tensor) -> list[Entry]:
        found = []
        for caption in captions:
            entry, room, weight = self._encoded(caption)
            if room.sections and room.padding < len(vectors):
                raise ValueError(
                    f"The caption {caption!r} with {len(vectors)} context vectors is too long for one prompt of 75."
                )
            found.append(put_beside(entry, self.blank, [vectors], [weight], room))
        return found


def backend_of(kind: str) -> type[TokenModel] | type[ContextModel]:
    """The backend that learns this kind of vectors."""
    return ContextModel if kind == identity.CONTEXT else TokenModel
