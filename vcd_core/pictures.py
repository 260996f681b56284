"""Pictures of a subject and their masks: read from a folder, cropped and varied for training (Magic-Me, sec. 4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from .files import write_bytes

CELL = 8  # pixels of one latent cell of SD 1.5, a side
BUCKET = 64  # sides of whole pictures are multiples of this
CONTEXT = 1.5  # a crop's side over the mask's
LEAST = 96  # pixels a side to which a variant is shrunk at most: 12 latent cells, below which a face is one or two
FITS = ("crop around the mask", "whole picture")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
KINDS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF")  # whatever the ending; EPS is a program
MOST_MEGAPIXELS = 178  # of a picture; what Pillow refuses too, unless another pack has told it not to
BYTES = 16  # of a pixel and its mask, as they are read
FAR, NEAR = ("a far away ", "very small "), ("zoomed in ", "close up ")


@dataclass(frozen=True)
class Picture:
    """A prepared picture, or the frames of a clip: ``image`` [F, 3, H, W] and ``mask`` [F, H, W], both in 0..1."""

    image: torch.Tensor
    mask: torch.Tensor


def open_pictures(
    folder: str | Path, memory: float = math.inf, on_picture: Callable[[], object] = lambda: None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A folder's pictures, turned as their EXIF says: ([H, W, 3], mask [H, W]) in 0..1, the mask from the alpha
    channel.

    Hidden files are left out: macOS puts a ``._name.jpg``, which is no picture, beside each that it copies elsewhere.

    Args:
        memory: how many bytes they may take.
        on_picture: called before each is read; may raise to stop.

    Raises:
        ValueError: no picture in the folder, one that cannot be read, or more than fit into ``memory``.
    """
    files = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))
    if not files:
        raise ValueError(f"There is no picture in {Path(folder).name}; expected files {', '.join(EXTENSIONS)}.")
    needed = sum(map(_pixels, files)) * BYTES
    if needed > memory:
        raise ValueError(
            f"The {len(files)} pictures in {Path(folder).name} need {needed / 1e9:.1f} GB and {memory / 1e9:.1f} GB "
            "are free. Take fewer, or save them smaller."
        )
    found = []
    for path in files:
        on_picture()
        whole = read(path)
        found.append((whole[..., :3].contiguous(), whole[..., 3].contiguous()))
    return found


def read(path: Path) -> torch.Tensor:
    """A picture [H, W, 4] in 0..1; whatever is wrong with it is said with its name."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with _opened(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):  # 16 bits of grey, which convert would clip
                grey = np.asarray(picture)
                if grey.min() < 0 or grey.max() > 65535:
                    raise ValueError("it has 32 bits a pixel. Save it with 8.")
                picture = Image.fromarray((grey // 257).astype(np.uint8))
            if picture.mode == "F":
                raise ValueError("its pixels are decimal numbers. Save it with 8 bits a pixel.")
            return torch.from_numpy(np.asarray(picture.convert("RGBA")).astype(np.float32) / 255)
    except Exception as error:  # Pillow raises what its decoders do
        bomb = isinstance(error, Image.DecompressionBombError)
        why = _TOO_LARGE if bomb else str(error) or type(error).__name__
        raise ValueError(f"{path.name} cannot be read as a picture: {why}") from error


_TOO_LARGE = f"it has more than {MOST_MEGAPIXELS} megapixels. Save it smaller."


def _opened(path: Path) -> Any:
    """A picture file with its size known and nothing decoded yet; too large a one is refused."""
    from PIL import Image

    if not path.is_file():
        raise ValueError("it is no file.")
    Image.init()
    picture = Image.open(path, formats=[kind for kind in KINDS if kind in Image.OPEN])
    if picture.width * picture.height > MOST_MEGAPIXELS * 1_000_000:
        picture.close()
        raise ValueError(_TOO_LARGE)
    return picture


def _pixels(path: Path) -> int:
    """How many pixels a picture file says that it has; what is wrong with it is said when it is read."""
    try:
        with _opened(path) as picture:
            return int(picture.width * picture.height)
    except Exception:  # Pillow raises what its decoders do
        return 0


MADE_BY = "video custom diffusion"


def beside(file: Path) -> Path:
    """Where the picture of a model file lies, as the model library of ComfyUI shows it: a PNG of the file's name."""
    return file.with_suffix(".png")


def save_beside(file: Path, image: torch.Tensor | None) -> None:
    """Write IMAGE [H, W, 3] beside a model file as its picture, whole or not at all.

    A picture that something else put there stays. One of ours goes where there is no image: it is of an older file.
    """
    import io

    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    path = beside(file)
    if path.exists() and not _ours(path):
        return
    if image is None:
        path.unlink(missing_ok=True)
        return
    about, written = PngInfo(), io.BytesIO()
    about.add_text("Software", MADE_BY)
    Image.fromarray((image.clamp(0, 1) * 255).round().byte().cpu().numpy()).save(written, "PNG", pnginfo=about)
    write_bytes(path, written.getvalue())


def _ours(path: Path) -> bool:
    try:
        with _opened(path) as picture:
            return bool(picture.info.get("Software") == MADE_BY)
    except Exception:  # Pillow raises what its decoders do
        return False


def prepare(
    images: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor] | None,
    size: int = 512,
    fit: str = FITS[0],
    cell: int = CELL,
) -> list[Picture]:
    """Crop and resize pictures for training, all frames of a clip alike.

    Args:
        images: each [H, W, 3], or [H, W, 4] whose alpha is the mask, in 0..1; clips [F, H, W, 3 or 4].
        masks: each [H, W] or [F, H, W], one for every picture; None: the alpha channel, or the whole picture. Frames
            of a clip may have a black one.
        size: the side of the prepared pictures in pixels, a multiple of ``CELL``.
        fit: one of ``FITS``: a square around the mask, or the whole picture at about its own aspect.
        cell: pixels of a latent cell of the model, a side.

    Raises:
        ValueError: no pictures, counts or sizes that differ, NaN, a mask that is black or under one latent cell.

    Example:
        >>> picture, mask = torch.rand(90, 60, 3), torch.zeros(90, 60)
        >>> mask[30:60, 10:40] = 1
        >>> prepare([picture], [mask], size=64)[0].image.shape
        torch.Size([1, 3, 64, 64])
    """
    if not len(images):
        raise ValueError("There is no picture to train on. Three to ten of the same subject are a good number.")
    if masks is not None and len(masks) != len(images):
        raise ValueError(f"There are {len(images)} pictures and {len(masks)} masks; expected a mask for every picture.")
    prepared = []
    for number, image in enumerate(images):
        alpha = image[..., 3] if image.shape[-1] == 4 else torch.ones(image.shape[:-1])
        mask = alpha if masks is None else masks[number]
        _check(image, mask, number)
        frames, areas = (part[None] if image.ndim == 3 else part for part in (image[..., :3], mask))
        picture = _fit(frames.movedim(-1, 1).float().clamp(0, 1), areas.float().clamp(0, 1), size, fit)
        if cells(picture.mask, cell).sum((1, 2)).max() < 1:
            raise ValueError(
                f"The mask of picture {number} covers less than one latent cell ({cell}x{cell} pixels of the "
                f"{picture.mask.shape[2]}x{picture.mask.shape[1]} training picture). Use a larger mask, "
                f"a larger size, or fit '{FITS[0]}'."
            )
        prepared.append(picture)
    return prepared


def _check(image: torch.Tensor, mask: torch.Tensor, number: int) -> None:
    if not torch.isfinite(image).all():
        raise ValueError(f"Picture {number} holds NaN or infinite values.")
    if mask.shape != image.shape[:-1]:
        raise ValueError(
            f"The mask of picture {number} is {mask.shape[-1]}x{mask.shape[-2]} and the picture "
            f"{image.shape[-2]}x{image.shape[-3]}; expected the same size."
        )
    if not torch.isfinite(mask).all() or mask.max() < 0.5:
        raise ValueError(
            f"The mask of picture {number} is black: nothing would be learned from it. Leave the picture out, or mask "
            "the subject in white."
        )


def _fit(image: torch.Tensor, mask: torch.Tensor, size: int, fit: str) -> Picture:
    height, width = mask.shape[1:]
    rows, columns = torch.nonzero(mask.amax(0) >= 0.5, as_tuple=True)
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    if fit == FITS[0]:
        needed = max(bottom - top, right - left)
        high = wide = max(needed, min(height, width, math.ceil(CONTEXT * needed)))
        across, down = max(0, wide - width), max(0, high - height)
        if across or down:  # a tall subject in a narrow picture gets grey at its sides
            sides = (across // 2, across - across // 2, down // 2, down - down // 2)
            image, mask = F.pad(image, sides, value=0.5), F.pad(mask, sides)
            (height, width), left, right = mask.shape[1:], left + sides[0], right + sides[0]
            top, bottom = top + sides[2], bottom + sides[2]
        wanted = (size, size)
    else:
        wanted = bucket(height, width, size)
        scale = min(height / wanted[0], width / wanted[1])
        high, wide = min(height, round(wanted[0] * scale)), min(width, round(wanted[1] * scale))
    y = min(max(0, (top + bottom - high) // 2), height - high)
    x = min(max(0, (left + right - wide) // 2), width - wide)
    part = torch.cat([image, mask[:, None]], 1)[..., y : y + high, x : x + wide]
    return Picture(_resize(part[:, :3], wanted), _resize(part[:, 3:], wanted)[:, 0])


def bucket(height: int, width: int, size: int) -> tuple[int, int]:
    """The sides nearest to a picture's aspect, multiples of 64, with about ``size`` squared pixels.

    Example:
        >>> bucket(1000, 1500, 512)
        (448, 640)
    """
    aspect = math.sqrt(height / width)
    tall, wide = (max(BUCKET, round(size * side / BUCKET) * BUCKET) for side in (aspect, 1 / aspect))
    return tall, wide


def _resize(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(frames, size, mode="bilinear", antialias=True)


def cells(mask: torch.Tensor, cell: int = CELL) -> torch.Tensor:
    """How much of each latent cell a mask [F, H, W] covers, [F, H/cell, W/cell]."""
    return F.avg_pool2d(mask, cell)


def augment(picture: Picture, generator: torch.Generator) -> tuple[Picture, str]:
    """A random variant of a picture, and what its caption begins with (PAPER: flip, small rotation, scale captions).

    All frames of a clip are changed alike.

    Half of the variants are flipped, three of ten are turned by about 10 degrees. Two of three are shrunk, to no less
    than a third (small pictures: ``LEAST`` pixels), and placed anywhere; the others are enlarged 1.2 to 1.4 times. What
    the picture does not reach is grey and not in the mask.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    layers = torch.cat([picture.image - 0.5, picture.mask[:, None]], 1)
    height, width = picture.mask.shape[1:]
    if uniform(0, 1) < 0.5:
        layers = layers.flip(-1)
    if uniform(0, 1) < 0.3:
        layers = _turn(layers, 10 * float(torch.randn((), generator=generator)))
    smallest = min(1.0, max(1 / 3, LEAST / min(height, width)))
    scale = uniform(smallest, 1) if uniform(0, 1) < 2 / 3 else uniform(1.2, 1.4)
    size = (max(CELL, round(height * scale)), max(CELL, round(width * scale)))
    layers = _resize(layers, size)
    down, across = (round(uniform(min(0, room), max(0, room))) for room in (height - size[0], width - size[1]))
    layers = F.pad(layers, (across, width - size[1] - across, down, height - size[0] - down))
    words = FAR if scale < 0.6 else NEAR if scale > 1 else ("",)
    changed = Picture((layers[:, :3] + 0.5).clamp(0, 1), layers[:, 3].clamp(0, 1))
    if cells(changed.mask).sum((1, 2)).max() < 1:  # the subject was cut off or shrank away
        return picture, ""
    return changed, words[int(uniform(0, len(words) - 1e-6))]


def _turn(layers: torch.Tensor, degrees: float) -> torch.Tensor:
    """Turned about the centre [F, C, H, W]; zeros come in at the corners."""
    height, width = layers.shape[-2:]
    angle = math.radians(degrees)
    c, s, aspect = math.cos(angle), math.sin(angle), height / width
    matrix = torch.tensor([[c, -s * aspect, 0.0], [s / aspect, c, 0.0]])
    grid = F.affine_grid(matrix.expand(len(layers), 2, 3), [len(layers), 1, height, width], align_corners=False)
    return F.grid_sample(layers, grid, align_corners=False)
