"""What a pickle would make, looked at without making any of it.

``weights_only`` lets a pickle call torch's own alone, which keeps code from running.  But a tensor of four numbers may
claim a billion rows, and what then goes through them row by row does not end: a dictionary made of it, a state set from
it.  So every call in a pickle is looked at first, by a machine that makes nothing but notes of it.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from .unpacking import ALLOWED, Unpackable, most
from .words import shown

_ZIP = b"PK\x03\x04"  # what torch knows its own archives by
_PICKLES = 5  # at the start of a file that torch wrote before 1.6: a number, a version, a system, the content, its keys


def check(path: Path) -> None:
    """Look at the pickles in a file that torch would read.

    Raises:
        Unpackable: they call what tensors are not made with, or claim far more than the file holds.
        pickle.UnpicklingError: they are damaged, or nothing that ``torch.save`` writes.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            _look(file.read(ALLOWED), _PICKLES, most(path))
            return
    with zipfile.ZipFile(path) as archive:
        for part in archive.namelist():
            if part.endswith("data.pkl"):
                _look(archive.read(part), 1, most(path))


def _look(data: bytes, count: int, limit: int) -> None:
    file = io.BytesIO(data)
    try:
        for _ in range(count):
            _Machine(file, limit).load()
    except (Unpackable, pickle.UnpicklingError):
        raise
    except Exception as error:  # whatever the machine stumbles over
        raise pickle.UnpicklingError(str(error)) from error


class _Made:
    """A note of a call in a pickle; ``named`` is what was called."""

    named: ClassVar[str] = ""
    limit: ClassVar[int] = 0

    def __new__(cls, *arguments: Any) -> _Made:
        check_call = _CALLS.get(cls.named)
        if check_call is None:
            name = shown(cls.named)
            raise Unpackable(
                f"it holds more than tensors ({name}), which is not run. Look for a .safetensors file of it."
            )
        check_call(arguments, cls.limit)
        return object.__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        """What was given to the call was looked at."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """An entry of an OrderedDict."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a state that is no dictionary")


class _Machine(pickle._Unpickler):  # in Python: the memory of the one in C grows with the numbers in a pickle
    """Goes through a pickle, and makes notes."""

    def __init__(self, file: io.BytesIO, limit: int) -> None:
        super().__init__(file)
        self.limit = limit

    def find_class(self, module: str, name: str) -> type[_Made]:
        """A name in a pickle, as what notes that it is called."""
        return type("Made", (_Made,), {"named": f"{module}.{name}", "limit": self.limit})

    def persistent_load(self, told: Any) -> _Made:
        """The numbers of a tensor: a word, their type, their record, a device and how many they are."""
        if not isinstance(told, tuple) or len(told) < 5:
            raise pickle.UnpicklingError("numbers without a record")
        _check_count([told[4]], self.limit)
        return object.__new__(_Made)


def _check_count(sizes: Any, limit: int) -> None:
    """Raise for tensors of more numbers, or more rows of none, than their file can hold."""
    if not isinstance(sizes, (tuple, list)) or not all(type(size) is int and size >= 0 for size in sizes):
        raise pickle.UnpicklingError("sizes that are none")
    count = 1
    for size in sizes:
        count *= max(size, 1)
    if count > limit:
        raise Unpackable(f"a tensor in it claims to have {_many(count)} numbers. Look for a .safetensors file of it.")


def _many(count: int) -> str:
    return f"{count:,}" if count < 1 << 63 else "more than 2^63"


def _none(arguments: tuple[Any, ...], limit: int) -> None:
    if arguments:
        raise pickle.UnpicklingError("a dictionary that is made of something")


def _tensor(arguments: tuple[Any, ...], limit: int) -> None:
    if len(arguments) < 4 or not isinstance(arguments[0], _Made):
        raise pickle.UnpicklingError("a tensor without numbers")
    _check_count(arguments[2], limit)
    _parameter(arguments[2:], limit)


def _parameter(arguments: tuple[Any, ...], limit: int) -> None:
    """Of a tensor, or its sizes: then numbers and words, hooks and a state."""
    _plain(tuple(one for one in arguments[1:] if not _is_dictionary(one)), limit)


def _is_dictionary(one: Any) -> bool:
    return isinstance(one, dict) or (isinstance(one, _Made) and one.named == "collections.OrderedDict")


def _plain(arguments: tuple[Any, ...], limit: int) -> None:
    """Numbers and words, or a list of them."""
    for one in arguments:
        for part in one if isinstance(one, (tuple, list)) else [one]:
            if not isinstance(part, (str, bytes, bool, int, float, type(None))):
                raise pickle.UnpicklingError("more than numbers and words")
            if isinstance(part, int) and abs(part) > limit:
                raise pickle.UnpicklingError("too large a number")


_CALLS: dict[str, Callable[[tuple[Any, ...], int], None]] = {
    "collections.OrderedDict": _none,
    "torch.nn.modules.container.ParameterDict": _none,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    **dict.fromkeys(["torch.Size", "torch.device", "_codecs.encode", "builtins.set", "__builtin__.set"], _plain),
}
