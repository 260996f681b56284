"""The report of figures: a page that carries all it shows, and JSON that says the same."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from vcd_core.evaluate import Figure
from vcd_core.report import SHOWN_FRAMES, Report

BAD = '<script>alert("x")</script>'


def report(frames=12, names=("before", "after"), notes=()):
    g = torch.Generator().manual_seed(0)
    clips = {name: torch.rand(frames, 40, 60, 3, generator=g) for name in names}
    wave = torch.sin(torch.arange(frames) / 2.0)
    figures = {
        name: [
            Figure("sharpness", wave + 10 * i),
            Figure("flicker", wave[2:].abs(), "255ths", "low"),
            Figure("dynamics", wave[1:], "%", ""),
            Figure("face likeness", torch.where(wave > 0.9, math.nan, wave), gaps=True),
        ]
        for i, name in enumerate(names)
    }
    return Report(clips, figures, notes)


class Seen(HTMLParser):
    """Every tag and address of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.sources, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for key, value in attributes if key in ("src", "href", "data", "srcset")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def pictures_of(page):
    return [
        Image.open(io.BytesIO(base64.b64decode(part))) for part in re.findall(r"data:image/webp;base64,([^\"]+)", page)
    ]


def test_the_page_needs_nothing_from_elsewhere_and_is_well_formed():
    page = report().page("a report")
    seen = Seen(page)
    assert seen.open == []
    assert all(source.startswith("data:image/webp;base64,") for source in seen.sources)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert {"script", "link", "iframe"}.isdisjoint(seen.tags)


def test_names_and_notes_are_text():
    page = report(names=(BAD, f"{BAD}2"), notes=[BAD]).page(BAD)
    assert "script" not in Seen(page).tags
    assert page.count("&lt;script&gt;") > 10


def test_clips_move_side_by_side_and_the_worst_frames_are_shown():
    made = report()
    pictures = pictures_of(made.page("a"))
    assert [picture.n_frames for picture in pictures[:2]] == [12, 12]
    assert pictures[0].size == (60, 40)
    page = made.page("a")
    worst = int(torch.sin(torch.arange(12) / 2.0).argmin())
    assert f"before, frame {worst}: -" in page
    assert page.count("Where it is worst") == 2  # flicker has a value for three frames each, dynamics is for nobody
    assert len(pictures) == 2 + 2 * 2


def test_long_and_large_clips_are_picked_from_and_shrunk():
    clip = torch.zeros(200, 720, 1280, 3)
    page = Report({"a": clip}, {"a": [Figure("sharpness", torch.ones(200))]}).page("a")
    first = pictures_of(page)[0]
    assert first.n_frames <= SHOWN_FRAMES
    assert max(first.size) == 320
    assert len(page) < 200_000


def test_json_says_the_same_and_what_is_not_known_is_null():
    made = report(notes=["by nobody"])
    data = json.loads(made.data(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data["notes"] == ["by nobody"]
    before = data["clips"]["before"]
    assert (before["frames"], before["size"]) == (12, [60, 40])
    likeness = before["figures"]["face likeness"]
    assert likeness["values"].count(None) == int((torch.sin(torch.arange(12) / 2.0) > 0.9).sum()) > 0
    change = data["over"]["changes"]["sharpness"]["after"]
    assert change["value"] == pytest.approx(10.0)
    assert change["decided"]
    assert not data["over"]["changes"]["flicker"]["after"]["decided"]
    assert before["figures"]["dynamics"]["worst_tenth"] is None
    assert "10.000" in made.page("a")


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_clips_have_reports(frames):
    made = Report({"a": torch.zeros(frames, 8, 8, 3)}, {"a": [Figure("sharpness", torch.ones(frames))]})
    assert Seen(made.page("a")).open == []
    assert json.loads(made.data())["clips"]["a"]["figures"]["sharpness"]["mean"]["value"] == 1
    empty = Report({"a": torch.zeros(1, 8, 8, 3)}, {"a": []})
    assert Seen(empty.page("a")).open == []
