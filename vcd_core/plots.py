"""Pictures of what the pack computes, as image tensors ``[1, H, W, 3]`` in 0..1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .evaluate import Figure, as_number
from .fonts import font_for, stand_ins
from .summary import Interval

PAPER = (250, 250, 248)
INK = (40, 44, 52)
GREY = (120, 124, 132)

# dark blue - teal - pale yellow, rising in lightness so that it reads in grey too
_STOPS = (
    (0.0, (13, 20, 54)),
    (0.25, (38, 70, 120)),
    (0.5, (32, 128, 141)),
    (0.75, (120, 190, 120)),
    (1.0, (250, 236, 160)),
)


def noise_prior_figure(
    sigma: torch.Tensor,
    measured: torch.Tensor,
    noise: torch.Tensor,
    label: str,
    names: Sequence[str] = (),
    width: int = 960,
) -> torch.Tensor:
    """Sigma as a heat map beside the measured covariance of a draw, above a strip of the draw's frames.

    Args:
        sigma: [F, F], the covariance asked for.
        measured: [F, F], the covariance of ``noise``.
        noise: [F, C, h, w], the draw.
        label: what to write above, e.g. "gamma 0.1, 16 frames".
        names: what the F frames are called, to be written below them.

    Returns:
        IMAGE [1, H, width, 3].
    """
    margin, gap = 28, 40
    side = (width - 2 * margin - gap) // 2
    strip = _strip(noise, width - 2 * margin)
    row = 20 if names else 0
    height = 76 + side + row + 46 + strip.height + row + 30
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    error = float((measured - sigma).abs().max())
    draw.text((margin, 14), f"3D Gaussian noise prior, {label}", INK, font(20))
    heads = ("Sigma[m, n] asked for", f"measured on this draw (largest error {as_number(error, '.3f')})")
    for column, (matrix, head) in enumerate(zip((sigma, measured), heads, strict=True)):
        x = margin + column * (side + gap)
        draw.text((x, 48), head, GREY, font(15))
        page.paste(heat_map(matrix, side), (x, 74))
        _write_below(draw, names, x, 74 + side + 4, side / len(sigma))
    _scale_bar(page, draw, margin + side + 12, 74, side)
    draw.text((margin, 76 + side + row + 12), "the noise, frame by frame", GREY, font(15))
    top = 76 + side + row + 40
    page.paste(strip, (margin, top))
    shown, cell = _cells(len(noise), strip.width)
    _write_below(draw, names[:shown], margin, top + strip.height + 4, cell + 2)
    return to_tensor(page)


def _write_below(draw: ImageDraw.ImageDraw, names: Sequence[str], left: float, top: float, step: float) -> None:
    """Names in the middle below what stands ``step`` pixels apart; where they are too long, every other, or fewer."""
    if not names:
        return
    longest = max(draw.textlength(name, font(12)) for name in names) + 6
    for i in range(0, len(names), math.ceil(longest / step)):
        x = left + (i + 0.5) * step - draw.textlength(names[i], font(12)) / 2
        draw.text((max(x, left), top), names[i], GREY, font(12))


def noise_frames(noise: torch.Tensor, size: int) -> torch.Tensor:
    """The first three channels of noise [F, C, h, w] as pictures [F, size, size, 3]: 0 is grey, two sigmas are full."""
    rgb = (noise[:, :3] / 4 + 0.5).clamp(0, 1)
    return torch.nn.functional.interpolate(rgb, size=(size, size), mode="nearest").permute(0, 2, 3, 1).contiguous()


def heat_map(matrix: torch.Tensor, side: int) -> Image.Image:
    """A matrix of values 0..1 as a square picture of ``side`` pixels, row 0 at the top; NaN is left blank."""
    values = matrix.clamp(0, 1).cpu().numpy()
    positions = [stop for stop, _ in _STOPS]
    known = np.nan_to_num(values)
    colours = np.stack([np.interp(known, positions, [colour[c] for _, colour in _STOPS]) for c in range(3)], -1)
    colours[np.isnan(values)] = PAPER
    return Image.fromarray(colours.round().astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own typeface, so that nothing depends on what the machine has."""
    return ImageFont.load_default(size)


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """A PIL picture as an IMAGE [1, H, W, 3]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).float().div(255).unsqueeze(0)


def to_pil(image: torch.Tensor) -> Image.Image:
    """One IMAGE frame [H, W, 3] as a PIL picture."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def _cells(frames: int, width: int) -> tuple[int, int]:
    """How many frames a strip of this width shows, and how wide each."""
    shown = min(frames, 16)
    return shown, (width - 2 * (shown - 1)) // shown if shown > 4 else width // 5


def _strip(noise: torch.Tensor, width: int) -> Image.Image:
    shown, cell = _cells(len(noise), width)
    picture = Image.new("RGB", (width, cell), PAPER)
    for i, frame in enumerate(noise_frames(noise[:shown, :, :16, :16], cell)):
        picture.paste(to_pil(frame), (i * (cell + 2), 0))
    return picture


def _scale_bar(page: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, height: int) -> None:
    ramp = torch.linspace(1, 0, height)[:, None].expand(-1, height)
    page.paste(heat_map(ramp, height).crop((0, 0, 8, height)), (x, y))
    draw.text((x, y - 18), "1", GREY, font(13))
    draw.text((x, y + height + 2), "0", GREY, font(13))


def numbered_boxes(
    images: torch.Tensor,
    boxes: list[list[dict[str, float | str]]],
    on_frame: Callable[[], object] = lambda: None,
) -> torch.Tensor:
    """IMAGE [F, H, W, 3] with each frame's boxes (ComfyUI's BOUNDING_BOX) drawn and labelled, a colour for each label.

    ``on_frame`` is called before each frame; what it raises stops the work.

    A label that no typeface here can write stands as its number (:func:`box_stand_ins`).
    """
    short = box_stand_ins(boxes)
    out = torch.empty(*images.shape[:3], 3)
    line = max(1, round(min(images.shape[1:3]) / 200))
    for i, frame in enumerate(boxes):
        on_frame()
        picture = to_pil(images[i, ..., :3])
        draw = ImageDraw.Draw(picture)
        for box in frame:
            x, y, w, h = (float(box[key]) for key in ("x", "y", "width", "height"))
            label = str(box["label"])
            colour = LABELS[sum(map(ord, label)) % len(LABELS)]
            draw.rectangle([x, y, x + w, y + h], outline=colour, width=line)
            _write(draw, (x + 2, max(0.0, y - 14 * line)), short.get(label, label), colour, 10 + 4 * (line - 1))
        out[i] = to_tensor(picture)[0]
    return out


def box_stand_ins(boxes: list[list[dict[str, float | str]]]) -> dict[str, str]:
    """The labels that :func:`numbered_boxes` draws as another text, and which."""
    return stand_ins(dict.fromkeys(str(box["label"]) for frame in boxes for box in frame), "label")


def with_masks(images: torch.Tensor, masks: torch.Tensor, colour: tuple[int, int, int] = (255, 92, 92)) -> torch.Tensor:
    """IMAGE [F, H, W, 3] with masks [F, H, W] laid over it, half transparent; grey pictures become RGB."""
    rgb = images.expand(-1, -1, -1, 3) if images.shape[-1] == 1 else images[..., :3]
    paint = torch.tensor(colour, dtype=rgb.dtype, device=rgb.device) / 255
    weight = 0.45 * masks[..., None].to(rgb)
    return rgb * (1 - weight) + paint * weight


def with_regions(images: torch.Tensor, masks: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """IMAGE [F, H, W, 3] with each person's masks [people, 1 or F, H, W] laid over it in a colour of their own, and
    their names written in the first frame where each is seen."""
    out = images[..., :3]
    for i, mask in enumerate(masks):
        out = with_masks(out, mask.expand(len(images), -1, -1), LABELS[i % len(LABELS)])
    short, height = stand_ins(names, "person"), 10 + min(images.shape[1:3]) // 40
    out = out.clone()
    for i, (mask, name) in enumerate(zip(masks, names, strict=True)):
        seen = mask.expand(len(images), -1, -1)
        first = next((frame for frame in range(len(images)) if seen[frame].any()), None)
        if first is not None:
            rows, columns = torch.nonzero(seen[first] > 0.5, as_tuple=True)
            picture = to_pil(out[first])
            at = (float(columns.float().mean()) - height, float(rows.min()) + 2) if len(rows) else (2.0, 2.0)
            _write(ImageDraw.Draw(picture), at, short.get(name, name), LABELS[i % len(LABELS)], height)
            out[first] = to_tensor(picture)[0].to(out)
    return out


LABELS = (
    (255, 92, 92),
    (92, 200, 120),
    (90, 160, 255),
    (250, 200, 70),
    (220, 120, 240),
    (90, 220, 220),
    (250, 150, 80),
)


def figures_chart(
    videos: dict[str, list[Figure]], paper: dict[str, tuple[float, float]], width: int = 960
) -> torch.Tensor:
    """Bars of every figure, clip beside clip, and their curves along the clips.

    A figure without a mean (NaN or infinite values, or none) has "not computed" for its bar; its curve has gaps there.

    Args:
        videos: name -> its figures; a name that no typeface here can write is a number (:func:`chart_stand_ins`).
        paper: figure -> the paper's values for plain Stable Diffusion and for VCD, drawn as marks at the bars.

    Returns:
        IMAGE [1, H, width, 3].
    """
    names = list(dict.fromkeys(figure.name for figures in videos.values() for figure in figures))
    short = chart_stand_ins(videos)
    row, margin, legend = max(96, 30 + 7 * len(videos)), 28, 30 + 20 * ((len(videos) + 3) // 4)
    page = Image.new("RGB", (width, margin + legend + row * max(1, len(names)) + margin), PAPER)
    draw = ImageDraw.Draw(page)
    for i, video in enumerate(videos):
        x, y = margin + (i % 4) * (width - 2 * margin) // 4, 14 + 20 * (i // 4)
        draw.rectangle([x, y + 3, x + 12, y + 15], fill=SERIES[i % len(SERIES)])
        _write(draw, (x + 18, y), short.get(video, video[:26]), INK, 14)
    if any(name in paper for name in names):
        draw.text((margin, legend - 8), "marks at the bars: the paper's SD (grey) and VCD (dark)", GREY, font(13))
    for number, name in enumerate(names):
        found = {i: f for i, figures in enumerate(videos.values()) for f in figures if f.name == name}
        _figure_row(
            draw, name, found, paper.get(name), (margin, margin + legend + row * number), (width - 2 * margin, row)
        )
    return to_tensor(page)


def changes_chart(
    changes: dict[str, dict[str, Interval]], over: str, clips: Sequence[str], width: int = 960
) -> torch.Tensor:
    """How much clips change each figure of another one: a dot for the change and a line for its interval, each figure
    with a scale of its own around 0. What is not decided is pale.

    Args:
        changes: figure -> clip -> its change.
        over: the clip that the others are compared with.
        clips: all clips in the order of :func:`figures_chart`, whose colours are theirs here too.

    Returns:
        IMAGE [1, H, width, 3].
    """
    margin, tall = 28, 20
    rows = {name: found for name, found in changes.items() if found}
    height = margin + sum(tall * len(found) + 18 for found in rows.values()) + margin
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    title = f"over {chart_stand_ins(clips).get(over, over[:26])}, with 95 % intervals over the frames"
    _write(draw, (margin, 8), title, GREY, 13)
    left, right, y = margin + 220, width - margin - 230, margin + 10
    for name, found in rows.items():
        draw.text((margin, y), name, INK, font(15))
        known = [abs(end) for one in found.values() for end in (one.value, one.low, one.high) if math.isfinite(end)]
        reach, middle = max([*known, 1e-9]), (left + right) / 2
        draw.line([middle, y - 2, middle, y + tall * len(found)], fill=GREY)
        for i, (clip, change) in enumerate(found.items()):
            at = y + tall * i + 8
            colour = SERIES[list(clips).index(clip) % len(SERIES)]
            _change(draw, change, colour, (middle, (right - left) / 2 / reach), at)
            said = str(change) if change.decided or not math.isfinite(change.value) else f"{change}, not decided"
            draw.text((right + 14, at - 8), said, INK if change.decided else GREY, font(13))
        y += tall * len(found) + 18
    return to_tensor(page)


def _change(
    draw: ImageDraw.ImageDraw, change: Interval, colour: tuple[int, int, int], scale: tuple[float, float], y: int
) -> None:
    """A change and its interval on a scale, which is where 0 lies and how many pixels 1 is."""
    if not math.isfinite(change.value):
        return
    zero, one = scale
    if not change.decided:
        colour = tuple((c + 2 * p) // 3 for c, p in zip(colour, PAPER, strict=True))  # type: ignore[assignment]
    if math.isfinite(change.half):
        draw.line([zero + one * change.low, y, zero + one * change.high, y], fill=colour, width=3)
    x = zero + one * change.value
    draw.ellipse([x - 5, y - 5, x + 5, y + 5], fill=colour)


TREND = 20  # steps whose mean the trend is


def loss_curve(
    losses: Sequence[float], steps: int, width: int = 512, sample: torch.Tensor | None = None
) -> torch.Tensor:
    """The losses of a training so far and their trend, over all of its steps, below its last ``sample``.

    Args:
        losses: of each step that was done.
        steps: how many there will be.
        sample: IMAGE [1, h, w, 3]; None for the curve alone.

    Returns:
        IMAGE [1, H, width, 3].

    Example:
        >>> loss_curve([0.2, 0.1], 200, width=256, sample=torch.zeros(1, 64, 64, 3)).shape
        torch.Size([1, 352, 256, 3])
    """
    tall = 0 if sample is None else round(width * sample.shape[1] / sample.shape[2])
    page = Image.new("RGB", (width, tall + 96), PAPER)
    if sample is not None:
        page.paste(to_pil(sample[0]).resize((width, tall), Image.Resampling.LANCZOS), (0, 0))
    draw = ImageDraw.Draw(page)
    box = (48, tall + 24, width - 10, tall + 88)
    trend = [sum(losses[max(0, i + 1 - TREND) : i + 1]) / min(i + 1, TREND) for i in range(len(losses))]
    now = f", {as_number(trend[-1], '.4f')} now" if trend else ""
    draw.text((10, tall + 5), f"loss, step {len(losses)} of {steps}{now}", INK, font(13))
    missing = [math.nan] * max(0, steps - len(losses))
    curves = (Figure(name, torch.tensor([*values, *missing])) for name, values in (("", losses), ("", trend)))
    _curves(draw, dict(zip(LOSS_COLOURS, curves, strict=True)), box)
    return to_tensor(page)


def chart_stand_ins(videos: Iterable[str]) -> dict[str, str]:
    """The clips' names that :func:`figures_chart` draws as another text, and which."""
    return stand_ins(videos, "clip")


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: tuple[int, int, int], size: int
) -> None:
    draw.text(at, text, colour, font_for(text, size))


def _figure_row(
    draw: ImageDraw.ImageDraw,
    name: str,
    found: dict[int, Figure],
    paper: tuple[float, float] | None,
    at: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """One figure: its name, a bar for each clip on the left, its curves on the right."""
    (x, y), (width, height) = at, size
    unit = next(iter(found.values())).unit
    draw.text((x, y), name, INK, font(15))
    draw.text((x, y + 20), unit, GREY, font(12))
    left, bar, right = x + 170, x + 170 + (width - 170) // 2 - 90, x + 170 + (width - 170) // 2 + 10
    top = max([*filter(math.isfinite, (f.mean for f in found.values())), *(paper or ()), 1e-6]) * 1.05
    tall = max(6, min(20, (height - 26) // max(1, len(found))))
    for order, (i, figure) in enumerate(found.items()):
        at_y, length = y + order * tall, 0
        if math.isfinite(figure.mean):
            length = int((bar - left) * max(0.0, figure.mean) / top)
            draw.rectangle([left, at_y, left + length, at_y + tall - 3], fill=SERIES[i % len(SERIES)])
        draw.text((left + length + 6, at_y - 2), as_number(figure.mean, ".3g"), INK, font(min(14, tall)))
    for value, colour in zip(paper or (), (GREY, INK), strict=False):
        mark = left + int((bar - left) * value / top)
        draw.line([mark, y - 2, mark, y + len(found) * tall], fill=colour, width=2)
    _curves(draw, found, (right, y, x + width, y + height - 22))


def _curves(draw: ImageDraw.ImageDraw, found: dict[int, Figure], box: tuple[int, int, int, int]) -> None:
    """The values of each figure along its clip; where one is NaN or infinite, its curve has a gap."""
    x0, y0, x1, y1 = box
    curves = {i: f.values.float().cpu().numpy() for i, f in found.items()}
    draw.rectangle(box, outline=(214, 216, 220))
    known = np.concatenate([curve[np.isfinite(curve)] for curve in curves.values()])
    if not len(known):
        return
    low, high = float(known.min()), float(known.max())
    span = max(high - low, 1e-3 * max(abs(high), 1e-3))
    for i, curve in curves.items():
        for run in _runs(curve):
            points = [
                (x0 + (x1 - x0) * (n + 0.5) / len(curve), y1 - 3 - (y1 - y0 - 6) * (float(curve[n]) - low) / span)
                for n in run
            ]
            if len(points) > 1:
                draw.line(points, fill=SERIES[i % len(SERIES)], width=2, joint="curve")
            for px, py in points if len(points) < 3 else ():
                draw.ellipse([px - 3, py - 3, px + 3, py + 3], fill=SERIES[i % len(SERIES)])
    draw.text((x0 - 4, y0), f"{high:.3g}", GREY, font(11), anchor="ra")
    draw.text((x0 - 4, y1 - 12), f"{low:.3g}", GREY, font(11), anchor="ra")


def _runs(curve: np.ndarray) -> list[np.ndarray]:
    """The indices of a curve's finite values, a piece for each stretch without a gap."""
    at = np.flatnonzero(np.isfinite(curve))
    return np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(at) else []


SERIES = (
    (38, 90, 160), (220, 110, 50), (60, 150, 90), (150, 90, 180), (200, 170, 40), (90, 90, 96),
    (210, 70, 100), (70, 180, 190), (130, 90, 50), (120, 160, 230), (140, 190, 80), (240, 160, 180),
)  # fmt: skip
LOSS_COLOURS = (9, 0)  # of the series: single values pale, their trend dark
