"""What the paper benchmark says: means with intervals, the paper's orderings, tables in Markdown, charts."""

from __future__ import annotations

import csv
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from vcd_core import plots
from vcd_core.evaluate import as_number

from .measure import half_width
from .paper_cases import GAMMAS, LONG, PEOPLE, PROMPTS, SEEDS, STEPS, TOKENS, Row, tokens_case

UNITS = {
    "attributes": "share read right",
    "attributes, last 16": "share read right",
    "of the right person": "share read, of the attributes in which the two differ",
    "of the other": "share read, of the attributes in which the two differ",
    "face attributes": "share read right on the face",
    "face found": "share of the clips",
    "likeness": "cosine to pictures of the person",
    "face likeness": "cosine of the face to faces",
    "prompt followed": "share of scene and framing read right",
    "consistency": "cosine of frame to next",
    "first half": "cosine of frame to next",
    "second half": "cosine of frame to next",
    "dynamics": "% of the diagonal a frame",
    "flicker": "255ths",
    "sharpness": "variance of the Laplacian",
    "room": "share of frames in the training room",
}


@dataclass(frozen=True)
class Interval:
    """A mean over people with its 95 % interval."""

    mean: float
    low: float
    high: float
    people: int

    def __str__(self) -> str:
        return as_number(self.mean, ".3f") + ("" if math.isnan(self.low) else f" ± {(self.high - self.low) / 2:.3f}")


def interval(by_person: dict[int, list[float]]) -> Interval:
    """Student's t over the means of the people: clips of one person are not independent of each other.

    Example:
        >>> print(interval({0: [1.0, 3.0], 1: [4.0], 2: [3.0]}))
        3.000 ± 2.484
    """
    means = [statistics.fmean(values) for values in by_person.values()]
    middle = statistics.fmean(means)
    if len(means) < 2 or not math.isfinite(middle):
        return Interval(middle, math.nan, math.nan, len(means))
    half = half_width(means)
    return Interval(middle, middle - half, middle + half, len(means))


def values(rows: list[Row], table: str, case: str, measure: str) -> dict[tuple[int, int, int], float]:
    return {
        (r["who"], r["prompt"], r["seed"]): r[measure]
        for r in rows
        if r["table"] == table and r["case"] == case and measure in r
    }


def mean_over_people(rows: list[Row], table: str, case: str, measure: str) -> Interval:
    return interval(by_person(values(rows, table, case, measure)))


def by_person(found: dict[tuple[int, int, int], float]) -> dict[int, list[float]]:
    people: dict[int, list[float]] = {}
    for (who, _, _), value in found.items():
        people.setdefault(who, []).append(value)
    return people


@dataclass(frozen=True)
class Claim:
    """An ordering: ``measure`` is larger in ``more`` than in ``less``; both are (table, case)."""

    text: str
    measure: str
    more: tuple[str, str]
    less: tuple[str, str]
    paper: str

    def judge(self, rows: list[Row]) -> tuple[Interval, str] | None:
        """The paired difference, and whether the ordering holds."""
        more, less = (values(rows, *case, self.measure) for case in (self.more, self.less))
        shared = {key: more[key] - less[key] for key in more.keys() & less.keys()}
        if not shared:
            return None
        difference = interval(by_person(shared))
        said = "holds" if difference.low > 0 else "does not hold: reversed" if difference.high < 0 else "not decided"
        return difference, said


GAMMA_AT = {g: ("gamma", f"gamma {g:g}") for g in GAMMAS}
T2V, WORD = ("methods", "4 tokens"), ("methods", "class word")
ONE, FOUR, EIGHT = (("identity", tokens_case(n)) for n in (1, 4, 8))
UNMASKED, WORDS = ("identity", "4 tokens without masks"), ("identity", "words")
FIRST, FACES, LAST = (("stages", name) for name in ("T2V", "Face", "Tiled"))
BOTH_T2V, BOTH_FACES = ("two people", "T2V"), ("two people", "Face")
CLAIMS = (
    Claim("identity, T2V over the class word", "attributes", T2V, WORD, "DINO .539 over .267"),
    Claim("likeness, T2V over the class word", "likeness", T2V, WORD, "CLIP-I .721 over .595"),
    Claim("prompt followed, T2V over the class word", "prompt followed", T2V, WORD, "CLIP-T .321 over .265"),
    Claim("consistency, T2V over the class word", "consistency", T2V, WORD, "temporal .826 over .729"),
    Claim("consistency, gamma 0.1 over 0", "consistency", GAMMA_AT[0.1], GAMMA_AT[0.0], "temporal .835 over .797"),
    Claim("consistency, gamma 0.2 over 0.1", "consistency", GAMMA_AT[0.2], GAMMA_AT[0.1], "temporal .861 over .835"),
    Claim("consistency, gamma 0.4 over 0.2", "consistency", GAMMA_AT[0.4], GAMMA_AT[0.2], "not in the paper"),
    Claim("dynamics, gamma 0 over 0.2", "dynamics", GAMMA_AT[0.0], GAMMA_AT[0.2], '"almost still" at 0.2'),
    Claim("dynamics, gamma 0 over 0.4", "dynamics", GAMMA_AT[0.0], GAMMA_AT[0.4], "not in the paper"),
    Claim("flicker, gamma 0 over 0.4", "flicker", GAMMA_AT[0.0], GAMMA_AT[0.4], "not in the paper"),
    Claim("identity, gamma 0.1 over 0", "attributes", GAMMA_AT[0.1], GAMMA_AT[0.0], "DINO .585 over .560"),
    Claim(
        "prompt followed, gamma 0.1 over 0.2", "prompt followed", GAMMA_AT[0.1], GAMMA_AT[0.2], "CLIP-T .315 over .280"
    ),
    Claim("identity, 4 tokens over 1", "attributes", FOUR, ONE, "chose 4, no figures"),
    Claim("identity, 4 tokens over 8", "attributes", FOUR, EIGHT, "chose 4, no figures"),
    Claim("identity, the person in words over 4 tokens", "attributes", WORDS, FOUR, "not in the paper"),
    Claim(
        "training room in other scenes, without masks over with",
        "room",
        UNMASKED,
        FOUR,
        "masks keep it out, no figures",
    ),
    Claim(
        "prompt followed, with masks over without",
        "prompt followed",
        FOUR,
        UNMASKED,
        "masks keep it editable, no figures",
    ),
    Claim("the face, Face over T2V", "face attributes", FACES, FIRST, "DINO .551 over .539"),
    Claim("the face's likeness, Face over T2V", "face likeness", FACES, FIRST, "CLIP-I .752 over .721"),
    Claim("the face's sharpness, Face over T2V", "sharpness", FACES, FIRST, "shown in pictures"),
    Claim("the face's sharpness, Tiled over Face", "sharpness", LAST, FACES, "shown in pictures"),
    Claim("identity, Tiled over Face", "attributes", LAST, FACES, "DINO .585 over .551"),
    Claim("two people, each its own, Face over T2V", "of the right person", BOTH_FACES, BOTH_T2V, "shown in pictures"),
    Claim("two people, mixed up, T2V over Face", "of the other", BOTH_T2V, BOTH_FACES, "shown in pictures"),
    Claim("likeness, Face over Tiled", "likeness", FACES, LAST, "CLIP-I .752 over .747"),
)

SHOWN: dict[str, tuple[str, list[str], list[str]]] = {
    "methods": (
        "Table 1: what an identity gives (first stage, clips of 16 frames, gamma 0.1)",
        ["class word", "4 tokens"],
        [
            "attributes",
            "likeness",
            "prompt followed",
            "consistency",
            "dynamics",
            "face found",
            "face attributes",
            "face likeness",
        ],
    ),
    "identity": (
        "Tokens and masks (single pictures; all training pictures were taken in the forest, no prompt names it)",
        ["class word", *map(tokens_case, TOKENS), "4 tokens without masks", "words"],
        ["attributes", "likeness", "prompt followed", "room"],
    ),
    "gamma": (
        "Table 2: gamma (first stage)",
        [*(f"gamma {g:g}" for g in GAMMAS), "gamma 0.4 to 0"],
        [
            "attributes",
            "likeness",
            "prompt followed",
            "consistency",
            "first half",
            "second half",
            "dynamics",
            "flicker",
        ],
    ),
    "stages": (
        "Table 3: stages (all judged at 256x256, T2V and Face enlarged; the face where the first stage has it)",
        ["T2V", "Face", "Tiled"],
        [
            "attributes",
            "likeness",
            "prompt followed",
            "consistency",
            "sharpness",
            "face found",
            "face attributes",
            "face likeness",
        ],
    ),
    "two people": (
        "Two people in one clip: one prompt for both, then each face with its own (where a face was found in each "
        "half)",
        ["T2V", "Face"],
        ["of the right person", "of the other", "face found"],
    ),
    "long": (
        f"{LONG} frames",
        [f"{LONG} frames, context windows"],
        ["attributes", "attributes, last 16", "likeness", "prompt followed", "consistency", "dynamics"],
    ),
}


HOW = f"""\
{PEOPLE} people that no training saw, {len(PROMPTS)} prompts, {len(SEEDS)} seeds, {STEPS} steps, one training a person.
Attributes, scene and framing are read off the frames by a classifier (last table). Likeness and consistency are cosines
of a MobileNetV2 trained on ImageNet, a stand-in for CLIP and DINO: compare its values with each other, not with the
paper's.

Intervals are 95 %, Student's t over the means of the people: they cover the choice of people, not of seeds. An ordering
"holds" where the paired difference is on its side and its interval leaves out 0; of {len(CLAIMS)} orderings
one is expected to seem decided by luck."""


def markdown(rows: list[Row], accuracy: dict[str, dict[str, float]], luck: float) -> str:
    """The tables, the orderings, and how well the reader reads."""
    lines = ["# The paper's tables in miniature", "", HOW, ""]
    lines += [f"A random person of this world would have {luck:.3f} of the attributes.", ""]
    for table, (title, cases, measures) in SHOWN.items():
        lines += [f"## {title}", "", f"| | {' | '.join(measures)} | clips |", "|" + "---|" * (len(measures) + 2)]
        for case in cases:
            cells = [by_person(values(rows, table, case, measure)) for measure in measures]
            count = sum(r["table"] == table and r["case"] == case for r in rows)
            lines.append(f"| {case} | {' | '.join(str(interval(cell)) if cell else '' for cell in cells)} | {count} |")
        lines += ["", f"![{table}]({table.replace(' ', '_')}.png)", ""]
    lines += [
        "## The paper's orderings",
        "",
        "| ordering | difference here | | the paper |",
        "|---|---|---|---|",
    ]
    for claim in CLAIMS:
        found = claim.judge(rows)
        lines.append(f"| {claim.text} | {found[0] if found else ''} | {found[1] if found else ''} | {claim.paper} |")
    heads = list(dict.fromkeys(head for found in accuracy.values() for head in found))
    lines += [
        "",
        "## How well the reader reads",
        "",
        "Share of right readings on close-ups and medium shots of held-out people.",
        "",
        f"| | {' | '.join(heads)} |",
        "|" + "---|" * (len(heads) + 1),
    ]
    for name, found_heads in accuracy.items():
        lines.append(f"| {name} | {' | '.join(f'{found_heads[h]:.3f}' if h in found_heads else '' for h in heads)} |")
    return "\n".join(lines) + "\n"


def chart(rows: list[Row], table: str, width: int = 960) -> plots.Image.Image:
    """Bars with intervals, one block for each measure."""
    title, cases, measures = SHOWN[table]
    block, margin = 26 + 20 * len(cases), 24
    page = plots.Image.new("RGB", (width, 48 + block * len(measures) + margin), plots.PAPER)
    pen = plots.ImageDraw.Draw(page)
    pen.text((margin, 14), title, plots.INK, plots.font(17))
    for number, measure in enumerate(measures):
        top = 48 + number * block
        found = {c: interval(by_person(v)) for c in cases if (v := values(rows, table, c, measure))}
        if not found:
            continue
        pen.text((margin, top), f"{measure} ({UNITS[measure]})", plots.INK, plots.font(13))
        most = max([0.0, *(v for i in found.values() for v in (i.mean, i.high) if math.isfinite(v))]) * 1.02 or 1
        left, length = margin + 200, width - 2 * margin - 270
        for row, (case, shown) in enumerate(found.items()):
            y = top + 20 + 20 * row
            pen.text((margin, y), case, plots.GREY, plots.font(12))
            if math.isfinite(shown.mean):
                end = left + int(length * max(0.0, shown.mean) / most)
                pen.rectangle([left, y + 2, end, y + 14], fill=plots.SERIES[row % len(plots.SERIES)])
            if not math.isnan(shown.low):
                ends = [left + int(length * max(0.0, v) / most) for v in (shown.low, shown.high)]
                pen.line([ends[0], y + 8, ends[1], y + 8], fill=plots.INK, width=2)
            pen.text((left + length + 8, y), as_number(shown.mean, ".3f"), plots.INK, plots.font(12))
    return page


def write(rows: list[Row], accuracy: dict[str, dict[str, float]], luck: float, folder: Path) -> None:
    """``paper.csv``, ``paper.md`` and a chart for each table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "paper.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    (folder / "paper.md").write_text(markdown(rows, accuracy, luck), encoding="utf-8")
    for table in SHOWN:
        chart(rows, table).save(folder / f"{table.replace(' ', '_')}.png", optimize=True)
