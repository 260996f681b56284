"""``python -m dev.archive [FILE]``: the archive that the registry publishes, written as a zip file.

What ``comfy node publish`` of comfy-cli packs: the files that git tracks, without those that ``.comfyignore`` names,
and what ``[tool.comfy].includes`` of pyproject.toml adds.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import tomllib

from .host import HOST, ROOT

ARCHIVE = HOST / "archive" / "node.zip"


def published(root: Path = ROOT) -> list[str]:
    """The files of the archive, by their path from ``root``."""
    ignored = set(_git(root, "--ignored", "--exclude-from=.comfyignore"))
    kept = {name for name in _git(root) if name not in ignored and (root / name).is_file()}
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["comfy"]
    for included in settings.get("includes", []):
        top = root / included.strip("/")
        files = [top] if top.is_file() else top.rglob("*")
        kept |= {path.relative_to(root).as_posix() for path in files if path.is_file()}
    return sorted(kept)


def build(target: Path = ARCHIVE, root: Path = ROOT) -> Path:
    """Write the archive."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in published(root):
            archive.write(root / name, name)
    return target


def _git(root: Path, *options: str) -> list[str]:
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", *options]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")[:-1]


def main() -> int:
    target = build(Path(sys.argv[1]) if len(sys.argv) > 1 else ARCHIVE)
    with zipfile.ZipFile(target) as archive:
        print(f"{target}: {len(archive.namelist())} files, {target.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
