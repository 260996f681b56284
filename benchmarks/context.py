"""Identities as context vectors beside those as tokens: the tiny model, six people it never saw.

Written to ``.host/bench/context``: a line of ``rows.jsonl`` for each picture and clip, a file for each identity, and
``context.md``. What is done is kept there, and a run that was stopped goes on. All training pictures were taken in one
room, which no prompt names, as in bench paper.

    python run.py bench context
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch

from dev.host import HOST
from vcd_core import identity

from . import paper
from .measure import interval
from .paper import Bench, Pair, Shot
from .paper_cases import PEOPLE, ROOM, SEEDS, Row


class Case(NamedTuple):
    """A way to learn an identity."""

    kind: str = identity.CONTEXT
    number: int = 4
    rate: float = 2e-2
    appended: bool = False  # behind the prompt, not in its padding


TOKENS, CONTEXT = "4 tokens", "4 context vectors"
CASES = {
    CONTEXT: Case(),
    TOKENS: Case(identity.TOKENS),
    "4 context vectors, appended": Case(appended=True),
    "8 context vectors": Case(number=8),
    "1 context vector": Case(number=1),
    "2 context vectors": Case(number=2),
}
PAIRS = (
    (CONTEXT, TOKENS),
    (CONTEXT, "4 context vectors, appended"),
    ("8 context vectors", CONTEXT),
    (CONTEXT, "2 context vectors"),
    ("2 context vectors", "1 context vector"),
)


class ContextBench(Bench):
    """Bench paper's drawing and reading, with identities of the case in hand."""

    case = CONTEXT

    def identity(self, who: int, tokens: int = 4, masked: bool = True) -> Any:
        way = CASES[self.case]
        path = self.folder / f"id_{who}_{self.case.replace(' ', '_')}.pt"
        core, nodes = self.studio.module("vcd_core.identity"), self.studio.module("nodes.identity")
        word = self.people[who].class_word
        if not path.is_file():
            start = time.monotonic()
            more = {"tokens": way.number, "learning_rate": way.rate, "kind": way.kind}
            found = self.studio.learn(self.people[who], who, masked, ROOM, **more)
            torch.save(found.tokens.vectors, path)
            print(f"{self.case}, person {who}: learned in {time.monotonic() - start:.0f} s", flush=True)
        vectors = torch.load(path, weights_only=True)
        return nodes.Identity(core.IdTokens("id", vectors, kind=way.kind), word)

    def positive(self, who: int, text: str, case: str) -> Any:
        return self.studio.prompt(text.format("V*"), self.identity(who))

    @contextlib.contextmanager
    def using(self, case: str) -> Iterator[None]:
        """While this lasts, identities are of this case, and context vectors stand where it has them."""
        doors = [self.studio.module("vcd_core.identity"), self.studio.module("nodes.host.context")]
        before, self.case = doors[0].beside, case
        for door in doors if CASES[case].appended else ():
            door.beside = appended
        try:
            yield
        finally:
            for door in doors:
                door.beside = before


def appended(rows: torch.Tensor, vectors: Sequence[torch.Tensor], *_: Any) -> torch.Tensor:
    """The other place: behind the prompt's rows, which grow by as many."""
    return torch.cat([rows, torch.cat(list(vectors)).to(rows).expand(*rows.shape[:-2], -1, -1)], -2)


def pictures(bench: ContextBench, cases: Sequence[str]) -> None:
    """Single pictures of each case."""
    for case, shot in itertools.product(cases, bench.shots):
        with bench.using(case):
            bench.add("pictures", case, shot, paper.picture_row, bench, shot, case)


def clips(bench: ContextBench) -> None:
    """The first stage with its motion, at two gammas; of tokens they are in bench paper."""
    for who, gamma in itertools.product(bench.mine, (0.0, 0.4)):
        shot = Shot(who, who % 4, SEEDS[0])
        with bench.using(CONTEXT):
            bench.add("clips", f"{CONTEXT}, gamma {gamma:g}", shot, paper.clip_row, bench, shot, gamma, CONTEXT)


def two_people(bench: ContextBench) -> None:
    """Two identities of one kind in one prompt, then each on its own face."""
    for who, case in itertools.product((who for who in bench.mine if who % 2 == 0), (TOKENS, CONTEXT)):
        with bench.using(case):
            pair = Pair(bench, Shot(who, who // 2 % 2, SEEDS[0]))
            for stage in ("T2V", "Face"):
                bench.add("two people", f"{case}, {stage}", pair.shot, pair.row, stage)


def over_people(rows: Sequence[Row], table: str, case: str, figure: str) -> dict[int, float]:
    """The mean of a figure for each person that is done."""
    chosen = [row for row in rows if row["table"] == table and row["case"] == case and figure in row]
    people = sorted({row["who"] for row in chosen})
    return {who: mean(row[figure] for row in chosen if row["who"] == who) for who in people}


def spread(given: Iterable[float]) -> str:
    """Mean and 95 % interval over people (Student's t)."""
    values = list(given)
    if len(values) < 2:
        return ", ".join(f"{value:.3f}" for value in values) or "-"
    return interval(values)


FIGURES = {
    "pictures": ("attributes", "prompt followed", "room", "likeness"),
    "clips": ("attributes", "prompt followed", "consistency", "dynamics"),
    "two people": ("of the right person", "of the other", "face found"),
}


def markdown(rows: Sequence[Row]) -> str:
    """The tables, and the paired differences of single pictures."""
    lines = [f"{PEOPLE} people that no training saw; means and 95 % intervals over people (Student's t).", ""]
    for table, figures in FIGURES.items():
        lines += [f"| {table} | " + " | ".join(figures) + " |", "|---" * (len(figures) + 1) + "|"]
        for case in dict.fromkeys(row["case"] for row in rows if row["table"] == table):
            values = (spread(over_people(rows, table, case, figure).values()) for figure in figures)
            lines.append(f"| {case} | " + " | ".join(values) + " |")
        lines.append("")
    lines += ["| difference, pictures | " + " | ".join(FIGURES["pictures"]) + " |", "|---" * 5 + "|"]
    for one, other in PAIRS:
        gains = []
        for figure in FIGURES["pictures"]:
            ours, theirs = (over_people(rows, "pictures", case, figure) for case in (one, other))
            gains.append(spread([ours[who] - theirs[who] for who in ours if who in theirs]))
        lines.append(f"| {one} over {other} | " + " | ".join(gains) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    sys.argv = sys.argv[:1]  # the host reads the command line
    folder: Path = HOST / "bench" / "context"
    bench = ContextBench(folder)
    pictures(bench, (CONTEXT, TOKENS))
    two_people(bench)
    clips(bench)
    pictures(bench, tuple(CASES))
    text = markdown(bench.rows)
    (folder / "context.md").write_text(text, encoding="utf-8")
    print(text)
    found = {case: mean(over_people(bench.rows, "pictures", case, "attributes").values()) for case in (TOKENS, CONTEXT)}
    good = found[CONTEXT] > found[TOKENS]
    print("targets held" if good else "TARGETS MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
