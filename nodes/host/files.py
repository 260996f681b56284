"""ComfyUI's folders: which files and folders can be chosen by name, and where they lie."""

from __future__ import annotations

import functools
import os
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths

from ...vcd_core.files import inside, new_path
from ...vcd_core.names import leads_elsewhere
from ...vcd_core.words import shown

SETTLED = 3_000_000_000  # ns; a folder that changed later than that may change again within one tick of its clock

_read: dict[str, tuple[int, list[str], list[str]]] = {}  # folder -> when it changed, its own folders, its links


def add_model_folder(name: str, folder: str, extensions: set[str]) -> None:
    """Let files under ``models/<folder>`` (or an absolute folder) be chosen by ``name``, after those already there.

    Where another pack opened the name for any file (an empty set, as ComfyUI has it), any file stays welcome.
    """
    path = os.path.join(folder_paths.models_dir, folder)
    known, kinds = folder_paths.folder_names_and_paths.get(name, ([], extensions))
    if path not in known:
        known = [*known, path]
    folder_paths.folder_names_and_paths[name] = (known, set(kinds) | extensions if kinds else set())


def model_files(name: str) -> list[str]:
    """The files that can be chosen under a model folder's name, with / between folders on every system."""
    return [file.replace(os.sep, "/") for file in folder_paths.get_filename_list(name)]


def spelled(choice: str, options: list[str]) -> str:
    """The option that a graph's choice means: other systems write \\ between folders, or accents apart from letters."""

    def plain(name: str) -> str:
        return unicodedata.normalize("NFC", name.replace("\\", "/"))

    return choice if choice in options else next((o for o in options if plain(o) == plain(choice)), choice)


def model_file(name: str, file: str) -> str:
    """The path of a chosen file; raises, and says where it looked, if it is gone or its name leaves the folder."""
    file = spelled(file, model_files(name))
    path = None if leads_elsewhere(file) else folder_paths.get_full_path(name, file)
    if path is None:
        folders = "\n".join(folder_paths.get_folder_paths(name))
        raise ValueError(f"{shown(file)} is not there. It is not in:\n{folders}")
    return path


def refusal(
    choices: dict[str, str | None], others: tuple[str, ...] = (), find: Callable[[str, str], Any] = model_file
) -> bool | str:
    """For ``validate_inputs``, in place of the host's own check: True, or why a chosen file cannot be had.

    Args:
        choices: model folder -> what was chosen there; None comes through a link and is not known yet.
        others: choices that are no files.
    """
    for name, choice in choices.items():
        found = choice in others or refused(choice, functools.partial(find, name))
        if found is not True:
            return found
    return True


def refused(name: str | None, place: Callable[[str], Any]) -> bool | str:
    """For ``validate_inputs``: True, or why ``place`` has no place for a name; None comes through a link."""
    try:
        return name is None or bool(place(name))
    except ValueError as error:
        return str(error)


def model_folders(name: str) -> list[str]:
    """The folders with a ``config.json`` (transformers models) that lie directly in a model folder's places."""
    found = {
        entry.name
        for folder in folder_paths.get_folder_paths(name)
        if os.path.isdir(folder)
        for entry in os.scandir(folder)
        if os.path.isfile(os.path.join(entry.path, "config.json"))
    }
    return sorted(found)


def models_path(name: str) -> Path:
    """The first place of a model folder."""
    return Path(folder_paths.get_folder_paths(name)[0])


def model_path(name: str, choice: str) -> Path:
    """The path of a chosen file or folder; a name that leaves its place, or one that is gone, raises."""
    choice = spelled(choice, [*model_folders(name), *model_files(name)])
    folders = folder_paths.get_folder_paths(name)
    for folder in folders:
        path = inside(folder, choice)
        if path is not None and (os.path.isfile(path) or os.path.isdir(path)):
            return path
    raise ValueError(f"{shown(choice)} is not in {' or '.join(folders)}.")


def input_subfolders() -> list[str]:
    """The folders under ComfyUI's input folder, linked ones too, by name.

    What lies in a linked folder is not listed: it may be a whole drive. The page asks often, and the folder may hold a
    hundred thousand pictures, so a folder is read anew only when its time says that something in it was made or moved.
    """
    found: list[str] = []
    waiting = [""]
    while waiting:
        here = waiting.pop()
        folders, links = _folders_in(os.path.join(folder_paths.get_input_directory(), here))
        inside = [f"{here}/{name}" if here else name for name in folders]
        found += inside
        found += [f"{here}/{name}" if here else name for name in links]
        waiting += inside
    return sorted(found)


def _folders_in(path: str) -> tuple[list[str], list[str]]:
    """The folders directly in a folder, and the links to folders; none where it cannot be read."""
    try:
        changed = os.stat(path).st_mtime_ns
        if path not in _read or _read[path][0] != changed:
            known_until = changed if time.time_ns() - changed > SETTLED else -1
            _read[path] = (known_until, *_scan(path))
    except OSError:
        return [], []
    _, folders, links = _read[path]
    return folders, [name for name in links if os.path.isdir(os.path.join(path, name))]  # drives come and go


def _scan(path: str) -> tuple[list[str], list[str]]:
    """The folders and the links, to whatever, directly in a folder."""
    with os.scandir(path) as entries:
        found = [(entry.name, _is_link(entry)) for entry in entries if _is_link(entry) or entry.is_dir()]
    return [name for name, link in found if not link], [name for name, link in found if link]


def _is_link(entry: os.DirEntry[str]) -> bool:
    """Whether it leads elsewhere: a symbolic link, or one of Windows' junctions (Python 3.12 and newer tell)."""
    return entry.is_symlink() or (hasattr(entry, "is_junction") and entry.is_junction())


def input_subfolder(name: str) -> Path:
    """The path of a folder under the input folder, which may be a link; a name that leaves it, or is gone, raises."""
    top = folder_paths.get_input_directory()
    path = inside(top, name)
    if path is None or not os.path.isdir(path):
        raise ValueError(f"{shown(name)} is not a folder in {top}.")
    return path


def output_folder(name: str) -> Path:
    """A folder of this name in ComfyUI's output folder; it need not be there yet."""
    return Path(folder_paths.get_output_directory()) / name


def output_path(name: str) -> Path:
    """Where a file of this name goes in ComfyUI's output folder.

    Raises:
        ValueError: a name that leads out of the folder, or that some system cannot have.
    """
    return new_path(folder_paths.get_output_directory(), name)


def numbered_output(name: str) -> Path:
    """The path, without its ending, of the next file of this name in ComfyUI's output folder, as its savers count
    them; names as :func:`output_path` takes them."""
    top = folder_paths.get_output_directory()
    plain = os.path.relpath(output_path(name), top)
    folder, stem, counter, *_ = folder_paths.get_save_image_path(plain, top)
    return Path(folder) / f"{stem}_{counter:05}_"


def embedding_folders() -> list[str]:
    """Where prompts look for ``embedding:name``."""
    return folder_paths.get_folder_paths("embeddings")


def forget_file_lists() -> None:
    """Let lists of model files be read anew: a file was written."""
    folder_paths.filename_list_cache.clear()
