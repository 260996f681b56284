"""What a file may be called: one rule for every system, so that a graph means the same wherever it is opened."""

from __future__ import annotations

import re
from pathlib import PureWindowsPath

LONGEST = 255  # bytes of one part of a path, on the usual systems
ROOM = 40  # bytes that a number and an ending may take behind a name
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[0-9¹²³]) *([.:].*)?", re.IGNORECASE)
_KEPT = re.compile(r'[<>:"|?*\x00-\x1f\x7f]')


def leads_elsewhere(name: str) -> bool:
    r"""Whether some system would look for a name outside of its folder, or none can have it.

    Example:
        >>> [leads_elsewhere(name) for name in ("a/../b", "a/../../b", r"..\b", "0:b", r"\\server\b", "/b", "a\0")]
        [False, True, True, True, True, True, True]
    """
    there = PureWindowsPath(name)
    if there.drive or there.root or name[1:2] == ":" or "\0" in name:  # not only letters stand for drives
        return True
    depth = 0
    for part in _parts(name):
        if part.strip(" ."):
            depth += 1
        elif part.count(".") > 1:  # Windows reads '.. ' and '...' as '..'
            depth -= 1
        if depth < 0 or _bytes(part) > LONGEST:
            return True
    return False


def unfit(name: str) -> str:
    """Why no file should be written under a name, which may hold folders; empty for one that every system can have.

    Example:
        >>> unfit("people/me"), unfit("people/aux.v2")
        ('', "'aux.v2' is a device on Windows")
    """
    if not _parts(name)[-1].strip(" ."):
        return "it names a folder"
    if _bytes(name) > LONGEST - ROOM:
        return f"a name may have {LONGEST - ROOM} bytes"
    for part in _parts(name):
        if part in ("", ".", ".."):
            continue
        if kept := _KEPT.search(part):
            return f"Windows has no file with {kept[0]!r} in its name"
        if _DEVICE.fullmatch(part):
            return f"{part!r} is a device on Windows"
        if part.endswith((" ", ".")):
            return f"Windows leaves out the end of {part!r}"
    return ""


def _parts(name: str) -> list[str]:
    return name.replace("\\", "/").split("/")


def _bytes(part: str) -> int:
    """How long a part of a path is on a disk; half a character (a lone surrogate) fits on none."""
    try:
        return len(part.encode())
    except UnicodeEncodeError:
        return LONGEST + 1
