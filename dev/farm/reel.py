"""Clips as films: cut at their scenes, and written with their sound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from vcd_core.face.scenes import changes

TICK = Fraction(1, 90000)  # fine enough for frames between the clip's
HD = 720  # lines from which on players take colours as BT.709, below as BT.601
BT709, BT601 = 1, 6


@dataclass(frozen=True)
class Scene:
    """A piece of a clip between two cuts.

    Attributes:
        number: counted from 0.
        frames: which of the clip's.
        start, duration: in seconds, so that they begin and end between two frames; a duration of 0 is up to the end.
    """

    number: int
    frames: range
    start: float
    duration: float


@dataclass(frozen=True)
class Reel:
    """A clip and its scenes.

    Attributes:
        path: the clip's file.
        name: what workers call it; it says what is in the file.
        scenes: in order.
        times: when each frame is shown, and when the last one ends, in seconds [F + 1].
    """

    path: Path
    name: str
    scenes: list[Scene]
    times: np.ndarray


def cut(path: Path, on_frame: Callable[[], object] = lambda: None) -> tuple[list[Scene], np.ndarray]:
    """The scenes of a clip and the times of its frames (see :class:`Reel`).

    A scene whose first frame a player would not find from its time stays with the one before.

    Raises:
        ValueError: it is no video, or has frames without a time.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path.name} has no pictures.")
            stream = container.streams.video[0]
            times: list[float] = []
            cuts, _ = changes(_frames(container, times), on_frame)
            rate = float(stream.average_rate or 25)
    except av.FFmpegError as error:
        raise ValueError(f"{path.name} cannot be read as a video: {error.strerror}.") from error
    if not times or np.isnan(times).any():
        raise ValueError(f"{path.name} has {'no frames' if not times else 'frames without a time'}.")
    ends = np.append(times, times[-1] + 1 / rate)
    return _scenes([i for i in cuts if _found(path, times, i)], ends), ends


def _frames(container: av.container.InputContainer, times: list[float]) -> Iterator[torch.Tensor]:
    for frame in container.decode(video=0):
        times.append(float("nan") if frame.time is None else frame.time)
        yield torch.from_numpy(frame.to_ndarray(format="rgb24")) / 255


def _found(path: Path, times: list[float], first: int) -> bool:
    """Whether decoding from just before a frame's time begins no later than with that frame."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        wanted = _between(times, first)
        container.seek(int(wanted / (stream.time_base or 1)), stream=stream)
        frame = next((frame for frame in container.decode(stream) if frame.time >= wanted), None)
        return frame is not None and frame.time == times[first]


def _between(times: np.ndarray | list[float], i: int) -> float:
    return float(times[i - 1] + times[i]) / 2


def _scenes(cuts: list[int], times: np.ndarray) -> list[Scene]:
    count = len(times) - 1
    found = []
    for number, (first, end) in enumerate(zip([0, *cuts], [*cuts, count], strict=True)):
        start = _between(times, first) if first else 0.0
        duration = _between(times, end) - start if end < count else 0.0
        found.append(Scene(number, range(first, end), start, duration))
    return found


def write(reel: Reel, path: Path, scenes: Iterable[Iterator[np.ndarray]]) -> None:
    """Write a film: refined scenes, each its frames [H, W, 3] in 0..255, at the clip's times and with its sound.

    A scene may have more or fewer frames than the clip's; they share its time evenly.
    """
    part = path.with_name(f".{path.name}")
    with av.open(str(reel.path)) as source, av.open(str(part), "w", format="mp4") as film:
        sounds = [(one, film.add_stream_from_template(one)) for one in source.streams.audio]
        waiting = _packets(source, dict(sounds))
        video = None
        for time, image in _timed(reel, scenes):
            if video is None:
                video = _video(film, image)
            while waiting and _begins(waiting[-1]) <= time:
                film.mux(waiting.pop())
            film.mux(video.encode(_frame(image, time, video)))
        if video is not None:
            film.mux(video.encode(None))
        for packet in reversed(waiting):
            film.mux(packet)
    part.replace(path)


def _timed(reel: Reel, scenes: Iterable[Iterator[np.ndarray]]) -> Iterator[tuple[float, np.ndarray]]:
    for scene, frames in zip(reel.scenes, scenes, strict=True):
        images = list(frames)
        own = reel.times[scene.frames.start : scene.frames.stop + 1]
        at = np.interp(np.arange(len(images)) / len(images), np.linspace(0, 1, len(own)), own) if images else []
        yield from zip(map(float, at), images, strict=True)


def _packets(source: av.container.InputContainer, to: dict[Any, av.AudioStream]) -> list[av.Packet]:
    """All packets of the sound, the last first, each for its new stream."""
    found = [packet for packet in source.demux(*to) if packet.dts is not None] if to else []
    for packet in found:
        packet.stream = to[packet.stream]
    return sorted(found, key=_begins, reverse=True)


def _begins(packet: av.Packet) -> float:
    """When a packet is due, in seconds."""
    return float((packet.dts or 0) * (packet.time_base or 1))


def _video(film: av.container.OutputContainer, image: np.ndarray) -> av.VideoStream:
    height, width = image.shape[:2]
    video = film.add_stream("libx264", options={"crf": "14", "preset": "medium"})
    video.width, video.height = width, height
    video.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
    context = video.codec_context
    context.time_base = TICK
    context.thread_count = 4  # a number of its own, since it decides about the bytes
    matrix = BT709 if height >= HD else BT601
    context.colorspace = context.color_primaries = context.color_trc = matrix
    context.color_range = 1  # not the full range
    return video


def _frame(image: np.ndarray, time: float, video: av.VideoStream) -> av.VideoFrame:
    matrix = video.codec_context.colorspace
    made = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    made = made.reformat(format=video.pix_fmt, dst_colorspace=matrix, dst_color_range=1)
    made.pts, made.time_base = round(time / TICK), TICK
    return made
