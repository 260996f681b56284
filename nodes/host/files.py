"""ComfyUI's folders: which files and folders can be chosen by name, and where they lie."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths


def add_model_folder(name: str, folder: str, extensions: set[str]) -> None:
    """Let files under ``models/<folder>`` (or an absolute folder) be chosen by ``name``, after those already there."""
    path = os.path.join(folder_paths.models_dir, folder)
    known, kinds = folder_paths.folder_names_and_paths.get(name, ([], set()))
    if path not in known:
        known = [*known, path]
    folder_paths.folder_names_and_paths[name] = (known, set(kinds) | extensions)


def model_files(name: str) -> list[str]:
    """The files that can be chosen under a model folder's name."""
    return folder_paths.get_filename_list(name)


def model_file(name: str, file: str) -> str:
    """The path of a chosen file; a name that leaves its folder, or a file that is gone, raises with where it was sought."""
    path = folder_paths.get_full_path(name, file)
    if path is None:
        places = "\n".join(folder_paths.get_folder_paths(name))
        raise ValueError(f"{file} is not there. It was looked for in:\n{places}")
    return path


def model_folders(name: str) -> list[str]:
    """The folders with a ``config.json`` (models of the transformers library) directly under a model folder's places."""
    found = {
        entry.name
        for place in folder_paths.get_folder_paths(name)
        if os.path.isdir(place)
        for entry in os.scandir(place)
        if os.path.isfile(os.path.join(entry.path, "config.json"))
    }
    return sorted(found)


def models_path(name: str) -> Path:
    """The first place of a model folder."""
    return Path(folder_paths.get_folder_paths(name)[0])


def model_path(name: str, choice: str) -> Path:
    """The path of a chosen file or folder; a name that leaves its place, or one that is gone, raises."""
    for place in folder_paths.get_folder_paths(name):
        path = os.path.abspath(os.path.join(place, choice))
        if os.path.commonpath((os.path.abspath(place), path)) == os.path.abspath(place) and os.path.exists(path):
            return Path(path)
    raise ValueError(f"{choice} is not in {' or '.join(folder_paths.get_folder_paths(name))}.")


def input_subfolders() -> list[str]:
    """The folders under ComfyUI's input folder, linked ones too; what lies in a linked folder (it may be a whole drive) is not listed."""
    top = folder_paths.get_input_directory()
    found = [os.path.relpath(os.path.join(path, name), top) for path, names, _ in os.walk(top) for name in names]
    return sorted(name.replace(os.sep, "/") for name in found)


def input_subfolder(name: str) -> Path:
    """The path of a folder under the input folder, which may be a link; a name that leaves it, or one that is gone, raises."""
    top = Path(os.path.abspath(folder_paths.get_input_directory()))
    path = Path(os.path.abspath(top / name))
    if not path.is_relative_to(top) or not path.is_dir():
        raise ValueError(f"{name} is not a folder in {top}.")
    return path


def output_folder(name: str) -> Path:
    """A folder of this name in ComfyUI's output folder; it need not be there yet."""
    return Path(folder_paths.get_output_directory()) / name


def embedding_folders() -> list[str]:
    """Where prompts look for ``embedding:name``."""
    return folder_paths.get_folder_paths("embeddings")


def forget_file_lists() -> None:
    """Let lists of model files be read anew: a file was written."""
    folder_paths.filename_list_cache.clear()
