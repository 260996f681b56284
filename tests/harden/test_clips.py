"""What holds for any clip: windows cut out and put back, faces pasted in any order, tracks of poor detections."""

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tally import INPUTS, count, hard

from vcd_core.face.crop import Windows, crop, paste, windows
from vcd_core.face.detect import Face
from vcd_core.face.track import Track, link

ROUNDING = 1e-6  # of float32 in 0..1


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


lengths = st.floats(0.05, 5) | st.floats(5, 250) | st.integers(1, 60).map(float)


@st.composite
def windowed(draw):
    """A clip of noise, and windows anywhere: partly or wholly outside, between pixels, tiny, larger than the frame."""
    frames, height, width = draw(st.tuples(st.integers(1, 3), st.integers(1, 50), st.integers(1, 50)))
    start = draw(st.integers(0, frames - 1))
    count = draw(st.integers(1, frames - start))
    centres = np.array(draw(st.lists(st.tuples(*[st.floats(-40, 90)] * 2), min_size=count, max_size=count)))
    size = draw(st.tuples(lengths, lengths))
    sides = np.array(size) * draw(st.floats(0.2, 1))
    face = np.concatenate([centres - sides / 2, np.tile(sides, (count, 1))], 1)
    visible = draw(st.none() | st.lists(st.booleans(), min_size=count, max_size=count).map(np.array))
    place = Windows(start, centres, size, face, visible)
    return random(frames, height, width, 3), place, draw(st.tuples(st.integers(1, 80), st.integers(1, 80)))


@st.composite
def pastes(draw, frames=3, height=50, width=50):
    """How to paste: any of its settings."""
    how = {"feather": draw(st.floats(0, 20)), "feather_share": draw(st.just(0.0) | st.floats(0, 1))}
    how |= {"paste_factor": draw(st.floats(0.3, 5)), "head": draw(st.booleans())}
    if draw(st.booleans()):
        how["masks"] = (random(frames, height, width, seed=draw(st.integers(0, 9))) > draw(st.floats(0, 1))).float()
    return how


def fitted(how, images):
    """Settings whose masks are as large as a clip."""
    return (
        {**how, "masks": how["masks"][: len(images), : images.shape[1], : images.shape[2]]} if "masks" in how else how
    )


@given(windowed(), pastes(), st.booleans())
@hard(50, 3_000)
def test_what_is_cut_out_and_put_back_is_the_clip(case, how, match):
    """To the bit by change; and by picture as well as float32 can where a crop holds what its window does."""
    count(INPUTS)
    images, place, size = case
    how = {**fitted(how, images), "match_colour": match}
    kept, crops = images.clone(), crop(images, place, size)
    assert crops.shape == (len(place.centres), *size, 3)
    assert torch.equal(paste(images, crops, place, unsampled=crops, **how), images)
    held = size[0] >= place.size[1] and size[1] >= place.size[0]
    if held:
        assert (paste(images, crops, place, **how) - images).abs().max() < ROUNDING
    flat = torch.full_like(images, 0.37)  # which any crop holds
    assert (paste(flat, crop(flat, place, size), place, **how) - flat).abs().max() < ROUNDING
    assert torch.equal(images, kept)


@given(windowed(), pastes(), st.booleans())
@hard(40, 3_000)
def test_a_paste_stays_within_its_window_its_frames_and_the_range_of_pictures(case, how, by_change):
    count(INPUTS)
    images, place, size = case
    drawn = random(len(place.centres), *size, 3, seed=1)
    unsampled = random(len(place.centres), *size, 3, seed=2) if by_change else None
    out = paste(images, drawn, place, unsampled=unsampled, **fitted(how, images))
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1
    y, x = torch.arange(images.shape[1])[:, None] + 0.5, torch.arange(images.shape[2])[None] + 0.5
    for frame in range(len(images)):
        if place.pasted(frame):
            (cx, cy), (wide, tall) = place.centres[frame - place.start], place.size
            outside = ((x - cx).abs() > wide / 2) | ((y - cy).abs() > tall / 2)
            assert torch.equal(out[frame][outside], images[frame][outside])
        else:
            assert torch.equal(out[frame], images[frame])


@st.composite
def faces(draw, height=40, width=50):
    """The windows of two to four faces that are near each other, of any sizes, in some of two frames."""
    found = []
    for _ in range(draw(st.integers(2, 4))):
        start = draw(st.integers(0, 1))
        x, y, side = draw(st.floats(0, width - 5)), draw(st.floats(0, height - 5)), draw(st.floats(3, 25))
        boxes = np.array([[x + 2 * i, y, side * draw(st.floats(0.7, 1.2)), side] for i in range(2 - start)])
        visible = draw(st.none() | st.lists(st.booleans(), min_size=2 - start, max_size=2 - start).map(np.array))
        track = Track(start, boxes, np.ones(len(boxes), bool), visible=visible)
        found.append(windows(track, height, width, draw(st.sampled_from([1.0, 1.5, 3.0, 10.0]))))
    return found


def others(places, i):
    return [place for j, place in enumerate(places) if j != i]


@given(faces(), pastes(2, 40, 50), st.booleans(), st.integers(0, 9))
@hard(12, 800)
def test_faces_may_be_pasted_in_any_order(places, how, by_change, seed):
    count(INPUTS)
    images = random(2, 40, 50, 3, seed=seed)
    drawn = [random(len(place.centres), 16 + 9 * i, 30, 3, seed=i) for i, place in enumerate(places)]
    unsampled = [one.flip(0, 1) * 0.9 if by_change else None for one in drawn]
    found = []
    for order in list(itertools.permutations(range(len(places))))[::5]:
        out = images.clone()
        for i in order:
            more = {"neighbours": others(places, i), "unsampled": unsampled[i], **how}
            paste(images, drawn[i], places[i], out=out, **more)
        found.append(out)
    assert all((out - found[0]).abs().max() < 1e-5 for out in found)


@given(faces(), pastes(2, 40, 50))
@hard(20, 1_500)
def test_no_pixel_is_given_away_twice_where_faces_meet(places, how):
    """Each face adds a quarter: more than that anywhere would be two faces' whole."""
    count(INPUTS)
    out = images = torch.zeros(2, 40, 50, 3)
    for i, place in enumerate(places):
        flat = torch.full((len(place.centres), 8, 8, 3), 0.25)
        kept = out
        out = paste(images, flat, place, out=out.clone(), neighbours=others(places, i), unsampled=flat * 0, **how)
        assert (out - kept).min() >= -ROUNDING
    assert out.max() <= 0.25 + ROUNDING
    alone = [
        paste(
            images,
            torch.full((len(p.centres), 8, 8, 3), 0.25),
            p,
            unsampled=torch.zeros(len(p.centres), 8, 8, 3),
            **how,
        )
        for p in places
    ]
    assert (out - torch.stack(alone).amax(0)).min() >= -ROUNDING  # nor less than the one that covers most


@st.composite
def walks(draw):
    """Detections of up to four people who walk, some missed; people stand 100 pixels apart."""
    length = draw(st.integers(1, 24))
    people = draw(
        st.lists(st.tuples(st.floats(20, 40), *[st.floats(-0.2, 0.2)] * 2, st.floats(0.75, 1)), min_size=1, max_size=4)
    )
    found = [[] for _ in range(length)]
    for number, (side, across, down, score) in enumerate(people):
        for frame in range(length):
            if draw(st.integers(0, 9)):
                x, y = 100 * number + across * side * frame, 60 + down * side * frame
                found[frame].append(Face((x, y, side, 1.2 * side), score))
    return found


def written(tracks):
    return [
        (
            t.start,
            t.boxes.tolist(),
            t.seen.tolist(),
            t.scores.tolist(),
            t.scene,
            None if t.visible is None else t.visible.tolist(),
        )
        for t in tracks
    ]


@given(walks(), st.randoms(use_true_random=False), st.sampled_from([0.0, 0.75]), st.booleans())
@hard(40, 1_000)
def test_the_order_of_a_frames_detections_and_doubles_change_nothing(found, chance, sure, looked):
    count(INPUTS)
    person = {face: np.eye(4)[[int(face.box[0] // 100) % 4]] for frame in found for face in frame}
    changed = [[*frame, *chance.choices(frame, k=chance.randrange(3))] if frame else [] for frame in found]
    changed = [chance.sample(frame, len(frame)) for frame in changed]

    def linked(detections):
        looks = [[person[face] for face in frame] for frame in detections] if looked else None
        return written(link(detections, looks, sure=sure))

    assert linked(changed) == linked(found)


@given(
    length=st.integers(3, 60), gap=st.integers(0, 8), speed=st.tuples(*[st.floats(-0.15, 0.15)] * 2),
    side=st.floats(15, 200), chance=st.randoms(use_true_random=False), sure=st.sampled_from([0.0, 0.75]),
)  # fmt: skip
@hard(60, 3_000)
def test_a_face_that_is_missed_no_longer_than_the_gap_stays_one_track(length, gap, speed, side, chance, sure):
    count(INPUTS)
    boxes = [(300 + speed[0] * side * i, 200 + speed[1] * side * i, side, side) for i in range(length)]
    seen, last = [0], 0
    while last < length - 1:
        last = min(length - 1, last + 1 + chance.randint(0, gap))
        seen.append(last)
    found = [[Face(box, 0.9)] if i in seen else [] for i, box in enumerate(boxes)]
    (track,) = link(found, max_gap=gap, min_length=1, sure=sure)
    assert track.frames == range(length)
    assert np.flatnonzero(track.seen).tolist() == seen
    assert np.allclose(track.boxes, boxes)
    if gap and len(seen) < length:
        missed = [b - a - 1 for a, b in itertools.pairwise(seen)]
        parts = link(found, max_gap=max(missed) - 1, min_length=1, sure=0.0)
        assert len(parts) == 1 + missed.count(max(missed))
        assert sorted(part.start + i for part in parts for i in np.flatnonzero(part.seen)) == seen
