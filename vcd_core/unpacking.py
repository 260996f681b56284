"""What is looked at in a file of tensors before a library reads it, and after.

``weights_only`` keeps code from running, and nothing else: a file may say that it holds far more than it does, and
some kinds of file went past it before torch 2.6 (CVE-2025-32434).
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from .words import shown

MOST_TIMES = 8  # how much larger than its file what a file unpacks to may be; tensors may share their numbers
ALLOWED = 1 << 24  # bytes that a file of any size may unpack to
MANY = 1 << 16  # parts of a file, and tensors in it
LONGEST_HEADER = 1 << 25  # bytes, of a safetensors file; those of large models with all that trainers note have 1 << 23


class Unpackable(ValueError):
    """A file that is not read; the message says why."""


def check(path: Path) -> None:
    """Raise ``Unpackable`` for a file that torch must not be given: a tar archive, TorchScript, a zip bomb."""
    if _is_tar(path):
        raise Unpackable("it is a tar archive, in which torch once saved models. Look for a .safetensors file of it.")
    if not is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise Unpackable("it is damaged, was not downloaded whole, or is something else. Download it again.") from error
    if any(part.filename.endswith("constants.pkl") for part in parts):
        raise Unpackable("it holds a program (TorchScript), which is not run. Look for a .safetensors file of it.")
    if len(parts) > MANY:
        raise Unpackable(f"it has {len(parts)} parts; a model has fewer than {MANY}.")
    _check_size(sum(part.file_size for part in parts), path)


def not_run(what: str) -> str:
    """What is said of a file that would call something; ``what`` may be empty."""
    name = f" ({shown(what)})" if what else ""
    return f"it holds more than tensors{name}, which is not run. Look for a .safetensors file of it."


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive, whole or not."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # some Pythons say so of one whose end is damaged
        return True


def check_content(content: object, path: Path) -> None:
    """Raise ``Unpackable`` for tensors that are larger than their file, or that are no plain ones."""
    size = 0
    for number, tensor in enumerate(_tensors(content), 1):
        check_count(number)
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
            raise Unpackable("it holds tensors that are not plain (sparse, nested, quantised or without numbers).")
        size += tensor.numel() * tensor.element_size()
    _check_size(size, path)


def check_header(path: Path) -> None:
    """Raise ``Unpackable`` for a safetensors file whose header would take long to read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if LONGEST_HEADER < length < path.stat().st_size:
        raise Unpackable(f"its header has {length:,} bytes; a model's has fewer than {LONGEST_HEADER:,}.")


def check_count(number: int) -> None:
    """Raise ``Unpackable`` for more tensors than a model has."""
    if number > MANY:
        raise Unpackable(f"it holds more than {MANY} tensors.")


def most(path: Path) -> int:
    """How many bytes a file may unpack to."""
    return ALLOWED + MOST_TIMES * path.stat().st_size


def _check_size(size: int, path: Path) -> None:
    if size > most(path):
        there = path.stat().st_size
        raise Unpackable(f"it would unpack to {size:,} bytes and has {there:,}. Look for a .safetensors file of it.")


def _is_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except (tarfile.TarError, OSError, ValueError, EOFError):
        return False


def _tensors(content: object) -> Iterator[torch.Tensor]:
    """The tensors in what was read, wherever they are in it; a list that holds itself is looked at once."""
    waiting, seen = [content], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            yield one
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, (list, tuple, set)):
            waiting += one
        elif isinstance(one, torch.nn.ParameterDict):
            waiting.append(vars(one))
