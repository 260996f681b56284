"""Typefaces for users' texts in pictures: Pillow's own where it has the characters, else one that the machine has.

Pillow's own has little more than ASCII: names in Chinese, Japanese, Korean, Cyrillic or with accents would be boxes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
SUFFIXES = (".ttf", ".ttc", ".otf", ".otc")
NO_CHARACTER = "\U0010ffff"  # no typeface has it: it shows what is drawn in place of what is missing


def font_for(text: str, size: int) -> Font | None:
    """A typeface of this size, in pixels, that has every character of ``text``; None where the machine has none.

    Example:
        >>> font_for("plain text", 14).getname()[0]
        'Aileron'
    """
    own = ImageFont.load_default(size)
    if _has_all(own, text):
        return own
    path = _file_for(frozenset(text))
    return ImageFont.truetype(path, size) if path else None


def stand_ins(texts: Iterable[str], kind: str) -> dict[str, str]:
    """What to draw in place of the texts that no typeface here can write: their kind and number.

    Example:
        >>> stand_ins(["first", chr(0x10FFFE)], "clip") == {chr(0x10FFFE): "clip 2"}
        True
    """
    return {text: f"{kind} {i + 1}" for i, text in enumerate(texts) if font_for(text, 12) is None}


def said(drawn: dict[str, str]) -> str:
    """What the stand-ins in a picture stand for, as a sentence; nothing where there are none.

    Example:
        >>> said({"one": "clip 1", "other": "clip 3"})
        'In the picture: clip 1 is one, clip 3 is other.'
    """
    return f"In the picture: {', '.join(f'{short} is {text}' for text, short in drawn.items())}." if drawn else ""


def folders() -> list[Path]:
    """Where this system keeps its typefaces."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        own = [Path(local, "Microsoft", "Windows", "Fonts")] if local else []
        return [Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts"), *own]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), Path("~/Library/Fonts").expanduser()]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return [*(Path(part, "fonts") for part in (own, *shared.split(":"))), Path("~/.fonts").expanduser()]


@cache
def _file_for(characters: frozenset[str]) -> Path | None:
    for path in _files():
        try:
            if _has_all(ImageFont.truetype(path, 12), characters):
                return path
        except OSError:  # no outlines, or no typeface
            continue
    return None


def _files() -> list[Path]:
    """The machine's typefaces, the largest first: those of many scripts are large."""
    found: list[tuple[int, Path]] = []
    for folder in folders():
        for at, _, names in os.walk(folder):
            paths = [Path(at, name) for name in names if name.lower().endswith(SUFFIXES)]
            found += [(-path.stat().st_size, path) for path in paths if path.is_file()]
    return [path for _, path in sorted(found)]


def _has_all(font: Font, characters: Iterable[str]) -> bool:
    """Whether none of them is drawn as the typeface draws what it does not have."""
    missing = _drawn(font, NO_CHARACTER)
    return all(character.isspace() or _drawn(font, character) != missing for character in characters)


def _drawn(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
