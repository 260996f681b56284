"""What the page shows of a running node: progress, previews, text, and whether the user has interrupted."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import ComfyAPI, io, ui
from comfy_execution.graph import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from PIL import Image

_warned: set[str] = set()  # nodes that show a warning
_READ = re.compile(r"\\([\\`*\[\]<>])|\\(?!\|)|[&<>\[\]`*_~]")  # what the page would read, as in shown_again.js


async def register_replacement(replacement: io.NodeReplace) -> None:
    """Offer one of our nodes where a graph holds a node that is not installed."""
    await ComfyAPI().node_replacement.register(replacement)


def stop_if_asked() -> None:
    """Stop here if the user has interrupted."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def unless_asked(error: Exception) -> Exception:
    """An error of some part of the work, to go on without that part; an interrupt is raised on."""
    if isinstance(error, comfy.model_management.InterruptProcessingException):
        raise error
    return error


def ui_text(text: str) -> dict[str, tuple[str]]:
    """A node's ``ui`` with ``text``, which is also drawn in the node: of itself the page does so for few nodes."""
    say(text)
    return {"text": (text,)}


def pictures_below(images: torch.Tensor, cls: type[io.ComfyNode]) -> dict[str, Any]:
    """A node's ``ui`` with IMAGE below it; where the disk takes no pictures the node runs on without, and the log says
    so."""
    try:
        return dict(ui.PreviewImage(images, cls=cls).as_dict())
    except OSError as error:
        logging.warning(
            "The node's pictures cannot be shown: %s. Free space on the disk of ComfyUI's temp folder.", error
        )
        return {}


def say(text: str) -> None:
    """Draw ``text`` in the node that is running, whosever it is."""
    context = get_executing_context()
    if context is not None:
        from server import PromptServer

        PromptServer.instance.send_progress_text(as_written(text), context.node_id)


def as_written(text: str) -> str:
    """What to send to the page so that it shows this text: the classic page reads it as HTML, with ``[[label|url]]``,
    Nodes 2.0 as Markdown. Tables stay tables.

    Example:
        >>> as_written("<ada> [x](y) | 3")
        '&#60;ada&#62; &#91;x&#93;(y) | 3'
    """
    return _READ.sub(lambda found: f"&#{ord(found[1] or found[0])};", text)


def warn(text: str | None) -> None:
    """Say ``text`` in the log and in the node that is running; None takes away the warning of an earlier run."""
    context = get_executing_context()
    node = context.node_id if context is not None else ""
    if text:
        logging.warning(text)
        _warned.add(node)
    elif node in _warned:
        _warned.remove(node)
        text = " "  # the page keeps a node's text until another comes
    if text:
        say(text)


def blocked(why: str) -> Any:
    """What to give for an output that is missing: a node that takes it stops and says why, all others run."""
    return ExecutionBlocker(why)


def preview_picture(images: torch.Tensor) -> Any:
    """The first of IMAGE as the progress bar shows it."""
    picture = Image.fromarray((images[0].clamp(0, 1) * 255).round().byte().cpu().numpy())
    return ("JPEG", picture, latent_preview.MAX_PREVIEW_RESOLUTION)


class Progress:
    """The node's progress bar over ``total`` units, with a preview of what is being sampled.

    ``part``: what of the whole is at work, for :meth:`tell`.
    """

    EVERY = 1.0  # seconds between two texts
    FIRST = 5.0  # seconds before which the time left is not guessed

    def __init__(self, total: int) -> None:
        self.total, self.done = max(1, total), 0.0
        self.preview: Any = None
        self.part = ""
        self.first: float | None = None
        self.begun = self.told = time.monotonic()
        self.bar = comfy.utils.ProgressBar(self.total)

    @property
    def due(self) -> bool:
        """Whether the next text is due: what is costly to draw is drawn as often."""
        return time.monotonic() - self.told >= self.EVERY

    def tell(self, what: str) -> None:
        """Draw in the node what is being done and how long it will take, once a second at most."""
        now = time.monotonic()
        if now - self.told < self.EVERY:
            return
        self.told = now
        taken = now - self.begun
        since = self.done - (self.first or 0.0)  # a training may go on in its middle
        left = taken * (self.total - self.done) / since if taken > self.FIRST and since else 0.0
        say(", ".join(text for text in (self.part, what, spoken(left)) if text))

    def advance(self, units: float = 1) -> None:
        self.move_to(self.done + units)

    def move_to(self, units: float) -> None:
        """Show ``units`` of the total as done, and stop here if the user has interrupted."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.done = min(self.total, max(self.done, units))
        self.first = self.done if self.first is None else self.first
        self.bar.update_absolute(int(self.done), self.total, self.preview)


def spoken(seconds: float) -> str:
    """A time that is left, in words; empty for none.

    Example:
        >>> spoken(12.4), spoken(200), spoken(5000)
        ('about 12 s left', 'about 3 min left', 'about 1 h 23 min left')
    """
    whole = round(seconds)
    if whole < 1:
        return ""
    if whole < 100:
        return f"about {whole} s left"
    minutes = round(whole / 60)
    return f"about {minutes} min left" if minutes < 60 else f"about {minutes // 60} h {minutes % 60} min left"


class Unseen(Progress):
    """Progress that no bar shows; an interrupt is still heard."""

    def __init__(self) -> None:
        pass

    def advance(self, units: float = 1) -> None:
        stop_if_asked()

    def tell(self, what: str) -> None:
        pass
