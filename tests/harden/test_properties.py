"""What holds for any input: the covariance of the noise prior, tiles, schedules in every form that people write."""

import ast
import contextlib
import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tally import INPUTS, count, hard

from vcd_core import cast, identity, noise, tiled

gammas = st.floats(0, 1) | st.sampled_from([0.0, 5e-324, 0.1, 0.5, 1 - 1e-9, math.nextafter(1, 0), 1.0])
many_gammas = st.lists(gammas, max_size=30)
sides = st.integers(1, 100)


def factor(make, count):
    """What a linear change of noise does, as a matrix: its covariance is exact, without a draw."""
    return make(torch.eye(count, dtype=torch.float64))


@given(frames=st.integers(1, 48), gamma=gammas, loop=st.booleans())
@hard(80, 5_000)
def test_the_noise_has_exactly_the_covariance_that_is_stated(frames, gamma, loop):
    count(INPUTS)
    made = factor(lambda e: noise.correlate(e, gamma, closed_loop=loop), frames)
    assert (made @ made.T - noise.covariance(frames, gamma, loop)).abs().max() < (1e-7 if loop else 1e-12)
    assert ((made * made).sum(1) - 1).abs().max() < (1e-7 if loop else 1e-12)
    if not loop:
        assert torch.equal(made, made.tril())  # a frame depends on no later one


@given(gamma=many_gammas, data=st.data())
@hard(100, 5_000)
def test_a_schedules_covariance_is_exact_and_so_is_that_of_picked_frames(gamma, data):
    count(INPUTS)
    frames = len(gamma) + 1
    made, whole = factor(lambda e: noise.correlate(e, gamma), frames), noise.covariance(frames, gamma)
    assert (made @ made.T - whole).abs().max() < 1e-12
    picked = data.draw(st.lists(st.integers(0, frames - 1), min_size=1, max_size=12))
    some = factor(lambda e: noise.correlate_picked(e, gamma[: max(picked)], picked), len(picked))
    assert (some @ some.T - whole[picked][:, picked]).abs().max() < 1e-12
    for i, j in itertools.combinations(range(len(picked)), 2):
        assert picked[i] != picked[j] or torch.equal(some[i], some[j])


@given(
    gamma=many_gammas, shorter=st.integers(0, 30), dim=st.integers(0, 4), side=st.integers(1, 5), seed=st.integers(0),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)  # fmt: skip
@hard(100, 5_000)
def test_a_shorter_clip_is_the_beginning_of_a_longer_one_to_the_bit(gamma, shorter, dim, side, seed, dtype):
    count(INPUTS)
    frames, shorter = len(gamma) + 1, 1 + shorter % (len(gamma) + 1)
    generator = torch.Generator().manual_seed(seed % 2**63)
    drawn = torch.randn(frames, 2, side, 2, 3, generator=generator).to(dtype).movedim(0, dim)
    kept = drawn.clone()
    whole = noise.correlate(drawn, gamma, dim)
    part = noise.correlate(drawn.narrow(dim, 0, shorter), gamma[: shorter - 1], dim)
    assert torch.equal(whole.narrow(dim, 0, shorter), part)
    assert torch.equal(drawn, kept)
    assert (whole.shape, whole.dtype) == (drawn.shape, dtype)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7), st.integers(1, 7), gammas, st.integers(0, 2**64 - 1))
@hard(60, 3_000)
def test_frames_of_a_batch_keep_their_noise_however_long_it_is(frames, more, height, width, gamma, seed):
    count(INPUTS)
    shape = (4, height, width)
    long = noise.sample((frames + more, *shape), gamma, seed, batch_index=range(frames + more))
    assert torch.equal(noise.sample((frames, *shape), gamma, seed, batch_index=range(frames)), long[:frames])
    if 4 * height * width % 16 == 0:  # in other sizes the host's own noise differs
        assert torch.equal(noise.sample((frames, *shape), gamma, seed), long[:frames])


@given(
    frames=st.integers(1, 12), gamma=gammas, loop=st.booleans(), layout=st.sampled_from(noise.LAYOUTS),
    video=st.booleans(), seed=st.integers(0, 2**64 - 1),
)  # fmt: skip
@hard(25, 1_000)
def test_draws_measure_as_stated(frames, gamma, loop, layout, video, seed):
    """Within six standard deviations of a measured covariance, sqrt((1 + rho^2) / n)."""
    count(INPUTS)
    shape = (1, 4, frames, 64, 64) if video else (frames, 4, 64, 64)
    drawn = noise.sample(shape, gamma, seed, layout, loop).movedim(2 if video else 0, 0)
    stated = noise.covariance(frames, gamma, loop)
    values = drawn[0].numel()
    bound = 6 * ((1 + stated**2) / values).sqrt()
    assert ((noise.measured_covariance(drawn) - stated).abs() < bound).all()
    assert (drawn.flatten(1).mean(1).abs() < 6 / math.sqrt(values)).all()


@st.composite
def grids(draw):
    """Any picture, also smaller than its tile, and any grid over it."""
    tile = draw(st.integers(1, 60))
    overlap = draw(st.just(0) | st.integers(0, tile - 1))
    halves = st.integers(0, 2 * tile).map(lambda i: i / (2 * tile))  # the borders then lie between two cells
    shift = draw(st.tuples(*[st.floats(0, 1) | halves] * 2))
    return draw(sides), draw(sides), tile, overlap, shift


def blended(grid, picture):
    """What denoising tile by tile makes of a picture where nothing is changed."""
    out = torch.zeros_like(picture)
    for tile, weight in zip(grid.tiles, grid.weights, strict=True):
        tile.cut(out).add_(tile.cut(picture) * weight)
    return out


def check_grid(grid, height, width):
    picture = torch.rand(2, height, width, generator=torch.Generator().manual_seed(1)) + 0.5
    assert (blended(grid, picture) - picture).abs().max() < 1e-5
    for (top, left, tall, wide), weight in zip(*grid, strict=True):
        assert 0 <= top < top + tall <= height
        assert 0 <= left < left + wide <= width
        assert weight.shape == (tall, wide)
        assert weight.min() >= 0
    assert len(set(grid.tiles)) == len(grid.tiles)


@given(grids())
@example((100, 9, 9, 0, (0.5, 0.5)))  # two halves in a row, of which one is rounded up and one down
@hard(80, 2_500)
def test_any_grid_gives_the_picture_back_and_neighbours_overlap_as_told(case):
    count(INPUTS)
    height, width, tile, overlap, shift = case
    check_grid(tiled.grid(height, width, tile, overlap, shift), height, width)
    for length, moved in zip((height, width), shift, strict=True):
        begins = tiled.starts(length, tile, overlap, moved)
        assert all(before + tile - begin >= overlap for before, begin in itertools.pairwise(begins))
        assert len(begins) <= len(tiled.starts(length, tile, overlap)) + 1
    if tile >= max(height, width):
        assert torch.equal(*tiled.grid(height, width, tile, overlap, shift).weights, torch.ones(height, width))


@given(grids(), st.integers(1, 8), st.integers(0, 400))
@hard(80, 2_500)
def test_any_step_of_a_moving_grid_gives_the_picture_back(case, unit, step):
    count(INPUTS)
    height, width, tile, overlap, _ = case
    moving = tiled.moving_grid(height, width, tile * unit, overlap * unit, step, unit)
    check_grid(moving, height, width)
    for length, ends in (
        (height, [(t, h) for t, _, h, _ in moving.tiles]),
        (width, [(x, w) for _, x, _, w in moving.tiles]),
    ):
        assert all(begin % unit == 0 and (long % unit == 0 or begin + long == length) for begin, long in ends)


words = st.sampled_from(
    ["a man", "V*", "(smiling:1.2)", "16:9", "at 8:30", "<my id>", "smiling", "it's", "8k", "é", "男"]
)
values = st.tuples(st.sampled_from(["a man", "V*", "(a dog:0.8)"]), st.lists(words, max_size=4)).map(
    lambda parts: ", ".join([parts[0], *parts[1]])
)
FORMS = {
    "bars": lambda keys: " | ".join(f"{f}: {v}" for f, v in keys),
    "wide": lambda keys: "｜".join(f"{f}：{v}" for f, v in keys),
    "lines": lambda keys: "\r\n\n".join(f"{f}: {v}" for f, v in keys),
    "commas": lambda keys: ", ".join(f"{f}: {v}" for f, v in keys) + ",",
    "remarks": lambda keys: "\n".join(f"# {f}: no\n  {f} :\t{v},\n // {v}" for f, v in keys),
    "quoted": lambda keys: ",\n".join(f'"{f}": {json.dumps(v, ensure_ascii=False)}' for f, v in keys),
    "python": lambda keys: ", ".join(f"'{f}': {v!r}" for f, v in keys),
    "json": lambda keys: json.dumps(dict(keys), ensure_ascii=False),
}  # fmt: skip
forms = st.sampled_from(list(FORMS))


def rising(value, last=40, size=6):
    """Keys (frame, value) whose frames rise."""
    frames = st.sets(st.integers(0, last), min_size=1, max_size=size).map(sorted)
    return frames.flatmap(lambda at: st.tuples(*[st.tuples(st.just(frame), value) for frame in at]).map(list))


@given(rising(values), forms)
@hard(100, 5_000)
def test_a_prompt_schedule_means_the_same_in_every_form(keys, form):
    count(INPUTS)
    keys = [(frame - keys[0][0], text) for frame, text in keys]
    assert identity.parse_schedule(FORMS[form](keys)) == keys


@given(rising(gammas), forms, st.integers(1, 60), st.sampled_from([", ", " | ", "\n", ","]))
@hard(100, 5_000)
def test_a_gamma_schedule_means_the_same_in_every_form(keys, form, frames, comma):
    count(INPUTS)
    written = FORMS[form]([(frame, str(gamma)) for frame, gamma in keys])
    expected = np.interp(range(frames - 1), *zip(*keys, strict=True))
    assert noise.parse_schedule(written, frames) == pytest.approx(expected, abs=1e-12)
    listed = [gamma for _, gamma in keys]
    assert noise.parse_schedule(comma.join(map(str, listed)), len(listed) + 1) == listed


def written_place(draw):
    name = draw(st.sampled_from([*cast.PLACES, cast.AWAY, "box", "percent"]))
    if name in cast.PLACES or name == cast.AWAY:
        return name, cast.PLACES.get(name, (np.nan,) * 4)
    x, y = (draw(st.integers(0, 90)) for _ in range(2))
    box = x, y, draw(st.integers(1, 100 - x)), draw(st.integers(1, 100 - y))
    text = " ".join(f"{side}%" if name == "percent" else f"{side / 100:g}" for side in box)
    return text, tuple(side / 100 for side in box)


@given(
    rising(st.composite(written_place)(), 30, 4),
    st.sampled_from(["bars", "wide", "commas", "python", "json"]),
)
@hard(60, 2_500)
def test_people_are_where_they_are_written_at_each_key_and_between(keys, form):
    count(INPUTS)
    frames = keys[-1][0] + 3
    text = FORMS[form]([(frame, text) for frame, (text, _) in keys])
    found = np.broadcast_to(cast.read_places(f"{text}\n# nobody\nleft", ["me", "her"], frames)[0], (frames, 4))
    for frame, (_, box) in keys:
        assert np.allclose(found[frame], box, equal_nan=True)
    for (first, (_, one)), (last, (_, other)) in itertools.pairwise(keys):
        between = found[first:last]
        if np.isnan([*one, *other]).any():
            assert np.allclose(between, one, equal_nan=True)
        else:
            expected = np.linspace(one, other, last - first + 1)[:-1]
            assert np.allclose(between, expected)
    assert np.allclose(found[-1], keys[-1][1][1], equal_nan=True)


pieces = st.sampled_from([
    "0", "8", "16", "007", "-1", "1.5", "9" * 12, ":", "：", ": ", " ", "\n", "|", "｜", ",", ", ", '"', "'", "“", "{",
    "}", "a man", "(V*:1.2)", "16:9", "0.1", ".3", "1", "nan", "1e-3", "1_0", "#", "//", "\\", "=", "frame ", "s",
    "left", "away", "0.1 0 0.4 1", "10% 0 40% 100%", "\t", "\x0b", "\u2028", "\x00", "٣", "²", "é", "--", "0: ",
    "8: ", "\n8: ", "| 16: ",
])  # fmt: skip
anything = st.lists(pieces, max_size=8).map("".join) | st.text(max_size=60)
READERS = {
    "prompt": identity.parse_schedule,
    "gamma": lambda text: noise.parse_schedule(text, 9),
    "video": lambda text: noise.parse_schedule(text, 3, covers=[1, 4, 4]),
    "check": noise.check_schedule,
    "place": lambda text: cast.read_places(text, ["me"], 9),
}


def quotations(error):
    """The texts between any two quotation marks of a message."""
    marks = [i for i, letter in enumerate(error) if letter in "'\""]
    for first, last in itertools.combinations(marks, 2):
        with contextlib.suppress(SyntaxError, ValueError):
            yield ast.literal_eval(error[first : last + 1])


def names_what_is_wrong(error, text):
    """Whether a refusal quotes a part of the text, or tells its number, or how many parts there are."""
    texts = text, text.replace('\\"', '"').replace("\\'", "'")
    found = any(isinstance(part, str) and part.strip() and part in one for part in quotations(error) for one in texts)
    return found or re.search(r"is '';|gamma is \S+;|frame \d+ after frame \d+|found \[\d|\d+ (values|people)", error)


def test_a_person_has_one_place_at_a_time():
    with pytest.raises(ValueError, match=r"of me has several keys at frame 3 .'3: right, 0: top, 3: left'.; keep one"):
        cast.read_places("3: right, 0: top, 3: left", ["me"], 9)


@pytest.mark.parametrize("reader", READERS)
@given(text=anything)
@hard(120, 3_000)
def test_any_text_is_read_or_refused_by_the_part_that_is_wrong(reader, text):
    count(INPUTS)
    refusal = None
    try:
        READERS[reader](text)
    except ValueError as error:
        refusal = str(error)
    assert refusal is None or names_what_is_wrong(refusal, text)
