"""Face VCD on real clips of generated people, and on a drawn clip where the face travels.

Targets: found in 98 % of the frames, one track a person; jitter of the window at most 0.25 of the detections', no lag;
crop and paste without refinement within 1/255; no track in clips without people; one track and one person whatever the
light; detection in at most 1.3 times the time of OpenCV's FaceDetectorYN at 512x512, 16 frames: faces that fill the
frame are searched for, too.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from dev import clips, convert_yunet
from dev.lights import LIGHTS
from vcd_core.face import detect as yunet
from vcd_core.face.crop import crop, paste, windows
from vcd_core.face.people import people
from vcd_core.face.track import WEAK, Track, follow, link
from vcd_core.tiny import world

from .measure import interleaved, table

THRESHOLD = 0.6  # Face VCD Track's default
FAR_CLIPS = 24
NOBODY = {
    clips.VIDEO_MEDIA: (
        "api_google_gemini_omni_flash_video_edit-1 api_google_gemini_omni_flash_video_edit-2 api_grok_video_edit-1 "
        "api_grok_video_edit-2 api_grok_video_extend-1 api_luma_ray3_3_i2v-1 api_seedance2_0_mini_t2v-1 "
        "text_to_video_wan-1 txt_to_image_to_video-1 video_capybara_v0_1_video_edit-1 video_capybara_v0_1_video_edit-2 "
        "video_hunyuan_video_1.5_720p_i2v-1 video_hunyuan_video_1.5_720p_t2v-1 video_ltx2_3_flf2v-1 "
        "video_ltx2_3_ic_lora-1 video_ltx2_3_ic_lora-2 video_ltx2_3_t2v-1 video_wan2.1_fun_camera_v1.1_1.3B-1 "
        "video_wan2_2_14B_fun_camera-1 video_wan2_2_14B_i2v-1 video_wan2_2_5B_fun_inpaint-1 video_wan_ati-1 "
        "video_wan_vace_14B_ref2v-1 video_wan_vace_14B_t2v-1 ltxv_image_to_video-1"
    ),
    clips.IMAGE_MEDIA: (
        "video_kandinsky5_i2v-1 video_ltx2_canny_to_video-1 video_ltx2_canny_to_video-2 video_ltx2_depth_to_video-1 "
        "video_ltx2_depth_to_video-2 video_wanmove_480p-1 wan2.1_flf2v_720_f16-1"
    ),
}
PEOPLE = {
    clips.VIDEO_MEDIA: (
        "api_google_gemini_omni_flash_t2v-1 api_grok_imagine_video_1_5-1 api_happyhorse1_1_t2v-1 "
        "api_kling_motion_control3-1 api_vidu_q3_image_to_video-1 video_humo-1 video_wan2_1_infinitetalk-1 "
        "video_wan2_2_14B_fun_control-1 video_wan2_2_5B_fun_control-1 video_wan_vace_14B_v2v-1"
    ),
    clips.IMAGE_MEDIA: "api_vidu_video_extension-1 utility_hitpaw_video_enhance-1 video_kandinsky5_t2v-1",
}


def tracks_of(images: torch.Tensor) -> tuple[list[list[yunet.Face]], list[Track]]:
    """The detections of at least ``THRESHOLD``, and the tracks as Face VCD Track finds them."""
    detections = yunet.detect(images, WEAK * THRESHOLD)
    strong = [[f for f in faces if f.score >= THRESHOLD] for faces in detections]
    return strong, follow(images, detections, threshold=THRESHOLD)


def jitter(path: np.ndarray) -> float:
    return float(np.abs(np.diff(path, 2, axis=0)).mean())


def lag(smoothed: np.ndarray, raw: np.ndarray) -> int:
    """The shift in frames at which the smoothed path fits the detections best."""
    errors = {s: np.abs(np.roll(smoothed, -s, 0)[6:-6] - raw[6:-6]).mean() for s in range(-4, 5)}
    return min(errors, key=lambda s: errors[s])


def real_clips() -> bool:
    rows, passed = [], True
    for name in ("talking", "avatar", "turning"):
        try:
            images = clips.clip(name)
        except clips.Missing as missing:
            rows.append([name, "-", str(missing), "-", "-", "-", "-"])
            continue
        detections, tracks = tracks_of(images)
        track = tracks[0]
        place = windows(track, *images.shape[1:3])
        raw = track.boxes[:, :2] + track.boxes[:, 2:] / 2
        covered = len({i for t in tracks for i in t.frames}) / len(images)
        ratio, late = jitter(place.centres) / jitter(raw), lag(place.centres, raw)
        part = images[track.start : track.start + 24]
        some = windows(Track(0, track.boxes[: len(part)], track.seen[: len(part)]), *images.shape[1:3])
        error = float((paste(part, crop(part, some, (512, 512)), some) - part).abs().max()) * 255
        found = sum(bool(faces) for faces in detections) / len(images)
        rows.append(
            [
                name,
                str(len(images)),
                f"{found:.1%}",
                f"{covered:.1%}, {len(tracks)}",
                f"{ratio:.2f}",
                str(late),
                f"{error:.3f}",
            ]
        )
        passed &= covered >= 0.98 and len(tracks) == 1 and ratio <= 0.25 and late == 0 and error <= 1
    head = ["clip", "frames", "detected", "tracked, tracks", "jitter ratio", "lag", "crop and paste error, /255"]
    table(head, rows)
    return passed


def second_look() -> bool:
    """Tracks in clips without people, and frames in which a face is lost for having been looked at again."""
    empty = [clips.frames_of(package, f"{name}.webp") for package, names in NOBODY.items() for name in names.split()]
    wrong = [(len(without), len(found)) for without, found in map(both_ways, empty)]
    crowd = [clips.frames_of(package, f"{name}.webp") for package, names in PEOPLE.items() for name in names.split()]
    pairs = [both_ways(images) for images in crowd]
    tracks = [(track, still_seen(track, found)) for without, found in pairs for track in without]
    first, left = np.sum(wrong, 0).tolist()
    kept, frames, seen = (
        sum(n > 0 for _, n in tracks),
        sum(int(t.seen.sum()) for t, _ in tracks),
        sum(n for _, n in tracks),
    )
    print(
        f"\nClips without people, {sum(map(len, empty))} frames: {left} tracks ({first} without the second look).\n"
        f"Clips of people, {sum(map(len, crowd))} frames: {kept} of {len(tracks)} tracks go on behind the second look, "
        f"with {seen / frames:.1%} of their faces; heads from behind and profiles go."
    )
    return left == 0


def still_seen(track: Track, others: list[Track]) -> int:
    """In how many of the frames in which a track's face was seen others have it."""
    there = [
        any(f in other.frames and yunet.iou(tuple(box), tuple(other.boxes[f - other.start])) > 0.3 for other in others)
        for f, box in zip(track.frames, track.boxes, strict=True)
    ]
    return int((np.array(there) & track.seen).sum())


def both_ways(images: torch.Tensor) -> tuple[list[Track], list[Track]]:
    """The tracks without and with the second look."""
    detections = yunet.detect(images, WEAK * THRESHOLD)
    return link(detections, threshold=THRESHOLD), follow(images, detections, threshold=THRESHOLD)


def lit() -> bool:
    """Tracks and people of clips of one person under light that changes."""
    rows = []
    for name in ("talking", "avatar", "turning"):
        images = clips.clip(name, 48)
        found = [tracks_of(light(images))[1] for light in LIGHTS.values()]
        rows.append([name, *(f"{len(tracks)}, {max(people(tracks), default=-1) + 1}" for tracks in found)])
    tracks = tracks_of(clips.clip("flashing"))[1]
    own = f"{len(tracks)}, {max(people(tracks), default=-1) + 1}"
    print(f"\nTracks, people of one person under changing light; of a real clip whose light flashes: {own}")
    table(["clip", *LIGHTS], rows)
    return {own, *(cell for row in rows for cell in row[1:])} == {"1, 1"}


def weak_detections() -> None:
    """Drawn far people: frames in which the face is tracked where weak detections go on a track, and where they do
    not."""
    rng = random.Random(4)
    covered, wrong, total = {"with": 0, "without": 0}, {"with": 0, "without": 0}, 0
    for _ in range(FAR_CLIPS):
        frames = world.render_take(world.random_take(rng, framing="far away"))
        images = torch.from_numpy(np.stack([f.image for f in frames])).float() / 255
        strong, tracks = tracks_of(images)
        for kind, found in (("with", tracks), ("without", follow(images, strong))):
            boxes = [
                (i, yunet.iou(tuple(box), frames[i].faces[0]))
                for t in found
                for i, box in zip(t.frames, t.boxes, strict=True)
            ]
            covered[kind] += len({i for i, overlap in boxes if overlap > 0.25})
            wrong[kind] += sum(overlap <= 0.25 for _, overlap in boxes)
        total += len(frames)
    print(
        f"\nDrawn far people, {total} frames: tracked in {covered['with']} where weak detections go on a track "
        f"({wrong['with']} boxes "
        f"elsewhere), in {covered['without']} where they do not ({wrong['without']} elsewhere)."
    )


def travelling() -> None:
    """How much of the picture is refined: a window that follows against one union box for the clip."""
    clip = world.random_take(random.Random(4), framing="far away", action="walking")
    frames = world.render_take(clip)
    images = torch.from_numpy(np.stack([f.image for f in frames])).float() / 255
    boxes = np.array([f.faces[0] for f in frames])
    place = windows(Track(0, boxes, np.ones(len(boxes), bool)), *images.shape[1:3])
    low, high = boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)
    union = min(128.0, 3 * float((high - low).max()))
    share = float(np.mean(boxes[:, 2] * boxes[:, 3]))
    ours, theirs = share / place.size[0] ** 2, share / union**2
    print(
        f"\nA face that walks across: {ours:.1%} of the refined window is face, against {theirs:.1%} of one union box "
        f"for "
        f"the clip: {ours / theirs:.1f} times the pixels for the face."
    )


def speed() -> bool:
    """Detection of a real clip beside OpenCV's, whole and with every fourth frame searched whole; of a face that walks
    through noise, which has no large face, whole alone."""
    try:
        import cv2
    except ImportError as error:
        print(f"\nOpenCV does not import ({error}); detection speed is not compared.")
        return True
    with tempfile.TemporaryDirectory() as folder:
        detector = cv2.FaceDetectorYN.create(str(convert_yunet.onnx_file(Path(folder))), "", (512, 512), 0.6)
    given = {"noise": torch.rand(16, 512, 512, 3)}
    for name in ("talking", "turning"):
        with contextlib.suppress(clips.Missing):
            small = clips.clip(name, 17).movedim(-1, 1)
            given[name] = F.interpolate(small, (512, 512), mode="bilinear").movedim(1, -1).contiguous()
    rows, whole = [], 0.0
    for name, images in given.items():
        bgr = [(image.numpy()[..., ::-1] * 255).astype(np.uint8).copy() for image in images]
        cases: dict[str, Callable[[], object]] = {
            "opencv": partial(lambda frames: [detector.detect(frame) for frame in frames], bgr),
            "ours": partial(yunet.detect, images),
            "every fourth": partial(yunet.detect, images, search_every=4),
        }
        seconds = interleaved(cases, 9)
        ours, fourth = (seconds[case] / seconds["opencv"] for case in ("ours", "every fourth"))
        rows.append([name, f"{seconds['opencv'] / len(images) * 1e3:.1f}", f"{ours:.2f}", f"{fourth:.2f}"])
        whole = max(whole, ours) if name == "noise" else whole
    print("\nDetection, frames of 512x512: time over OpenCV's FaceDetectorYN; target: whole at most 1.3 on noise")
    table(["frames", "OpenCV, ms a frame", "each searched whole", "every fourth"], rows)
    return whole <= 1.3


def steady() -> bool:
    """What searching every fourth frame whole does to the windows: frames tracked, jitter and how far they move."""
    rows, passed = [], True
    for name in ("talking", "avatar", "turning"):
        try:
            images = clips.clip(name)
        except clips.Missing as missing:
            rows.append([name, str(missing), "-", "-", "-"])
            continue
        sizes = images.shape[1:3]
        found = [yunet.detect(images, WEAK * THRESHOLD, search_every=every) for every in (1, 4)]
        (whole, *_), (fourth, *others) = (follow(images, boxes, threshold=THRESHOLD) for boxes in found)
        paths = [windows(track, *sizes).centres for track in (whole, fourth)]
        same = len(paths[0]) == len(paths[1]) and not others
        apart = float(np.abs(paths[0] - paths[1]).mean() / whole.boxes[:, 2].mean()) if same else float("nan")
        passed &= same and apart < 0.03
        rows.append([name, "yes" if same else "no", *(f"{jitter(path):.3f}" for path in paths), f"{apart:.1%}"])
    print("\nEvery fourth frame searched whole beside all of them; target: windows within 3 % of the face's width")
    table(["clip", "same frames", "jitter, px", "every fourth's", "windows apart, of the face's width"], rows)
    return passed


def main() -> int:
    passed = real_clips()
    passed &= second_look()
    passed &= lit()
    weak_detections()
    travelling()
    passed &= speed()
    passed &= steady()
    print("\nall targets met" if passed else "\na target was missed")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
