"""The house: one door to ComfyUI, one direction, no circle, and rooms that are not too large.  Read off the imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST = {"comfy", "comfy_extras", "comfy_execution", "folder_paths", "nodes", "server", "latent_preview"}
PUBLISHED = [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "vcd_core").rglob("*.py")]
ALL = [*PUBLISHED, *(ROOT / "dev").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]


def name_of(path, root=ROOT):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, root=ROOT, top_level=False):
    """The modules that a file imports, relative ones resolved; among them names that may be modules themselves."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name_of(path, root).split(".")[: None if path.name == "__init__.py" else -1]
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}".strip(".") for alias in node.names)


def leaks(files, root=ROOT):
    """Imports that go past the door, or against the direction."""
    found = []
    for path in files:
        name = name_of(path, root)
        for module in imports(path, root):
            first = module.split(".")[0]
            inside = module.startswith(("nodes.", "vcd_core.")) or module in ("nodes", "vcd_core")
            past_the_door = first in HOST and not (inside and first == "nodes") and not name.startswith("nodes.host")
            from_the_core = name.startswith("vcd_core") and first in (*HOST, "comfy_api", "nodes", "dev", "benchmarks")
            down = name.startswith("nodes.host") and module.startswith("nodes.") and not module.startswith("nodes.host")
            if (
                past_the_door
                or from_the_core
                or down
                or (first in ("dev", "benchmarks", "tests") and path in PUBLISHED)
            ):
                found.append(f"{name} imports {module}")
    return found


def circle(files, root=ROOT):
    """A chain of files that import each other as they are loaded; empty where there is none."""
    known = {name_of(path, root): path for path in files}
    graph = {
        name: {m for m in imports(p, root, top_level=True) if m in known and m != name} for name, p in known.items()
    }
    done: set[str] = set()

    def walk(name, way):
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if (
                not other.startswith(f"{name}.")
                and not name.startswith(f"{other}.")
                and (found := walk(other, [*way, name]))
            ):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def test_comfyui_is_reached_through_the_door_alone_and_the_core_knows_nothing_of_the_nodes():
    assert leaks(PUBLISHED) == []


def test_no_files_import_each_other_in_a_circle():
    assert circle(ALL) == []


def test_no_file_of_the_door_is_large_or_hands_on_what_another_opened():
    doors = {path.stem: path for path in (ROOT / "nodes" / "host").glob("*.py")}
    assert [name for name, path in doors.items() if len(path.read_text().splitlines()) > 300] == []
    own = {
        name: {n.name for n in ast.parse(path.read_text()).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        for name, path in doors.items()
    }
    for path in PUBLISHED:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-1] in own and node.level:
                module = node.module.split(".")[-1]
                if path.parent.name != "host" and not node.module.startswith("host."):
                    continue
                others = {n for name, names in own.items() if name != module for n in names}
                handed_on = [a.name for a in node.names if a.name in others and a.name not in own[module]]
                assert not handed_on, f"{path.name} takes {handed_on} from {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "nodes").glob("*.py")), ids=lambda path: path.stem)
def test_a_node_runs_in_a_few_lines(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "execute":
            lines = node.end_lineno - node.body[0].lineno + 1
            assert lines <= 40, f"execute at line {node.lineno} has {lines} lines"


def test_families_share_a_name():
    families = {path.stem for path in (ROOT / "nodes").glob("*.py")} - {
        "__init__",
        "face_pass",
        "inputs",
        "measures",
        "stage",
    }
    core = {path.stem for path in (ROOT / "vcd_core").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert families <= core


@pytest.mark.parametrize(
    ("files", "leak", "round_trip"),
    [
        (
            {"nodes/face.py": "import comfy.sample\n", "nodes/host/a.py": "import comfy.sample\n"},
            "nodes.face imports comfy.sample",
            False,
        ),
        ({"vcd_core/a.py": "from ..nodes.host import model\n"}, "vcd_core.a imports nodes.host", False),
        ({"nodes/host/a.py": "from ..face import FaceTrack\n"}, "nodes.host.a imports nodes.face", False),
        ({"vcd_core/a.py": "from .b import x\n", "vcd_core/b.py": "from . import a\n"}, None, True),
    ],
)
def test_what_is_forbidden_is_found(tmp_path, files, leak, round_trip):
    paths = []
    for name, content in files.items():
        paths.append(tmp_path / name)
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        paths[-1].write_text(content)
    found = leaks(paths, tmp_path)
    assert (leak in found) if leak else not found
    assert bool(circle(paths, tmp_path)) == round_trip
