"""VCD Cast: several people in one clip, each themselves (places: vcd_core.cast)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io

from ..vcd_core import cast as core
from ..vcd_core import identity, plots
from ..vcd_core.face.track import Faces
from .host.attention import CAST, EVERYBODY, PERSON
from .host.cast import with_binding
from .host.latents import pictures_covered
from .host.memory import handed_on
from .host.model import Model, of_video
from .host.ui import pictures_below, ui_text
from .identity import ALIASES, IDENTITY_CATEGORY, Identity, by_name, encode_prompt, unnamed
from .inputs import FacesType, IdType

MOST = 8  # people
SIDE = 512  # of places that are written


@dataclass(frozen=True)
class Texts:
    """The conditionings of a cast: of each person by name, of what is nobody's, and of all together."""

    people: dict[str, Any]
    everybody: Any
    together: Any


class Cast(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def many(one: io.Input, name: str) -> io.Autogrow.TemplatePrefix:
            return io.Autogrow.TemplatePrefix(one, prefix=name, min=0, max=MOST)

        ids = many(IdType.Input("id", tooltip="The identity of a person of the prompt."), "id")
        people = many(io.Conditioning.Input("person", tooltip="A person's own prompt, with its references."), "person")
        masks = many(io.Mask.Input("mask", tooltip="Where a person is, one mask or one for each frame."), "mask")
        return io.Schema(
            node_id="VCD_Cast",
            display_name="VCD Cast",
            category=IDENTITY_CATEGORY,
            description="Several people in one clip, each themselves: who is where. Each person's identity acts in "
            "their own place alone, inside the model's attention, so that hair, clothes and faces do not mix.",
            search_aliases=[
                *ALIASES,
                "regional prompt",
                "attention couple",
                "couple",
                "latent couple",
                "two people",
                "several people",
                "region",
            ],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model, with its motion module and patches."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder, for prompt and ids."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    placeholder="photo of <ada> and <bob>, side by side",
                    tooltip="What the clip shows, with <name> for each identity, the name of its file.",
                ),
                io.String.Input(
                    "places",
                    multiline=True,
                    default="",
                    placeholder="side by side; or a line each: left",
                    tooltip="Where each person is, one line each, in the order of the sockets: left, right, middle, "
                    "left third ..., or x y width height as shares, '0.1 0 0.4 1'. Moving: '0: left, 15: right'; "
                    "'away' is nowhere. Empty: side by side.",
                ),
                io.Int.Input(
                    "frames", default=16, min=1, max=4096, tooltip="For places that move: the frames of the clip."
                ),
                io.Float.Input(
                    "softness",
                    default=0.0,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="How wide the borders between places are, as a share of the picture's shorter side.",
                    advanced=True,
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="From which part of the sampling people have their places; before it the prompt holds "
                    "everywhere.",
                    advanced=True,
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Up to which part of the sampling people have their places.",
                    advanced=True,
                ),
                io.Float.Input(
                    "apart",
                    default=3.0,
                    min=0.0,
                    max=20.0,
                    step=0.5,
                    tooltip="How much less people look at each other inside the model while they are drawn. 0: as "
                    "without the node.",
                    advanced=True,
                ),
                io.Float.Input(
                    "contrast",
                    default=0.15,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How far each person is drawn away from the others' prompts. 0: not at all; 0.3 and more "
                    "costs what else the prompt says.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "bind",
                    default=True,
                    tooltip="On: people share one picture and are kept apart inside the model's attention (SD 1.5, "
                    "SDXL). Off, and on other models: by masks, as ComfyUI does it.",
                    advanced=True,
                ),
                io.Autogrow.Input("ids", template=ids, optional=True, tooltip="The identities, in their order."),
                io.Autogrow.Input(
                    "people",
                    template=people,
                    optional=True,
                    tooltip="People with a prompt of their own, behind those of ids: words, or a model's references.",
                ),
                io.Conditioning.Input(
                    "everybody",
                    optional=True,
                    tooltip="What holds where nobody has a place; without it the prompt with class words for people.",
                ),
                FacesType.Input(
                    "faces",
                    optional=True,
                    tooltip="From Face VCD Track of a draft: people from left to right are where their faces are.",
                ),
                io.Autogrow.Input("masks", template=masks, optional=True, tooltip="Places as masks, one a person."),
                io.Image.Input("images", optional=True, tooltip="The draft, to show places on."),
            ],
            outputs=[
                io.Model.Output(),
                io.Conditioning.Output(display_name="positive"),
                io.Image.Output(display_name="preview", tooltip="Each person's place in a colour."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Model,
        prompt: str,
        places: str,
        frames: int,
        softness: float,
        start_percent: float,
        end_percent: float,
        apart: float,
        contrast: float,
        bind: bool,
        clip: Any = None,
        ids: dict[str, Identity] | None = None,
        people: dict[str, Any] | None = None,
        everybody: Any = None,
        faces: Faces | None = None,
        masks: dict[str, torch.Tensor] | None = None,
        images: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        texts = texts_of(clip, prompt, _given(ids), _given(people), everybody)
        names = list(texts.people)
        found = masks_of(names, places, frames, softness, faces, _given(masks), images)
        bound = with_binding(model, apart, contrast) if bind else None
        whole = core.shares(per_latent_frame(model, found))
        span = start_percent, end_percent
        positive = limited([*texts.people.values(), texts.everybody], whole, span)
        positive += outside(texts.together, span)
        shown = plots.with_regions(backdrop(images, found), found, names)
        how = "each bound to a place" if bound else "each under a mask"
        text = ui_text(f"{', '.join(f'<{name}>' for name in names)}: {how}.")
        stills = shown[:: max(1, len(shown) // 4)]
        return io.NodeOutput(bound or model, positive, handed_on(shown), ui={**pictures_below(stills, cls), **text})


def _given(sockets: dict[str, Any] | None) -> list[Any]:
    """What is connected to sockets that grow."""
    return [value for value in (sockets or {}).values() if value is not None]


def texts_of(clip: Any, prompt: str, ids: list[Identity], people: list[Any], everybody: Any) -> Texts:
    """Each person's own text: the prompt in which the others are but their class words, or a conditioning of their own.

    Raises:
        ValueError: nobody to place, an identity that the prompt does not name, or no text encoder for it.
    """
    named = by_name(ids)
    if len(named) + len(people) < 1:
        raise ValueError("VCD Cast has nobody to place: connect identities to ids, or conditionings to people.")
    if identity.parse_schedule(prompt):
        raise ValueError("The prompt is a schedule; people with places have one prompt for the whole clip.")
    if clip is None and (named or everybody is None):
        raise ValueError("clip is missing: connect the text encoder, for the prompt and the identities in it.")
    if left := unnamed([prompt], named):
        raise ValueError(f"The prompt does not name {left[0]}: write {left[0]} where that person belongs.")
    own = {name: encode_prompt(clip, without(prompt, named, name), {name: one}) for name, one in named.items()}
    own |= {f"person {i}": one for i, one in enumerate(people, len(own) + 1)}
    for name, one in own.items():
        check_single(name, one)
    if everybody is None:
        everybody = encode_prompt(clip, without(prompt, named), {})
    return Texts(own, everybody, encode_prompt(clip, prompt, named) if named else everybody)


def check_single(name: str, conditioning: Any) -> None:
    """Raise ``ValueError`` for a conditioning that is several, or has a place already."""
    if len(conditioning) != 1:
        raise ValueError(
            f"{name} has {len(conditioning)} conditionings in one (combined, scheduled, or with hooks that change); "
            "expected one."
        )
    if limits := sorted({"mask", "area"} & {key for key, value in conditioning[0][1].items() if value is not None}):
        raise ValueError(f"The conditioning of {name} has a {limits[0]} already; VCD Cast says where people are.")


def without(prompt: str, people: dict[str, Identity], kept: str | None = None) -> str:
    """A prompt in which people are but their class words, all but one."""
    words = {name: one.class_word or "person" for name, one in people.items() if name != kept}
    marks = {name: f"<{name}>" if name == kept else "" for name in people}
    return identity.insert(prompt, marks, words)


def masks_of(
    names: list[str],
    places: str,
    frames: int,
    softness: float,
    faces: Faces | None,
    masks: list[torch.Tensor],
    images: torch.Tensor | None,
) -> torch.Tensor:
    """Where people are [people, 1 or F, H, W]: by masks, by faces, or as it is written.

    Raises:
        ValueError: two of the three at once, somebody without a place, or masks of different sizes.
    """
    given = [what for what, there in (("places", places.strip()), ("faces", faces), ("masks", masks)) if there]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} both say where people are; keep one of them.")
    if not masks:
        side = (SIDE, SIDE) if faces is None else (faces.height, faces.width)
        side = side if images is None else (images.shape[1], images.shape[2])
        boxes = core.read_places(places, names, frames) if faces is None else core.places_of(faces, names)
        return core.masks_of(boxes, *side, softness)
    if len(masks) != len(names):
        who = f"{names[len(masks)]} has none" if len(masks) < len(names) else "the last are nobody's"
        raise ValueError(f"There are {len(names)} people and {len(masks)} masks: {who}.")
    if len({mask.shape[1:] for mask in masks}) > 1:
        raise ValueError(f"The masks differ in size: {', '.join(str(list(mask.shape[1:])) for mask in masks)}.")
    most = max(map(len, masks))
    if any(len(mask) not in (1, most) for mask in masks):
        raise ValueError(f"The masks have {', '.join(str(len(mask)) for mask in masks)} frames; expected as many or 1.")
    return torch.stack([mask.float().cpu().expand(most, -1, -1) for mask in masks])


def per_latent_frame(model: Model, masks: torch.Tensor) -> torch.Tensor:
    """Masks [people, F, H, W] of a clip's pictures as the model's latent has frames: of a video model the mean over the
    pictures of each."""
    if masks.shape[1] == 1 or not of_video(model):
        return masks
    covered = np.cumsum([0, *pictures_covered(model, masks.shape[1])])
    spans = [(a, b) for a, b in itertools.pairwise(covered) if a < masks.shape[1]]
    return torch.stack([masks[:, a:b].mean(1) for a, b in spans], 1)


def limited(conditionings: list[Any], masks: torch.Tensor, span: tuple[float, float]) -> list[Any]:
    """The entries of all conditionings, each with its mask and within a span of the sampling; the last is of what is
    nobody's."""
    out = []
    for i, (conditioning, mask) in enumerate(zip(conditionings, masks, strict=True)):
        who = EVERYBODY if i == len(conditionings) - 1 else PERSON
        more = {"mask": mask, "mask_strength": 1.0, "set_area_to_bounds": False, CAST: who}
        if span != (0.0, 1.0):
            more |= {"start_percent": span[0], "end_percent": span[1]}
        if mask.any():
            out += [[tensor, {**options, **more}] for tensor, options in conditioning]
    return out


def outside(conditioning: Any, span: tuple[float, float]) -> list[Any]:
    """A conditioning's entries before and behind a span of the sampling.

    Raises:
        ValueError: a span that ends before it begins.
    """
    if span[0] >= span[1]:
        raise ValueError(f"start_percent is {span[0]} and end_percent {span[1]}; the end must be behind the start.")
    spans = [(a, b) for a, b in ((0.0, span[0]), (span[1], 1.0)) if a < b]
    return [
        [tensor, {**options, "start_percent": a, "end_percent": b}]
        for a, b in spans
        for tensor, options in conditioning
    ]


def backdrop(images: torch.Tensor | None, masks: torch.Tensor) -> torch.Tensor:
    """What places are shown on: the draft, or grey.

    Raises:
        ValueError: a draft of another size or length than the masks.
    """
    if images is None:
        return torch.full((*masks.shape[1:], 3), 0.35)
    if images.shape[1:3] != masks.shape[2:] or masks.shape[1] not in (1, len(images)):
        raise ValueError(
            f"images are {list(images.shape[:3])} and the places {list(masks.shape[1:])} (frames, height, width); "
            "connect the clip that they are of."
        )
    return images


NODES: list[type[io.ComfyNode]] = [Cast]
