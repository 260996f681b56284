"""Libraries that single nodes and figures need: imported where they are used, and named where they are missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

PACKAGES = {  # of a module: what its library is called, and how pip installs it
    "cv2": ("OpenCV", "opencv-python-headless"),
    "groundingdino": ("groundingdino-py", "-r requirements-grounded.txt"),
    "pyiqa": ("pyiqa", "pyiqa"),
    "segment_anything": ("segment-anything", "segment-anything"),
}


class BackEndMissing(RuntimeError):
    """A library or file that a back end needs is not there; the message says what to do."""


def installed(module: str) -> bool:
    """Whether a library is there; it is not imported.

    Example:
        >>> installed("json"), installed("no_such_library")
        (True, False)
    """
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def imports(module: str) -> bool:
    """Whether a library is there and imports: compiled ones do not everywhere.

    Example:
        >>> imports("json"), imports("no_such_library")
        (True, False)
    """
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def check(module: str, what: str, otherwise: str = "") -> None:
    """Raise ``BackEndMissing`` unless a library is installed; see :func:`part`."""
    library = module.partition(".")[0]
    if not installed(library):
        raise BackEndMissing(_said(library, "is not installed", what, otherwise))


def part(module: str, what: str, otherwise: str = "") -> Any:
    """A module of a library in ``PACKAGES``.

    Args:
        what: what the library is needed for. otherwise: what to do instead of installing it.

    Raises:
        BackEndMissing: the library is not installed, or does not import.
    """
    check(module, what, otherwise)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        state = f"does not import here ({error})"
        raise BackEndMissing(_said(module.partition(".")[0], state, what, otherwise)) from error


def _said(library: str, state: str, what: str, otherwise: str) -> str:
    name, package = PACKAGES[library]
    other = f", or {otherwise}" if otherwise else ""
    return f"{name} {state}: pip install {package}{other}. It is needed for {what}."
