"""The pictures of a subject, from a folder (vcd_core.pictures)."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io

from ..vcd_core import pictures as core
from .host.files import input_subfolder, input_subfolders, refused, spelled
from .host.memory import free_memory, handed_on
from .host.pictures import resize
from .host.ui import pictures_below, stop_if_asked, ui_text
from .identity import ALIASES, IDENTITY_CATEGORY

NO_FOLDER = "no folders found"
SHOWN, SHOWN_SIDE = 12, 384  # how many pictures the node shows, and their longer side in pixels
UNREAD = (".heic", ".heif", ".avif", ".tif", ".tiff", ".gif")  # pictures that this node names and leaves out


def picture_folder(folder: str) -> Path:
    """Where a chosen folder lies."""
    return input_subfolder(spelled(folder, input_subfolders()))


class Pictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_Pictures",
            display_name="VCD Pictures",
            category=IDENTITY_CATEGORY,
            description="Loads all pictures of a folder for a training: each at its own size, turned upright, "
            "with its transparency as mask.",
            search_aliases=[*ALIASES, "load folder", "load images", "dataset"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=input_subfolders() or [NO_FOLDER],
                    tooltip="A folder in ComfyUI's input folder with three to ten pictures of the same subject.",
                )
            ],
            outputs=[
                io.Image.Output(display_name="images", is_output_list=True),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="White where a picture is opaque; all white where it has no transparency.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str) -> str:
        files = sorted(picture_folder(folder).iterdir())
        return repr([(file.name, file.stat().st_mtime) for file in files])

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        return refused(folder, picture_folder)

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        path = picture_folder(folder)
        found = core.open_pictures(path, free_memory(), stop_if_asked)
        images, masks = ([handed_on(part[None]) for part in parts] for parts in zip(*found, strict=True))
        files = (file for file in path.iterdir() if not file.name.startswith("."))
        other = sorted(file.name for file in files if file.suffix.lower() in UNREAD)
        note = f"; not read (save as PNG or JPEG): {', '.join(other)}" if other else ""
        small = [pictures_below(shown_small(image), cls).get("images", []) for image in images[:SHOWN]]
        shown = {"images": [saved for one in small for saved in one], **ui_text(f"{len(found)} pictures{note}")}
        return io.NodeOutput(images, masks, ui=shown)


def shown_small(image: torch.Tensor) -> torch.Tensor:
    """A picture [1, H, W, C] as the node shows it: ``SHOWN_SIDE`` pixels at most."""
    height, width = image.shape[1:3]
    scale = min(1.0, SHOWN_SIDE / max(height, width))
    return resize(image[..., :3], max(1, round(height * scale)), max(1, round(width * scale)))


NODES: list[type[io.ComfyNode]] = [Pictures]
