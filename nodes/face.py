"""Face VCD: follow faces, cut a face video out, refine it, put it back (vcd_core.face)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io

from ..vcd_core import face as core
from ..vcd_core import plots
from ..vcd_core.face.people import Choice
from ..vcd_core.face.track import Faces, Track
from ..vcd_core.frames import check_finite, colours, held, with_alpha
from .face_pass import (
    CHANGE,
    EACH,
    PICTURE,
    SHOW,
    WINDOW,
    Care,
    FacePass,
    Jury,
    judge_inputs,
    repeats_input,
    strength_inputs,
)  # fmt: skip
from .host.memory import handed_on, torch_device
from .host.model import Model
from .host.pictures import cell_of, frames_taken
from .host.sampling import Sampling
from .host.ui import Progress, pictures_below, stop_if_asked, ui_text
from .host.vision import likeness_to
from .inputs import (
    CATEGORY,
    NOISE,
    STEPS,
    BoxesType,
    CropType,
    FacesType,
    denoise_by_input,
    gamma_input,
    sampling_inputs,
    seed_input,
    sound_input,
)  # fmt: skip
from .stage import Stage

FACE_CATEGORY = f"{CATEGORY}/face"
ALIASES = ["magic me", "vcd", "segs"]
REFINE_ALIASES = [
    "face detailer", "adetailer", "after detailer", "face swap", "face restore", "restore face", "face fix",
    "fix face", "face", *ALIASES,
]  # fmt: skip
PASS, STOP = "pass the clip through", "stop with an error"
ALL_EXCLUDED = "Every face of the clip is excluded."
MORE_IDENTITIES = 4


@dataclass
class Crop:
    """What Face VCD Crop cut out (the socket VCD_CROP)."""

    windows: core.crop.Windows
    faces: Faces
    images: torch.Tensor  # the clip that it was cut out of
    neighbours: list[core.crop.Windows]  # where the clip's other faces are
    lengthened: bool = False  # whether frames were added at the end, for a video VAE

    def of_windows(self, refined: torch.Tensor) -> torch.Tensor:
        """The frames of ``refined`` that have windows."""
        return refined[: len(self.windows.centres)] if self.lengthened else refined

    def compared(self, refined: torch.Tensor, paste_by: str, unsampled: torch.Tensor | None) -> torch.Tensor | None:
        """What ``refined`` is compared with to paste by change: ``unsampled``, or without it the crops as they were
        cut; None to paste the picture."""
        if paste_by == PICTURE:
            if unsampled is not None:
                raise ValueError(
                    "unsampled is connected, but paste_by is 'picture'. Choose 'change', or disconnect it."
                )
            return None
        if unsampled is not None:
            return colours(self.of_windows(unsampled))
        core.crop.check_count(len(refined), len(self.windows.centres))
        size = (refined.shape[1], refined.shape[2])
        return core.crop.crop(self.images, self.windows, size, on_frame=stop_if_asked)


def track_faces(
    images: torch.Tensor,
    threshold: float = 0.6,
    max_gap: int = 8,
    min_length: int = 3,
    small_faces: bool = False,
    bboxes: Any = None,
    masks: torch.Tensor | None = None,
    progress: Progress | None = None,
    search_every: int = 1,
) -> Faces:
    """The faces of a clip, detected here or given as boxes or masks, as tracks."""
    frames, height, width = images.shape[:3]
    device, weak = torch_device(), core.track.WEAK * threshold
    if bboxes is not None:
        detections = core.given.from_boxes(bboxes, frames, height, width)
    elif masks is not None:
        detections = core.given.from_masks(masks)
    else:
        on_frame = progress.advance if progress else stop_if_asked
        detections = core.detect.detect(
            images,
            weak,
            small_faces,
            device=device,
            on_frame=on_frame,
            search_every=search_every,
            on_call=stop_if_asked,
        )
    given = bboxes is not None or masks is not None
    counts = {"sure": 0.0} if given else {"threshold": threshold}
    tracks = core.track.follow(images, detections, max_gap, min_length, device=device, on_frame=stop_if_asked, **counts)
    return Faces(frames, height, width, tracks)


def none_input() -> io.Combo.Input:
    return io.Combo.Input(
        "if_none",
        options=[PASS, STOP],
        default=PASS,
        optional=True,
        advanced=True,
        tooltip="What to do where no face is found in the whole clip.",
    )


def no_faces(if_none: str) -> str:
    """What to say, in the log and in the node, where no face was found."""
    message = "No face was found in the clip. Lower the threshold, switch small_faces on, or connect other boxes."
    if if_none == STOP:
        raise ValueError(message)
    logging.warning("Face VCD: %s The clip is passed through.", message)
    return f"{message} The clip is passed through."


def which_inputs(choices: tuple[Choice, ...] = core.people.CHOICES) -> list[io.Input]:
    return [
        io.Combo.Input(
            "which",
            options=list(choices),
            default="all",
            tooltip="Which faces: all, the largest, all from left to right, one by its index, or (in Face VCD Track) "
            "the one "
            "most like a reference picture.",
        ),
        io.Int.Input("index", default=0, min=0, max=99, tooltip="For 'by index': counted from 0 from left to right."),
    ]


def pick_inputs() -> list[io.Input]:
    """Whom the artist points at; without them everybody."""
    return [
        BoxesType.Input(
            "pick",
            optional=True,
            extra_dict={"forceInput": True},
            tooltip="Boxes around the faces you mean, drawn in one frame: Create Bounding Boxes. The people in them "
            "are chosen, wherever they are in the other frames.",
        ),
        BoxesType.Input(
            "exclude",
            optional=True,
            extra_dict={"forceInput": True},
            tooltip="Boxes around faces to leave as they are, drawn in the same frame.",
        ),
        io.Int.Input(
            "pick_frame",
            default=0,
            min=0,
            max=99999,
            optional=True,
            advanced=True,
            tooltip="The frame in which pick and exclude are drawn, counted from 0.",
        ),
    ]


class FaceTrack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_FaceTrack",
            display_name="Face VCD Track",
            category=FACE_CATEGORY,
            description="Finds the faces of a clip and follows each: gaps are bridged, paths are smoothed, people "
            "who cross keep their numbers. The detector is built in; boxes of any other detector can be connected.",
            search_aliases=["face detector", "detect faces", "face tracking", "track faces", *ALIASES],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The frames of the clip."),
                *which_inputs(),
                io.Float.Input(
                    "threshold",
                    default=0.6,
                    min=0.05,
                    max=0.99,
                    step=0.01,
                    tooltip="The least score of a detection. A face that was found goes on where its score is two "
                    "thirds of it.",
                ),
                io.Int.Input(
                    "max_gap",
                    default=8,
                    min=0,
                    max=256,
                    tooltip="For how many frames a face may be lost and still be followed.",
                    advanced=True,
                ),
                io.Int.Input(
                    "min_length",
                    default=3,
                    min=1,
                    max=256,
                    tooltip="Faces seen in fewer frames are left out.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "small_faces",
                    default=False,
                    tooltip="Also search at twice the size, for faces under a 64th of the longer side.",
                ),
                BoxesType.Input(
                    "bboxes",
                    optional=True,
                    extra_dict={"forceInput": True},
                    tooltip="Boxes of another detector (MediaPipe, RT-DETR, SAM 3), one list for each frame. Used in "
                    "place "
                    "of the built-in one.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="A mask for each frame; its box is taken in place of a detection."
                ),
                io.Image.Input("reference", optional=True, tooltip="For 'like the reference': a picture of the face."),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="For 'like the reference': compares faces with it."
                ),
                none_input(),
                *pick_inputs(),
                io.Int.Input(
                    "search_every",
                    default=1,
                    min=1,
                    max=16,
                    optional=True,
                    advanced=True,
                    tooltip="Search every so many frames whole, and those between at half the size where all faces "
                    "around them are large: 4 takes a little over half the time.",
                ),
            ],
            outputs=[
                FacesType.Output(display_name="faces"),
                io.Image.Output(display_name="preview", tooltip="The clip with numbered boxes."),
                BoxesType.Output(display_name="bboxes", tooltip="The smoothed tracks as boxes of each frame."),
                io.Mask.Output(
                    display_name="mask", tooltip="The tracked faces of each frame, for prompts that hold there."
                ),
                io.Int.Output(display_name="count", tooltip="How many tracks there are."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        which: Choice,
        index: int,
        threshold: float,
        max_gap: int,
        min_length: int,
        small_faces: bool,
        bboxes: Any = None,
        mask: torch.Tensor | None = None,
        reference: torch.Tensor | None = None,
        clip_vision: Any = None,
        if_none: str = PASS,
        pick: Any = None,
        exclude: Any = None,
        pick_frame: int = 0,
        search_every: int = 1,
    ) -> io.NodeOutput:
        progress = Progress(len(images))
        images = colours(images)
        check_finite(images)
        masks = frame_masks(mask, images)
        faces = track_faces(images, threshold, max_gap, min_length, small_faces, bboxes, masks, progress, search_every)
        text = "" if faces.tracks else no_faces(if_none)
        faces.tracks = core.pointing.chosen(faces, pick, exclude, pick_frame) if faces.tracks else []
        faces.tracks = choose(images, faces, which, index, reference, clip_vision)
        boxes = core.track.boxes_of(faces)
        preview = plots.numbered_boxes(images, boxes, stop_if_asked)
        mask = core.track.masks_of(faces)
        stills = dict.fromkeys([min(pick_frame, len(preview) - 1), *range(0, len(preview), max(1, len(preview) // 8))])
        return io.NodeOutput(
            faces,
            handed_on(preview),
            boxes,
            handed_on(mask),
            len(faces.tracks),
            ui={
                **pictures_below(preview[list(stills)], cls),
                **ui_text(text or tracks_said(faces.tracks)),
            },
        )


def tracks_said(tracks: list[Track]) -> str:
    """Which tracks there are, as the numbers on the preview."""
    if not tracks:
        return ALL_EXCLUDED
    frames = [f"{i} in frames {track.start} to {track.start + len(track.boxes) - 1}" for i, track in enumerate(tracks)]
    return f"{len(tracks)} {'face' if len(tracks) == 1 else 'faces'}: {', '.join(frames)}."


def choose(
    images: torch.Tensor,
    faces: Faces,
    which: Choice,
    index: int,
    reference: torch.Tensor | None = None,
    clip_vision: Any = None,
) -> list[Track]:
    """The chosen tracks."""
    likeness = None
    if which == "like the reference" and faces.tracks:
        if reference is None or clip_vision is None:
            raise ValueError("'like the reference' needs a reference picture and a CLIP vision model; connect both.")
        views = []
        for track in faces.tracks:
            place = core.crop.windows(track, faces.height, faces.width, 1.5)
            views.append(core.crop.crop(images[..., :3], place, (224, 224))[:: max(1, len(place.centres) // 8)])
        likeness = likeness_to(clip_vision, reference, views)
    return core.people.choose(faces.tracks, which, index, likeness)


def window_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "refine_size",
            default=512,
            min=64,
            max=2048,
            step=8,
            tooltip="Side of the face video in pixels: the size that the model draws best, 512 for SD 1.5.",
        ),
        io.Float.Input(
            "crop_factor",
            default=3.0,
            min=1.0,
            max=10.0,
            step=0.1,
            tooltip="The window's side over the face's. 3 as in the release; it is never larger than the picture.",
        ),
        io.Float.Input(
            "aspect",
            default=1.0,
            min=0.25,
            max=4.0,
            step=0.05,
            tooltip="The window's width over its height. It keeps the number of pixels that refine_size gives.",
            advanced=True,
        ),
    ]


def paste_inputs(advanced: bool = False) -> list[io.Input]:
    return [
        io.Float.Input(
            "feather",
            default=5.0,
            min=0.0,
            max=200.0,
            step=0.5,
            tooltip="Width in pixels of the pasted region's soft edge.",
            advanced=advanced,
        ),
        io.Float.Input(
            "paste_factor",
            default=1.6,
            min=1.0,
            max=10.0,
            step=0.1,
            tooltip="The pasted region's side over the face's. The rest of the window is context and stays as it was.",
            advanced=advanced,
        ),
        io.Boolean.Input(
            "match_colour",
            default=False,
            tooltip="Give the new faces the brightness and contrast that the picture has around them.",
            advanced=advanced,
        ),
    ]


def careful_paste_inputs() -> list[io.Input]:
    """How the pasted region is limited to what was changed; without them all that was drawn is pasted, as before."""
    return [
        io.Combo.Input(
            "paste_by",
            options=[PICTURE, CHANGE],
            default=PICTURE,
            optional=True,
            advanced=True,
            tooltip="picture: paste what was drawn. change: add to the frame only what the sampler changed, so that "
            "its grain and sharpness stay. For denoise up to about 0.6; where a face is drawn from nothing the old one "
            "shines through.",
        ),
        io.Float.Input(
            "feather_share",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="Width of the soft edge as a share of the face's side, so that it fits small and large faces. "
            "0: feather counts.",
        ),
    ]


class FaceCrop(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_FaceCrop",
            display_name="Face VCD Crop",
            category=FACE_CATEGORY,
            description="Cuts one face out as a video of its own: a window of one size that follows the face "
            "smoothly. Use "
            "any sampler on it, then Face VCD Paste.",
            search_aliases=["crop face", "face crop", *ALIASES],
            inputs=[
                io.Image.Input("images", tooltip="The frames that Face VCD Track saw."),
                FacesType.Input("faces", tooltip="The tracks of Face VCD Track."),
                io.Int.Input("index", default=0, min=0, max=99, tooltip="Which of the tracks, counted from 0."),
                *window_inputs(),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="For a video model: its VAE. The crops get a length and a size that it gives back as they "
                    "were; "
                    "Face VCD Paste cuts the added frames off.",
                ),
            ],
            outputs=[io.Image.Output(display_name="crops"), CropType.Output(display_name="crop")],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        faces: Faces,
        index: int,
        refine_size: int,
        crop_factor: float,
        aspect: float,
        vae: Any = None,
    ) -> io.NodeOutput:
        faces.check(images)
        if index >= len(faces.tracks):
            raise ValueError(f"There is no track {index}: {len(faces.tracks)} faces are tracked, counted from 0.")
        size = core.crop.crop_size(refine_size, aspect, 8 if vae is None else max(8, cell_of(vae)))
        images = colours(images)
        check_finite(images)
        place, *others = (
            core.crop.windows(track, faces.height, faces.width, crop_factor, size[1] / size[0])
            for track in (faces.tracks[index], *faces.tracks[:index], *faces.tracks[index + 1 :])
        )
        crops = core.crop.crop(images, place, size, on_frame=stop_if_asked)
        if vae is not None:
            crops = held(crops, frames_taken(vae, len(crops)))
        text = f"{len(crops)} frames of {size[1]}x{size[0]} pixels"
        if len(crops) > len(place.centres):
            text += f", the last {len(crops) - len(place.centres)} held for the VAE"
        crop = Crop(place, faces, images, others, lengthened=vae is not None)
        return io.NodeOutput(handed_on(crops), crop, ui=ui_text(f"{text}."))


class FacePaste(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_FacePaste",
            display_name="Face VCD Paste",
            category=FACE_CATEGORY,
            description="Puts refined face frames back where Face VCD Crop cut them out. Outside the feathered region "
            "nothing changes.",
            search_aliases=["paste face", "uncrop", *ALIASES],
            inputs=[
                io.Image.Input("images", tooltip="The frames to paste into: those that were cropped."),
                CropType.Input("crop", tooltip="From Face VCD Crop."),
                io.Image.Input("refined", tooltip="The refined crops, as many as were cut."),
                *paste_inputs(),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Paste this region of each frame instead of a rounded box."
                ),
                *careful_paste_inputs(),
                io.Image.Input(
                    "unsampled",
                    optional=True,
                    tooltip="For 'change': the crops through VAE Encode and VAE Decode alone, so that what the VAE "
                    "loses is not pasted. Without it the refined crops are compared with the crops as they were cut.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        crop: Crop,
        refined: torch.Tensor,
        feather: float,
        paste_factor: float,
        match_colour: bool,
        mask: torch.Tensor | None = None,
        paste_by: str = PICTURE,
        feather_share: float = 0.0,
        unsampled: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        crop.faces.check(images)
        refined = colours(crop.of_windows(refined))
        pasted = core.crop.paste(
            crop.images, refined, crop.windows, feather, paste_factor, frame_masks(mask, images), match_colour,
            out=colours(images).clone(), neighbours=crop.neighbours, on_frame=stop_if_asked,
            unsampled=crop.compared(refined, paste_by, unsampled), feather_share=feather_share,
        )  # fmt: skip
        return io.NodeOutput(handed_on(with_alpha(pasted, images)))


def frame_masks(mask: torch.Tensor | None, images: torch.Tensor) -> torch.Tensor | None:
    """A MASK for each frame, of the frames' size."""
    if mask is None:
        return None
    if mask.shape[0] not in (1, len(images)) or mask.shape[1:] != images.shape[1:3]:
        raise ValueError(f"The mask is {list(mask.shape)}; expected {list(images.shape[:3])}, or one for all frames.")
    return mask.cpu().expand(len(images), -1, -1)


class FaceRefine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        more = [
            io.Conditioning.Input(
                f"positive_{i}",
                optional=True,
                tooltip=f"The prompt of face {i}, counted from left to right among all faces.",
            )
            for i in range(2, MORE_IDENTITIES + 1)
        ]
        return io.Schema(
            node_id="VCD_FaceRefine",
            display_name="Face VCD Crop-Refine-Paste",
            category=FACE_CATEGORY,
            description="Draws the faces of a clip anew, large and sharp, and like the person of the prompt: each is "
            "cut out as a video, drawn with the same model, motion and identity from correlated noise, and put back. "
            "Frames without the face stay as they are.",
            search_aliases=REFINE_ALIASES,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The frames of the clip."),
                io.Model.Input("model", tooltip="The model with its motion module; longer clips with context windows."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Conditioning.Input("positive", tooltip="The prompt with the identity; for the first face, or all."),
                io.Conditioning.Input("negative", tooltip="What to keep away from."),
                FacesType.Input(
                    "faces", optional=True, tooltip="From Face VCD Track; without it faces are found here."
                ),
                *sampling_inputs(steps=20, cfg=8.0, denoise=0.8),
                gamma_input(advanced=True),
                seed_input(),
                *window_inputs(),
                *paste_inputs(advanced=True),
                *which_inputs(core.people.CHOICES[:-1]),
                *more,
                io.Mask.Input(
                    "mask", optional=True, tooltip="Paste this region of each frame instead of a rounded box."
                ),
                none_input(),
                sound_input(),
                denoise_by_input(),
                *careful_paste_inputs(),
                *strength_inputs(),
                *pick_inputs(),
                *judge_inputs(),
                repeats_input(),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Image.Output(display_name="before and after", tooltip="Each face's frames before and after."),
                io.Int.Output(display_name="frames without a face"),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        model: Model,
        vae: Any,
        positive: Any,
        negative: Any,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        gamma: float,
        seed: int,
        refine_size: int,
        crop_factor: float,
        aspect: float,
        feather: float,
        paste_factor: float,
        match_colour: bool,
        which: Choice,
        index: int,
        positive_2: Any = None,
        positive_3: Any = None,
        positive_4: Any = None,
        faces: Faces | None = None,
        mask: torch.Tensor | None = None,
        if_none: str = PASS,
        sound: Any = None,
        denoise_by: str = STEPS,
        paste_by: str = PICTURE,
        feather_share: float = 0.0,
        redraw: str = WINDOW,
        large_face: int = 0,
        small_face: int = 32,
        denoise_large: float = 0.3,
        pick: Any = None,
        exclude: Any = None,
        pick_frame: int = 0,
        judge: str = SHOW,
        margin: float = 0.1,
        reference: torch.Tensor | None = None,
        clip_vision: Any = None,
        repeats: str = EACH,
    ) -> io.NodeOutput:
        jury = Jury(judge, margin, reference, clip_vision)
        care = Care(paste_by, redraw, small_face, large_face, denoise_large, jury, repeats)
        care.check()
        settings = Sampling(steps, cfg, sampler_name, scheduler, denoise, seed, denoise_by == NOISE)
        stage = Stage(model, vae, settings, gamma, sound)
        more = {"positive_2": positive_2, "positive_3": positive_3, "positive_4": positive_4}
        stage.check(images, positive=positive, negative=negative, **more)
        if refine_size % 8:
            raise ValueError(f"refine_size is {refine_size}; expected a multiple of 8.")
        size = core.crop.crop_size(refine_size, aspect)
        given, images = images, colours(images)
        paste = partial(
            core.crop.paste, images, feather=feather, paste_factor=paste_factor, masks=frame_masks(mask, images),
            match_colour=match_colour, on_frame=stop_if_asked, feather_share=feather_share,
        )  # fmt: skip
        faces = faces or track_faces(images, progress=Progress(len(images)))
        faces.check(images)
        prompts = [positive, *more.values()]
        among = core.pointing.chosen(faces, pick, exclude, pick_frame) if faces.tracks else []
        aspect = size[1] / size[0]
        turns = core.plan.plan(faces, which, index, crop_factor, aspect, by_person=any(prompts[1:]), among=among)
        if not turns:
            text = f"{ALL_EXCLUDED} It is passed through." if faces.tracks else no_faces(if_none)
            return io.NodeOutput(given, given, len(images), ui=ui_text(text))
        if doubt := core.plan.doubtful(faces) if any(prompts[1:]) else None:
            logging.warning("Face VCD: %s", doubt)
        done = FacePass(images, stage, size, care, paste)
        done.run(turns, prompts, negative)
        missed = Faces(faces.frames, faces.height, faces.width, [turn.track for turn in turns]).without_face()
        text = " ".join(filter(None, (done.said(turns, missed), doubt, stage.begin())))
        shown = {**pictures_below(done.most_changed(), cls), **ui_text(text)}
        return io.NodeOutput(handed_on(with_alpha(done.out, given)), handed_on(done.pairs), missed, ui=shown)


NODES: list[type[io.ComfyNode]] = [FaceTrack, FaceCrop, FacePaste, FaceRefine]
