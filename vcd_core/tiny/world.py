"""A procedural cartoon world: people with nameable attributes in scenes, 128x128, 16 frames at 8 fps.

Everything is deterministic by seed, and every frame comes with its exact person mask and face box, so a measurement
made on this world has a ground truth. Faces have the proportions and the shading that a face detector trained on
photographs looks for.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = 128
FRAMES = 16
SAMPLES = 3  # supersampling a side

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

CLASS_WORDS = ("man", "woman")
SKINS: dict[str, Colour] = {"pale": (244, 205, 178), "brown": (178, 122, 84), "dark": (108, 70, 48)}
HAIR_COLOURS: dict[str, Colour] = {
    "black": (30, 26, 28),
    "blond": (236, 200, 92),
    "red": (186, 70, 34),
    "blue": (52, 96, 220),
}
HAIRS = ("short", "long", "spiky", "no")
EYES: dict[str, Colour] = {"blue": (44, 104, 200), "green": (48, 130, 62), "brown": (84, 50, 24)}
GLASSES = ("none", "glasses", "sunglasses")
HATS: dict[str, Colour | None] = {
    "none": None,
    "red cap": (206, 40, 44),
    "yellow cap": (240, 206, 50),
    "top hat": (34, 32, 40),
}
SHIRTS: dict[str, Colour] = {
    "red": (214, 44, 44),
    "blue": (44, 80, 210),
    "green": (44, 150, 66),
    "yellow": (242, 212, 56),
    "white": (240, 240, 240),
}
SCENES = ("beach", "city", "forest", "snow", "night")
ACTIONS = ("walking", "waving", "jumping", "standing")
FRAMINGS = ("close-up", "medium", "far away")
SCENE_WORDS = {
    "beach": "on the beach",
    "city": "in the city",
    "forest": "in the forest",
    "snow": "in the snow",
    "night": "at night",
}


@dataclass(frozen=True)
class _Shot:
    """Head radius in pixels, where the head stands, and how far it may wander."""

    radius: float
    x: float
    y: float
    wide: float
    high: float


_SHOTS = {
    "close-up": _Shot(30, 64, 62, 9, 5),
    "medium": _Shot(15, 64, 44, 20, 6),
    "far away": _Shot(9.5, 64, 49, 32, 8),
}


@dataclass(frozen=True)
class Person:
    """Who: one value of each attribute."""

    class_word: str
    skin: str
    hair: str
    hair_colour: str
    eyes: str
    glasses: str
    hat: str
    shirt: str

    def attributes(self) -> dict[str, str]:
        """The attributes that define an identity beside its class word."""
        names = ("skin", "hair", "hair_colour", "glasses", "hat", "shirt")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Take:
    """What is filmed: people, from left to right, in a scene."""

    people: tuple[Person, ...]
    scene: str
    action: str
    framing: str
    seed: int
    frames: int = FRAMES


@dataclass(frozen=True)
class Frame:
    """One rendered frame and its ground truth."""

    image: np.ndarray  # uint8 [128, 128, 3], or larger
    masks: list[np.ndarray]  # float32 [128, 128] in 0..1, one for each person
    faces: list[Box] = field(default_factory=list)  # x, y, width, height in pixels, one for each person


def random_person(rng: random.Random) -> Person:
    """A person with attributes drawn evenly; three quarters wear no hat and half no glasses."""
    return Person(
        class_word=rng.choice(CLASS_WORDS),
        skin=rng.choice(list(SKINS)),
        hair=rng.choice(HAIRS),
        hair_colour=rng.choice(list(HAIR_COLOURS)),
        eyes=rng.choice(list(EYES)),
        glasses=rng.choice(("none", "none", "glasses", "sunglasses")),
        hat=rng.choice(("none",) * 5 + ("red cap", "yellow cap", "top hat")),
        shirt=rng.choice(list(SHIRTS)),
    )


def held_out(person: Person) -> bool:
    """Whether this combination of attributes is kept out of training, to serve as an unseen identity (one in eight)."""
    values = [person.skin, person.hair, person.hair_colour, person.glasses, person.hat, person.shirt]
    return sum((i + 3) * ord(c) for i, value in enumerate(values) for c in value) % 8 == 0


def random_take(rng: random.Random, person: Person | None = None, **fixed: object) -> Take:
    """A clip of a random person that is not held out (or of ``person``); keyword values fix what they name."""
    while person is None:
        drawn = random_person(rng)
        person = None if held_out(drawn) else drawn
    take = Take(
        people=(person,),
        scene=rng.choice(SCENES),
        action=rng.choice(ACTIONS),
        framing=rng.choices(FRAMINGS, (0.4, 0.4, 0.2))[0],
        seed=rng.randrange(1 << 30),
    )
    return replace(take, **fixed)  # type: ignore[arg-type]


def identities(count: int, seed: int = 0) -> list[Person]:
    """Held-out people that differ from each other in most of their attributes."""
    rng = random.Random(seed)
    chosen: list[Person] = []
    while len(chosen) < count:
        person = random_person(rng)
        new = person.attributes().items()
        if held_out(person) and all(len(new & other.attributes().items()) <= 3 for other in chosen):
            chosen.append(person)
    return chosen


def describe(person: Person, keep: float = 1.0, rng: random.Random | None = None) -> str:
    """A person's caption, as "pale man with short red hair, glasses"; each part is kept with probability ``keep``."""
    rng = rng or random.Random(0)
    kept = lambda: keep >= 1 or rng.random() < keep  # noqa: E731
    head = f"{person.skin} {person.class_word}" if kept() else person.class_word
    parts = []
    if kept():
        parts.append("no hair" if person.hair == "no" else f"{person.hair} {person.hair_colour} hair")
    if person.glasses != "none" and kept():
        parts.append(person.glasses)
    if person.hat != "none" and kept():
        parts.append(person.hat)
    if kept():
        parts.append(f"{person.shirt} shirt")
    return head + (" with " + ", ".join(parts) if parts else "")


def caption(take: Take, keep: float = 1.0, rng: random.Random | None = None) -> str:
    """A clip's caption: "a close-up of a pale man with ..., waving on the beach"."""
    rng = rng or random.Random(0)
    kept = lambda: keep >= 1 or rng.random() < keep  # noqa: E731
    people = " and a ".join(describe(person, keep, rng) for person in take.people)
    framing = {"close-up": "a close-up of a", "medium": "a photo of a", "far away": "a far away photo of a"}[
        take.framing
    ]
    text = f"{framing} {people}"
    text += f", {take.action}" if kept() else ""
    return text + (f" {SCENE_WORDS[take.scene]}" if kept() else "")


def vocabulary() -> list[str]:
    """Every word that a caption or a prompt of this world may use."""
    words = {"a", "an", "the", "of", "with", "and", "photo", "picture", "person", "people", "in", "on", "at"}
    values = [CLASS_WORDS, SKINS, HAIRS, HAIR_COLOURS, EYES, GLASSES, HATS, SHIRTS, ACTIONS, FRAMINGS]
    values.append(tuple(SCENE_WORDS.values()))
    for value in itertools.chain.from_iterable(values):
        words.update(value.replace("-", " - ").split())
    return sorted(words | {"very", "small", "zoomed", "hair", "shirt", "eyes", ",", ".", "close", "up", "-"})


def render_take(take: Take) -> list[Frame]:
    """All frames of a clip."""
    background = _background(take)
    return [render(take, i, background) for i in range(take.frames)]


def render(take: Take, index: int, background: Image.Image | None = None, side: int = SIZE) -> Frame:
    """One frame of a clip, as a picture of ``side`` (at most 384) pixels; masks and faces are those of 128 pixels."""
    page = (background or _background(take)).copy()
    masks, faces = [], []
    for number, person in enumerate(take.people):
        layer = _Layer(*_place(take, index, number))
        layer.draw(person, _pose(take, index, number))
        page.paste(layer.colour, (0, 0), layer.alpha)
        masks.append(np.asarray(layer.alpha.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / 255)
        faces.append(layer.face())
    return Frame(np.asarray(page.resize((side, side), Image.Resampling.BOX)), masks, faces)


@dataclass(frozen=True)
class _Pose:
    leg: float = 0.0
    left_arm: float = 0.2
    right_arm: float = 0.2
    turn: float = 0.0


def _phase(take: Take, number: int) -> random.Random:
    return random.Random(take.seed * 7 + number)


def _beat(index: int) -> float:
    """The phase of an action's movement, two rounds in 16 frames; every clip begins with it.

    If it began at random, all frames of a clip would have to agree on the beginning while they are still noise. That is
    more than a small motion module learns: its people spread their arms and did not rise.
    """
    return 4 * math.pi * index / FRAMES


def _place(take: Take, index: int, number: int) -> tuple[float, float, float]:
    """Where person ``number``'s head is in frame ``index``: x, y and radius in pixels."""
    rng = _phase(take, number)
    shot = _SHOTS[take.framing]
    radius, wide, home = shot.radius * rng.uniform(0.92, 1.08), shot.wide, shot.x
    crowd = len(take.people)
    if crowd > 1:
        radius *= 0.72 if take.framing == "close-up" else 1.0
        wide /= crowd
        home += (number - (crowd - 1) / 2) * 64.0
    x, y = home + rng.uniform(-0.6, 0.6) * wide, shot.y + rng.uniform(-0.6, 0.6) * shot.high
    direction = rng.choice((-1, 1))
    time = index / FRAMES
    beat = _beat(index)
    if take.action == "walking":
        x = home + direction * (time - 0.5) * 1.7 * wide
        y -= abs(math.sin(beat)) * 0.12 * radius
    elif take.action == "jumping":
        y -= abs(math.sin(beat / 2)) * radius * {"close-up": 0.55, "medium": 1.2, "far away": 1.9}[take.framing]
    else:
        x += 0.05 * radius * math.sin(beat / 2)
    return x, y, radius


def _pose(take: Take, index: int, number: int) -> _Pose:
    rng = _phase(take, number)
    for _ in range(3):
        rng.random()
    direction = rng.choice((-1, 1))
    beat = _beat(index)
    if take.action == "walking":
        swing = 0.5 * math.sin(beat)
        return _Pose(swing, 0.2 - 0.6 * swing, 0.2 + 0.6 * swing, 0.12 * direction)
    if take.action == "jumping":
        lift = 0.3 + 1.3 * abs(math.sin(beat / 2))
        return _Pose(0.15, lift, lift)
    if take.action == "waving":
        return _Pose(0.0, 0.2, 2.75 + 0.4 * math.sin(beat))
    return _Pose(0.0, 0.2, 0.2, 0.05 * math.sin(beat / 2))


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255, max(0, round(c * factor))) for c in colour)  # type: ignore[return-value]


class _Layer:
    """A person drawn on a transparent page; units are head radii from the head's centre, y down."""

    def __init__(self, x: float, y: float, radius: float) -> None:
        self.x, self.y, self.radius = x * SAMPLES, y * SAMPLES, radius * SAMPLES
        side = SIZE * SAMPLES
        self.colour = Image.new("RGB", (side, side))
        self.alpha = Image.new("L", (side, side))
        self._pen = ImageDraw.Draw(self.colour)
        self._cut = ImageDraw.Draw(self.alpha)

    def face(self) -> Box:
        """The face as detectors draw it: from the brow to the chin, x, y, width, height in pixels of the frame."""
        x, y, r = self.x / SAMPLES, self.y / SAMPLES, self.radius / SAMPLES
        return x - 0.78 * r, y - 0.72 * r, 1.56 * r, 1.78 * r

    def draw(self, person: Person, pose: _Pose) -> None:
        skin, shirt = SKINS[person.skin], SHIRTS[person.shirt]
        hair = HAIR_COLOURS[person.hair_colour]
        self._legs(person, pose)
        if person.hair == "long":
            self._round(-1.06, -0.75, 1.06, 1.75, 0.55, _shade(hair, 0.85))
        self._body(person, pose, skin, shirt)
        self._head(person, pose, skin)
        self._hair(person.hair, hair)
        self._features(person, pose, skin)
        self._hat(person.hat)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return self.x + x * self.radius, self.y + y * self.radius

    def _ellipse(self, x: float, y: float, a: float, b: float, colour: Colour) -> None:
        box = [*self._at(x - a, y - b), *self._at(x + a, y + b)]
        self._pen.ellipse(box, fill=colour)
        self._cut.ellipse(box, fill=255)

    def _polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        at = [self._at(*point) for point in points]
        self._pen.polygon(at, fill=colour)
        self._cut.polygon(at, fill=255)

    def _round(self, x0: float, y0: float, x1: float, y1: float, corner: float, colour: Colour) -> None:
        box = [*self._at(x0, y0), *self._at(x1, y1)]
        self._pen.rounded_rectangle(box, corner * self.radius, fill=colour)
        self._cut.rounded_rectangle(box, corner * self.radius, fill=255)

    def _chord(self, x0: float, y0: float, x1: float, y1: float, start: int, end: int, colour: Colour) -> None:
        box = [*self._at(x0, y0), *self._at(x1, y1)]
        self._pen.chord(box, start, end, fill=colour)
        self._cut.chord(box, start, end, fill=255)

    def _limb(self, x0: float, y0: float, x1: float, y1: float, width: float, colour: Colour) -> None:
        line = [*self._at(x0, y0), *self._at(x1, y1)]
        pixels = max(1, round(width * self.radius))
        self._pen.line(line, fill=colour, width=pixels)
        self._cut.line(line, fill=255, width=pixels)
        self._ellipse(x1, y1, width / 2, width / 2, colour)

    def _legs(self, person: Person, pose: _Pose) -> None:
        trousers = (52, 56, 84)
        for side, angle in ((-1, pose.leg), (1, -pose.leg)):
            x, y = side * 0.45 + 1.8 * math.sin(angle), 3.4 + 2.0 * math.cos(angle)
            self._limb(side * 0.45, 3.3, x, y, 0.62, trousers)
            self._ellipse(x + 0.1, y + 0.1, 0.42, 0.24, (40, 32, 32))

    def _body(self, person: Person, pose: _Pose, skin: Colour, shirt: Colour) -> None:
        self._round(-0.36, 0.5, 0.36, 1.5, 0.1, _shade(skin, 0.78))
        if person.class_word == "woman":
            shape = [(-0.85, 1.25), (0.85, 1.25), (0.62, 2.4), (1.05, 3.9), (-1.05, 3.9), (-0.62, 2.4)]
            self._polygon(shape, shirt)
        else:
            self._round(-1.25, 1.2, 1.25, 3.8, 0.4, shirt)
        wide = 0.9 if person.class_word == "woman" else 1.15
        for side, angle in ((-1, pose.left_arm), (1, pose.right_arm)):
            x, y = side * (wide + 2.0 * math.sin(angle)), 1.55 + 2.0 * math.cos(angle)
            self._limb(side * wide, 1.55, x, y, 0.5, _shade(shirt, 0.84))
            self._ellipse(x, y, 0.3, 0.3, skin)
        self._ellipse(0, 1.2, 0.46, 0.22, _shade(skin, 0.86))

    def _head(self, person: Person, pose: _Pose, skin: Colour) -> None:
        chin = 1.06 if person.class_word == "woman" else 1.1
        for side in (-1, 1):
            self._ellipse(side * 0.84, 0.1, 0.14, 0.22, _shade(skin, 0.85))
        self._ellipse(0, -0.15, 0.86, 0.95, skin)
        self._polygon(
            [(-0.84, 0.0), (0.84, 0.0), (0.7, 0.55), (0.38, chin - 0.1), (-0.38, chin - 0.1), (-0.7, 0.55)], skin
        )
        self._ellipse(0, chin - 0.2, 0.4, 0.2, skin)
        self._light(skin)

    def _light(self, skin: Colour) -> None:
        """Light from above on one side: what tells a detector a head from a disc."""
        side = self.colour.size[0]
        mask = Image.new("L", (side, side))
        pen = ImageDraw.Draw(mask)
        pen.ellipse([*self._at(-0.92, -1.12), *self._at(0.92, 1.12)], fill=120)
        pen.ellipse([*self._at(-0.74, -1.0), *self._at(0.62, 0.86)], fill=0)
        soft = mask.filter(ImageFilter.GaussianBlur(0.16 * self.radius))
        inside = Image.new("L", (side, side))
        ImageDraw.Draw(inside).ellipse([*self._at(-0.86, -1.1), *self._at(0.86, 1.08)], fill=255)
        self.colour.paste(_shade(skin, 0.62), (0, 0), ImageChops.multiply(soft, inside))

    def _hair(self, hair: str, colour: Colour) -> None:
        if hair in ("short", "long"):
            self._chord(-0.98, -1.24, 0.98, 0.7, 187, 353, colour)
            self._polygon([(-0.98, -0.3), (-0.8, -0.75), (-0.74, -0.35), (-0.84, 0.12), (-0.96, 0.1)], colour)
            self._polygon([(0.98, -0.3), (0.8, -0.75), (0.74, -0.35), (0.84, 0.12), (0.96, 0.1)], colour)
        if hair == "long":
            for side in (-1, 1):
                self._polygon(
                    [(side * 0.98, -0.5), (side * 0.74, -0.4), (side * 0.82, 0.9), (side * 1.08, 1.5)], colour
                )
        if hair == "spiky":
            tips = [
                (-1.0, -0.15),
                (-1.25, -0.95),
                (-0.78, -0.85),
                (-0.7, -1.55),
                (-0.3, -1.05),
                (0.0, -1.75),
                (0.3, -1.05),
            ]
            tips += [
                (0.7, -1.55),
                (0.78, -0.85),
                (1.25, -0.95),
                (1.0, -0.15),
                (0.78, -0.55),
                (0.3, -0.68),
                (-0.3, -0.68),
            ]
            self._polygon([*tips, (-0.78, -0.55)], colour)

    def _features(self, person: Person, pose: _Pose, skin: Colour) -> None:
        shift = pose.turn
        brow = _shade(HAIR_COLOURS[person.hair_colour], 0.7) if person.hair != "no" else (60, 44, 36)
        for side in (-1, 1):
            x = side * 0.36 + shift
            self._ellipse(x, 0.03, 0.24, 0.15, _shade(skin, 0.72))
            self._ellipse(x, 0.05, 0.19, 0.115, (246, 246, 246))
            self._ellipse(x, 0.045, 0.115, 0.115, EYES[person.eyes])
            self._ellipse(x, 0.045, 0.06, 0.06, (8, 8, 10))
            self._limb(x - 0.19, -0.05, x + 0.19, -0.05, 0.05, (34, 24, 24))
            self._limb(x - 0.22, -0.2 + 0.03 * side, x + 0.22, -0.2 - 0.03 * side, 0.08, brow)
        self._polygon([(-0.03 + shift, 0.1), (0.16 + shift, 0.44), (-0.14 + shift, 0.44)], _shade(skin, 0.84))
        for side in (-1, 1):
            self._ellipse(side * 0.08 + shift, 0.45, 0.05, 0.035, _shade(skin, 0.55))
        lips = (186, 58, 70) if person.class_word == "woman" else _shade(skin, 0.66)
        self._ellipse(shift, 0.7, 0.3, 0.085, lips)
        self._limb(-0.28 + shift, 0.7, 0.28 + shift, 0.7, 0.045, (90, 30, 34))
        self._ellipse(shift, 0.84, 0.2, 0.03, _shade(skin, 0.84))
        self._glasses(person.glasses, shift)

    def _glasses(self, glasses: str, shift: float) -> None:
        if glasses == "none":
            return
        dark = (18, 18, 24)
        for side in (-1, 1):
            x = side * 0.37 + shift
            box = [*self._at(x - 0.3, -0.14), *self._at(x + 0.3, 0.28)]
            width = max(1, round(0.075 * self.radius))
            fill = (30, 30, 40) if glasses == "sunglasses" else None
            self._pen.rounded_rectangle(box, 0.14 * self.radius, fill=fill, outline=dark, width=width)
            self._limb(side * 0.64 + shift, 0.0, side * 0.84, -0.04, 0.07, dark)
        self._limb(-0.1 + shift, 0.0, 0.1 + shift, 0.0, 0.07, dark)

    def _hat(self, hat: str) -> None:
        colour = HATS[hat]
        if colour is None:
            return
        if hat == "top hat":
            self._round(-0.7, -2.1, 0.7, -0.7, 0.06, colour)
            self._round(-1.2, -0.84, 1.2, -0.6, 0.1, colour)
            self._round(-0.7, -1.05, 0.7, -0.84, 0.02, (150, 34, 44))
        else:
            self._chord(-1.0, -1.42, 1.0, 0.42, 182, 358, colour)
            self._round(-0.9, -0.62, 1.35, -0.42, 0.1, _shade(colour, 0.74))


class _Scenery:
    """A background; units are pixels of the frame."""

    def __init__(self) -> None:
        self.page = Image.new("RGB", (SIZE * SAMPLES, SIZE * SAMPLES))
        self._pen = ImageDraw.Draw(self.page)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self._pen.rectangle([v * SAMPLES for v in (x0, y0, x1, y1)], fill=colour)

    def disc(self, x: float, y: float, r: float, colour: Colour) -> None:
        self._pen.ellipse([v * SAMPLES for v in (x - r, y - r, x + r, y + r)], fill=colour)

    def shape(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self._pen.polygon([(x * SAMPLES, y * SAMPLES) for x, y in points], fill=colour)


def _background(take: Take) -> Image.Image:
    scenery = _Scenery()
    _SCENERIES[take.scene](scenery, random.Random(take.seed))
    return scenery.page


def _beach(scenery: _Scenery, rng: random.Random) -> None:
    horizon = rng.randint(52, 62)
    scenery.box(0, 0, 128, horizon, (134, 206, 250))
    scenery.box(0, horizon, 128, 90, (34, 122, 204))
    scenery.box(0, 86, 128, 128, (240, 216, 152))
    scenery.disc(rng.randint(12, 116), rng.randint(12, 30), 10, (255, 236, 96))


def _city(scenery: _Scenery, rng: random.Random) -> None:
    scenery.box(0, 0, 128, 128, (188, 206, 222))
    x = -rng.randint(0, 10)
    while x < 128:
        width, top, grey = rng.randint(18, 28), rng.randint(14, 60), rng.randint(88, 140)
        scenery.box(x, top, x + width - 1, 104, (grey, grey, grey + 14))
        for wy in range(top + 5, 100, 9):
            for wx in range(x + 3, x + width - 5, 7):
                scenery.box(wx, wy, wx + 3, wy + 4, (250, 234, 150))
        x += width
    scenery.box(0, 102, 128, 128, (82, 82, 88))


def _forest(scenery: _Scenery, rng: random.Random) -> None:
    scenery.box(0, 0, 128, 94, (172, 220, 192))
    scenery.box(0, 90, 128, 128, (72, 142, 54))
    for x in range(-6, 136, 17):
        at, tall = x + rng.randint(-4, 4), rng.randint(48, 70)
        scenery.box(at - 3, 76, at + 3, 96, (102, 66, 36))
        scenery.shape([(at - 13, 82), (at + 13, 82), (at, 82 - tall)], (26, rng.randint(92, 124), 52))


def _snow(scenery: _Scenery, rng: random.Random) -> None:
    scenery.box(0, 0, 128, 128, (202, 222, 244))
    peak = rng.randint(20, 108)
    scenery.shape([(peak - 52, 94), (peak + 52, 94), (peak, 28)], (150, 166, 190))
    scenery.shape([(peak - 16, 48), (peak + 16, 48), (peak, 28)], (255, 255, 255))
    scenery.box(0, 90, 128, 128, (250, 252, 255))
    for _ in range(20):
        scenery.disc(rng.randint(0, 127), rng.randint(0, 88), 1.7, (255, 255, 255))


def _night(scenery: _Scenery, rng: random.Random) -> None:
    scenery.box(0, 0, 128, 128, (18, 20, 62))
    scenery.box(0, 98, 128, 128, (28, 40, 48))
    scenery.disc(rng.randint(12, 116), rng.randint(12, 32), 11, (246, 240, 202))
    for _ in range(20):
        scenery.disc(rng.randint(0, 127), rng.randint(0, 90), 1.1, (255, 255, 230))


_SCENERIES = {"beach": _beach, "city": _city, "forest": _forest, "snow": _snow, "night": _night}
