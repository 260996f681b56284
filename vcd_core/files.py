"""Files of tensors: read without running what is in them, written whole or not at all."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import time
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from . import pickles, unpacking
from .names import leads_elsewhere, unfit
from .words import in_quotes

_STARTS = {
    b"version https://git-lfs": ("a Git LFS pointer", "download it again"),
    b"<": ("a web page", "download it again"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it"),
    b"Rar!": ("a RAR archive", "unpack it"),
    b"\x1f\x8b": ("a gzip archive", "unpack it"),
}
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial")
_ABANDONED = 3600  # seconds after which nobody writes a partial file any more
_GLOBAL = re.compile(r"(?:GLOBAL|class) ([\w.]+\.\w+)")


def read(path: Path, what: str) -> tuple[object, dict[str, str]]:
    """The content of a file of tensors and, of a safetensors file, its header.

    Pickled formats are read with ``weights_only``: a file that would run code is refused, not run. Beside tensors they
    may hold the ``ParameterDict`` of the first textual inversion files.

    Args:
        what: what the file should be, for the message ("an embedding").

    Raises:
        ValueError: it cannot be read so, or it is something else (see :func:`check_model`).
    """
    try:
        check_model(path)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read as {what}: {error}.") from error
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors import safe_open

            unpacking.check_header(path)
            with safe_open(path, "pt") as file:
                unpacking.check_count(len(file.keys()))
                return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        pickles.check(path)
        with _with_parameter_dicts():
            content = torch.load(path, map_location="cpu", weights_only=True)
        unpacking.check_content(content, path)
        return content, {}
    except Exception as error:
        raise ValueError(f"{path.name} cannot be read as {what}: {why_unread(path, error)}") from error


def _with_parameter_dicts() -> contextlib.AbstractContextManager[object]:
    """Lets ``weights_only`` take a ParameterDict, from torch 2.5 on; before, such a file is refused by its name."""
    allow = getattr(torch.serialization, "safe_globals", None)
    return allow([torch.nn.ParameterDict]) if allow else contextlib.nullcontext()


def check_model(path: Path) -> None:
    """Raise ``ValueError`` for what a download may have left in place of a model (a web page, a pointer, an archive),
    and for archives that no library should be given (see :mod:`vcd_core.unpacking`).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "m.ckpt")
        ...     _ = path.write_text("<!DOCTYPE html><html>404</html>")
        ...     check_model(path)
        Traceback (most recent call last):
        ValueError: m.ckpt is a web page, not a model: download it again.
    """
    start = _start(path).removeprefix(codecs.BOM_UTF8).lstrip()
    for sign, (kind, advice) in _STARTS.items():
        if start.startswith(sign):
            raise ValueError(f"{path.name} is {kind}, not a model: {advice}.")
    try:
        unpacking.check(path)
    except unpacking.Unpackable as error:
        raise ValueError(f"{path.name} is not read: {error}") from error


def why_unread(path: Path, error: Exception) -> str:
    """Why a file is no model; a library's own words are not used, as some advise a way of reading that runs code."""
    if isinstance(error, (OSError, MemoryError)):
        return f"{error}."
    if isinstance(error, unpacking.Unpackable):
        return str(error)
    start = _start(path)
    pickled = path.suffix.lower() != ".safetensors"
    code = _GLOBAL.search(str(error))
    if not start:
        return "it is empty. Download it again."
    if line := _first_line(start):
        return f"it is a text ({line!r}), not a model. Download it again."
    if pickled and code:
        return told(error)
    if pickled and start[8:10] == b'{"':
        return "it is a safetensors file. Give it the ending .safetensors."
    if pickled and _is_other_archive(path):
        return "it is a zip archive, not a model. Unpack it."
    if not pickled and start.startswith((b"PK", b"\x80")):
        return "it is no safetensors file. Give it the ending .pt or .ckpt."
    return "it is damaged, was not downloaded whole, or is something else. Download it again."


def told(error: Exception) -> str:
    """The first line of what a library says, unless it advises a way of reading that runs code."""
    code = _GLOBAL.search(str(error))
    if code or re.search("weights_only|trust_remote_code|allow_pickle", str(error)):
        return unpacking.not_run(code[1] if code else "")
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _first_line(start: bytes) -> str:
    """The first line of what begins like a text, empty for anything else."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # a letter may be cut in two at the end
    except UnicodeDecodeError:
        return ""
    lines = text.strip().splitlines()
    return lines[0][:80] if lines and all(c.isprintable() or c.isspace() for c in text) else ""


def _is_other_archive(path: Path) -> bool:
    """Whether a file is a zip archive without what torch puts into its own."""
    if not unpacking.is_zip(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(name.endswith("data.pkl") for name in archive.namelist())


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the header of a safetensors file that :func:`write_whole` wrote.

    Raises:
        ValueError: it cannot be read.
    """
    state, metadata = read(path, "a state")
    assert isinstance(state, dict)
    # not views of the file, which may be replaced
    return {key: value.clone() for key, value in state.items()}, metadata


def write_whole(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all."""
    from safetensors.torch import save

    # the library's own writing to a file makes it readable by its owner alone
    write_bytes(path, save({key: value.cpu().contiguous() for key, value in tensors.items()}, metadata))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: under a temporary name, then renamed.

    What a program that was killed left half-written in the folder goes before, an hour later.

    Raises:
        OSError: it cannot be written, and what was there under its name is as it was; the message says what to do.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        partial.write_bytes(content)
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise OSError(
                f"{path} cannot be written: {error.strerror or error}. Nothing was changed there. Free space on its "
                "disk, or let ComfyUI write into its folder, and run again."
            ) from error
        raise


def _remove_abandoned(folder: Path) -> None:
    """Remove the partial files of programs that were killed; those under way are younger."""
    for path in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):  # another program may remove it at the same time
            if _PARTIAL.fullmatch(path.name) and time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def inside(folder: str | Path, name: str) -> Path | None:
    """The path of a name in a folder; None for one that leads elsewhere, here or on another system.

    Names are judged as they are written: a folder may be a link or hold some, to wherever their owner keeps his files.

    Example:
        >>> inside("/models", "people/me").as_posix(), inside("/models", "../me"), inside("/models", "/models/me")
        ('/models/people/me', None, None)
    """
    return None if leads_elsewhere(name) else Path(os.path.abspath(os.path.join(folder, name)))


def new_path(folder: str | Path, name: str) -> Path:
    """Where a file of this name is written in a folder.

    Raises:
        ValueError: a name that leaves the folder, or that some system cannot have.
    """
    path = inside(folder, name.replace("\\", "/"))  # parts folders on Windows, so everywhere
    why = "it leads out of the folder" if path is None else unfit(name)
    if path is None or why:
        raise ValueError(
            f"{in_quotes(name)} is not a file name inside {folder}: {why}. Use letters, digits and subfolders, without "
            "'..'."
        )
    return path


def free_path(folder: Path, name: str, overwrite: bool) -> Path:
    """Where a safetensors file of this name goes.

    Args:
        folder: the name must stay inside it; it may be a link, or hold linked folders.
        name: a file name, with subfolders if wanted.
        overwrite: take the name as it is; otherwise the next free number is appended where a file has it.

    Raises:
        ValueError: a name that is empty, leaves the folder, or that some system cannot have.
    """
    name = name.strip().removesuffix(".safetensors")
    target = new_path(folder, name if name.endswith(("/", "\\")) or not name else f"{name}.safetensors")
    if overwrite or not target.exists():
        return target
    return next(p for p in (target.with_stem(f"{target.stem}_{i:03}") for i in range(1, 1000000)) if not p.exists())
