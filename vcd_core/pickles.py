"""What a pickle would make, noted without making any of it.

``weights_only`` lets a pickle call torch's own alone, which keeps code from running.  But a tensor of four numbers may
claim a billion rows, and what then goes through them row by row does not end: a dictionary made of it, a state set from
it.  So each pickle is gone through first, operation by operation, with notes in place of what it would make.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .unpacking import ALLOWED, Unpackable, most, not_run

_ZIP = b"PK\x03\x04"  # what torch knows its own archives by
_PICKLES = 5  # at the start of a file that torch wrote before 1.6: a number, a version, a system, the content, its keys
_MARK = object()


def check(path: Path) -> None:
    """Go through the pickles in a file that torch would read.

    Raises:
        Unpackable: they call what tensors are not made with, or claim far more than the file holds.
        ValueError: they are damaged, or nothing that ``torch.save`` writes.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            _go_through(file.read(ALLOWED), _PICKLES, most(path))
            return
    with zipfile.ZipFile(path) as archive:
        for part in archive.namelist():
            if part.endswith("data.pkl"):
                _go_through(archive.read(part), 1, most(path))


def _go_through(data: bytes, count: int, limit: int) -> None:
    file = io.BytesIO(data)
    try:
        for _ in range(count):
            _Notes(limit).take(file)
    except Unpackable:
        raise
    except Exception as error:  # whatever a damaged pickle makes of the stack
        raise ValueError(f"a damaged pickle: {error}") from error


@dataclass(frozen=True)
class _Name:
    """What a pickle may call."""

    name: str


class _Made:
    """What a call would give; ``by`` is what was called."""

    def __init__(self, by: str) -> None:
        self.by = by


class _Notes:
    """The stack of a pickle, by the operations that torch's own reader of weights knows."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def take(self, file: io.BytesIO) -> None:
        """Go through one pickle."""
        for operation, argument, _ in pickletools.genops(file):
            name = operation.name
            if name in _VALUES:
                self.stack.append(_VALUES[name](argument))
            elif name in _OPERATIONS:
                _OPERATIONS[name](self, argument)
            elif name not in ("PROTO", "STOP"):
                raise ValueError(name)

    def gathered(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        at = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def put(self, at: int) -> None:
        self.memo[at] = self.stack[-1]

    def get(self, at: int) -> None:
        self.stack.append(self.memo[at])

    def tuple(self, length: int | None) -> None:
        parts = self.gathered() if length is None else [self.stack.pop() for _ in range(length)][::-1]
        self.stack.append(tuple(parts))

    def call(self, _: None) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of nothing")
        check_call = _CALLS.get(called.name)
        if check_call is None:
            raise Unpackable(not_run(called.name))
        check_call(arguments, self.limit)
        self.stack.append(_Made(called.name))

    def numbers(self, _: None) -> None:
        """Those of a tensor: a word, their type, their record, a device and how many they are."""
        told = self.stack.pop()
        if not isinstance(told, tuple) or len(told) < 5:
            raise ValueError("numbers without a record")
        _check_count([told[4]], self.limit)
        self.stack.append(_Made("storage"))

    def state(self, _: None) -> None:
        if not _is_dictionary(self.stack.pop()):
            raise ValueError("a state that is no dictionary")

    def append(self, parts: list[Any]) -> None:
        self.stack[-1].extend(parts)

    def set(self, parts: list[Any]) -> None:
        if not _is_dictionary(self.stack[-1]):
            raise ValueError("entries of no dictionary")


_SIMPLE = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")
_VALUES: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None, "NEWTRUE": lambda _: True, "NEWFALSE": lambda _: False, "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [], "EMPTY_DICT": lambda _: {}, "EMPTY_SET": lambda _: _Made("set"),
    "MARK": lambda _: _MARK, "GLOBAL": lambda name: _Name(name.replace(" ", ".", 1)),
    **dict.fromkeys(_SIMPLE, lambda value: value),
}  # fmt: skip
_OPERATIONS: dict[str, Callable[[_Notes, Any], None]] = {
    "BINPUT": _Notes.put, "LONG_BINPUT": _Notes.put, "BINGET": _Notes.get, "LONG_BINGET": _Notes.get,
    "TUPLE": _Notes.tuple, "TUPLE1": lambda notes, _: notes.tuple(1), "TUPLE2": lambda notes, _: notes.tuple(2),
    "TUPLE3": lambda notes, _: notes.tuple(3),
    "REDUCE": _Notes.call, "NEWOBJ": _Notes.call, "BINPERSID": _Notes.numbers, "BUILD": _Notes.state,
    "APPEND": lambda notes, _: notes.append([notes.stack.pop()]),
    "APPENDS": lambda notes, _: notes.append(notes.gathered()),
    "SETITEM": lambda notes, _: notes.set([notes.stack.pop(), notes.stack.pop()]),
    "SETITEMS": lambda notes, _: notes.set(notes.gathered()),
}  # fmt: skip


def _check_count(sizes: Any, limit: int) -> None:
    """Raise for tensors of more numbers, or more rows of none, than their file can hold."""
    if not isinstance(sizes, (tuple, list)) or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("sizes that are none")
    count = 1
    for size in sizes:
        count *= max(size, 1)
        if count > limit:
            many = f"{count:,}" if count < 1 << 63 else "2^63"
            raise Unpackable(
                f"a tensor in it claims to have at least {many} numbers. Look for a .safetensors file of it."
            )


def _none(arguments: tuple[Any, ...], limit: int) -> None:
    if arguments:
        raise ValueError("a dictionary that is made of something")


def _tensor(arguments: tuple[Any, ...], limit: int) -> None:
    if len(arguments) < 4 or not isinstance(arguments[0], _Made):
        raise ValueError("a tensor without numbers")
    _check_count(arguments[2], limit)
    _parameter(arguments[2:], limit)


def _parameter(arguments: tuple[Any, ...], limit: int) -> None:
    """Of a tensor, or its sizes: then numbers and words, hooks and a state."""
    _plain(tuple(one for one in arguments[1:] if not _is_dictionary(one)), limit)


def _is_dictionary(one: Any) -> bool:
    return isinstance(one, dict) or (isinstance(one, _Made) and one.by == "collections.OrderedDict")


def _plain(arguments: tuple[Any, ...], limit: int) -> None:
    """Numbers, words and names, or a list of them."""
    for one in arguments:
        for part in one if isinstance(one, (tuple, list)) else [one]:
            if not isinstance(part, (str, bytes, bool, int, float, type(None), _Name)):
                raise ValueError("more than numbers and words")
            if isinstance(part, int) and abs(part) > limit:
                raise ValueError("too large a number")


_CALLS: dict[str, Callable[[tuple[Any, ...], int], None]] = {
    "collections.OrderedDict": _none,
    "torch.nn.modules.container.ParameterDict": _none,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    **dict.fromkeys(["torch.Size", "torch.device", "_codecs.encode", "builtins.set", "__builtin__.set"], _plain),
}
