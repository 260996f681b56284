"""Prompt to segmentation (Magic-Me, sec. 4.2): a class prompt becomes boxes, boxes become masks, behind one interface.

A *detector* turns a picture and a prompt into boxes, a *segmenter* turns a picture and boxes into masks. Which files
are given decides which library runs them, so nothing is chosen silently:

===========================================  =======================================================
a folder with ``config.json`` (transformers)  Grounding DINO, SAM; from local files only, never a download
``sam_vit_*.pth``                             the original segment-anything
``groundingdino_swint_ogc.pth``               the original groundingdino-py, with transformers below 5 only
===========================================  =======================================================
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from . import files
from .parts import BackEndMissing, check, installed, part
from .words import shown

Choice = Literal["all", "best", "largest", "by index"]
CHOICES: tuple[Choice, ...] = ("all", "best", "largest", "by index")
IfNone = Literal["stop with an error", "empty mask", "full mask"]
IF_NONE: tuple[IfNone, ...] = ("stop with an error", "empty mask", "full mask")


@dataclass
class Found:
    """What was found in one picture, best first."""

    boxes: torch.Tensor  # [n, 4] left, top, right, bottom in pixels
    scores: torch.Tensor  # [n] 0..1
    labels: list[str]
    masks: torch.Tensor | None = None  # [n, H, W] bool

    def take(self, chosen: Sequence[int]) -> Found:
        index = torch.as_tensor(chosen, dtype=torch.long)
        masks = None if self.masks is None else self.masks[index]
        return Found(self.boxes[index], self.scores[index], [self.labels[i] for i in chosen], masks)


Detector = Callable[[Image.Image, str, float, float], Found]  # picture, prompt, box threshold, text threshold
Segmenter = Callable[[Image.Image, torch.Tensor], torch.Tensor]  # picture, boxes [n, 4] -> masks [n, H, W] bool


def segment(
    images: torch.Tensor,
    prompt: str,
    detector: Detector,
    segmenter: Segmenter,
    threshold: float = 0.3,
    text_threshold: float = 0.25,
    which: Choice = "all",
    index: int = 0,
    on_picture: Callable[[], None] = lambda: None,
    united: bool = False,
) -> list[Found]:
    """Boxes, scores, labels and masks of what the prompt names, in each picture.

    Args:
        images: IMAGE [F, H, W, C] in 0..1; grey and RGBA pictures are taken as RGB.
        prompt: what to find; several things are separated by dots, "a man . his dog".
        threshold: the least score of a box. text_threshold: the least score of a word for a label.
        which: all detections, the one with the best score, the largest, or one by its index (0 is the best).
        on_picture: called after each picture.
        united: keep one mask for each picture, the union, in place of one for each detection (for long clips).

    Raises:
        ValueError: an empty prompt.

    Example:
        >>> whole = lambda picture, prompt, a, b: Found(torch.tensor([[0.0, 0.0, 4.0, 3.0]]), torch.ones(1), [prompt])
        >>> fill = lambda picture, boxes: torch.ones(len(boxes), picture.height, picture.width, dtype=torch.bool)
        >>> segment(torch.zeros(1, 3, 4, 3), "a man", whole, fill)[0].masks.shape
        torch.Size([1, 3, 4])
    """
    prompt = clean_prompt(prompt)
    found = []
    for image in images:
        picture = to_picture(image)
        here = choose(detector(picture, prompt, threshold, text_threshold), which, index)
        if len(here.boxes):
            masks = segmenter(picture, here.boxes)
            here.masks = masks.any(0, keepdim=True) if united else masks
        else:
            here.masks = torch.zeros(0, picture.height, picture.width, dtype=torch.bool)
        found.append(here)
        on_picture()
    return found


def clean_prompt(prompt: str) -> str:
    """The prompt as Grounding DINO was trained on: lower case, things separated by dots, a dot at the end.

    Example:
        >>> clean_prompt("A man .his Dog ")
        'a man. his dog.'
    """
    parts = [part.strip().lower() for part in prompt.split(".") if part.strip()]
    if not parts:
        raise ValueError('The prompt is empty. Name what to find, for example "a man" or "a man . his dog".')
    return ". ".join(parts) + "."


def to_picture(image: torch.Tensor) -> Image.Image:
    """One frame [H, W, C] as an RGB picture; grey is repeated, alpha left out."""
    image = image.expand(-1, -1, 3) if image.shape[-1] == 1 else image[..., :3]
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def choose(found: Found, which: Choice, index: int = 0) -> Found:
    """The detections that are wanted, best first; by an index that is not there, none."""
    order = found.scores.argsort(descending=True).tolist()
    if which == "best":
        order = order[:1]
    elif which == "largest" and order:
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        order = [int(sides.prod(1).argmax())]
    elif which == "by index":
        order = order[index : index + 1]
    return found.take(order)


def masks_of(
    found: Sequence[Found],
    size: tuple[int, int],
    if_none: IfNone = "stop with an error",
    dilate: int = 0,
    fill_holes: bool = False,
    on_picture: Callable[[], object] = lambda: None,
) -> torch.Tensor:
    """One MASK [F, H, W] for each picture: the union of its detections.

    Args:
        size: height and width of the pictures.
        if_none: what to do where nothing was found.
        dilate: grow (or, negative, shrink) masks by this many pixels.
        fill_holes: fill what a mask encloses.
        on_picture: called before each picture; may raise to stop.

    Raises:
        ValueError: nothing was found in some pictures, and ``if_none`` says to stop; it names them.
    """
    check_found(found, if_none)
    out = torch.zeros(len(found), *size)
    for i, here in enumerate(found):
        on_picture()
        if not len(here.boxes):
            out[i] = 1.0 if if_none == "full mask" else 0.0
            continue
        assert here.masks is not None
        out[i] = _adjust(here.masks.any(0), dilate, fill_holes)
    return out


def check_found(found: Sequence[Found], if_none: IfNone) -> None:
    """Raise ValueError where nothing was found in some pictures and ``if_none`` says to stop; it names them."""
    empty = [i for i, here in enumerate(found) if not len(here.boxes)]
    if empty and if_none == "stop with an error":
        raise ValueError(
            f"Nothing was found in {len(empty)} of {len(found)} pictures (number "
            f"{', '.join(map(str, empty[:10]))}{', ...' if len(empty) > 10 else ''}, counted from 0). Lower the "
            "threshold, change the prompt, or choose an empty or a full mask for them."
        )


def _adjust(mask: torch.Tensor, dilate: int, fill_holes: bool) -> torch.Tensor:
    if fill_holes:
        from scipy.ndimage import binary_fill_holes

        mask = torch.from_numpy(binary_fill_holes(mask.cpu().numpy()))
    values = mask.float()[None, None]
    if dilate:
        side, edge = 2 * abs(dilate) + 1, abs(dilate)
        values = values if dilate > 0 else 1 - values
        values = torch.nn.functional.max_pool2d(values, (side, 1), 1, (edge, 0))  # a square is two lines
        values = torch.nn.functional.max_pool2d(values, (1, side), 1, (0, edge))
        values = values if dilate > 0 else 1 - values
    return values[0, 0]


def boxes_of(found: Sequence[Found]) -> list[list[dict[str, float | str]]]:
    """ComfyUI's BOUNDING_BOX: for each picture a list of x, y, width, height, label and score."""
    frames = []
    for here in found:
        rows = zip(here.boxes.tolist(), here.scores.tolist(), here.labels, strict=True)
        frames.append(
            [
                {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "label": label, "score": score}
                for (x0, y0, x1, y1), score, label in rows
            ]
        )
    return frames


def load_detector(path: Path, device: torch.device | str = "cpu", bert: Path | None = None) -> Detector:
    """A Grounding DINO from a transformers folder or an original ``.pth`` (needs ``bert``, a tokenizer's folder)."""
    return _original_detector(path, device, bert) if path.is_file() else _transformers_detector(path, device)


def load_segmenter(path: Path, device: torch.device | str = "cpu") -> Segmenter:
    """A SAM from a transformers folder or the original ``sam_vit_*.pth`` file."""
    return _original_segmenter(path, device) if path.is_file() else _transformers_segmenter(path, device)


def _check_folder(folder: Path, kinds: tuple[str, ...], what: str) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise BackEndMissing(f"{config} is not there. Put a {what} model of the transformers library into {folder}.")
    import json

    try:
        files.check_model(config)
        found = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BackEndMissing(f"{config} is no description of a model, download it again: {error}") from error
    if found not in kinds:
        raise BackEndMissing(f"{folder} holds a {shown(found) if found else 'model of unknown kind'}, expected {what}.")
    for weights in chain(folder.rglob("*.safetensors"), folder.rglob("*.bin")):
        try:
            files.check_model(weights)  # a clone without Git LFS holds pointers
        except ValueError as error:
            raise BackEndMissing(f"{folder}: {error}") from error


def _from(folder: Path, library_class: Any, **more: Any) -> Any:
    """An object of the transformers library from a folder: nothing is downloaded, and no code in it is run."""
    try:
        return library_class.from_pretrained(folder, local_files_only=True, **more)
    except Exception as error:
        raise BackEndMissing(f"{folder} cannot be read: {files.told(error)}") from error


def _image_processor(kind: str) -> Any:
    """The library's image processor that works without torchvision: named so in 5.x, the plain one before."""
    import transformers

    name = f"{kind}ImageProcessorPil" if hasattr(transformers, f"{kind}ImageProcessorPil") else f"{kind}ImageProcessor"
    return getattr(transformers, name)


def _transformers_detector(folder: Path, device: torch.device | str) -> Detector:
    _need("transformers", "4.50", "the detector")
    from transformers import AutoTokenizer, GroundingDinoForObjectDetection, GroundingDinoProcessor

    _check_folder(folder, ("grounding-dino",), "Grounding DINO")
    pictures = _from(folder, _image_processor("GroundingDino"))
    words = _from(folder, AutoTokenizer, trust_remote_code=False)
    processor = GroundingDinoProcessor(pictures, words)
    model = _from(folder, GroundingDinoForObjectDetection).eval().to(device)
    finish = processor.post_process_grounded_object_detection
    box_name = "threshold" if "threshold" in inspect.signature(finish).parameters else "box_threshold"  # before 4.55

    def detect(picture: Image.Image, prompt: str, threshold: float, text_threshold: float) -> Found:
        inputs = processor(images=picture, text=prompt, return_tensors="pt").to(device)
        with torch.inference_mode():
            outputs = model(**inputs)
        size = [(picture.height, picture.width)]
        options: dict[str, Any] = {box_name: threshold, "text_threshold": text_threshold, "target_sizes": size}
        result = finish(outputs, inputs["input_ids"], **options)[0]
        labels = [str(label) for label in result["text_labels" if "text_labels" in result else "labels"]]
        return Found(_inside(result["boxes"].cpu().float(), picture), result["scores"].cpu().float(), labels)

    return detect


def _transformers_segmenter(folder: Path, device: torch.device | str) -> Segmenter:
    _need("transformers", "4.50", "the segmenter")
    from transformers import SamModel, SamProcessor

    _check_folder(folder, ("sam",), "SAM")
    processor = SamProcessor(_from(folder, _image_processor("Sam")))
    model = _from(folder, SamModel).eval().to(device)

    def cut(picture: Image.Image, boxes: torch.Tensor) -> torch.Tensor:
        inputs = processor(images=picture, input_boxes=[boxes.tolist()], return_tensors="pt")
        sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
        inputs["input_boxes"] = inputs["input_boxes"].float()  # not every device has doubles
        inputs = inputs.to(device)
        with torch.inference_mode():
            outputs = model(**inputs, multimask_output=False)
        masks = processor.image_processor.post_process_masks(outputs.pred_masks.cpu(), *(s.cpu() for s in sizes))
        return masks[0][:, 0].bool()

    return cut


def _original_segmenter(path: Path, device: torch.device | str) -> Segmenter:
    library = part("segment_anything", f"an original SAM checkpoint ({path.name})", "use a transformers folder of SAM")
    try:
        state: Any = files.read(path, "a SAM checkpoint")[0]
        width = state["image_encoder.pos_embed"].shape[-1]
        kind = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}[width]
    except Exception as error:
        raise BackEndMissing(f"{path.name} is no SAM checkpoint (sam_vit_b, _l or _h): {str(error)[:200]}") from error
    model = library.sam_model_registry[kind](checkpoint=None)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise BackEndMissing(
            f"{path.name} is no original SAM checkpoint; SAM-HQ and MobileSAM are not read. {str(error)[:100]}"
        ) from error
    return _predictor_segmenter(library.SamPredictor(model.eval().to(device)), device)


def _predictor_segmenter(predictor: Any, device: torch.device | str) -> Segmenter:
    """A segmenter around segment-anything's SamPredictor."""

    def cut(picture: Image.Image, boxes: torch.Tensor) -> torch.Tensor:
        size = (picture.height, picture.width)
        with torch.inference_mode():
            predictor.set_image(np.array(picture))
            scaled = predictor.transform.apply_boxes_torch(boxes.to(device), size)
            masks, _, _ = predictor.predict_torch(None, None, scaled, multimask_output=False)
        return masks[:, 0].cpu().bool()

    return cut


def _original_detector(path: Path, device: torch.device | str, bert: Path | None) -> Detector:
    check_groundingdino()
    if bert is None or not (bert / "config.json").is_file():
        folder = bert or Path("models/grounding-dino/bert-base-uncased")
        raise BackEndMissing(
            f"{path.name} needs BERT's tokenizer and configuration in {folder} (config.json, vocab.txt, "
            "tokenizer_config.json); nothing is downloaded while ComfyUI runs."
        )
    part("groundingdino.util.inference", *_ORIGINAL)
    import groundingdino
    import groundingdino.datasets.transforms as steps
    from groundingdino.models import build_model
    from groundingdino.util.inference import predict
    from groundingdino.util.misc import clean_state_dict
    from groundingdino.util.slconfig import SLConfig

    name = "GroundingDINO_SwinB_cfg.py" if "swinb" in path.name.lower() else "GroundingDINO_SwinT_OGC.py"
    settings = SLConfig.fromfile(str(Path(groundingdino.__file__).parent / "config" / name))
    settings.device, settings.text_encoder_type = str(device), str(bert)
    try:
        content: Any = files.read(path, "a Grounding DINO checkpoint")[0]
        state = content["model"]
    except Exception as error:
        raise BackEndMissing(f"{path.name} is no Grounding DINO checkpoint: {str(error)[:200]}") from error
    with _bert_without_weights():
        model = build_model(settings)
    missing = model.load_state_dict(clean_state_dict(state), strict=False).missing_keys
    if len(missing) > 8:  # some files leave out a position table or a pooling layer
        raise BackEndMissing(
            f"{path.name} is no Grounding DINO checkpoint: {len(missing)} tensors are missing, first {missing[0]}."
        )
    model.eval()
    prepare = steps.Compose(
        [
            steps.RandomResize([800], max_size=1333),
            steps.ToTensor(),
            steps.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )

    def detect(picture: Image.Image, prompt: str, threshold: float, text_threshold: float) -> Found:
        tensor, _ = prepare(picture, None)
        boxes, scores, labels = predict(model, tensor, prompt, threshold, text_threshold, str(device))
        half = boxes[:, 2:] / 2
        corners = torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], 1)
        scale = torch.tensor([picture.width, picture.height] * 2, dtype=corners.dtype)
        return Found(_inside(corners * scale, picture), scores, list(labels))

    return detect


@contextmanager
def _bert_without_weights() -> Iterator[None]:
    """Let groundingdino-py make its BERT from the configuration alone: the checkpoint holds BERT's weights already."""
    from groundingdino.util import get_tokenlizer
    from transformers import BertConfig, BertModel

    original = get_tokenlizer.get_pretrained_language_model
    get_tokenlizer.get_pretrained_language_model = lambda folder: BertModel(
        BertConfig.from_pretrained(folder, local_files_only=True)
    )
    try:
        yield
    finally:
        get_tokenlizer.get_pretrained_language_model = original


_ORIGINAL = (
    "original checkpoints of Grounding DINO",
    "use a transformers folder of Grounding DINO, which works with every version",
)


def check_groundingdino() -> None:
    """Raise ``BackEndMissing`` unless groundingdino-py can run here, saying what to install or to use instead."""
    check("groundingdino", *_ORIGINAL)
    version = importlib.metadata.version("transformers")
    if int(version.split(".")[0]) >= 5:
        raise BackEndMissing(
            f"groundingdino-py works with transformers below 5; {version} is installed. "
            f'Install "transformers<5", or {_ORIGINAL[1]}.'
        )


def _need(library: str, version: str, what: str) -> None:
    found = importlib.metadata.version(library) if installed(library) else "0"
    number = [int(part) for part in found.split(".")[:2] if part.isdigit()]
    if number < [int(part) for part in version.split(".")]:
        state = "it is not installed" if found == "0" else f"{found} is installed"
        raise BackEndMissing(f'{what} needs {library} {version} or newer ({state}): pip install "{library}>={version}"')


def _inside(boxes: torch.Tensor, picture: Image.Image) -> torch.Tensor:
    limit = torch.tensor([picture.width, picture.height] * 2, dtype=boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)
