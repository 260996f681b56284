"""Hosts: what the pack cannot run on is refused at start in a line, libraries of single nodes may all be missing, and
README tells of every host that was to be tried."""

import ast
import json
import re
import subprocess
import sys

import pytest

from dev import hosts
from dev.host import OLDEST, PACK, ROOT, SetUpError, link
from dev.server import host_from_environment
from vcd_core import parts

PUBLISHED = [*(ROOT / "nodes").rglob("*.py"), *(ROOT / "vcd_core").rglob("*.py"), ROOT / "__init__.py"]
REFUSED = "ImportError: Video Custom Diffusion did not start: "
ENOUGH = {
    "comfyui_version.py": "__version__ = '0.30.0'",
    "comfy_api/latest.py": "",
    "einops.py": "",
    "safetensors.py": "",
}
# what ComfyUI starts without, or the pack alone uses
OPTIONAL = [*parts.PACKAGES, "spandrel", "kornia", "OpenGL", "comfy_angle", "onnxruntime", "matplotlib"]


@pytest.fixture
def start(tmp_path):
    """Start the pack in a Python that has none but the files given; the last line of what it says."""

    def run(files, before=""):
        link(ROOT, tmp_path / "custom_nodes" / PACK)
        for name, content in files.items():
            path = tmp_path / "host" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        paths = [str(tmp_path / "host"), str(tmp_path / "custom_nodes")]
        script = f"import sys; sys.path[:0] = {paths!r}\n{before}\nimport {PACK}"
        said = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", script], capture_output=True, text=True).stderr
        assert len(re.findall(r'File ".*\.py"', said)) <= 2, (
            said
        )  # of __init__.py, and of the file that it asks for next
        return said.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("without", "changes", "before", "said"),
    [
        ([], {"comfyui_version.py": "__version__ = '0.16.2'"}, "", "ComfyUI 0.16.3 or newer, and this is 0.16.2."),
        ([], {"comfyui_version.py": "__version__ = 'v0.3.75'"}, "", "ComfyUI 0.16.3 or newer, and this is v0.3.75."),
        (["comfyui_version.py", "comfy_api/latest.py"], {}, "", "ComfyUI 0.16.3 or newer, and this is older."),
        ([], {}, "sys.version_info = (3, 9, 18, 'final', 0)", "Python 3.10 or newer, and this is 3.9.18."),
        (["einops.py"], {}, "", "einops cannot be found. Run pip install -r requirements.txt with ComfyUI's Python."),
        (["einops.py", "safetensors.py"], {}, "", "einops and safetensors cannot be found."),
    ],
)  # fmt: skip
def test_what_the_pack_cannot_run_on_is_refused_in_a_line_that_says_why(start, without, changes, before, said):
    line = start({name: text for name, text in {**ENOUGH, **changes}.items() if name not in without}, before)
    assert line.startswith(REFUSED)
    assert said in line


@pytest.mark.parametrize("version", ["0.16.3", "0.30.0", "v1.0", "nightly"])
def test_what_it_can_run_on_is_not_refused(start, version):
    """It goes on to its nodes, which here find no class of ComfyUI's to build on."""
    line = start({**ENOUGH, "comfyui_version.py": f"__version__ = {version!r}"})
    assert line.startswith("ImportError: cannot import name 'ComfyExtension'")


def test_the_least_versions_stand_once():
    tree = ast.parse((ROOT / "__init__.py").read_text(), feature_version=(3, 8))  # older Pythons read it as well
    python, comfyui = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    project = (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = ">={".".join(map(str, python))}"' in project
    assert f'requires-comfyui = ">={".".join(map(str, comfyui))}"' in project
    assert ".".join(map(str, comfyui)) == OLDEST


CHILD = """
import asyncio, json, logging, sys
from importlib.machinery import PathFinder
from unittest.mock import MagicMock
comfy, pack, base, optional = json.loads(sys.argv[1])
sys.argv = ["x", "--cpu", "--base-directory", base]
sys.path.insert(0, comfy)
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in optional else super().find_spec(name, path, target)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
import comfy.options; comfy.options.enable_args_parsing()
import comfyui_version, nodes, server, torch
server.PromptServer.instance = MagicMock()  # no page listens
lines = []
class Keep(logging.Handler):
    def emit(self, record): lines.append(record.getMessage())
logging.getLogger().addHandler(Keep())
said = {}
right, comfyui_version.__version__ = comfyui_version.__version__, "0.16.2"
said["loaded where too old"] = asyncio.run(nodes.load_custom_node(pack))
said["log"] = lines[-1]
comfyui_version.__version__ = right
optional.append("transformers")  # ComfyUI has taken what it needs of it
for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
    del sys.modules[name]
said["loaded"] = asyncio.run(nodes.load_custom_node(pack))
said["nodes"] = [name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("VCD_")]
def ask(what, node, **inputs):
    try:
        said[what] = str(nodes.NODE_CLASS_MAPPINGS[node].PREPARE_CLASS_CLONE(None).execute(**inputs).args[0])
    except Exception as error:
        said[what] = f"{type(error).__name__}: {error}"
clip = torch.rand(3, 64, 64, 3)
ask("evaluate", "VCD_Evaluate", images=[clip], quality_model=["x.pth"])
clips = {"names": ["a, b"], "clips": {"clip0": [clip], "clip1": [clip]}}
ask("compare", "VCD_Compare", **clips)
for file in ("x.onnx", "x.pth"):
    ask(f"evaluate {file}", "VCD_Evaluate", images=[clip], face_model=[file])
    ask(f"compare {file}", "VCD_Compare", **clips, face_model=[file])
settings = {"images": [clip], "prompt": ["a man"], "threshold": [0.3], "text_threshold": [0.3], "which": ["all"],
            "index": [0], "dilate": [0], "fill_holes": [True], "if_none": ["empty mask"]}
def segment(what, **chosen):
    ask(what, "VCD_PromptToSegmentation", **settings, **chosen)
segment("detector folder", detector=["dino"], segmenter=["sam.pth"])
segment("detector file", detector=["dino.pth"], segmenter=["sam.pth"])
segmentation = sys.modules[nodes.NODE_CLASS_MAPPINGS["VCD_PromptToSegmentation"].__module__].segmentation
segmentation.load_detector = lambda *_: None
segment("segmenter folder", detector=["dino"], segmenter=["sam"])
segment("segmenter file", detector=["dino"], segmenter=["sam.pth"])
print("SAID" + json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What ComfyUI and the pack's nodes say where all that is optional is missing at once."""
    host = host_from_environment()
    base = tmp_path_factory.mktemp("base")
    for folder, kind in (("grounding-dino/dino", "grounding-dino"), ("sams/sam", "sam")):
        (base / "models" / folder).mkdir(parents=True)
        (base / "models" / folder / "config.json").write_text(json.dumps({"model_type": kind}))
    for file in (
        "grounding-dino/dino.pth",
        "sams/sam.pth",
        "face_embedding/x.onnx",
        "face_embedding/x.pth",
        "musiq/x.pth",
    ):
        (base / "models" / file).parent.mkdir(exist_ok=True)
        (base / "models" / file).write_bytes(b"0")
    told = json.dumps([str(host.comfy), str(ROOT), str(base), OPTIONAL])
    done = subprocess.run([sys.executable, "-c", CHILD, told], capture_output=True, text=True, cwd=host.comfy)
    assert "SAID" in done.stdout, done.stderr[-2000:]
    return json.loads(done.stdout.split("SAID")[1])


def test_comfyui_goes_on_without_a_pack_that_refuses(said):
    assert said["loaded where too old"] is False
    assert said["log"].endswith("and this is 0.16.2. Update ComfyUI.")


def test_all_nodes_load_where_everything_optional_is_missing(said):
    assert said["loaded"] is True
    assert set(said["nodes"]) == {path.stem for path in (ROOT / "web" / "docs").glob("VCD_*.md")}


CV2 = "OpenCV is not installed: pip install opencv-python-headless. It is needed for face likeness."
TRANSFORMERS = r"needs transformers 4.50 or newer (it is not installed): pip install "
ORIGINAL = (
    "groundingdino-py is not installed: pip install -r requirements-grounded.txt, or use a transformers folder of "
)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("evaluate", "- dynamics: needs OpenCV (pip install opencv-python-headless)"),
        ("evaluate", "- imaging quality: needs the package pyiqa (pip install pyiqa)"),
        ("evaluate", "| flicker | "),
        ("compare", "- dynamics: needs OpenCV (pip install opencv-python-headless)"),
        *((f"{node} {file}", CV2) for node in ("evaluate", "compare") for file in ("x.onnx", "x.pth")),
        ("detector folder", f"the detector {TRANSFORMERS}"),
        ("segmenter folder", f"the segmenter {TRANSFORMERS}"),
        ("detector file", ORIGINAL),
        ("segmenter file", "segment-anything is not installed: pip install segment-anything, or use a transformers"),
    ],
)  # fmt: skip
def test_a_node_that_lacks_a_library_says_which_and_how_to_get_it(said, what, message):
    assert message in said[what]


def test_a_library_that_does_not_import_is_told_with_its_reason(monkeypatch, tmp_path):
    (tmp_path / "pyiqa.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    assert (parts.installed("pyiqa"), parts.imports("pyiqa")) == (True, False)
    with pytest.raises(
        parts.BackEndMissing, match=r"pyiqa does not import here \(libGL.*\): pip install pyiqa\. It is"
    ):
        parts.part("pyiqa", "imaging quality")


def essential():
    """Modules that ComfyUI cannot start without, by the names that they are imported by."""
    names = {"pillow": "PIL"}
    lines = hosts.needed_by(host_from_environment().comfy)
    found = {re.split("[=<>~]", line)[0].lower().replace("-", "_") for line in lines}
    return {names.get(name, name) for name in found - {name.lower() for name in OPTIONAL}} | {"torch"}


def test_what_is_optional_is_imported_through_one_door():
    """No file imports, with a statement of its own, what ComfyUI starts without."""
    known = essential() | set(sys.stdlib_module_names)
    known |= {
        "comfy",
        "comfy_api",
        "comfy_execution",
        "comfy_extras",
        "comfyui_version",
        "folder_paths",
        "latest",
        "server",
    }
    for path in PUBLISHED:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            others = {name.split(".")[0] for name in names} - known - {"latent_preview"}
            behind = {"groundingdino"} if path.name == "segmentation.py" else set()  # after part() has found it
            assert others <= behind, f"{path.relative_to(ROOT)} imports {others}: use vcd_core.parts"


def test_readme_tells_of_every_host():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.split(hosts.FIRST)[1].split(hosts.LAST)[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["", *hosts.COLUMNS, ""]
    assert [row[0] for row in rows[2:]] == [row.name for row in hosts.ROWS]
    for row, said in zip(hosts.ROWS, rows[2:], strict=True):
        assert said[1] == row.comfyui
        assert said[2].startswith(row.python)
        assert re.match(r"yes(;|$)|not tried: .", said[-1]), said
        assert said[-1].startswith("not tried") or all(said), said
    found = {row[0]: {"versions": dict(zip(hosts.COLUMNS, row[1:], strict=False)), "said": row[-1]} for row in rows[2:]}
    assert hosts.within(text, hosts.table(found)) == text


def test_the_rows_are_the_hosts_that_were_asked_for():
    asked = {row.comfyui for row in hosts.ROWS}, {row.python for row in hosts.ROWS}
    assert asked == ({"0.16.3", "0.18.2", "0.30.0"}, {"3.10", "3.11", "3.12", "3.13"})
    packages = {line for row in hosts.ROWS for line in row.packages}
    assert {"numpy~=1.26.0", "transformers==4.50.3", "transformers~=4.57.0", "opencv-python<5"} <= packages
    assert any(line.startswith("opencv-python-headless") for line in packages)
    assert any(not row.packages for row in hosts.ROWS)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (hosts.NotTried("no Python 3.10 here"), "not tried: no Python 3.10 here"),
        (hosts.Fails("training: VCD_IdTrainer: too large\nand more"), "no: training: VCD_IdTrainer: too large"),
        (SetUpError("\n  numpy is too old  \n"), "no: numpy is too old"),
    ],
)
def test_what_fails_on_a_host_is_told_in_a_line(monkeypatch, tmp_path, raised, said):
    def fails(*_):
        raise raised

    monkeypatch.setattr(hosts, "FOLDER", tmp_path)
    monkeypatch.setattr(hosts, "environment", fails)
    assert hosts.tried(hosts.ROWS[0], {})["said"] == said


@pytest.mark.parametrize(
    ("figures", "said", "message"),
    [
        ({"flicker of clip 1": 3.0, "dynamics of clip 1": 0.5}, "yes", r"flicker of clip 1 is 3\.0, and 4\.0 on"),
        ({"flicker of clip 1": 4.1}, "yes", "dynamics of clip 1 is missing"),
        ({"flicker of clip 1": 4.1}, "yes; dynamics: needs OpenCV (pip install ...)", None),
        ({"flicker of clip 1": 4.1, "dynamics of clip 1": 0.51}, "yes", None),
    ],
)  # fmt: skip
def test_the_clips_of_a_host_have_the_figures_of_the_first(figures, said, message):
    expected = {"flicker of clip 1": 4.0, "dynamics of clip 1": 0.5}
    if message is None:
        hosts._compare(figures, expected, said)
    else:
        with pytest.raises(hosts.Fails, match=message):
            hosts._compare(figures, expected, said)


def test_a_python_that_is_not_there_and_a_torch_for_cuda_are_not_tried():
    with pytest.raises(hosts.NotTried, match=r"no Python 3\.99 here"):
        hosts.interpreter("3.99")
    command = [sys.executable, "-c", "import sys; sys.stderr.write(sys.argv[1])"]
    assert hosts._brings_cuda([*command, " + nvidia-cublas==13.1"], {})
    assert not hosts._brings_cuda([*command, " + torch==2.13.0+cpu"], {})


def test_what_does_not_go_together_is_told_in_a_line():
    command = [sys.executable, "-c", "raise SystemExit('No solution found:\\n  numpy is too old')"]
    with pytest.raises(SetUpError, match="No solution found: numpy is too old"):
        hosts._brings_cuda(command, {})
