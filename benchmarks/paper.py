"""The paper's tables in miniature: the tiny model, its drawn world, people that no training saw.

Written to ``.host/bench/paper``: ``paper.csv`` (every clip), ``paper.md`` (the tables) and a chart for each table.
What is done is kept there, and a run that was stopped goes on; other weights or settings begin anew.  People are shared
out among processes, one for each core up to three.

    python run.py bench paper

Statistics, orderings and charts are in paper_report.py.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from dev import clips
from dev.host import HOST
from dev.studio import SIDE, Studio
from vcd_core import evaluate, training
from vcd_core import noise as prior
from vcd_core.face import crop as crops
from vcd_core.face.track import masks_of
from vcd_core.tiny import model as tiny
from vcd_core.tiny import world

from .paper_cases import (
    BOTH,
    EMBEDDING,
    FALLING,
    GAMMA,
    GAMMAS,
    LONG,
    PEOPLE,
    PICTURES,
    PROMPTS,
    ROOM,
    SAMPLER,
    SEEDS,
    STEPS,
    TOKENS,
    Row,
    tokens_case,
)
from .paper_report import markdown, mean_over_people, write
from .reader import FACE, READER_FILES, Reader, load_or_train, matches


@dataclass(frozen=True)
class Shot:
    """One person in one prompt with one seed."""

    who: int
    prompt: int
    seed: int

    @property
    def text(self) -> str:
        return PROMPTS[self.prompt][0]

    @property
    def scene(self) -> str:
        return PROMPTS[self.prompt][1]

    @property
    def framing(self) -> str:
        return PROMPTS[self.prompt][2]


SHOTS = tuple(Shot(*at) for at in itertools.product(range(PEOPLE), range(len(PROMPTS)), SEEDS))


# ------------------------------------------------------------------------------------------------------------ measuring


class Judge:
    """What is read off a clip: attributes and scene by the reader, likeness by the embedding, motion by the frames."""

    def __init__(self, studio: Studio, folder: Path) -> None:
        from torchvision.models import mobilenet_v2

        self.studio = studio
        self.reader, self.accuracy = load_or_train(folder, studio.vae)
        self.net = mobilenet_v2()
        self.net.load_state_dict(torch.load(clips.path_of(*EMBEDDING), weights_only=True))
        self.net.eval()
        self.references: dict[world.Person, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        pictures = F.interpolate(images.movedim(-1, 1), (SIDE, SIDE), mode="bilinear", antialias=True)
        mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pictures = (pictures - mean.view(1, 3, 1, 1)) / spread.view(1, 3, 1, 1)
        return self.net.features(pictures).mean((2, 3))

    def faces_in(self, images: torch.Tensor) -> Any:
        node = self.studio.module("nodes.face")
        return node.FaceTrack.execute(images, "largest", 0, 0.5, 8, 3, True).args[0]

    @staticmethod
    def face_crops(images: torch.Tensor, faces: Any) -> torch.Tensor:
        if not faces.tracks:
            return torch.empty(0, SIDE, SIDE, 3)
        track = faces.tracks[0]
        return crops.crop(images, crops.windows(track, faces.height, faces.width, 2.2), (SIDE, SIDE))

    def reference(self, person: world.Person) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of true pictures of a person, and of the faces in them."""
        if person not in self.references:
            rng = random.Random(500)
            pictures, faces = [], []
            for i in range(6):
                clip = world.random_take(rng, person, framing=("close-up", "medium")[i % 2], scene=world.SCENES[i % 5])
                frame = world.render(clip, 3)
                image = torch.tensor(frame.image).float() / 255
                x, y, w, h = frame.faces[0]
                side = int(max(w, h) * 2.2)
                left, top = max(0, int(x + w / 2 - side / 2)), max(0, int(y + h / 2 - side / 2))
                part = image[top : top + side, left : left + side].movedim(-1, 0)[None]
                pictures.append(image)
                faces.append(F.interpolate(part, (SIDE, SIDE), mode="bilinear")[0].movedim(0, -1))
            self.references[person] = self.embed(torch.stack(pictures)), self.embed(torch.stack(faces))
        return self.references[person]

    def measure(
        self,
        images: torch.Tensor,
        person: world.Person,
        shot: Shot,
        faces: Any = None,
    ) -> Row:
        """The figures of a clip; those of the face where one is found (``faces``: where it is)."""
        read, seen = self.reader.read(images), self.embed(images)
        pictures, portraits = self.reference(person)
        row: Row = {
            "attributes": mean(matches(r, person) for r in read),
            "likeness": float(evaluate.to_references(seen, pictures).mean()),
            "room": mean(r["scene"] == ROOM for r in read),
            "prompt followed": mean((r["scene"] == shot.scene) + (r["framing"] == shot.framing) for r in read) / 2,
        }
        if len(images) < 3:  # pictures, not a clip
            return row
        row["consistency"] = float(evaluate.temporal_consistency(seen).mean())
        row["dynamics"] = float(evaluate.dynamics(images).mean())
        row["flicker"] = float(evaluate.flicker(images).mean())
        faces = self.faces_in(images) if faces is None else faces
        row["face found"] = float(bool(faces.tracks))
        crops = self.face_crops(images, faces)
        if len(crops):
            row["face attributes"] = mean(matches(r, person, FACE) for r in self.reader.read(crops))
            row["face likeness"] = float(evaluate.to_references(self.embed(crops), portraits).mean())
        return row


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


# ------------------------------------------------------------------------------------------------------------- drawing


class Bench:
    """What is done is kept in ``folder``: a line of ``rows.jsonl`` for each clip, a file for each identity.

    A process that works beside others is given ``mine``, its people; it adds lines and leaves the rest of the file
    alone.
    """

    mine: Sequence[int] = range(PEOPLE)

    def __init__(self, folder: Path, mine: Sequence[int] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.file = folder, folder / "rows.jsonl"
        self.rows: list[Row] = []
        if mine is None:
            self.begin()
        else:
            self.mine = mine
        self.read()
        self.people = cast()
        self.plain: dict[tuple[str, int, int], torch.Tensor] = {}  # clips of the class words, which people share
        self.spent: dict[str, float] = {}

    def begin(self) -> None:
        """Drop what other weights or settings made, and a last line that is torn."""
        mark = self.folder / "marks.json"
        before, now = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else {}, fingerprints()
        if before.get("pictures") != now["pictures"]:
            for path in [self.file, *self.folder.glob("id_*.pt")]:
                path.unlink(missing_ok=True)
        self.read()
        kept = [row for row in self.rows if before.get("clips") == now["clips"] or row["table"] == PICTURES]
        self.file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        mark.write_text(json.dumps(now), encoding="utf-8")

    def read(self) -> None:
        """Take over what is in the file, also what others added."""
        lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True) if self.file.is_file() else []
        self.rows = [json.loads(line) for line in lines if line.endswith("\n")]
        self.done = {key_of(row) for row in self.rows}

    @property
    def shots(self) -> list[Shot]:
        return [shot for shot in SHOTS if shot.who in self.mine]

    @cached_property
    def studio(self) -> Studio:
        return Studio()

    @cached_property
    def judge(self) -> Judge:
        return Judge(self.studio, self.folder)

    def add(self, table: str, case: str, shot: Shot, make: Callable[..., Row], *arguments: Any) -> None:
        """Keep the figures that ``make(*arguments)`` gives, unless they are there."""
        row: Row = {"table": table, "case": case, **asdict(shot)}
        if key_of(row) in self.done:
            return
        start = time.monotonic()
        before = self.spent.get("training", 0)
        with torch.inference_mode():
            found = make(*arguments)
        assert not row.keys() & found.keys(), "a figure may not be called as what names the clip"
        row |= found
        training = self.spent.get("training", 0) - before
        self.spent[table] = self.spent.get(table, 0) + time.monotonic() - start - training
        self.rows.append(row)
        self.done.add(key_of(row))
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    def identity(self, who: int, tokens: int = 4, masked: bool = True) -> Any:
        """The identity of a person, learned once from pictures that were all taken in one place."""
        path = self.folder / f"id_{who}_{tokens}_{'masked' if masked else 'unmasked'}.pt"
        core, nodes = self.studio.module("vcd_core.identity"), self.studio.module("nodes.identity")
        word = self.people[who].class_word
        if path.is_file():
            return nodes.Identity(core.IdTokens("id", torch.load(path, weights_only=True)), word)
        start = time.monotonic()
        found = self.studio.learn(self.people[who], who, masked, ROOM, tokens=tokens)
        partial = path.with_suffix(f".{os.getpid()}")  # another process may need the same pair of people
        torch.save(found.tokens.vectors, partial)
        partial.replace(path)
        self.spent["training"] = self.spent.get("training", 0) + time.monotonic() - start
        return found

    def positive(self, who: int, text: str, case: str) -> Any:
        """The conditioning of a prompt for a person: by class word, by words, or by an identity."""
        person = self.people[who]
        if case in ("class word", "words"):
            return self.studio.prompt(
                text.format(person.class_word if case == "class word" else world.describe(person))
            )
        tokens = int(case.split()[0])
        return self.studio.prompt(text.format("V*"), self.identity(who, tokens, "without" not in case))


@cache
def cast() -> list[world.Person]:
    """The first held-out people among whom each class word and each skin comes up equally often."""
    for seed in itertools.count():
        people = world.identities(PEOPLE, seed)
        kinds = (
            sorted(Counter(values).values()) for values in zip(*((p.class_word, p.skin) for p in people), strict=True)
        )
        if list(kinds) == [[PEOPLE // 2] * 2, [PEOPLE // 3] * 3]:
            return people
    raise AssertionError


def chance(people: Sequence[world.Person], count: int = 2000) -> float:
    """The share of a person's attributes that a random person of the world has: what reading by luck gives."""
    rng = random.Random(0)
    strangers = [world.random_person(rng).attributes() for _ in range(count)]
    return mean(matches(stranger, person) for stranger in strangers for person in people)


def fingerprints() -> dict[str, str]:
    """What the kept figures of pictures and of clips depend on: the weights, and the files that say how they are
    made."""
    modules = (Studio.__module__, training.__name__, __name__)
    files = [tiny.MODEL_FILE, *READER_FILES, *(Path(sys.modules[m].__file__ or "") for m in modules)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files))
    pictures = digest.hexdigest()
    digest.update(tiny.MOTION_FILE.read_bytes())
    return {"pictures": pictures, "clips": digest.hexdigest()}


def key_of(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("table", "case", "who", "prompt", "seed"))


# ------------------------------------------------------------------------------------------------------------ the
# tables


def picture_row(bench: Bench, shot: Shot, case: str) -> Row:
    """The figures of two single pictures of a prompt."""
    drawn = bench.studio.draw(
        bench.positive(shot.who, shot.text, case), 10 * shot.seed, 2, 0.0, STEPS, moving=False, **SAMPLER
    )
    return bench.judge.measure(drawn, bench.people[shot.who], shot)


def clip_row(bench: Bench, shot: Shot, gamma: Any, case: str) -> Row:
    """The figures of a clip."""
    return judge_clip(bench, shot, draw_clip(bench, shot, gamma, case))


def draw_clip(bench: Bench, shot: Shot, gamma: Any, case: str) -> torch.Tensor:
    key = (bench.people[shot.who].class_word, shot.prompt, shot.seed)
    if case == "class word" and key in bench.plain:
        return bench.plain[key]
    clip = bench.studio.draw(bench.positive(shot.who, shot.text, case), shot.seed, gamma=gamma, steps=STEPS, **SAMPLER)
    if case == "class word":
        bench.plain[key] = clip
    return clip


def judge_clip(bench: Bench, shot: Shot, clip: torch.Tensor) -> Row:
    steps = evaluate.temporal_consistency(bench.judge.embed(clip))
    half = len(steps) // 2
    halves = {"first half": float(steps[:half].mean()), "second half": float(steps[half + 1 :].mean())}
    return bench.judge.measure(clip, bench.people[shot.who], shot) | halves


def pictures(bench: Bench) -> None:
    """Tokens, masks and bounds on single pictures: what a prompt with the identity shows."""
    for shot in bench.shots:
        for case in ("class word", "words", *map(tokens_case, TOKENS), "4 tokens without masks"):
            bench.add(PICTURES, case, shot, picture_row, bench, shot, case)


def gammas(bench: Bench) -> None:
    """The noise prior: gammas beside the one of the stages, one that falls through the clip, and the class word."""
    falling = prior.parse_schedule(FALLING, world.FRAMES)
    for shot in bench.shots:
        for gamma in GAMMAS:
            if gamma != GAMMA:
                bench.add("gamma", f"gamma {gamma:g}", shot, clip_row, bench, shot, gamma, "4 tokens")
        bench.add("gamma", "gamma 0.4 to 0", shot, clip_row, bench, shot, falling, "4 tokens")
        bench.add("methods", "class word", shot, clip_row, bench, shot, GAMMA, "class word")


def stages(bench: Bench) -> None:
    """T2V with gamma 0.1, Face and Tiled on it; the first is also the clip of two other tables."""
    for shot in bench.shots:
        work = Stages(bench, shot)
        bench.add("gamma", f"gamma {GAMMA:g}", shot, work.clip_row)
        bench.add("methods", "4 tokens", shot, work.clip_row)
        for stage in ("T2V", "Face", "Tiled"):
            bench.add("stages", stage, shot, work.row, stage)


class Stages:
    """The three stages of one clip, each drawn when it is asked for; the face is where the first stage has it."""

    def __init__(self, bench: Bench, shot: Shot) -> None:
        self.bench, self.shot, self.person = bench, shot, bench.people[shot.who]

    @cached_property
    def t2v(self) -> torch.Tensor:
        return draw_clip(self.bench, self.shot, GAMMA, "4 tokens")

    @cached_property
    def faces(self) -> Any:
        return self.bench.judge.faces_in(self.t2v)

    @cached_property
    def face(self) -> torch.Tensor:
        text = self.shot.text.replace("a photo of", "a close-up of")
        return face_stage(
            self.bench, self.t2v, self.bench.positive(self.shot.who, text, "4 tokens"), self.shot.seed, self.faces
        )

    @cached_property
    def tiled(self) -> torch.Tensor:
        positive = self.bench.positive(self.shot.who, self.shot.text, "4 tokens")
        return tiled_stage(self.bench, self.face, positive, self.shot.seed)

    def clip_row(self) -> Row:
        return judge_clip(self.bench, self.shot, self.t2v)

    def row(self, stage: str) -> Row:
        """The figures of a stage at the last stage's size."""
        images = large({"T2V": lambda: self.t2v, "Face": lambda: self.face, "Tiled": lambda: self.tiled}[stage]())
        faces = enlarged(self.faces)
        row = self.bench.judge.measure(images, self.person, self.shot, faces)
        if faces.tracks:
            region = masks_of(faces, factor=1.0)
            seen = [i for i in range(len(images)) if region[i].any()]
            row["sharpness"] = float(evaluate.sharpness(images[seen], region[seen]).mean())
        return row


def large(images: torch.Tensor) -> torch.Tensor:
    """The frames at the last stage's size, so that stages are compared as they would be seen."""
    if images.shape[1] == 2 * SIDE:
        return images
    return F.interpolate(images.movedim(-1, 1), scale_factor=2.0, mode="bicubic").clamp(0, 1).movedim(1, -1)


def enlarged(faces: Any) -> Any:
    """The same faces in frames of twice the size."""
    twice = copy.deepcopy(faces)
    twice.height, twice.width = 2 * faces.height, 2 * faces.width
    for track in twice.tracks:
        track.boxes = 2 * track.boxes
    return twice


def face_stage(bench: Bench, images: torch.Tensor, positive: Any, seed: int, faces: Any, **more: Any) -> torch.Tensor:
    node, studio = bench.studio.module("nodes.face"), bench.studio
    return node.FaceRefine.execute(
        images=images, model=studio.moving, vae=studio.vae, positive=positive, negative=studio.prompt(""),
        steps=STEPS, cfg=2.5, sampler_name="euler", scheduler="normal", denoise=0.6, gamma=GAMMA, seed=seed,
        refine_size=SIDE, crop_factor=3.0, aspect=1.0, feather=5.0, paste_factor=1.6, match_colour=False,
        which="left to right" if more else "largest", index=0, faces=faces, **more,
    ).args[0]  # fmt: skip


def tiled_stage(bench: Bench, images: torch.Tensor, positive: Any, seed: int) -> torch.Tensor:
    node, studio = bench.studio.module("nodes.tiled"), bench.studio
    return node.TiledDenoise.execute(
        images=images, model=studio.moving_tiles, vae=studio.vae, positive=positive, negative=studio.prompt(""),
        scale=2.0, tile_size=144, overlap=32, steps=3, cfg=1.0, sampler_name="euler", scheduler="normal",
        denoise=0.2, gamma=GAMMA, seed=seed,
    ).args[0]  # fmt: skip


class Pair:
    """Two identities in one prompt, then each refined on its own face, as graph 08 does it."""

    def __init__(self, bench: Bench, shot: Shot) -> None:
        self.bench, self.shot = bench, shot
        self.who = (shot.who, shot.who + 1)

    @cached_property
    def t2v(self) -> torch.Tensor:
        studio, text = self.bench.studio, BOTH[self.shot.prompt].format("<id0>", "<id1>")
        positive = studio.prompt(text, *(self.bench.identity(who) for who in self.who))
        return studio.draw(positive, self.shot.seed, gamma=GAMMA, steps=STEPS, **SAMPLER)

    @cached_property
    def faces(self) -> Any:
        """The tracks, where there is one in each half of the picture."""
        node = self.bench.studio.module("nodes.face")
        faces = node.FaceTrack.execute(self.t2v, "left to right", 0, 0.5, 8, 3, True).args[0]
        halves = [float(track.boxes[:, 0].mean() + track.boxes[:, 2].mean() / 2) > SIDE / 2 for track in faces.tracks]
        return faces if sorted(halves) == [False, True] else None

    @cached_property
    def face(self) -> torch.Tensor:
        text = "a close-up of a {}, " + BOTH[self.shot.prompt].split(", ")[1]
        left, right = (self.bench.positive(who, text, "4 tokens") for who in self.who)
        return face_stage(self.bench, self.t2v, left, self.shot.seed, self.faces, positive_2=right)

    def row(self, stage: str) -> Row:
        """The reading of each half; of the second stage only where both faces were found."""
        found: Row = {"face found": float(self.faces is not None)}
        if stage == "Face" and self.faces is None:
            return found
        people = tuple(self.bench.people[who] for who in self.who)
        return found | two_read(self.bench.judge.reader, self.face if stage == "Face" else self.t2v, people)


def two_people(bench: Bench) -> None:
    """Two people in one clip, before and after Face VCD; no person is in two pairs."""
    firsts = (who for who in bench.mine if who % 2 == 0)
    for who, prompt, seed in itertools.product(firsts, range(len(BOTH)), SEEDS):
        shot = Shot(who, prompt, seed)
        pair = Pair(bench, shot)
        for stage in ("T2V", "Face"):
            bench.add("two people", stage, shot, pair.row, stage)


def two_read(reader: Reader, images: torch.Tensor, both: tuple[world.Person, ...]) -> Row:
    """Of the attributes in which the two differ: read as of the person who should be there, and as of the other."""
    differ = tuple(name for name, value in both[0].attributes().items() if both[1].attributes()[name] != value)
    right_place, wrong_place = [], []
    for half, (here, there) in (
        (images[:, 16:80, :64], both),
        (images[:, 16:80, 64:], both[::-1]),
    ):
        for read in reader.read(half):
            right_place.append(matches(read, here, differ))
            wrong_place.append(matches(read, there, differ))
    return {"of the right person": mean(right_place), "of the other": mean(wrong_place)}


def long_row(bench: Bench, shot: Shot) -> Row:
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode as Windows

    studio, person = bench.studio, bench.people[shot.who]
    # newer hosts would put a frame before each window, and the motion module has learned 16
    more = {"causal_window_fix": False} if "causal_window_fix" in signature(Windows.execute).parameters else {}
    model = Windows.execute(studio.moving, 16, 4, "standard_static", 1, False, "pyramid", 0, False, **more).args[0]
    positive = bench.positive(shot.who, shot.text, "4 tokens")
    clip = studio.draw(positive, shot.seed, LONG, GAMMA, STEPS, model=model, **SAMPLER)
    last = bench.judge.measure(clip[-16:], person, shot)
    return bench.judge.measure(clip, person, shot) | {"attributes, last 16": last["attributes"]}


def long_clips(bench: Bench) -> None:
    """64 frames through ComfyUI's context windows of 16."""
    for who in bench.mine:
        shot = Shot(who, who % len(PROMPTS), SEEDS[0])
        bench.add("long", f"{LONG} frames, context windows", shot, long_row, bench, shot)


TABLES = (pictures, stages, gammas, two_people, long_clips)


def share(number: int, count: int) -> list[int]:
    """The people of process ``number`` of ``count``."""
    return [who for who in range(PEOPLE) if who * count // PEOPLE == number]


def work(number: int, count: int, folder: Path) -> None:
    """Make the tables' rows of one share of the people, as process ``number`` of ``count``."""
    sys.argv = sys.argv[:1]  # the host reads the command line
    logging.disable(logging.WARNING)  # that a clip has no face is a figure here
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    bench = Bench(folder, share(number, count))
    for table in TABLES:
        begun = time.monotonic()
        table(bench)
        print(f"people {bench.mine}, {table.__name__}: {time.monotonic() - begun:.0f} s", flush=True)
    print(f"people {bench.mine}: " + ", ".join(f"{k} {v:.0f} s" for k, v in bench.spent.items()), flush=True)


def main(arguments: list[str] | None = None) -> int:

    start = time.monotonic()
    sys.argv = sys.argv[:1]
    bench = Bench(HOST / "bench" / "paper")
    accuracy, luck = bench.judge.accuracy, chance(bench.people)  # the reader is there before others need it
    count = min(3, os.cpu_count() or 1)
    torch.multiprocessing.spawn(work, (count, bench.folder), nprocs=count)
    bench.read()
    write(bench.rows, accuracy, luck, bench.folder)
    print(markdown(bench.rows, accuracy, luck))
    print(f"{len(bench.rows)} rows, {(time.monotonic() - start) / 60:.0f} minutes with {count} processes")
    with_id, word = (
        mean_over_people(bench.rows, "identity", case, "attributes") for case in ("4 tokens", "class word")
    )
    print(
        f"attributes read with an identity {with_id} (target over 0.6), with the class word {word} (target under 0.3)"
    )
    good = with_id.mean >= 0.6 and word.mean < 0.3
    print("targets held" if good else "TARGETS MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
