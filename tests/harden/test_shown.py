"""Names and texts of strangers in what is shown: they stand there as text, whatever they are."""

import html
import html.parser
import json

import torch
from safetensors.torch import save_file
from strange import HOSTILE_TEXTS
from tally import INPUTS, count

from vcd_core import identity
from vcd_core.evaluate import Figure
from vcd_core.report import Report


class Structure(html.parser.HTMLParser):
    """The tags of a page with the names of their attributes, and its texts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, [name for name, _ in attributes]))

    def handle_data(self, data):
        self.texts.append(data)


def report_of(names):
    clips = {name: torch.zeros(5, 8, 8, 3) for name in names}
    values = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.5])
    figures = {name: [Figure("DINO", values + i, "high")] for i, name in enumerate(names)}
    return Report(clips, figures, [f"of {name}" for name in names])


def test_a_report_shows_names_as_text_whatever_they_are():
    plain = Structure(report_of(["ada", "bob"]).page("Report x"))
    for one in HOSTILE_TEXTS:
        report = report_of([one, f"{one} again"])
        page = Structure(report.page(f"Report {one}"))
        assert page.tags == plain.tags, one
        assert f"Report {one}" in page.texts
        assert set(json.loads(report.data())["clips"]) == {one, f"{one} again"}
        count(INPUTS)


def test_a_table_of_figures_has_the_cells_of_plain_names(pack):
    module = pack("nodes.evaluate")

    def table(first, second):
        names = module.named_videos(f"{first}, {second}", [torch.zeros(1), torch.zeros(1)])
        return module.as_text({name: [Figure("DINO", torch.tensor([0.1, 0.2]), "high")] for name in names}, [])

    def cells(text):
        return [len(line.replace("\\\\", "").replace("\\|", "").split("|")) for line in text.splitlines()]

    for one in (*HOSTILE_TEXTS, "a\n| b | c |", "`x`", "**x**"):
        text = table(one, "other")
        assert cells(text) == cells(table("ada", "other")), one
        assert not any(bare in text.replace(f"\\{bare[0]}", "") for bare in ("<", "[x]", "`", "**"))
        count(INPUTS)


def test_what_a_node_says_is_sent_so_that_the_page_shows_it(pack):
    as_written = pack("nodes.host.ui").as_written
    for one in HOSTILE_TEXTS:
        sent = as_written(one)
        assert not set("<>[]`*_~") & set(sent)
        assert html.unescape(sent) == one
        count(INPUTS)
    for plain in ("4 tokens; width 96", "| DINO | 0.5, 0.6 |\n|---|---|\n| a\\|b | |", "- lacks CLIP"):
        assert as_written(plain) == plain
    in_cell = pack("nodes.evaluate").in_cell
    assert html.unescape(as_written(in_cell("<b> [x](y) `z`"))) == "<b> [x](y) `z`"


def test_what_a_file_says_of_itself_is_short(tmp_path):
    long = "man\n<b>" + "x" * 5_000_000
    save_file(
        {"emb_params": torch.ones(2, 16)}, tmp_path / "m.safetensors", dict.fromkeys(("class_word", "steps"), long)
    )
    assert len(identity.load(tmp_path / "m.safetensors").describe()) < 300
