"""``python -m dev.hosts``: on which hosts the pack works, tried on each; writes README's table of them.

Each row is an environment of its own under ``.host/hosts``, deleted after its row, and a real server in it.  What was
found is kept in ``.host/hosts/rows.json``: a run goes on where the last one stopped.  Rows can be named; they are tried
again.  Run it with the environment in ``.host/venv``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.harden.tally import HOSTS, count
from vcd_core import __version__

from .graph import to_api
from .host import (
    HOST,
    NEWEST,
    OLDEST,
    PINS,
    ROOT,
    TORCH,
    WITH_TORCH,
    Host,
    SetUpError,
    base_folder,
    find_uv,
    for_uv,
    has_gpu,
    mend_cpu,
    needed_by,
    run,
    step,
    unpack,
    with_pack,
)
from .server import Server

FOLDER = HOST / "hosts"
KEPT = FOLDER / "rows.json"
FIRST, LAST = "<!-- hosts -->", "<!-- /hosts -->"
COLUMNS = ("ComfyUI", "Python", "torch", "numpy", "transformers", "OpenCV")
OPENCV = ("opencv-python", "opencv-python-headless")
NEEDED = tuple((ROOT / "requirements.txt").read_text().split())
OLD = ("numpy~=1.26.0", "transformers==4.50.3", "opencv-python~=4.11.0", "einops==0.6.0", "segment-anything==1.0")
LIBRARIES = ("tests/core/test_segmentation.py", "tests/core/test_recognise.py")  # what reads models with libraries
TOOLS = ("pytest", "onnx")


@dataclass(frozen=True)
class Row:
    """A host to try.

    Attributes:
        name: how it differs from the first row, as the table says it.
        packages: what the pack needs, or closer versions of it.
        tests: that are run in its environment too.
    """

    name: str
    comfyui: str = NEWEST
    python: str = "3.11"
    packages: tuple[str, ...] = NEEDED
    tests: tuple[str, ...] = ()


def _with(*closer: str) -> tuple[str, ...]:
    return (*NEEDED, *closer)


ROWS = (
    Row("the newest of all", tests=LIBRARIES),
    *(Row(f"ComfyUI {version}", comfyui=version) for version in PINS if version != NEWEST),
    *(Row(f"Python {version}", python=version) for version in ("3.10", "3.12", "3.13")),
    Row("numpy 1.26", packages=_with("numpy~=1.26.0"), tests=LIBRARIES),
    Row("transformers 4.50.3", packages=_with("transformers==4.50.3"), tests=LIBRARIES),
    Row("transformers 4.57", packages=_with("transformers~=4.57.0"), tests=LIBRARIES),
    Row("opencv-python 4", packages=_with("opencv-python<5"), tests=LIBRARIES),
    Row(
        "opencv-python-headless",
        packages=tuple(line.replace("opencv-python", "opencv-python-headless") for line in NEEDED),
        tests=LIBRARIES,
    ),
    Row("nothing of requirements.txt", packages=()),
    Row("the oldest of all", comfyui=OLDEST, python="3.10", packages=_with(*OLD), tests=LIBRARIES),
    Row("the oldest of all on Python 3.11", comfyui=OLDEST, packages=_with(*OLD), tests=LIBRARIES),
)


class NotTried(Exception):
    """Why a row cannot be tried here."""


class Fails(Exception):
    """What does not work, in a line."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="the rows to try again, as the table names them")
    parser.add_argument("--again", action="store_true", help="try all rows again")
    parser.add_argument("--keep", action="store_true", help="keep the environments, of 1 to 2 GB each")
    parser.add_argument("--cuda", action="store_true", help="take a torch for CUDA, of 3 GB, where none is for the CPU")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # see dev/test.py
    if unknown := set(arguments.rows) - {row.name for row in ROWS}:
        parser.error(f"there is no row {', '.join(unknown)}; known: {', '.join(row.name for row in ROWS)}")
    found = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    for row in ROWS:
        if arguments.again or row.name in arguments.rows or found.get(row.name, {}).get("of") != _of(row):
            step(row.name, "2 minutes")
            expected = found.get(ROWS[0].name, {}).get("figures", {}) if row != ROWS[0] else {}
            found[row.name] = {"of": _of(row), **tried(row, expected, arguments.keep, arguments.cuda or has_gpu())}
            print(f"   {found[row.name]['said']}", flush=True)
            KEPT.parent.mkdir(parents=True, exist_ok=True)
            KEPT.write_text(json.dumps(found, indent=1))
    readme = ROOT / "README.md"
    readme.write_text(within(readme.read_text(encoding="utf-8"), table(found)), encoding="utf-8")
    return int(any(found[row.name]["said"].startswith("no:") for row in ROWS))


def _of(row: Row) -> str:
    """What a row's result holds for."""
    return f"{__version__} {row}"


def table(found: dict[str, Any]) -> str:
    """The rows in Markdown."""
    lines = [f"| | {' | '.join(COLUMNS)} | |", "|" + "---|" * (len(COLUMNS) + 2)]
    for row in ROWS:
        cells = [found[row.name]["versions"].get(column, "") for column in COLUMNS]
        lines.append(f"| {' | '.join([row.name, *cells, found[row.name]['said'].replace('|', '/')])} |")
    return "\n".join(lines)


def within(text: str, content: str) -> str:
    """A text whose part between the markers is ``content``."""
    before, rest = text.split(FIRST)
    return f"{before}{FIRST}\n{content}\n{LAST}{rest.split(LAST)[1]}"


def tried(row: Row, expected: dict[str, float], keep: bool = False, any_torch: bool = False) -> dict[str, Any]:
    """A row's versions, its clips' figures and what is to be said of it: "yes", "no: ...", "not tried: ..."."""
    folder = FOLDER / re.sub(r"[^a-z0-9.]+", "-", row.name.lower())
    versions = {"ComfyUI": row.comfyui, "Python": row.python}
    figures: dict[str, float] = {}
    begun = time.monotonic()
    try:
        python = environment(row, folder, any_torch)
        versions |= versions_in(python)
        count(HOSTS)
        said, figures = works(row, Host(python, unpack(PINS[row.comfyui]), base_folder(folder / "base")))
        _compare(figures, expected, said)
    except NotTried as why:
        said = f"not tried: {why}"
    except (Fails, SetUpError) as why:
        said = f"no: {in_a_line(str(why))}"
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return {"versions": versions, "said": said, "figures": figures, "seconds": round(time.monotonic() - begun)}


def _compare(figures: dict[str, float], expected: dict[str, float], said: str, part: float = 0.05) -> None:
    """Raise Fails where a clip's figures are others than on the first row, as the same seed gives the same pictures, or
    are missing and nothing is said of it."""
    for name, value in expected.items():
        found = figures.get(name)
        if found is None and f"{name.partition(' of ')[0]}: needs" not in said:
            raise Fails(f"{name} is missing")
        if found is not None and abs(found - value) > part * abs(value):
            raise Fails(f"{name} is {found}, and {value} on the first row")


def in_a_line(text: str, most: int = 200) -> str:
    """The first line of a text that says something, not too long."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:most] if lines else "without a word"


def _call(command: Sequence[str | Path], **more: Any) -> subprocess.CompletedProcess[str]:
    """What a program says; bytes that are no text are replaced."""
    return subprocess.run(
        [str(word) for word in command], capture_output=True, encoding="utf-8", errors="replace", **more
    )


def interpreter(version: str) -> Path:
    """A Python of this version on this machine.

    Raises:
        NotTried: there is none.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    on_path = shutil.which(f"python{version}")
    candidates = [Path(on_path)] if on_path else []
    candidates += sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)
    if uv := find_uv():
        command: list[str | Path] = [uv, "python", "find", "--no-python-downloads", version]
        candidates += map(Path, _call(command).stdout.split("\n")[:1])
    script = "import sys; raise SystemExit('%d.%d' % sys.version_info[:2] != sys.argv[1])"
    for path in candidates:
        if path.is_file() and run([path, "-c", script, version], check=False) == 0:
            return path
    raise NotTried(f"no Python {version} here")


def environment(row: Row, folder: Path, any_torch: bool) -> Path:
    """The interpreter of a new environment that has what ComfyUI and the pack need.

    Raises:
        NotTried: no such Python, or no torch for its CPU.
    """
    uv = find_uv()
    if uv is None:
        raise SetUpError("uv cannot be installed; the environments are made with it.")
    shutil.rmtree(folder, ignore_errors=True)
    run([uv, "venv", "-q", "--seed", "--python", interpreter(row.python), folder])
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = [*needed_by(unpack(PINS[row.comfyui])), TORCH, *row.packages, *(TOOLS if row.tests else ())]
    install: list[str | Path] = [uv, "pip", "install", "--python", python]
    settings = {**os.environ, **for_uv(), "UV_LINK_MODE": "hardlink"}
    if not any_torch and _brings_cuda([*install, *wanted], settings):
        _check_code(python)
        raise NotTried(f"no torch for the CPU for Python {row.python} here; all packages are there, the code compiles")
    run([*install, "-q", *wanted], env=settings)
    run([*install, "-q", *WITH_TORCH], env=settings)
    mend_cpu(python)
    return python


def _brings_cuda(command: list[str | Path], settings: dict[str, str]) -> bool:
    """Whether torch would come with CUDA's libraries.

    Raises:
        SetUpError: what is wanted does not go together, or is not there.
    """
    done = _call([*command, "--dry-run"], env=settings)
    if done.returncode:
        raise SetUpError(" ".join(done.stderr.replace("×", "").split()))
    return "nvidia-" in done.stderr


def _check_code(python: Path) -> None:
    """Raise Fails unless a Python can read the pack's code, without a warning."""
    script = "import pathlib, sys; [compile(pathlib.Path(p).read_bytes(), p, 'exec') for p in sys.argv[1:]]"
    files = [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "vcd_core").rglob("*.py")]
    done = _call([python, "-W", "error", "-c", script, *files])
    if done.returncode:
        raise Fails(done.stderr.strip().splitlines()[-1])


def versions_in(python: Path) -> dict[str, str]:
    """The versions of Python and of its packages, by their columns in the table."""
    script = "import json, platform; from importlib.metadata import distributions as d; "
    script += "print(json.dumps({'python': platform.python_version(), **{x.name.lower(): x.version for x in d()}}))"
    there = json.loads(_call([python, "-c", script]).stdout)
    opencv = [f"{name.removeprefix('opencv-python').strip('-')} {there[name]}" for name in OPENCV if name in there]
    return {
        "OpenCV": opencv[0].strip() if opencv else "none",
        **{column: there[column.lower()] for column in COLUMNS if column.lower() in there},
    }


def works(row: Row, host: Host) -> tuple[str, dict[str, float]]:
    """ "yes", and behind it what a node says of a library that is not there; the figures of the clips.

    Raises:
        Fails: something does not work.
    """
    pictures = _draw_pictures(host.base / "input" / "people")
    texts: list[str] = []
    try:
        with Server(with_pack(host), arguments=("--disable-api-nodes",), python=str(host.python)) as server:
            info = server.get("/object_info")
            _check_nodes(info, server.log.read_text(errors="replace"))
            for name, prompt in (("the stages", stages(info)), ("training", training(info, pictures))):
                texts += _asked(server, name, prompt)
    except RuntimeError as error:
        raise Fails(in_a_line(str(error).replace("\n", " "))) from error
    if row.tests:
        _test(row, host.python)
    notes = re.findall(r"^- (\S+: needs \S+ \(pip install .*)$", "\n".join(texts), re.MULTILINE)
    return "; ".join(["yes", *dict.fromkeys(notes)]), figures_of(texts)


def figures_of(texts: list[str]) -> dict[str, float]:
    """The figures in the tables of several clips.

    Example:
        >>> figures_of(["| | this clip |\\n|---|---|\\n| flicker | 3.858 |", "no table"])
        {'flicker of clip 1': 3.858}
    """
    return {
        f"{name} of clip {number}": float(value)
        for number, text in enumerate(texts, 1)
        for name, value in re.findall(r"^\| ([a-z][^|]*) \| ([\d.]+) \|", text, re.MULTILINE)
    }


def _draw_pictures(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        picture = Image.new("RGBA", (90 + 20 * number, 110), (40, 60, 200, 0))
        picture.paste((220, 120, 90, 255), (20, 20, 70, 90))
        picture.save(folder / f"{number}.png")
    return folder.name


def _check_nodes(info: dict[str, Any], log: str) -> None:
    """Raise Fails unless all nodes are there: each has its help page."""
    missing = {path.stem for path in (ROOT / "web" / "docs").glob("VCD_*.md")} - set(info)
    if missing:
        why = re.findall(r"Cannot import \S+ module for custom nodes: (.*)", log)
        raise Fails(why[0] if why else f"{', '.join(sorted(missing))} are not there")


def shortened(name: str, info: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A bundled graph in API form with other values wherever a node has them."""
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    prompt = to_api(workflow, info)
    for node in prompt.values():
        node["inputs"] |= {key: value for key, value in changes.items() if key in node["inputs"]}
    return prompt


def stages(info: dict[str, Any]) -> dict[str, Any]:
    """The quickstart, of few frames and steps, and the figures of its clip."""
    prompt = shortened("01_quickstart", info, steps=2, frames=6, batch_size=6)
    kinds = {node["class_type"]: key for key, node in prompt.items()}
    clip, faces = [kinds["VCD_TiledDenoise"], 0], [kinds["VCD_FaceTrack"], 0]
    small = [kinds["VCD_FaceRefine"], 0]
    prompt["901"] = {"class_type": "VCD_Evaluate", "inputs": {"images": clip, "report": "hosts"}}
    prompt["902"] = {"class_type": "VCD_Evaluate", "inputs": {"images": small, "faces": faces}}
    return prompt


def training(info: dict[str, Any], folder: str) -> dict[str, Any]:
    """A short training on the pictures of a folder."""
    prompt = shortened("04_train_identity_tiny", info, steps=4, sample_every=2, size=64)
    prompt["901"] = {"class_type": "VCD_Pictures", "inputs": {"folder": folder}}
    trainer = next(node for node in prompt.values() if node["class_type"] == "VCD_IdTrainer")
    trainer["inputs"] |= {"images": ["901", 0], "masks": ["901", 1]}
    return prompt


def _asked(server: Server, name: str, prompt: dict[str, Any]) -> list[str]:
    """What a graph's nodes say.

    Raises:
        Fails: the graph fails, or saves nothing.
    """
    try:
        entry = server.run(prompt)
    except (RuntimeError, TimeoutError) as error:
        raise Fails(f"{name}: {in_a_line(str(error))}") from error
    files = server.outputs(entry)
    if not files or not all(path.is_file() and path.stat().st_size for path in files):
        raise Fails(f"{name}: nothing was saved")
    outputs = sorted(entry["outputs"].items(), key=lambda pair: int(pair[0]))
    return [text for _, output in outputs for text in output.get("text", [])]


def _test(row: Row, python: Path) -> None:
    """Run a row's tests in its environment."""
    done = _call([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *row.tests], cwd=ROOT)
    if done.returncode:
        failed = re.findall(r"^(?:FAILED|ERROR) \S*::(.*)$", done.stdout, re.MULTILINE)
        raise Fails(failed[0] if failed else in_a_line(done.stdout[-500:] + done.stderr[-500:]))


if __name__ == "__main__":
    sys.exit(main())
