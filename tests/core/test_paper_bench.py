"""The statistics and tables of the paper benchmark, on rows that are known."""

import random

import numpy as np
import pytest

from benchmarks import paper, paper_report, reader
from benchmarks.paper import Shot
from benchmarks.paper_report import Claim
from vcd_core import plots
from vcd_core.tiny import world


def rows(table, case, offset, measure="attributes", spread=0.0):
    rng = random.Random(0)
    return [
        {"table": table, "case": case, "who": s.who, "prompt": s.prompt, "seed": s.seed,
         measure: 0.5 + 0.1 * s.who + offset + spread * rng.uniform(-1, 1)}
        for s in paper.SHOTS
    ]  # fmt: skip


CLAIM = Claim("more", "attributes", ("t", "a"), ("t", "b"), "as the paper says")


@pytest.mark.parametrize(
    ("offset", "spread", "said"), [(0.02, 0.01, "holds"), (-0.02, 0.01, "reversed"), (0.0, 0.2, "not decided")]
)
def test_an_ordering_is_judged_by_paired_differences(offset, spread, said):
    """People differ by far more than the cases do; paired by person, prompt and seed a small difference shows."""
    found = CLAIM.judge(rows("t", "a", offset, spread=spread) + rows("t", "b", 0.0))
    assert said in found[1]


def test_only_clips_that_both_cases_have_are_compared():
    one = [row for row in rows("t", "a", 0.02) if row["who"] == 0]
    difference, said = CLAIM.judge(one + rows("t", "b", 0.0))
    assert difference.people == 1
    assert difference.mean == pytest.approx(0.02)
    assert said == "not decided"  # one person decides nothing
    assert CLAIM.judge(one) is None


def test_every_case_that_is_shown_or_claimed_is_made():
    """Tables and orderings name cases by text; a misspelt one would be an empty cell."""
    made = set()

    class Recorder(paper.Bench):
        def __init__(self):
            self.people, self.judge, self.studio = paper.cast(), None, None

        def add(self, table, case, shot, make, *arguments):
            made.add((table, case))

    for table in paper.TABLES:
        table(Recorder())
    shown = {(table, case) for table, (_, cases, _) in paper_report.SHOWN.items() for case in cases}
    assert shown == made
    assert {case for claim in paper_report.CLAIMS for case in (claim.more, claim.less)} <= made


def test_tables_hold_means_and_orderings():
    accuracy = {"true frames": {"skin": 0.987}}
    text = paper_report.markdown(rows("methods", "4 tokens", 0.1) + rows("methods", "class word", 0.0), accuracy, 0.284)
    assert "| 4 tokens | 0.850 ± " in text
    assert "| identity, T2V over the class word | 0.100 ± 0.000 | holds |" in text
    assert "0.987" in text


def test_a_figure_without_a_number_is_a_gap_in_the_chart():
    """A reading that failed leaves its row empty, and the other rows stand."""
    broken = [{**row, "attributes": float("nan")} for row in rows("methods", "class word", 0.0)]
    alone = np.asarray(paper_report.chart(broken, "methods"))
    both = np.asarray(paper_report.chart(broken + rows("methods", "4 tokens", 0.1), "methods"))
    first, second = plots.SERIES[:2]
    assert not (alone == first).all(-1).any()
    assert not (both == first).all(-1).any()
    assert (both == second).all(-1).sum() > 1000
    assert "not computed" in paper_report.markdown(broken, {}, 0.3)


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """Each clip is kept once under its own name, whatever its figures are called; what other files made begins anew."""
    figures = dict.fromkeys(paper_report.UNITS, 1.0)
    bench = paper.Bench(tmp_path)
    for shot in paper.SHOTS:
        bench.add("t", "a", shot, lambda: figures)
    assert len(bench.done) == len(paper.SHOTS) == len(paper_report.values(bench.rows, "t", "a", "prompt followed"))
    with bench.file.open("a") as file:
        file.write('{"table": "t", "ca')  # stopped while writing
    again = paper.Bench(tmp_path)
    assert again.rows == bench.rows
    again.add("t", "a", Shot(0, 0, 1), lambda: pytest.fail("made again"))
    again.add(paper.PICTURES, "a", Shot(0, 0, 1), lambda: figures)
    (tmp_path / "id_0_4_masked.pt").touch()
    now = paper.fingerprints()
    monkeypatch.setattr(paper, "fingerprints", lambda: {**now, "clips": "of other motion"})
    assert [row["table"] for row in paper.Bench(tmp_path).rows] == [paper.PICTURES]
    assert (tmp_path / "id_0_4_masked.pt").is_file()
    monkeypatch.setattr(paper, "fingerprints", lambda: dict.fromkeys(now, "of other frames"))
    assert paper.Bench(tmp_path).rows == []
    assert not (tmp_path / "id_0_4_masked.pt").exists()


def test_processes_share_the_people_and_keep_each_others_lines(tmp_path):
    for count in (1, 2, 3):
        assert sorted(who for number in range(count) for who in paper.share(number, count)) == list(range(paper.PEOPLE))
    whole = paper.Bench(tmp_path)
    first, second = (paper.Bench(tmp_path, paper.share(number, 2)) for number in range(2))
    for bench in (first, second):
        for shot in bench.shots:
            bench.add("t", "a", shot, lambda: {})
    whole.read()
    assert {paper.key_of(row)[2:] for row in whole.rows} == {(s.who, s.prompt, s.seed) for s in paper.SHOTS}
    assert len(whole.rows) == len(paper.SHOTS)


def test_figures_may_not_hide_which_clip_they_are_of(tmp_path):
    with pytest.raises(AssertionError, match="names the clip"):
        paper.Bench(tmp_path).add("t", "a", Shot(0, 0, 1), lambda: {"prompt": 1.0})


def test_the_cast_is_balanced_and_held_out():
    people = paper.cast()
    assert sorted(p.class_word for p in people) == ["man"] * 3 + ["woman"] * 3
    assert sorted(p.skin for p in people) == ["brown"] * 2 + ["dark"] * 2 + ["pale"] * 2
    assert all(world.held_out(p) for p in people)
    assert 0.2 < paper.chance(people) < 0.4


def test_every_figure_that_is_shown_has_its_unit():
    shown = {measure for _, _, measures in paper_report.SHOWN.values() for measure in measures}
    assert shown == set(paper_report.UNITS)


def test_what_is_read_is_compared_with_the_person():
    person = world.Person("man", "pale", "no", "red", "blue", "none", "top hat", "green")
    read = {**person.attributes(), "hair_colour": "blue"}
    assert reader.matches(read, person) == 1.0  # a bald head has no colour of hair
    assert reader.matches({**read, "shirt": "red"}, person) == pytest.approx(4 / 5)
    assert reader.matches({**read, "shirt": "red"}, person, reader.FACE) == 1.0
