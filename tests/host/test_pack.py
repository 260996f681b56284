"""The pack as a whole: it loads without its optional libraries, imports nothing heavy, and its graphs run on every
host."""

import json
import re
import subprocess
import sys

import pytest
from PIL import Image

from dev import make_locales
from dev.graph import has_control, inputs_of, is_widget, to_api
from dev.host import PACK, ROOT

NODES = {  # saved graphs hold these; a new one is added here, none is ever taken away
    "VCD_ApplyNoisePrior", "VCD_Cast", "VCD_Compare", "VCD_Evaluate", "VCD_FaceCrop", "VCD_FacePaste", "VCD_FaceRefine",
    "VCD_FaceTrack", "VCD_IdLoader", "VCD_IdSave", "VCD_IdTextEncode", "VCD_IdTrainer", "VCD_MotionModule",
    "VCD_NoisePrior", "VCD_NoisePriorLatent", "VCD_NoisePriorPreview", "VCD_Pictures", "VCD_PromptToSegmentation",
    "VCD_TiledDenoise", "VCD_TiledPatch", "VCD_TinyClip", "VCD_TinyModel",
}  # fmt: skip
HEAVY = ("cv2", "transformers", "scipy", "matplotlib", "segment_anything", "groundingdino")
NO_MODEL = ["00_noise_prior"]


def load_pack(host, before):
    """Import the pack in a fresh process of the host's, after running ``before``; gives its nodes and new imports."""
    script = f"""
import sys, asyncio
sys.path.insert(0, {str(host.comfy)!r}); sys.argv = ["x", "--cpu"]
import comfy.options; comfy.options.enable_args_parsing()
import nodes, comfy_api.latest, latent_preview, comfy_extras.nodes_upscale_model
known = set(sys.modules)
{before}
sys.path.insert(0, {str(host.base / "custom_nodes")!r})
pack = __import__({PACK!r})
extension = asyncio.run(pack.comfy_entrypoint())
names = [node.GET_SCHEMA().node_id for node in asyncio.run(extension.get_node_list())]
print("\\nNODES", *names); print("NEW", *(set(sys.modules) - known))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=host.comfy)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    return set(lines[-2].split()[1:]), set(lines[-1].split()[1:])


def test_the_pack_imports_nothing_heavy(bench):
    nodes, new = load_pack(bench.server.host, "")
    assert nodes == NODES
    assert not {name.split(".")[0] for name in new} & set(HEAVY)


def test_the_pack_loads_without_its_optional_libraries(bench):
    """Each is missing, or fails on import as cv2 does for want of a system library."""
    before = f"""
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ImportError("libGL.so.1: cannot open shared object file")
for name in [n for n in sys.modules if n.split(".")[0] in {HEAVY!r}]:
    del sys.modules[name]
sys.meta_path.insert(0, Refuse())
"""
    nodes, _ = load_pack(bench.server.host, before)
    assert nodes == NODES


@pytest.mark.parametrize("name", NO_MODEL)
@pytest.mark.parametrize("which", ["bench", "oldest_bench"])
def test_bundled_graphs_without_models_run(request, name, which):
    server = request.getfixturevalue(which).server
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    files = server.outputs(server.run(to_api(workflow, server.get("/object_info"))))
    assert any(path.suffix == ".mp4" and path.stat().st_size > 1000 for path in files)
    assert any(path.suffix == ".png" for path in files)


GRAPHS = sorted((ROOT / "workflows").glob("*.json"))
CHOSEN_FILES = {"file", "folder", "motion_module", "detector", "segmenter"}


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_bundled_graphs_hold_a_fitting_value_for_every_widget(bench, path):
    """Widgets are stored by position: a node that gained one in the middle would shift the rest."""
    info = bench.server.get("/object_info")
    for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        if not node["type"].startswith("VCD_"):
            continue
        known = {name: spec for name, spec in inputs_of(info[node["type"]]).items() if is_widget(spec)}
        count = len(known) + sum(has_control(name, spec) for name, spec in known.items())
        assert len(node["widgets_values"]) == count, node["type"]
        values = iter(node["widgets_values"])
        for name, spec in known.items():
            value, options = next(values), spec[1]
            if has_control(name, spec):
                assert next(values) in ("fixed", "randomize")
            if spec[0] in ("INT", "FLOAT"):
                assert not isinstance(value, (bool, str)), name
                assert options["min"] <= value <= options["max"], name
            elif spec[0] == "BOOLEAN":
                assert isinstance(value, bool), name
            elif name not in CHOSEN_FILES and spec[0] == "COMBO":
                assert value in options["options"], name


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_bundled_graphs_name_no_file_of_the_machine_they_were_made_on(path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    chosen = [node["widgets_values"][0] for node in nodes if node["type"] in ("LoadImage", "LoadVideo")]
    assert chosen == [None] * len(chosen)


def test_every_node_is_described(bench):
    info = {name: node for name, node in bench.server.get("/object_info").items() if name.startswith("VCD_")}
    assert set(info) == NODES
    for name, node in info.items():
        assert (ROOT / "web" / "docs" / f"{name}.md").is_file(), f"{name} has no help page"
        assert node["description"], name
        assert node["search_aliases"], name
        for group in ("required", "optional"):
            for key, spec in node["input"].get(group, {}).items():
                assert spec[1].get("tooltip"), f"{name}.{key} has no tooltip"


@pytest.mark.parametrize("language", make_locales.LANGUAGES)
def test_every_name_and_tooltip_is_translated(bench, language):
    wanted, missing = make_locales.definitions(bench.server.get("/object_info"), language)
    assert not missing, "translate these in dev/translations.json and run python -m dev.make_locales"
    path = ROOT / "locales" / language / "nodeDefs.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found == wanted, "out of date: run python -m dev.make_locales"
    script = {"ko": "\uac00-\ud7a3", "zh": "\u4e00-\u9fff", "ja": "\u3040-\u30ff\u4e00-\u9fff"}[language]
    for node in found.values():
        assert re.search(f"[{script}]", node["description"])


@pytest.mark.parametrize("language", make_locales.LANGUAGES)
def test_every_node_has_help_in_other_languages_under_the_name_it_has_there(language):
    names = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    called = {node["display_name"] for node in names.values()}
    assert set(names) == NODES
    for node in sorted(NODES):
        text = (ROOT / "web" / "docs" / node / f"{language}.md").read_text(encoding="utf-8")
        assert text.splitlines()[0] == f"# {names[node]['display_name']}"
        ours = {bold for bold in re.findall(r"\*\*([^*\n]+)\*\*", text) if bold.startswith(("VCD ", "3D "))}
        assert ours <= called, node


@pytest.mark.parametrize("page", sorted((ROOT / "web" / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_pictures_in_help_pages_are_there(page):
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (ROOT / "web" / "docs" / picture).is_file(), picture


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_every_graph_has_a_thumbnail(path):
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert min(picture.size) > 60


def test_requirements_stand_once():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == (ROOT / "requirements.txt").read_text().split()
    assert not any(line.startswith("torch") for line in project["dependencies"])
