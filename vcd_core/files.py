"""Files of tensors: read without running what is in them, written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch


def read(path: Path, what: str) -> tuple[object, dict[str, str]]:
    """The content of a file of tensors and, of a safetensors file, its header.

    Pickled formats are read with ``weights_only``: a file that would run code is refused, not run.

    Args:
        what: what the file should be, for the message ("an embedding").

    Raises:
        ValueError: it cannot be read so.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except Exception as error:
        raise ValueError(
            f"{path.name} cannot be read as {what}: {(str(error) or type(error).__name__).splitlines()[0][:200]}"
        ) from error


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the header of a safetensors file that :func:`write_whole` wrote.

    Raises:
        ValueError: it cannot be read.
    """
    state, metadata = read(path, "a state")
    assert isinstance(state, dict)
    return {
        key: value.clone() for key, value in state.items()
    }, metadata  # not views of the file, which may be replaced


def write_whole(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all: under a temporary name, then renamed."""
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        # the library's own writing to a file makes it readable by its owner alone
        partial.write_bytes(save({key: value.cpu().contiguous() for key, value in tensors.items()}, metadata))
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def free_path(folder: Path, name: str, overwrite: bool) -> Path:
    """Where a safetensors file of this name goes.

    Args:
        folder: the name must stay inside it.
        name: a file name, with subfolders if wanted.
        overwrite: take the name as it is; otherwise the next free number is appended where a file has it.

    Raises:
        ValueError: a name that is empty or leaves the folder.
    """
    name = name.strip().removesuffix(".safetensors")
    target = (folder / f"{name}.safetensors").resolve()
    if not name or name.endswith(("/", "\\")) or not target.is_relative_to(folder.resolve()):
        raise ValueError(
            f"{name!r} is not a file name inside {folder}. Use letters, digits and subfolders, without '..'."
        )
    if overwrite or not target.exists():
        return target
    return next(p for p in (target.with_stem(f"{target.stem}_{i:03}") for i in range(1, 1000000)) if not p.exists())
