"""Face recognition networks of the user's: SFace or ArcFace-type ONNX files, and CurricularFace-type torch weights.

What is reported with them: FaceSim-Arc and FaceSim-Cur of ConsisID (arXiv 2411.17440) and FaceSim of OpenS2V-Eval
(arXiv 2505.20292) are the mean cosine of a clip's faces to the reference's, each turned upright first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import files
from .face import detect
from .face.detect import Face
from .face.track import Track
from .parts import part
from .words import shown

ALIGNED = 112  # pixels a side of the upright face that these networks take
# where they expect right eye, left eye, nose, right and left corner of the mouth, as ArcFace (arXiv 1801.07698) does
LANDMARKS = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
_WEAK = 0.4  # the least score of a face that was tracked
_SAME = 0.3  # the least intersection over union of it and its track's smoothed box
_USE = "face likeness"
_FIRST = 8  # layers among which a network that scales its input does so
OnFrame = Callable[[], object]


@dataclass(frozen=True)
class Recogniser:
    """A network that tells faces apart.

    Attributes:
        name: the file's, and what kind of network it is.
        embed: an upright face [112, 112, 3] uint8, RGB, to its embedding [d].
    """

    name: str
    embed: Callable[[np.ndarray], torch.Tensor]

    def of_face(self, image: torch.Tensor, face: Face) -> torch.Tensor:
        """The embedding [d] of a face that was detected in IMAGE [H, W, 3]."""
        return self.embed(upright(image, face))

    def largest(
        self, images: torch.Tensor, threshold: float = 0.6, on_frame: OnFrame = lambda: None
    ) -> tuple[torch.Tensor, list[int]]:
        """The embedding [n, d] of the largest face of each of IMAGE [N, H, W, 3], and which n pictures have one."""
        found, which = [], []
        for number, image in enumerate(images[..., :3]):
            on_frame()
            (faces,) = detect.detect(image[None], threshold)
            if faces:
                found.append(self.of_face(image, max(faces, key=lambda face: face.box[2] * face.box[3])))
                which.append(number)
        return torch.stack(found) if found else torch.empty(0, 1), which

    def of_track(
        self, images: torch.Tensor, track: Track, count: int = 8, on_frame: OnFrame = lambda: None
    ) -> torch.Tensor:
        """The embeddings [n, d] of a tracked face in IMAGE [F, H, W, 3], from ``count`` of the frames in which it is
        seen; fewer where it cannot be told there."""
        seen = np.flatnonzero(track.seen & ~track.hidden)
        found = []
        for i in seen[np.linspace(0, len(seen) - 1, min(count, len(seen))).round().astype(int)]:
            on_frame()
            image, place = images[track.start + int(i), ..., :3], tuple(track.boxes[i])
            (faces,) = detect.detect(image[None], _WEAK)
            best = max(faces, key=lambda face: detect.iou(face.box, place), default=None)
            if best is not None and detect.iou(best.box, place) > _SAME:
                found.append(self.of_face(image, best))
        return torch.stack(found) if found else torch.empty(0, 1)


def load(path: str | Path) -> Recogniser:
    """The network of a file: ONNX as OpenCV reads it, or torch weights (.pth, .pt, .safetensors).

    Raises:
        ValueError: the file cannot be read, or it is something else.
        BackEndMissing: OpenCV, which turns faces upright, is not installed.
    """
    path = Path(path)
    part("cv2", _USE)
    files.check_model(path)
    return _of_onnx(path) if path.suffix.lower() == ".onnx" else _of_weights(path)


def upright(image: torch.Tensor, face: Face) -> np.ndarray:
    """A face [112, 112, 3] uint8 of IMAGE [H, W, 3], its eyes, nose and mouth where the networks expect them."""
    cv2 = part("cv2", _USE)
    picture = (image[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()
    return cv2.warpAffine(picture, _to_places(np.asarray(face.landmarks)), (ALIGNED, ALIGNED))


def _of_onnx(path: Path) -> Recogniser:
    """Networks that begin by scaling their input (SFace, MXNet's ArcFace) take 0..255, others -1..1, as InsightFace
    tells them apart."""
    cv2 = part("cv2", _USE)
    try:  # from memory, as OpenCV opens no path with other than ASCII letters on Windows
        net = cv2.dnn.readNetFromONNX(np.frombuffer(path.read_bytes(), np.uint8))
    except (cv2.error, OSError) as error:
        why = files.why_unread(path, error)
        reader = f"OpenCV {cv2.__version__}"  # before 4.11 it reads no weights that are quantised block by block
        raise ValueError(
            f"{path.name} is no face embedding model that {reader} reads (SFace, ArcFace): {why}"
        ) from error
    begins = [name.lower() for name in net.getLayerNames()[:_FIRST]]
    scales_itself = any("sub" in name or "minus" in name for name in begins) and any("mul" in name for name in begins)

    def embed(face: np.ndarray) -> torch.Tensor:
        values = cv2.dnn.blobFromImage(face) if scales_itself else _to_unit(face)[None].numpy()
        try:
            try:
                net.setInput(values)
            except cv2.error:  # the network counts its weights as inputs too, as MXNet's do
                net.setInput(values, "data")
            return torch.from_numpy(np.array(net.forward())).flatten()
        except cv2.error as error:
            raise ValueError(
                f"{path.name} is no face embedding model: it does not take one face of {ALIGNED}x{ALIGNED} pixels."
            ) from error

    return Recogniser(f"{path.name} ({'scales its input' if scales_itself else 'ArcFace type'})", embed)


def _of_weights(path: Path) -> Recogniser:
    state, _ = files.read(path, "the weights of a face embedding model")
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or "input_layer.0.weight" not in state:
        raise ValueError(
            f"{path.name} holds no face embedding model that this pack knows; expected CurricularFace's or ArcFace's "
            "IR backbone (input_layer, body, output_layer), or an .onnx file."
        )
    net = Backbone.of(state, path.name)

    def embed(face: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            return net(_to_unit(face)[None])[0]

    return Recogniser(f"{path.name} (IR-{net.depth}, CurricularFace type)", embed)


def _to_unit(face: np.ndarray) -> torch.Tensor:
    """[112, 112, 3] 0..255 to [3, 112, 112] -1..1."""
    return (torch.from_numpy(face.copy()).movedim(-1, 0).float() - 127.5) / 127.5


class _Unit(nn.Module):
    """An improved residual unit (ArcFace, sec. 3.2.2): normalised, convolved twice, normalised again."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(into), nn.Conv2d(into, out, 3, padding=1, bias=False), nn.PReLU(out),
            nn.Conv2d(out, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if into != out:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class Backbone(nn.Module):
    """An IR network, faces [N, 3, 112, 112] in -1..1 to embeddings [N, d]; the names are those of its files.

    Args:
        widths: the channels that each unit gives.
        size: of the embedding, d.
    """

    def __init__(self, widths: list[int], size: int) -> None:
        super().__init__()
        self.depth = 2 * len(widths) + 2  # its layers with weights, by which these networks are named
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        strides = [2, *(2 if out > into else 1 for into, out in itertools.pairwise(widths))]
        ends = zip([64, *widths], widths, strides, strict=False)
        self.body = nn.Sequential(*(_Unit(into, out, stride) for into, out, stride in ends))
        side = ALIGNED // 2 ** strides.count(2)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(widths[-1]), nn.Identity(), nn.Flatten(), nn.Linear(widths[-1] * side * side, size),
            nn.BatchNorm1d(size, affine=False),
        )  # fmt: skip

    @classmethod
    def of(cls, state: dict[str, torch.Tensor], name: str) -> Backbone:
        """The network of a file's weights, for inference.

        Raises:
            ValueError: weights of another network.
        """
        try:
            count = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("body."))
            widths = [len(state[f"body.{i}.res_layer.1.weight"]) for i in range(count)]
            with torch.device("meta"):  # the file's own tensors are all that takes memory
                net = cls(widths, len(state["output_layer.3.weight"]))
                if "output_layer.4.weight" in state:
                    net.output_layer[4] = nn.BatchNorm1d(len(state["output_layer.4.weight"]))
            net.load_state_dict(state, assign=True)
        except (KeyError, ValueError, IndexError, RuntimeError, TypeError) as error:
            raise ValueError(f"{name} holds another network than an IR backbone: {shown(error)}") from error
        return net.float().eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output_layer(self.body(self.input_layer(x)))


def within(embeddings: torch.Tensor) -> torch.Tensor:
    """How alike a clip's faces are: for each of the embeddings [n, d] the mean cosine to the others, [n].

    Example:
        >>> within(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])).tolist()
        [0.5, 0.5, 0.0]
    """
    unit = F.normalize(embeddings.float(), dim=-1)
    if len(unit) < 2:
        return torch.empty(0)
    return ((unit @ unit.T).sum(1) - 1) / (len(unit) - 1)


def matrix(people: list[torch.Tensor], references: list[torch.Tensor]) -> torch.Tensor:
    """How like each person of a clip is to each of the reference people: the mean cosine over all pairs of embeddings
    [n, d] and [m, d]; NaN where there are none. [people, references]

    Example:
        >>> matrix([torch.eye(2)[:1], torch.eye(2)[1:]], [torch.eye(2)[:1], torch.eye(2)[1:]]).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    likeness = torch.full((len(people), len(references)), float("nan"))
    for i, one in enumerate(people):
        for j, other in enumerate(references):
            if len(one) and len(other):
                likeness[i, j] = (F.normalize(one.float(), dim=-1) @ F.normalize(other.float(), dim=-1).T).mean()
    return likeness


def swaps(likeness: torch.Tensor) -> list[tuple[int, int]]:
    """Who looks more like another's reference than like their own: (person, whose) of a matrix whose diagonal is meant
    to be high.

    Example:
        >>> swaps(torch.tensor([[0.2, 0.7], [0.1, 0.8]]))
        [(0, 1)]
    """
    found = []
    for person, row in enumerate(likeness[: likeness.shape[1]]):
        best = int(row.nan_to_num(nan=-2.0).argmax()) if len(row) else person
        if best != person and row[best].isfinite():
            found.append((person, best))
    return found


def _to_places(landmarks: np.ndarray) -> np.ndarray:
    """The turn, scale and shift [2, 3] that bring five landmarks [5, 2] nearest to where the networks expect them."""
    found, wanted = (points @ (1, 1j) for points in (landmarks.reshape(5, 2), np.array(LANDMARKS)))
    centred = found - found.mean()
    factor = np.vdot(centred, wanted) / np.vdot(centred, centred).real  # least squares over the complex numbers
    shift = wanted.mean() - factor * found.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])
