"""Video Custom Diffusion for ComfyUI."""

import re
import sys
from importlib.util import find_spec

LEAST_PYTHON, LEAST_COMFYUI = (3, 10), (0, 16, 3)


def _why_not() -> str:
    """Why the pack cannot start here; empty where it can. Pythons that are too old read this file as well."""
    if sys.version_info < LEAST_PYTHON:
        return f"it needs Python {_dotted(LEAST_PYTHON)} or newer, and this is {_dotted(sys.version_info[:3])}."
    try:
        from comfyui_version import __version__ as found
    except ImportError:
        found = ""
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:3])
    if numbers < LEAST_COMFYUI if numbers else not _there("comfy_api.latest"):
        return f"it needs ComfyUI {_dotted(LEAST_COMFYUI)} or newer, and this is {found or 'older'}. Update ComfyUI."
    missing = [library for library in ("einops", "safetensors") if not _there(library)]
    if missing:
        return f"{' and '.join(missing)} cannot be found. Run pip install -r requirements.txt with ComfyUI's Python."
    return ""


def _there(module: str) -> bool:
    try:
        return sys.modules.get(module) is not None or find_spec(module) is not None
    except ImportError:
        return False


def _dotted(numbers: tuple) -> str:
    return ".".join(map(str, numbers))


if _why_not():
    raise ImportError(f"Video Custom Diffusion did not start: {_why_not()}")

from .nodes import comfy_entrypoint  # noqa: E402

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
