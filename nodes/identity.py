"""Identities: load them, write prompts with them, save them (vcd_core.identity)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..vcd_core import identity as core
from ..vcd_core import pictures
from ..vcd_core.identity import IdTokens
from .host.context import Context, encode_with_context
from .host.files import forget_file_lists, model_file, model_files, models_path, refusal, refused, spelled
from .host.text import blend_conditioning, prompt_reads, text_widths
from .host.ui import blocked, pictures_below, ui_text, warn
from .inputs import CATEGORY, IdType

IDENTITY_CATEGORY = f"{CATEGORY}/identity"
ALIASES = ["magic me", "vcd", "embedding", "identity", "face id", "consistent character"]
EMBEDDINGS = "embeddings"
NONE_THERE = "no embedding files found"


@dataclass(frozen=True)
class Identity:
    """What goes through the socket VCD_ID; ``picture`` is what it looks like, IMAGE [H, W, 3], where that is known."""

    tokens: IdTokens
    class_word: str
    strength: float = 1.0
    picture: torch.Tensor | None = field(default=None, repr=False, compare=False)


class IdLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_IdLoader",
            display_name="VCD ID Loader",
            category=IDENTITY_CATEGORY,
            description="Loads an identity: a few learned tokens, or context vectors, that carry a person, pet or "
            "thing into any model of the kind they were trained on. Reads files of Magic-Me, A1111, diffusers, kohya "
            "and ComfyUI. The node shows which of the two a file holds.",
            search_aliases=[*ALIASES, "load embedding"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "file",
                    options=core.names_of(model_files(EMBEDDINGS)) or [NONE_THERE],
                    tooltip="A file in models/embeddings, subfolders included.",
                ),
                io.String.Input(
                    "class_word",
                    default="",
                    placeholder="the file's own",
                    tooltip="What it is, written behind the tokens as in training: man, woman, dog, car ... Empty: the "
                    "word that the file was trained with, where it tells one; the node shows it.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="The identity's weight in the prompt. Of context vectors: 0 is the prompt's padding.",
                ),
                io.String.Input(
                    "token",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Only for a file of several identities: the name of the one to take. If empty, the node "
                    "stops and lists the names.",
                ),
            ],
            outputs=[
                IdType.Output(display_name="id"),
                io.String.Output(display_name="prompt", tooltip="The identity as ComfyUI's own prompt nodes write it."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        path = Path(model_file(EMBEDDINGS, file))
        return sum(one.stat().st_mtime for one in (path, pictures.beside(path)) if one.is_file())

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return refusal({EMBEDDINGS: file})

    @classmethod
    def execute(cls, file: str, class_word: str, strength: float, token: str = "") -> io.NodeOutput:
        file = spelled(file, model_files(EMBEDDINGS))
        path = Path(model_file(EMBEDDINGS, file))
        tokens, (picture, unread) = core.load(path, token), picture_of(path)
        own = core.brief(tokens.provenance.get("class_word", ""))
        word = class_word.strip() or own
        said = tokens.describe()
        if not word:
            said += ". The file tells no class word: type what it is"
        elif own and word.lower() != own.lower():
            said += f". Used as {word}"
        text, reason = stock_prompt(tokens, file, word, strength)
        if text is None:
            said += f". {reason}"
        output = blocked(f"{file}: {reason}") if text is None else text
        shown = {} if picture is None else pictures_below(picture[None], cls)
        identity = Identity(tokens, word, strength, picture)
        return io.NodeOutput(identity, output, ui={**shown, **ui_text(f"{said}{unread}")})


def picture_of(path: Path) -> tuple[torch.Tensor | None, str]:
    """The picture beside an ID file, and what to say of one that cannot be read."""
    beside = pictures.beside(path)
    if not beside.is_file():
        return None, ""
    try:
        return pictures.read(beside)[..., :3], ""
    except ValueError as error:
        return None, f". {error}"


UNREADABLE = (
    "ComfyUI's own prompt nodes do not read this identity by its file's name, so there is no 'prompt'. Rename the file "
    "with letters, digits, - and _ that no other file has, or save it with VCD ID Save"
)

NOT_BY_NAME = (
    "ComfyUI's own prompt nodes read no embeddings for the text encoder {}, so there is no 'prompt'. Give the id to "
    "VCD ID Text Encode"
)

NOT_TOKENS = (
    "Context vectors stand beside the prompt, where ComfyUI's own prompt nodes put nothing, so there is no 'prompt'. "
    "Give the id to VCD ID Text Encode"
)


def stock_prompt(tokens: IdTokens, file: str, word: str, strength: float) -> tuple[str | None, str]:
    """The identity as ComfyUI's own prompt nodes write it; None and why, where they would not read it from there."""
    if tokens.kind == core.CONTEXT:
        return None, NOT_TOKENS
    unread = [encoder for encoder in tokens.by_encoder() if encoder in core.NOT_BY_NAME]
    if unread:
        return None, NOT_BY_NAME.format(" and ".join(unread))
    encoder, vectors = next(iter(tokens.by_encoder().items()))
    for name in (Path(file).with_suffix("").as_posix(), file):  # the ending tells files apart that share a name
        name = name.replace("(", "\\(").replace(")", "\\)")
        written = f"embedding:{name}" if strength == 1 else f"(embedding:{name}:{strength:g})"
        text = f"{written} {word}".strip()
        if prompt_reads(text, word, vectors, encoder):
            return text, ""
    return None, UNREADABLE


class IdTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        ids = io.Autogrow.TemplatePrefix(
            IdType.Input("id", tooltip="An identity; V* is the first, <name> is the one of that file name."),
            prefix="id",
            min=0,
            max=32,
        )
        return io.Schema(
            node_id="VCD_IdTextEncode",
            display_name="VCD ID Text Encode",
            category=IDENTITY_CATEGORY,
            description="A prompt with identities: V* (or <name> where several are connected) stands for the tokens. "
            "Can give every frame its own prompt: '0: V* smiling | 8: V* angry'. Without an identity "
            "it is CLIP Text Encode.",
            search_aliases=[*ALIASES, "prompt schedule", "batch prompt schedule", "prompt travel"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that the identity was made for."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="photo of V*",
                    tooltip="V* or <name>, weights as (V*:1.2), other embeddings as embedding:name. A schedule: '0: "
                    "... | 8: ...', or one '8: ...' a line.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="For a schedule: the number of frames of the clip. Behind AnimateDiff Motion Module a "
                    "longer clip keeps the last prompt and a shorter one takes the schedule's beginning; Face VCD and "
                    "Tiled VCD refuse another number.",
                ),
                io.Int.Input(
                    "blend",
                    default=1,
                    min=1,
                    max=256,
                    tooltip="For a schedule: how many frames one prompt takes to turn into the next, at most those "
                    "between their keys. 1 switches at once.",
                ),
                io.Autogrow.Input("ids", template=ids, optional=True, tooltip="Identities, as many as you connect."),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls, clip: Any, prompt: str, frames: int, blend: int, ids: dict[str, Identity] | None = None
    ) -> io.NodeOutput:
        if clip is None:
            raise ValueError("CLIP is missing: the checkpoint holds no text encoder. Load one with a CLIP loader.")
        found = by_name([identity for identity in (ids or {}).values() if identity is not None])
        for identity in found.values():
            core.check_width(identity.tokens, text_widths(clip))
        keys = core.parse_schedule(prompt)
        warn(unused([text for _, text in keys] if keys else [prompt], found))
        if keys is None:
            return io.NodeOutput(encode_prompt(clip, prompt, found))
        if keys[-1][0] >= frames:
            raise ValueError(
                f"The schedule's last prompt begins at frame {keys[-1][0]}, but frames is {frames}: set frames to "
                "the length of the clip."
            )
        prompts = [encode_prompt(clip, text, found) for _, text in keys]
        weights = core.schedule_weights([start for start, _ in keys], frames, blend)
        return io.NodeOutput(blend_conditioning(prompts, weights, encode_prompt(clip, "", {})))


def by_name(identities: list[Identity]) -> dict[str, Identity]:
    """Identities under the names that prompts use; a second one of the same file name gets a number."""
    named: dict[str, Identity] = {}
    for identity in identities:
        first = core.composed(identity.tokens.name)
        name, number = first, 2
        while name in named:
            name, number = f"{first}_{number}", number + 1
        named[name] = identity
    return named


def unnamed(prompts: list[str], identities: dict[str, Identity]) -> list[str]:
    """The marks of identities that none of the prompts names, as ``<name>``."""
    names = {name: f"<{name}>" for name in identities}
    written = [core.insert(prompt, names, {}) for prompt in prompts]
    return [mark for mark in names.values() if not any(mark in text for text in written)]


def unused(prompts: list[str], identities: dict[str, Identity]) -> str | None:
    """What to say of identities that none of the prompts names; None where all are named."""
    left = unnamed(prompts, identities)
    if not left:
        return None
    marks = "V*" if len(identities) == 1 else " and ".join(left)
    return f"The prompt has no {marks}: the identity is connected and not used. Write {marks} where it belongs."


def encode_prompt(clip: Any, prompt: str, identities: dict[str, Identity]) -> Any:
    """The conditioning of a prompt with identities in it."""
    marks = {name: f"vcd_id_{i}" for i, name in enumerate(identities)}
    written = {name: f"embedding:{mark}" for name, mark in marks.items()}
    text = core.insert(prompt, written, {name: identity.class_word for name, identity in identities.items()})
    encoders = text_widths(clip) if identities else {}
    tokens = {marks[name]: one for name, one in identities.items() if one.tokens.kind == core.TOKENS}
    vectors = {mark: one.tokens.by_encoder(encoders) for mark, one in tokens.items()}
    strengths = {mark: one.strength for mark, one in tokens.items()}
    context = {
        marks[name]: Context(one.tokens.vectors, one.strength)
        for name, one in identities.items()
        if not isinstance(one.tokens.vectors, dict) and one.tokens.kind == core.CONTEXT
    }
    return encode_with_context(clip, text, context, vectors, strengths)


class IdSave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_IdSave",
            display_name="VCD ID Save",
            category=IDENTITY_CATEGORY,
            description="Saves an identity into models/embeddings, with where it comes from in its header and its "
            "picture beside it. A file of tokens is one that ComfyUI's own 'embedding:name' reads too; one of context "
            "vectors is for VCD ID Loader.",
            search_aliases=ALIASES,
            is_output_node=True,
            inputs=[
                IdType.Input("id", tooltip="The identity to save."),
                io.String.Input("name", default="vcd/my_id", tooltip="The file's name, with subfolders if wanted."),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Replace a file of that name; otherwise a number is appended."
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The name under which the loader lists it.")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return refused(name, lambda name: core.path_of(models_path(EMBEDDINGS), name))

    @classmethod
    def execute(cls, id: Identity, name: str, overwrite: bool) -> io.NodeOutput:
        folder = models_path(EMBEDDINGS)
        word = {"class_word": id.class_word} if id.class_word else {}  # what was typed stands above the file's own
        tokens = replace(id.tokens, provenance={**id.tokens.provenance, **word})
        path = core.save(tokens, folder, name, overwrite)
        forget_file_lists()
        file = path.relative_to(os.path.abspath(folder)).as_posix()
        said = f"Saved as {file}{other_name(file, name)}: {tokens.describe()}"
        try:
            pictures.save_beside(path, id.picture)
        except OSError as error:
            said += f". Its picture is missing: {error}"
        return io.NodeOutput(file, ui=ui_text(said))


def other_name(file: str, name: str) -> str:
    """What to say where a file has another name than was typed, as graphs go on to load the older one."""
    wanted = "_".join(name.split()).removesuffix(".safetensors") + ".safetensors"
    if Path(file).name == Path(wanted).name:
        return ""
    return f", since {wanted} is there already. Choose the new one in VCD ID Loader, or switch overwrite on"


NODES: list[type[io.ComfyNode]] = [IdLoader, IdTextEncode, IdSave]
