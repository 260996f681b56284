"""Prompt schedules: every form in which people write their keys, what is no schedule, and how much a key counts in a
frame."""

import pytest
import torch

from vcd_core import schedule
from vcd_core.identity import parse_schedule, schedule_weights

MAN_WOMAN = [(0, "a man"), (8, "a woman")]


@pytest.mark.parametrize(
    "text",
    [
        "0: a man | 8: a woman",
        "0 : a man\n| 8 :a woman",
        "0: a man\n8: a woman",
        "\n0: a man\r\n\r\n8: a woman\r\n",
        "0: a man,\n8: a woman,\n",
        "0: a man, 8: a woman",
        '"0": "a man",\n"8": "a woman"',
        '"0" :"a man",\n"8" :"a woman",',
        '{"0": "a man", "8": "a woman"}',
        "'0': 'a man', '8': 'a woman'",
        '0: "a man"\n8: "a woman"',
        "# first\n0: a man\n  // then\n8: a woman",
        "0:\na man\n8:\na woman",
        "0: a man | 8: a woman |",
        "0：a man\n8：a woman",
        "0: a man｜8: a woman",
    ],
)
def test_keys_are_read_in_every_form(text):
    assert parse_schedule(text) == MAN_WOMAN


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0: a, b | 8: c,", [(0, "a, b"), (8, "c,")]),
        ("0: a man,\nsmiling, 1girl\n8k uhd\n8: b", [(0, "a man,\nsmiling, 1girl\n8k uhd"), (8, "b")]),
        ('"0": "a, b: c | 8: d",\n"9": "say \\"x\\""', [(0, "a, b: c | 8: d"), (9, 'say "x"')]),
        ("'0': 'a man's hat', '8': \"it's\"", [(0, "a man's hat"), (8, "it's")]),
        (r'"0": "\(a\)", "8": "b"', [(0, r"\(a\)"), (8, "b")]),
        ('0: "hello", he says | 8: b', [(0, '"hello", he says'), (8, "b")]),
        ("0: (V*:1.2), 16:9 | 8: at 8:30", [(0, "(V*:1.2), 16:9"), (8, "at 8:30")]),
        ("0: | 8: b", [(0, ""), (8, "b")]),
        ("0:\n8: b", [(0, ""), (8, "b")]),
        ("0: a | 8: b\n16: c, 24: d", [(0, "a"), (8, "b"), (16, "c"), (24, "d")]),
        ("0: a man", [(0, "a man")]),
    ],
)
def test_values_are_kept_as_they_are_written(text, expected):
    assert parse_schedule(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a man | a dog",
        "16:9 photo",
        "16:9\n4:3",
        "(a:1.2), b",
        "(a man, 8:1.2)",
        "a clock at 8:30",
        "8:30 on a clock",
        "The title: a man",
        "2 people: a man and a dog",
        "a man,\nsmiling: wide",
        "35mm, 8k: sharp",
        "# 0: a man",
    ],
)
def test_plain_prompts_stay_plain(text):
    assert parse_schedule(text) is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a photo of\n0: a man\n8: a woman", "a photo of"),
        ("a photo of, 0: a man, 8: a woman", "a photo of"),
        ("a man | 8: a dog", "a man"),
        ("0: a | b", "b"),
        ("0: a man\n8 a woman", "8 a woman"),
        ("0: a man\n8; a woman", "8; a woman"),
        ("0: a man\nframe 8: a woman", "frame 8: a woman"),
        ("0s: a man\n2s: a woman", "0s: a man"),
        ("0 = a man\n8 = a woman", "0 = a man"),
        ("0:1girl\n8:1boy", "0:1girl"),
        ("0: a\n16:9", "16:9"),
        ("“0”: “a”\n“8”: “b”", "“0”: “a”"),
        ('"0: a man",\n"8: a woman"', '"0: a man",'),
        ('"0": "a man,\n"8": "b"', '"0": "a man,'),
        ("-4: a man | 8: b", "-4: a man"),
        ("-4: a man", "-4: a man"),
        ("0: a | 8.5: b", "8.5: b"),
    ],
)
def test_what_looks_like_a_schedule_and_cannot_be_read_is_quoted(text, line):
    with pytest.raises(ValueError, match="schedule") as refused:
        parse_schedule(text)
    assert repr(line)[1:-1].rstrip(",") in str(refused.value)


@pytest.mark.parametrize("text", ["2: a", "0: a | 0: b", "0: a | 9: b | 8: c"])
def test_frames_begin_at_0_and_rise(text):
    with pytest.raises(ValueError, match="begin at 0 and rise"):
        parse_schedule(text)


def test_values_that_are_numbers_may_follow_the_colon_at_once():
    assert schedule.keys("0:0.05, 8:.3", numbers=True) == [(0, "0.05"), (8, ".3")]
    assert schedule.keys('"0": 0.05,\n"8": 0.3,', numbers=True) == [(0, "0.05"), (8, "0.3")]
    assert schedule.keys("0.1, 0.1, 0.3", numbers=True) is None


def test_keys_hold_and_blend_before_a_change():
    weights = schedule_weights([0, 8], 16, 4)
    assert torch.allclose(weights.sum(1), torch.ones(16))
    assert weights[:, 1].tolist() == [0] * 5 + [0.25, 0.5, 0.75] + [1] * 8
    assert schedule_weights([0, 8], 16, 1)[:, 1].tolist() == [0] * 8 + [1] * 8


@pytest.mark.parametrize("blend", [1, 3, 4, 5, 9, 256])
def test_a_blend_longer_than_the_gap_still_reaches_every_key(blend):
    starts = [0, 4, 6, 7, 20]
    weights = schedule_weights(starts, 24, blend)
    for key, start in enumerate(starts):
        assert weights[start].tolist() == torch.eye(5)[key].tolist()
    steps = weights.diff(dim=0).abs().sum(1) / 2
    gaps = [b - a for a, b in zip(starts, [*starts[1:], 24], strict=True)]
    longest = torch.tensor([1 / min(blend, gap) for gap in gaps for _ in range(gap)])[:23]
    assert (steps <= longest + 1e-6).all()  # it goes over evenly: no frame jumps further than its share
    assert torch.allclose(weights.sum(1), torch.ones(24))
