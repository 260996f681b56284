"""Identities: load them, write prompts with them, save them (vcd_core.identity)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..vcd_core import identity as core
from ..vcd_core.identity import IdTokens
from .host.files import forget_file_lists, model_file, model_files, models_path
from .host.text import blend_conditioning, encode_text, text_widths
from .host.ui import ui_text
from .inputs import CATEGORY, IdType

IDENTITY_CATEGORY = f"{CATEGORY}/identity"
ALIASES = ["magic me", "vcd", "textual inversion", "embedding", "identity", "face id", "consistent character"]
EMBEDDINGS = "embeddings"
NONE_THERE = "no embedding files found"


@dataclass(frozen=True)
class Identity:
    """What goes through the socket VCD_ID."""

    tokens: IdTokens
    class_word: str
    strength: float = 1.0


def with_slashes(file: str) -> str:
    """A file's name as the graphs of all systems write it; Windows lists folders with a backslash."""
    return file.replace("\\", "/")


class IdLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_IdLoader",
            display_name="VCD ID Loader",
            category=IDENTITY_CATEGORY,
            description="Loads an identity: a few learned tokens that carry a person, pet or thing into any model of the kind "
            "they were trained on. Reads files of Magic-Me, A1111, diffusers, kohya and ComfyUI.",
            search_aliases=ALIASES,
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[with_slashes(name) for name in core.names_of(model_files(EMBEDDINGS))] or [NONE_THERE],
                    tooltip="A file in models/embeddings, subfolders included.",
                ),
                io.String.Input(
                    "class_word",
                    default="man",
                    tooltip="What it is, written behind the tokens as in training: man, woman, dog, car ...",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.05, tooltip="The tokens' weight in the prompt."
                ),
            ],
            outputs=[
                IdType.Output(display_name="id"),
                io.String.Output(display_name="prompt", tooltip="The identity as ComfyUI's own prompt nodes write it."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, class_word: str, strength: float) -> float:
        return Path(model_file(EMBEDDINGS, with_slashes(file))).stat().st_mtime

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        """Also takes the names of graphs made on Windows, with a backslash; ``None`` is a name that comes through a link."""
        try:
            if file is not None:
                model_file(EMBEDDINGS, with_slashes(file))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, file: str, class_word: str, strength: float) -> io.NodeOutput:
        file = with_slashes(file)
        tokens = core.load(model_file(EMBEDDINGS, file))
        name = f"embedding:{Path(file).with_suffix('').as_posix()}"
        written = name if strength == 1 else f"({name}:{strength:g})"
        text = f"{written} {class_word}".strip()
        said = tokens.describe()
        if len(name.split()) > 1:
            said += ". ComfyUI's own prompt nodes end a name at a space: rename the file to use the output 'prompt'."
        return io.NodeOutput(Identity(tokens, class_word.strip(), strength), text, ui=ui_text(said))


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
            description="A prompt with identities: V* (or <name> where several are connected) stands for the tokens. Can give "
            "every frame its own prompt: '0: V* smiling | 8: V* angry'. Without an identity it is CLIP Text Encode.",
            search_aliases=[*ALIASES, "prompt schedule", "batch prompt schedule", "prompt travel"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that the identity was made for."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="photo of V*",
                    tooltip="V* or <name>, weights as (V*:1.2), other embeddings as embedding:name. A schedule: "
                    "'0: ... | 8: ...'.",
                ),
                io.Int.Input(
                    "frames", default=16, min=1, max=4096, tooltip="For a schedule: the number of frames of the clip."
                ),
                io.Int.Input(
                    "blend",
                    default=1,
                    min=1,
                    max=256,
                    tooltip="For a schedule: over how many frames one prompt goes over into the next. 1 switches at once.",
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
        if keys is None:
            return io.NodeOutput(encode(clip, prompt, found))
        if keys[-1][0] >= frames:
            raise ValueError(
                f"The schedule's last prompt begins at frame {keys[-1][0]}, but frames is {frames}: set frames to the length of "
                "the clip."
            )
        rows = [encode(clip, text, found)[0] for _, text in keys]
        weights = core.schedule_weights([start for start, _ in keys], frames, blend)
        return io.NodeOutput(blend_conditioning(rows, weights, encode(clip, "", {})[0]))


def by_name(identities: list[Identity]) -> dict[str, Identity]:
    """Identities under the names that prompts use; a second one of the same file name gets a number."""
    named: dict[str, Identity] = {}
    for identity in identities:
        name, number = identity.tokens.name, 2
        while name in named:
            name, number = f"{identity.tokens.name}_{number}", number + 1
        named[name] = identity
    return named


def encode(clip: Any, prompt: str, identities: dict[str, Identity]) -> Any:
    """The conditioning of a prompt with identities in it."""
    marks = {name: f"embedding:vcd_id_{i}" for i, name in enumerate(identities)}
    written = {
        name: mark if identities[name].strength == 1 else f"({mark}:{identities[name].strength:g})"
        for name, mark in marks.items()
    }
    text = core.place(prompt, written, {name: identity.class_word for name, identity in identities.items()})
    vectors = {marks[name].removeprefix("embedding:"): i.tokens.by_encoder() for name, i in identities.items()}
    return encode_text(clip, text, vectors)


class IdSave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_IdSave",
            display_name="VCD ID Save",
            category=IDENTITY_CATEGORY,
            description="Saves an identity into models/embeddings, as a file that ComfyUI's own 'embedding:name' reads too, "
            "with where it comes from in its header.",
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
    def execute(cls, id: Identity, name: str, overwrite: bool) -> io.NodeOutput:
        folder = models_path(EMBEDDINGS)
        tokens = IdTokens(id.tokens.name, id.tokens.vectors, {"class_word": id.class_word, **id.tokens.provenance})
        path = core.save(tokens, folder, name, overwrite)
        forget_file_lists()
        file = path.relative_to(folder.resolve()).as_posix()
        return io.NodeOutput(file, ui=ui_text(f"Saved as {file}: {tokens.describe()}"))


NODES: list[type[io.ComfyNode]] = [IdLoader, IdTextEncode, IdSave]
