"""Who is refined, where, and with which prompt: worked out before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .crop import Windows, windows
from .people import Choice, choose, most_at_once, people
from .track import Faces, Track


@dataclass(frozen=True)
class Turn:
    """One face's turn: its track, the windows that follow it, those of all other faces, and whom it shows (0: the
    leftmost)."""

    track: Track
    windows: Windows
    neighbours: list[Windows]
    person: int

    @property
    def own_windows(self) -> Windows:
        """The windows for frames that were picked already: they begin at the first."""
        return replace(self.windows, start=0)


def plan(
    faces: Faces,
    which: Choice,
    index: int,
    crop_factor: float,
    aspect: float,
    by_person: bool = False,
    among: Sequence[Track] | None = None,
) -> list[Turn]:
    """The turns of the chosen faces, in the order in which they are refined.

    Args:
        which, index: see :func:`~vcd_core.face.people.choose`.
        crop_factor, aspect: see :func:`~vcd_core.face.crop.windows`.
        by_person: one person after the other, from left to right, instead of the order of the tracks.
        among: the tracks to choose from; all without.
    """
    persons = people(faces.tracks)  # of all faces, so that a chosen one keeps its number
    follow = {id(track): windows(track, faces.height, faces.width, crop_factor, aspect) for track in faces.tracks}
    person_of = {id(track): person for track, person in zip(faces.tracks, persons, strict=True)}
    turns = []
    tracks = faces.tracks if among is None else among
    for track in choose(tracks, which, index) if tracks else []:
        others = [place for key, place in follow.items() if key != id(track)]
        turns.append(Turn(track, follow[id(track)], others, person_of[id(track)]))
    return sorted(turns, key=lambda turn: (turn.person, turn.track.start)) if by_person else turns


def doubtful(faces: Faces) -> str:
    """What to say where more people are told apart than are ever seen at once; empty where there is no doubt."""
    count, at_once = max(people(faces.tracks), default=-1) + 1, most_at_once(faces.tracks)
    if count <= at_once:
        return ""
    return (
        f"{count} people are told apart, but never more than {at_once} are seen at once. If one of them got another's "
        "prompt, raise max_gap in Face VCD Track, or refine each scene by itself."
    )


def prompt_of(person: int, prompts: Sequence[Any]) -> Any:
    """The person's own prompt, or the first where there is none."""
    own = prompts[person] if person < len(prompts) else None
    return prompts[0] if own is None else own
