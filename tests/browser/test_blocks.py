"""Blocks of the node search and apps, on the real page: what they hold, and that they run."""

import json
from pathlib import Path

import pytest
from kinds import ADD, both_kinds_of_nodes

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "subgraphs").glob("*.json"))
}
INSIDE = {  # what a block holds, and values of it that a newcomer would have to know
    "Refine faces": {"VCD_FaceTrack": {}, "VCD_FaceRefine": {"redraw": "head", "paste_by": "change"}},
    "Refine faces (video model)": {"VCD_FaceTrack": {}, "VCD_FaceRefine": {"denoise_by": "noise", "cfg": 5.0}},
    "Enlarge a clip in tiles (upscale)": {"VCD_TiledDenoise": {"scale": 2.0, "denoise": 0.2, "grid": "moving"}},
    "Learn an identity (train)": {"VCD_IdTrainer": {"name": "my_id", "steps": 200}, "VCD_IdSave": {"name": "my_id"}},
    "Video of a person (text to video)": {
        "VCD_MotionModule": {}, "VCD_ApplyNoisePrior": {"gamma": 0.1}, "VCD_IdTextEncode": {}, "CLIPTextEncode": {},
        "EmptyLatentImage": {"batch_size": 16}, "KSampler": {"cfg": 8.0}, "VAEDecode": {},
    },
}  # fmt: skip
EXPORT = "async () => (await window.app.graphToPrompt()).output"


def test_the_search_lists_the_blocks(page_server):
    listed = page_server.get("/global_subgraphs").values()
    ours = {entry["name"] for entry in listed if entry["info"]["node_pack"] == "custom_nodes.video_custom_diffusion"}
    assert ours == set(INSIDE) == set(BLOCKS)


def test_a_block_holds_its_stage_and_its_widgets_reach_it(tab):
    tab.open_template("00_noise_prior")
    for name, block in BLOCKS.items():
        tab.evaluate("graph => window.app.loadGraphData(graph)", block)
        found = {node["class_type"]: node["inputs"] for node in tab.evaluate(EXPORT).values()}
        assert set(found) == set(INSIDE[name]), name
        for kind, values in INSIDE[name].items():
            assert {key: found[kind][key] for key in values} == pytest.approx(values), name
        (outer,) = block["nodes"]
        shown = tab.evaluate("() => window.app.graph._nodes[0].widgets.map(w => w.name)")
        assert shown == [widget for _, widget in outer["properties"]["proxyWidgets"]], name
    tab.evaluate("graph => window.app.loadGraphData(graph)", BLOCKS["Learn an identity (train)"])
    tab.evaluate("() => { window.app.graph._nodes[0].widgets.find(w => w.name === 'name').value = 'anna'; }")
    found = {node["class_type"]: node["inputs"] for node in tab.evaluate(EXPORT).values()}
    assert found["VCD_IdTrainer"]["name"] == found["VCD_IdSave"]["name"] == "anna"
    assert tab.errors() == []


BESIDE = """() => {
  const block = window.app.graph._nodes[0];
  ADD
  const to = name => block.inputs.findIndex(i => i.name === name);
  const model = add('VCD_TinyModel', [-800, 0]), clip = add('VCD_TinyClip', [-800, 200], {frames: 8});
  const text = add('CLIPTextEncode', [-400, 0], {text: 'a photo of a man'});
  const save = add('PreviewImage', [600, 0]);
  model.connect(1, text, 0);
  clip.connect(0, block, to('images'));
  model.connect(0, block, to('model'));
  model.connect(2, block, to('vae'));
  text.connect(0, block, to('positive'));
  text.connect(0, block, to('negative'));
  block.connect(0, save, 0);
  const set = (name, value) => { block.widgets.find(w => w.name === name).value = value; };
  set('refine_size', 64);
  set('denoise', 0.1);
}""".replace("ADD", ADD)


@both_kinds_of_nodes
def test_a_block_runs_in_ones_own_graph(tab, nodes_2):
    tab.settings(Comfy_VueNodes_Enabled=nodes_2)
    tab.open_template("00_noise_prior")
    tab.evaluate("graph => window.app.loadGraphData(graph)", BLOCKS["Refine faces"])
    tab.evaluate(BESIDE)
    tab.page.keyboard.press("Escape")
    tab.page.get_by_test_id("queue-button").first.click()
    preview = "window.app.graph._nodes.find(n => n.type === 'PreviewImage')"
    tab.page.wait_for_function(f"() => window.app.nodeOutputs?.[{preview}.id]", timeout=300_000)
    frames = [path for path in tab.server.outputs(tab.server.wait_for_all()) if path.suffix == ".png"]
    assert len(frames) >= 8
    tab.page.wait_for_timeout(1500)
    tab.shot(f"block{'_nodes2' if nodes_2 else ''}")
    assert tab.errors() == []


APPS = {
    "01_quickstart.app": ["prompt", "prompt", "seed"],
    "04_person_to_video.app": ["folder", "class_word", "prompt"],
    "05_face_refine.app": ["file", "prompt", "denoise", "which", "seed"],
}
LABELS = {"01_quickstart.app": ["prompt", "face prompt", "seed"]}


def test_apps_open_as_forms_of_widgets_that_are_there(tab):
    tab.open_template("00_noise_prior")
    for name, wanted in APPS.items():
        graph = tab.server.get(f"/api/workflow_templates/video_custom_diffusion/{name}.json")
        data = graph["extra"]["linearData"]
        assert [widget for _, widget in data["inputs"]] == wanted
        tab.evaluate("graph => window.app.loadGraphData(graph)", graph)
        tab.page.wait_for_timeout(1500)
        there = tab.evaluate(
            "inputs => inputs.map(([id, name]) => window.app.graph.getNodeById(id).widgets.some(w => w.name === name))",
            data["inputs"],
        )
        assert all(there), name
        outputs = tab.evaluate("ids => ids.map(id => window.app.graph.getNodeById(id).type)", data["outputs"])
        assert outputs == ["SaveVideo"]
        shown = tab.page.locator("body").inner_text().lower()
        assert all(label in shown for label in LABELS.get(name, wanted)), name
        tab.shot(f"app_{name}")
    assert tab.errors() == []
