"""Schedules as people write them: keys, each a frame and what begins there, between bars, commas or line ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from .words import in_quotes

# whitespace is matched by one repetition at a time: two side by side take the square of its length to fail
_FRAME = r"""\s*(?:(["'])\s*)?([-+]?\d+(?:\.\d+)?)\s*(?(1)\1\s*)[:：]"""
_KEY = re.compile(_FRAME + r"(?!\d)[ \t]*")  # 16:9 and 8:30 are no keys
_NUMBER_KEY = re.compile(_FRAME + r"[ \t]*")
_NEXT = r"""[,，]\s*(?:(["'])\s*)?[-+]?\d+(?:\.\d+)?\s*(?({0})\{0}\s*)[:：]"""
_BREAK = re.compile(rf"[|｜\n]\s*|(?={_NEXT.format(1)}(?!\d))[,，]")
_NUMBER_BREAK = re.compile(rf"[|｜\n]\s*|(?={_NEXT.format(1)})[,，]")
_QUOTED = re.compile(
    r"""(?:"((?:\\.|[^"\\\n])*)"|'((?:\\.|[^'\\\n]|(?<=\w)'(?=\w))*)')"""
    rf"""(?=\s*(?:[,，]\s*)?(?:[|｜\n]|$)|\s*{_NEXT.format(3)})"""
)
_LIKE_A_KEY = re.compile(
    r"""["'“‘]?(?:frame\s*)?[-+]?(\d[\d.]*)\s*(?:[a-z]{1,7}\s*)?(?:["'”’]\s*)?[:：=]""", re.IGNORECASE
)
_NUMBER_ALONE = re.compile(r"""["'“‘]?[-+]?\d[\d.]*(?:[^\w.]|$)""")
_DIGITS = 9  # of a frame's number; no clip is longer
_COMMENT = re.compile(r"^[ \t]*(?:#|//).*$", re.MULTILINE)


class _Part(NamedTuple):
    frame: str | None  # as written; None: the part has no key
    value: str
    written: str
    breaks: str  # what stands before it


def keys(text: str, numbers: bool = False) -> list[tuple[int, str]] | None:
    """The (frame, value) pairs of a schedule in the order they are written; None for a text that is no schedule.

    Keys stand one a line, between bars, or behind commas. Frames and values may be quoted, blank lines and lines that
    begin with ``#`` or ``//`` are left out, and a line without a key goes on with the value above it. Without bars a
    comma at the end of a value is a separator, not a part of it.

    Args:
        numbers: the values are numbers, so a digit may follow the colon at once ("0:0.1"); in a prompt that is no key
            ("16:9").

    Raises:
        ValueError: a part that cannot be read among others that are keys, or a frame that is no whole number from 0;
            the message quotes it.

    Example:
        >>> keys('"0": "a man, smiling",\\n"8": "a man, angry"')
        [(0, 'a man, smiling'), (8, 'a man, angry')]
        >>> keys("0: a man | 8: a woman") == keys("0: a man\\n8: a woman,") == keys("0: a man, 8: a woman")
        True
        >>> keys("a clock at 8:30, 16:9") is None
        True
    """
    text = _COMMENT.sub("", "\n".join(text.splitlines())).strip()
    if text.startswith("{") and text.endswith("}") and _KEY.match(text, 1):
        text = text[1:-1]
    parts = [part for part in _parts(text, numbers) if part.frame is not None or part.value]
    like = [match[1] for part in parts if (match := _LIKE_A_KEY.match(part.written))]
    if all(part.frame is None for part in parts) and not (len(like) > 1 and not like[0].strip("0.")):
        return None
    bars = any("|" in part.breaks or "｜" in part.breaks for part in parts)
    found: list[tuple[int, str]] = []
    for part in parts:
        if part.frame is not None:
            found.append((_frame(part), part.value))
        elif not found or _is_no_continuation(part):
            raise ValueError(_UNREAD.format(in_quotes(part.written)))
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{part.value}")
    return [(frame, value.strip() if bars else value.strip().rstrip(",， \t")) for frame, value in found]


_UNREAD = "Every part of a schedule begins with its frame, as '8: ...' with a space behind the colon; found {}."


def _parts(text: str, numbers: bool) -> Iterator[_Part]:
    key, stop = (_NUMBER_KEY, _NUMBER_BREAK) if numbers else (_KEY, _BREAK)
    at, breaks = 0, ""
    while at <= len(text):
        found = key.match(text, at)
        begin = found.end() if found else at
        quoted = _QUOTED.match(text, begin) if found else None
        cut = stop.search(text, quoted.end() if quoted else begin)
        end = cut.start() if cut else len(text)
        value = text[begin:end].strip()
        if quoted:
            value = re.sub(r"\\([\"'])", r"\1", quoted[1] if quoted[1] is not None else quoted[2])
        part = _Part(found[2] if found else None, value, text[at:end].strip(), breaks)
        if part.written:
            yield part
            breaks = ""
        if not cut:
            return
        at, breaks = cut.end(), breaks + cut[0]


def _frame(part: _Part) -> int:
    assert part.frame is not None
    if not part.frame.isdigit():
        raise ValueError(f"The keys of a schedule are frames, whole numbers from 0; found {in_quotes(part.written)}.")
    if len(part.frame) > _DIGITS:
        raise ValueError(f"No clip has the frame of the schedule's {in_quotes(part.written)}.")
    if part.value.startswith('"') and part.value.count('"') % 2:
        raise ValueError(f"A quotation mark is not closed in the schedule's {in_quotes(part.written)}.")
    return int(part.frame)


def _is_no_continuation(part: _Part) -> bool:
    """Whether a part without a key is one gone wrong: behind a bar, or a line that begins with a number."""
    barred = "|" in part.breaks or "｜" in part.breaks
    return barred or bool(_LIKE_A_KEY.match(part.written) or _NUMBER_ALONE.match(part.written))
