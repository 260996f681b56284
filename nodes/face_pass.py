"""How Face VCD Crop-Refine-Paste goes about its faces: one after the other, how much of each is drawn anew, and whether
it got better."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io

from ..vcd_core import face as core
from ..vcd_core.face.judge import FOUND, Verdict, judge, measure
from ..vcd_core.face.plan import Turn
from ..vcd_core.face.repeats import without_repeats
from ..vcd_core.frames import side_by_side
from .host.cut import Cut
from .host.memory import raise_unless_memory, torch_device
from .host.model import draws_sound, patch_of
from .host.ui import Progress, stop_if_asked, unless_asked
from .host.vision import likeness_to
from .stage import NotFinite, Stage

PICTURE, CHANGE = "picture", "change"
WINDOW, HEAD = "window", "head"
SHOW, PUT_BACK, NO_FIGURES = "show", "put back what got worse", "off"
EACH, ONCE = "drawn each", "drawn once"
SHOWN = 4  # faces whose most changed frame is shown


def strength_inputs() -> list[io.Input]:
    """What is drawn anew, and how much of it; the defaults draw the whole window with denoise."""
    return [
        io.Combo.Input(
            "redraw",
            options=[WINDOW, HEAD],
            default=WINDOW,
            optional=True,
            advanced=True,
            tooltip="What is drawn anew. window: all of it, and the pasted region brings a piece of its background. "
            "head: the head alone, softly, and an ellipse around it is pasted; what is beside it stays.",
        ),
        io.Int.Input(
            "large_face",
            default=0,
            min=0,
            max=4096,
            optional=True,
            advanced=True,
            tooltip="Side in pixels of faces that denoise_large is for. 0: denoise for faces of every size.",
        ),
        io.Int.Input(
            "small_face",
            default=32,
            min=0,
            max=4096,
            optional=True,
            advanced=True,
            tooltip="Up to this side in pixels faces get denoise; between small_face and large_face a straight line.",
        ),
        io.Float.Input(
            "denoise_large",
            default=0.3,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="How much of a large face is drawn anew; it follows the face as it comes nearer. Used where "
            "large_face is above 0.",
        ),
    ]


def judge_inputs() -> list[io.Input]:
    """Whether the new faces are better, and what becomes of those that are not."""
    return [
        io.Combo.Input(
            "judge",
            options=[SHOW, PUT_BACK, NO_FIGURES],
            default=SHOW,
            optional=True,
            advanced=True,
            tooltip="Compares each face with what it was: face found, sharpness, flicker, mouth, likeness. show: says "
            "so in the node. put back: a face that got worse by more than margin stays as it was, and so do single "
            "frames that lost their face.",
        ),
        io.Float.Input(
            "margin",
            default=0.1,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="For judge: which share of a figure may be lost.",
        ),
        io.Image.Input(
            "reference", optional=True, tooltip="For judge: pictures of the person, to tell how alike the faces are."
        ),
        io.ClipVision.Input("clip_vision", optional=True, tooltip="For judge: compares faces with the reference."),
    ]


def repeats_input() -> io.Combo.Input:
    """What is done with frames in which a face is the same as in the one before."""
    return io.Combo.Input(
        "repeats",
        options=[EACH, ONCE],
        default=EACH,
        optional=True,
        advanced=True,
        tooltip="Frames in which the face and what is around it stand still to the pixel (animation on twos, held "
        "poses). drawn once: the first of them is drawn and the others show it, which saves their time and keeps "
        "them still. Models that draw sound draw each.",
    )


@dataclass(frozen=True)
class Jury:
    """How refined faces are compared with what they were: the widgets ``judge`` and ``margin``, and the pictures of the
    person with the model that compares with them."""

    judge: str
    margin: float
    reference: torch.Tensor | None = None
    clip_vision: Any = None

    def check(self) -> None:
        """Raise ``ValueError`` for pictures without a model to compare with."""
        if (self.reference is None) != (self.clip_vision is None):
            missing = "reference" if self.reference is None else "clip_vision"
            raise ValueError(f"To tell how alike the faces are, connect {missing} too, or neither of both.")

    def __call__(self, crops: torch.Tensor, refined: torch.Tensor, place: core.crop.Windows) -> Verdict | None:
        """What became of a face; None where nobody asks."""
        if self.judge == NO_FIGURES:
            return None
        alike = [math.nan, math.nan]
        if self.reference is not None:
            some = slice(None, None, max(1, len(crops) // 8))
            alike = likeness_to(self.clip_vision, self.reference, [crops[some], refined[some]])
        was, now = (
            measure(images, place, likeness, torch_device(), stop_if_asked)
            for images, likeness in zip((crops, refined), alike, strict=True)
        )
        return judge(was, now, self.margin)


@dataclass(frozen=True)
class Care:
    """What a refinement leaves alone: the optional widgets of Face VCD Crop-Refine-Paste."""

    paste_by: str
    redraw: str
    small_face: int
    large_face: int
    denoise_large: float
    jury: Jury
    repeats: str = EACH

    @property
    def passes(self) -> int:
        """How often a frame goes through the VAE."""
        return 2 + (self.paste_by == CHANGE)

    def check(self) -> None:
        """Raise ``ValueError`` for sizes in the wrong order."""
        self.jury.check()
        if self.large_face:
            core.strength.check_sizes(self.small_face, self.large_face)

    def of_windows(
        self, place: core.crop.Windows, stage: Stage, size: tuple[int, int]
    ) -> tuple[Stage, torch.Tensor | None]:
        """The stage with a face's largest denoise, and each place's share of it; None: all of it everywhere."""
        denoise = stage.settings.denoise
        shares = torch.ones(len(place.centres))
        if self.large_face:
            values = core.strength.by_size(place, denoise, self.denoise_large, self.small_face, self.large_face)
            denoise = float(values.max())
            shares = torch.from_numpy(values / max(denoise, 1e-9)).float()
        stage = replace(stage, settings=replace(stage.settings, denoise=denoise))
        if self.redraw == HEAD:
            return stage, core.strength.head(place, size) * shares[:, None, None]
        return stage, shares[:, None, None].expand(-1, *size) if self.large_face else None


@dataclass(frozen=True)
class Draft:
    """What of a face is drawn: the frames that are no repeats.

    Attributes:
        turn: the face's turn, its windows standing still where the picture does.
        place: the windows that are drawn.
        cut: cuts conditionings to them.
        drawn: which of the turn's frames they are, [m].
        shown: which of them each of the turn's frames shows, [n].
    """

    turn: Turn
    place: core.crop.Windows
    cut: Cut
    drawn: torch.Tensor
    shown: torch.Tensor

    @property
    def repeats(self) -> int:
        """How many frames are not drawn, since they repeat others."""
        return len(self.shown) - len(self.drawn)

    @property
    def wanted(self) -> torch.Tensor:
        """Which of the drawn frames are pasted somewhere, [m] bool."""
        seen = ~torch.from_numpy(self.turn.track.hidden)
        return torch.zeros(len(self.drawn)).index_add_(0, self.shown, seen.float()) > 0

    def of(self, frames: torch.Tensor) -> torch.Tensor:
        """The drawn ones of the turn's frames."""
        return frames[self.drawn] if self.repeats else frames

    def all_of(self, drawn: torch.Tensor) -> torch.Tensor:
        """The turn's frames, of the drawn ones."""
        return drawn[self.shown.to(drawn.device)] if self.repeats else drawn


@dataclass
class FacePass:
    """The faces of a clip, refined one after the other.

    Attributes:
        images: the clip, IMAGE [F, H, W, 3].
        size: height and width of the crops.
        paste: puts a refined face back, see :func:`~vcd_core.face.crop.paste`.
        out: the clip with the faces that were refined.
        videos: each face's frames before and after, side by side, also of those that were left.
        refined, put_back: how many faces were refined, and how many were put back whole.
        told: what became of each.
        repeats: how many frames of faces show another, since they repeat it.
    """

    images: torch.Tensor
    stage: Stage
    size: tuple[int, int]
    care: Care
    paste: Callable[..., torch.Tensor]
    out: torch.Tensor = field(init=False)
    videos: list[torch.Tensor] = field(default_factory=list)
    refined: int = 0
    put_back: int = 0
    told: list[str] = field(default_factory=list)
    repeats: int = 0

    def __post_init__(self) -> None:
        self.out = self.images.clone()

    @property
    def pairs(self) -> torch.Tensor:
        """All of ``videos``, one after the other."""
        return self.videos[0] if len(self.videos) == 1 else torch.cat(self.videos)

    def most_changed(self) -> torch.Tensor:
        """Of the first faces the frame that changed most, before and after side by side."""
        halves = (video.chunk(2, 2) for video in self.videos[:SHOWN])
        return torch.cat([side_by_side(before, after) for before, after in halves])

    def run(self, turns: list[Turn], prompts: list[Any], negative: Any) -> None:
        """Refine the faces of ``turns``.

        An error after the first face leaves its face as it was and is told in the log; one before it is raised.
        """
        drafts = [self._draft(turn) for turn in turns]
        self.repeats = sum(draft.repeats for draft in drafts)
        frames = sum(len(draft.drawn) for draft in drafts)
        progress = Progress(frames * (self.care.passes + self.stage.settings.steps))
        positives = [core.plan.prompt_of(turn.person, prompts) for turn in turns]
        for draft, positive in zip(drafts, positives, strict=True):
            draft.cut.check([*positive, *negative])
        for number, (draft, positive) in enumerate(zip(drafts, positives, strict=True)):
            progress.part = f"face {number + 1} of {len(turns)}" if len(turns) > 1 else ""
            crops = core.crop.crop(self.images, draft.turn.windows, self.size, on_frame=stop_if_asked)
            unsampled: list[torch.Tensor] = []
            refined = self._refined(number, draft, crops, (positive, negative), progress, unsampled)
            self._put_back(number, draft.turn, crops, refined, unsampled)

    def _draft(self, turn: Turn) -> Draft:
        first = np.arange(len(turn.track.boxes))
        if self.care.repeats == ONCE and not draws_sound(self.stage.model):
            held, first = without_repeats(self.images, turn.windows)
            turn = replace(turn, windows=held)
        drawn, shown = np.unique(first, return_inverse=True)
        place = turn.own_windows
        place = replace(
            place, centres=place.centres[drawn], face=place.face[drawn],
            visible=None if place.visible is None else place.visible[drawn],
        )  # fmt: skip
        cut = Cut(
            frames=[turn.track.frames[i] for i in drawn], region=place, length=len(self.images),
            picture=(self.images.shape[1], self.images.shape[2]), size=self.size, vae=self.stage.vae,
            patch=patch_of(self.stage.model),
        )  # fmt: skip
        return Draft(turn, place, cut, torch.from_numpy(drawn), torch.from_numpy(shown))

    def _refined(
        self,
        number: int,
        draft: Draft,
        crops: torch.Tensor,
        told: tuple[Any, Any],
        progress: Progress,
        unsampled: list[torch.Tensor],
    ) -> torch.Tensor:
        """The crops drawn anew, or themselves where that failed."""
        own, strength = self.care.of_windows(draft.place, self.stage, self.size)
        given = draft.of(crops)
        try:
            positive, negative = map(draft.cut.conditioning, told)
            drawn = own.refine(
                given, positive, negative, progress, of=(draft.turn.track.start, len(self.images)), strength=strength,
                unsampled=(lambda back: unsampled.append(draft.all_of(back))) if self.care.paste_by == CHANGE else None,
                wanted=draft.wanted,
            )  # fmt: skip
            return crops if drawn is given else draft.all_of(drawn)
        except NotFinite as error:
            what = "" if error.drawn is None else "a part of "
            logging.warning("Face VCD: %sface %d was left as it is. %s", what, number, error)
            return crops if error.drawn is None else draft.all_of(error.drawn)  # a frame that is NaN is not pasted
        except Exception as error:
            if not self.refined:
                raise
            reason = unless_asked(error)
            logging.warning("Face VCD: face %d was left as it is. %s: %s", number, type(reason).__name__, reason)
            return crops

    def _put_back(
        self, number: int, turn: Turn, crops: torch.Tensor, refined: torch.Tensor, unsampled: list[torch.Tensor]
    ) -> None:
        """Paste a face where it is seen, and where it did not get worse."""
        hidden, failed = torch.from_numpy(turn.track.hidden), refined is crops
        worse = torch.zeros_like(hidden)
        if not failed:
            pasted = refined if not unsampled else crops + refined - unsampled[0]
            worse = self._worse(number, turn, crops, torch.where(_frames(hidden), crops, pasted.nan_to_num()))
        stays, back = hidden | worse, bool(worse.any() and (hidden | worse).all())
        self.videos.append(torch.cat([crops, torch.where(_frames(stays), crops, refined.nan_to_num())], 2))
        self.put_back += back
        if not failed and not back:
            self.paste(
                refined, replace(turn.windows, visible=(~stays).numpy()), out=self.out, neighbours=turn.neighbours,
                unsampled=unsampled[0] if unsampled else None, head=self.care.redraw == HEAD,
            )  # fmt: skip
            self.refined += 1

    def _worse(self, number: int, turn: Turn, crops: torch.Tensor, pasted: torch.Tensor) -> torch.Tensor:
        """In which frames [n] bool a face got worse and is put back; what became of it is told."""
        worse = torch.zeros(len(crops), dtype=torch.bool)
        try:
            verdict = self.care.jury(crops, pasted, turn.own_windows)
        except Exception as error:
            if not self.refined:
                raise_unless_memory(error)
            logging.warning("Face VCD: face %d was not compared. %s", number, unless_asked(error))
            self.told.append(f"face {number}: not compared, see the log.")
            return worse
        if verdict is None:
            return worse
        text = f"face {number}: {verdict}"
        if self.care.jury.judge == PUT_BACK:
            worse[verdict.lost] = True
            if set(verdict.worse) - {FOUND}:
                worse[:] = True
            if worse.any():
                text += f"; {'put back' if worse.all() else f'put back in {int(worse.sum())} frames'}"
        self.told.append(text + ".")
        return worse

    def said(self, turns: list[Turn], missed: int) -> str:
        """What the node says after it has run; ``missed``: frames without a face."""
        hidden = sum(int(turn.track.hidden.sum()) for turn in turns)
        missing = len(turns) - self.refined
        left = "see below" if self.put_back == missing else "see the log"
        left = "denoise is 0" if self.stage.settings.denoise == 0 else left
        text = f"{self.refined} of {len(turns)} faces refined" + (f" ({left})" if missing else "")
        behind = f" {hidden} times a face is behind another one and was left as it is." if hidden else ""
        repeats = (
            f" {self.repeats} times a face repeats the frame before and shows its drawing." if self.repeats else ""
        )
        first = f"{text}; {missed} of {len(self.images)} frames have none and passed through.{behind}{repeats}"
        lines = [first, *self.told]
        return "\n".join(lines)


def _frames(which: torch.Tensor) -> torch.Tensor:
    """Frames [n] as a mask for IMAGE [n, H, W, 3]."""
    return which[:, None, None, None]
