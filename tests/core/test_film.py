"""A long clip as a film: its scenes, what the graph becomes for each, and the film that is put together."""

import io
import re
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from dev.farm import reel
from dev.farm.film import COUNT, ends, leading_to, open_film
from dev.farm.reel import Reel, cut, write

RATE = Fraction(30000, 1001)
INFO = {
    "LoadVideo": {"input": {"required": {"file": [["a.mp4"], {"video_upload": True}]}}},
    "GetVideoComponents": {"input": {"required": {"video": ["VIDEO", {}]}}},
    "CreateVideo": {"input": {"required": {"images": ["IMAGE", {}], "fps": ["FLOAT", {}]}}},
    "Upscale": {"input": {"required": {"images": ["IMAGE", {}]}}},
    "VCD_FaceRefine": {"input": {"required": {"images": ["IMAGE", {}], "which": [["all"]], "index": ["INT", {}]}}},
    "SaveVideo": {
        "output_node": True,
        "input": {"required": {"video": ["VIDEO", {}], "filename_prefix": ["STRING", {}]}},
    },
    "SaveImage": {
        "output_node": True,
        "input": {"required": {"images": ["IMAGE", {}], "filename_prefix": ["STRING", {}]}},
    },
    "PreviewImage": {"output_node": True, "input": {"required": {"images": ["IMAGE", {}]}}},
}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


GRAPH = {
    "1": node("LoadVideo", file="a.mp4"),
    "2": node("GetVideoComponents", video=["1", 0]),
    "3": node("VCD_FaceRefine", images=["2", 0], which="all", index=0),
    "4": node("CreateVideo", images=["3", 0], fps=["2", 2]),
    "5": node("SaveVideo", video=["4", 0], filename_prefix="v"),
    "6": node("PreviewImage", images=["2", 0]),
}


def pictures(seed, count, size=(64, 96)):
    """A still picture with a bright spot that moves."""
    drawn = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8))
    still = np.asarray(ImageOps.autocontrast(drawn.filter(ImageFilter.GaussianBlur(max(size) / 24))))
    for i in range(count):
        image = still.copy()
        image[9 * seed : 9 * seed + 4, i + 9 * seed : i + 9 * seed + 4] = 255
        yield image


def clip(path, scenes, size=(64, 96), sound=1, at=None):
    """A video of scenes, each (seed, frames), as a camera writes it: B-frames, and a key frame here and there."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": "10", "g": "7", "bf": "2"})
        video.width, video.height, video.pix_fmt = size[1], size[0], "yuv420p"
        if at:
            video.codec_context.time_base = Fraction(1, 90000)
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        i = 0
        for seed, count in scenes:
            for image in pictures(seed, count, size):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                if at:
                    frame.pts, frame.time_base = round(at(i) * 90000), Fraction(1, 90000)
                container.mux(video.encode(frame))
                i += 1
        container.mux(video.encode(None))
        if audio:
            wave = np.sin(np.arange(16000 * sound) / 16000 * 440 * 2 * np.pi)[None].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def decoded(path):
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def of_scene(path, scene):
    """What a player that is told a scene's times shows, as ComfyUI's node does it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        first, end = (int(t / stream.time_base) for t in (scene.start, scene.start + scene.duration))
        container.seek(first, stream=stream)
        shown = (frame for frame in container.decode(stream) if frame.pts >= first)
        return [frame.time for frame in shown if not scene.duration or frame.pts < end]


@pytest.mark.parametrize("at", [None, lambda i: i / 24 + (i % 3) * 0.007])
def test_scenes_are_all_frames_once_and_are_found_by_their_times(tmp_path, at):
    path = clip(tmp_path / "a.mp4", [(1, 9), (2, 12), (3, 5)], at=at)
    scenes, times = cut(path)
    assert [scene.frames for scene in scenes] == [range(9), range(9, 21), range(21, 26)]
    assert [scene.number for scene in scenes] == [0, 1, 2]
    shown = [time for time, _ in decoded(path)]
    assert times[:-1].tolist() == shown
    assert times[-1] > shown[-1]
    for scene in scenes:
        assert of_scene(path, scene) == shown[scene.frames.start : scene.frames.stop]


@pytest.mark.parametrize(("size", "at"), [((64, 96), None), ((720, 96), None), ((64, 96), lambda i: i**1.1 / 24)])
def test_a_film_has_the_clips_times_colours_and_sound(tmp_path, size, at):
    path = clip(tmp_path / "a.mp4", [(1, 9), (2, 12)], size, at=at)
    scenes, times = cut(path)
    images = [image for _, image in decoded(path)]
    write(Reel(path, "a", scenes, times), tmp_path / "film.mp4",
          [iter(images[scene.frames.start : scene.frames.stop]) for scene in scenes])  # fmt: skip
    film = decoded(tmp_path / "film.mp4")
    assert np.allclose([time for time, _ in film], times[:-1], atol=1e-4)
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert container.streams.video[0].codec_context.colorspace == (1 if size[0] >= 720 else 6)
    for (_, one), other in zip(film, images, strict=True):
        assert abs(one.astype(int) - other).mean() < 6  # the edges between colours are what 4:2:0 makes of them
        inside = np.s_[3:6, 67:70]
        assert abs(one[inside].mean((0, 1)) - other[inside].mean((0, 1))).max() < 4
    with av.open(str(path)) as source, av.open(str(tmp_path / "film.mp4")) as made:
        sounds = [
            [(p.pts * p.time_base, bytes(p)) for p in one.demux(audio=0) if p.dts is not None] for one in (source, made)
        ]
    assert sounds[0] == sounds[1]
    assert len(sounds[0]) > 10


def test_frames_that_a_graph_adds_share_their_scenes_time(tmp_path):
    path = clip(tmp_path / "a.mp4", [(1, 9), (2, 12)], sound=0)
    scenes, times = cut(path)
    images = [image for _, image in decoded(path)]
    twice = [iter([image for image in images[s.frames.start : s.frames.stop] for _ in range(2)]) for s in scenes]
    write(Reel(path, "a", scenes, times), tmp_path / "film.mp4", twice)
    shown = [time for time, _ in decoded(tmp_path / "film.mp4")]
    assert len(shown) == 42
    assert np.allclose(shown[::2], times[:-1], atol=1e-4)
    assert np.allclose(np.diff(shown), float(1 / RATE) / 2, atol=1e-4)


def test_a_cut_that_is_not_found_by_its_time_is_none(tmp_path, monkeypatch):
    path = clip(tmp_path / "a.mp4", [(1, 9), (2, 12)])
    times = [time for time, _ in decoded(path)]
    assert reel._found(path, times, 9)
    assert not reel._found(path, [*times[:9], times[9] + 0.004, *times[10:]], 9)
    monkeypatch.setattr(reel, "_found", lambda path, times, first: False)
    scenes, _ = cut(path)
    assert [scene.frames for scene in scenes] == [range(21)]


def test_sound_stands_beside_its_pictures_in_the_file(tmp_path):
    """A player need not look for it: nothing of the sound is far behind what is shown with it."""
    path = clip(tmp_path / "a.mp4", [(1, 12), (2, 12)], sound=36, at=lambda i: i * 1.5)
    scenes, times = cut(path)
    images = [image for _, image in decoded(path)]
    write(Reel(path, "a", scenes, times), tmp_path / "film.mp4",
          [iter(images[scene.frames.start : scene.frames.stop]) for scene in scenes])  # fmt: skip
    with av.open(str(tmp_path / "film.mp4")) as container:
        packets = [(p.pos, float(p.pts * p.time_base), p.stream.type) for p in container.demux() if p.pts is not None]
    packets.sort()
    late = next(i for i, (_, time, kind) in enumerate(packets) if kind == "video" and time > 20)
    assert max((time for _, time, kind in packets[:late] if kind == "audio"), default=0) > 10


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be read as a video"):
        cut(tmp_path / "a.mp4")


def test_a_graphs_ends_are_found():
    found = ends(GRAPH, INFO)
    assert (found.clip, found.film, found.refiner) == (("1", "file"), ["3", 0], "3")
    assert ends({**GRAPH, "3": node("Upscale", images=["2", 0])}, INFO).refiner is None
    picked = {**GRAPH, "3": node("VCD_FaceRefine", images=["2", 0], which="all", index=0, pick=["9", 0])}
    assert ends(picked, INFO).refiner is None
    largest = {**GRAPH, "3": node("VCD_FaceRefine", images=["2", 0], which="largest", index=0)}
    assert ends(largest, INFO).refiner is None
    loaded = ends({**GRAPH, "5": node("SaveVideo", video=["1", 0], filename_prefix="v")}, INFO)
    assert loaded.graph[loaded.film[0]]["inputs"]["video"] == ["1", 0]
    stills = ends({**GRAPH, "5": node("SaveImage", images=["3", 0], filename_prefix="v")}, INFO)
    assert stills.film == ["3", 0]
    two = {**GRAPH, "7": node("SaveVideo", video=["1", 0], filename_prefix="w")}
    assert ends(two, INFO, film="5").film == ["3", 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"1": node("Upscale", images=["2", 0])}, "one node that loads a video; it has none"),
        ({"7": node("LoadVideo", file="a.mp4")}, "2 (1: LoadVideo, 7: LoadVideo)"),
        ({"5": node("PreviewImage", images=["3", 0])}, "one node that saves a video or pictures; it has none"),
        ({"7": node("SaveVideo", video=["1", 0], filename_prefix="w")}, "2 (5: SaveVideo, 7: SaveVideo)"),
    ],
)
def test_a_graph_without_clear_ends_is_refused(change, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        ends({**GRAPH, **change}, INFO)


class Painters:
    """Workers that are none: each face of a scene is painted in a place of its own; ``faces`` are how many there are
    in each scene."""

    workers = 1

    def __init__(self, film, faces):
        self.queue, self.ready, self.film, self.faces, self.done = [], {0}, film, faces, []

    def start(self, worker, job):
        self.queue.append(job)

    def next(self):
        job = self.queue.pop(0)
        self.done.append(job)
        scene = self.film.reel.scenes[job.values["scene"]]
        images = [np.full((64, 96, 3), 100, np.uint8) for _ in scene.frames]
        looks = COUNT in job.prompt
        if not looks:
            refine = job.prompt["3"]["inputs"]
            for image in images:
                for i in range(self.faces[scene.number]):
                    if refine["which"] == "all" or refine["index"] == i:
                        image[10:20, 16 * i : 16 * i + 24] += np.uint8(40 * (i + 1))
        files = [(f"film/frame_{i:05}_.png", png(image)) for i, image in enumerate(images, 1)]
        figures = {COUNT: [str(self.faces[scene.number])]} if looks else {}
        return 0, job.number, "done", (figures, files)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def test_faces_of_a_scene_are_jobs_and_what_they_change_is_added_up(tmp_path):
    path = clip(tmp_path / "a.mp4", [(1, 9), (2, 12), (3, 5)])
    film = open_film(path, ends(GRAPH, INFO), tmp_path / "out")
    painters = Painters(film, [2, 1, 0])
    assert film.run(painters, lambda text: None) == []
    done = [(job.values["scene"], job.values.get("face")) for job in painters.done]
    assert done == [(0, None), (1, None), (2, None), (0, 0), (0, 1), (1, None)]
    look, face, whole = painters.done[0].prompt, painters.done[3].prompt, painters.done[5].prompt
    assert "3" not in look
    assert not {"5", "6"} & set(face)
    assert (face["3"]["inputs"]["which"], whole["3"]["inputs"]["which"]) == ("by index", "all")
    assert face["3"]["inputs"]["faces"] == whole["3"]["inputs"]["faces"]
    assert face["1"]["inputs"]["file"] == f"given/{film.reel.name} [output]"
    assert painters.done[3].files == {film.reel.name: path}
    shown = [image for _, image in decoded(tmp_path / "out" / "film.mp4")]
    assert len(shown) == 26
    values = [[int(image[15, x].mean()) for x in (8, 20, 30, 60)] for image in (shown[4], shown[14], shown[24])]
    assert np.allclose(values, [[140, 220, 180, 100], [140, 140, 100, 100], [100] * 4], atol=4)
    again = Painters(film, [2, 1, 0])
    bytes_ = (tmp_path / "out" / "film.mp4").read_bytes()
    assert film.run(again, lambda text: None) == []
    assert again.done == []
    assert (tmp_path / "out" / "film.mp4").read_bytes() == bytes_


def test_a_scene_that_fails_leaves_no_film(tmp_path):
    path = clip(tmp_path / "a.mp4", [(1, 9), (2, 12)])
    upscaling = {**GRAPH, "3": node("Upscale", images=["2", 0])}
    film = open_film(path, ends(upscaling, INFO), tmp_path / "out")
    failed = film.run(Broken(film), lambda text: None)
    assert failed == ["scene 1, from 0.28 s, frames 12: no memory"]
    assert not (tmp_path / "out" / "film.mp4").exists()


class Broken(Painters):
    """Fails at the second scene."""

    def __init__(self, film):
        super().__init__(film, [0, 0])

    def next(self):
        job = self.queue.pop(0)
        if job.number == 1:
            return 0, 1, "failed", "no memory"
        return 0, job.number, "done", ({}, [("film/frame_00001_.png", png(np.zeros((64, 96, 3), np.uint8)))])


def test_only_what_leads_to_the_film_is_done():
    assert sorted(leading_to(GRAPH, "4")) == ["1", "2", "3", "4"]
    assert sorted(leading_to(GRAPH, "6")) == ["1", "2", "6"]
