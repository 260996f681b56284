"""Names that Pillow's own typeface cannot write: in one of the machine's, or as numbers; never as empty boxes."""

import pytest
import torch

from vcd_core import fonts, plots
from vcd_core.evaluate import Figure


@pytest.fixture
def machine(monkeypatch):
    """Let the machine's typefaces be those in these folders."""

    def set_to(*folders):
        monkeypatch.setattr(fonts, "folders", lambda: list(folders))
        fonts._file_for.cache_clear()

    yield set_to
    fonts._file_for.cache_clear()


def chart(*names):
    return plots.figures_chart({name: [Figure("CLIP-I", torch.tensor([0.5]))] for name in names}, {})


def test_plain_names_are_written_in_pillows_own_whatever_the_machine_has(machine):
    before = chart("first", "second")
    machine()
    assert torch.equal(chart("first", "second"), before)
    assert fonts.stand_ins(["first", "a B_9 (2)"], "clip") == {}


@pytest.mark.parametrize("pair", ["ЖЯ", "éè", "漢字", "한글"])
def test_names_are_written_where_the_machine_has_the_characters(pair):
    """Empty boxes would be the same for both characters."""
    fonts._file_for.cache_clear()
    if fonts.font_for(pair, 14) is None:
        pytest.skip("no typeface of this machine has the characters")
    first, second = (chart(f"name {character}") for character in pair)
    assert not torch.equal(first, second)
    assert fonts.stand_ins([f"name {pair}"], "clip") == {}


def test_without_a_typeface_clips_are_numbered_and_the_numbers_explained(machine):
    machine()
    assert torch.equal(chart("高橋", "plain", "한국어 이름"), chart("clip 1", "plain", "clip 3"))
    short = plots.chart_stand_ins(["高橋", "plain", "한국어 이름"])
    assert fonts.said(short) == "In the picture: clip 1 is 高橋, clip 3 is 한국어 이름."
    assert fonts.said(plots.chart_stand_ins(["plain"])) == ""


def test_without_a_typeface_boxes_are_numbered(machine):
    """Each label keeps its own number in all frames."""
    machine()
    same_colour = next(chr(code) for code in range(0x4E00, 0x4E10) if (code - sum(map(ord, "label 2"))) % 7 == 0)
    images = torch.full((2, 96, 96, 3), 0.5)

    def drawn(label):
        box = {"x": 8.0, "y": 40.0, "width": 40.0, "height": 40.0, "score": 0.9}
        return plots.numbered_boxes(images, [[{**box, "label": "a man"}], [{**box, "label": label}]])

    assert torch.equal(drawn(same_colour), drawn("label 2"))


def test_files_that_are_no_typefaces_are_passed_over(machine, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "broken.TTF").write_bytes(b"no typeface" * 1000)
    (tmp_path / "gone.otf").symlink_to(tmp_path / "nowhere")
    machine(tmp_path, tmp_path / "not there")
    assert fonts.font_for("高橋", 14) is None


def test_a_typeface_that_lacks_one_character_is_not_taken(machine, tmp_path):
    """A name is written whole or not at all."""
    fonts._file_for.cache_clear()
    found = fonts.font_for("Ж", 14)
    if found is None:
        pytest.skip("no typeface of this machine has the character")
    (tmp_path / "only.ttf").symlink_to(found.path)
    machine(tmp_path)
    assert str(fonts.font_for("Ж", 14).path) == str(tmp_path / "only.ttf")
    assert fonts.font_for("Ж" + fonts.NO_CHARACTER, 14) is None
