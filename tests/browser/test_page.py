"""What an artist sees: templates open whole, run with the Run button, help opens, old graphs get our node."""

import json
from pathlib import Path

import pytest
from kinds import both_kinds_of_nodes, check_outputs

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


NEEDS_PACK = {"03_t2v_animatediff_evolved": "ADE_AnimateDiffLoaderGen1"}


@both_kinds_of_nodes
def test_graphs_open_from_templates_whole(tab, nodes_2):
    """One page for all: the first by its address, the others with what the server gives for a template."""
    tab.settings(Comfy_VueNodes_Enabled=nodes_2)
    here = tab.server.get("/object_info")
    names = [name for name in GRAPHS if NEEDS_PACK.get(name, "VCD_TinyModel") in here]
    assert set(GRAPHS) <= set(tab.server.get("/workflow_templates")["video_custom_diffusion"])
    tab.open_template("01_quickstart")
    tab.page.keyboard.press("Escape")
    registered = tab.evaluate("() => Object.keys(window.LiteGraph.registered_node_types)")
    for name in names:
        graph = tab.server.get(f"/api/workflow_templates/video_custom_diffusion/{name}.json")
        tab.evaluate("graph => window.app.loadGraphData(graph)", graph)
        tab.page.wait_for_timeout(300)
        shown = tab.evaluate("() => window.app.graph._nodes.map(n => n.type)")
        assert sorted(shown) == sorted(node["type"] for node in graph["nodes"]), name
        missing = set(shown) - set(registered) - {"Note", "MarkdownNote"}
        assert not missing, name
        drawn = tab.evaluate("() => document.querySelectorAll('[data-node-id]').length")
        assert (drawn >= 1) == nodes_2  # only Nodes 2.0 are elements of the page
        tab.shot(f"template_{name}{'_nodes2' if nodes_2 else ''}")
    assert tab.errors() == []


FOUND = {  # what artists type, and the node that stands first
    "face detailer": "Face VCD Crop-Refine-Paste",
    "adetailer": "Face VCD Crop-Refine-Paste",
    "restore face": "Face VCD Crop-Refine-Paste",
    "face swap": "Face VCD Crop-Refine-Paste",
    "ultimate sd upscale": "Tiled VCD Denoise",
    "hires fix": "Tiled VCD Denoise",
    "textual inversion": "VCD ID Trainer",
    "refine faces": "Refine faces",
}


# a point of the canvas that no panel, node or group covers: panels stand open for a new user and shut for another
EMPTY_PLACE = """() => {
  const { canvas, graph } = window.app;
  for (let y = innerHeight - 60; y > 60; y -= 40)
    for (let x = 60; x < innerWidth; x += 40) {
      const [left, top] = canvas.ds.convertCanvasToOffset([x, y]);
      if (document.elementFromPoint(x, y) === canvas.canvas && !graph.getNodeOnPos(left, top)
          && !graph.getGroupOnPos(left, top)) return [x, y];
    }
}"""


def test_widget_values_arrive_where_they_belong_and_nodes_are_found(tab):
    tab.open_template("00_noise_prior")
    values = tab.evaluate(
        "() => Object.fromEntries(window.app.graph._nodes.find(n => n.type === 'VCD_NoisePriorPreview')"
        ".widgets.map(w => [w.name, w.value]))"
    )
    assert values["frames"] == 16
    assert values["gamma"] == pytest.approx(0.8)
    assert values["gamma_schedule"] == ""
    tab.page.keyboard.press("Escape")
    tab.page.mouse.dblclick(*tab.evaluate(EMPTY_PLACE))
    for words, node in FOUND.items():
        tab.page.keyboard.press("Control+A")
        tab.page.keyboard.type(words)
        tab.page.wait_for_function(
            "name => document.querySelector('[role=option]')?.textContent.startsWith(name)", arg=node
        )
    tab.shot("search")


def test_graphs_saved_before_a_widget_keep_their_result_and_new_nodes_get_the_default(tab):
    tab.open_template("00_noise_prior")
    saved = {
        "nodes": [
            {"id": 1, "type": "VCD_TiledPatch", "pos": [100, 100], "size": [315, 154], "flags": {}, "order": 0,
             "mode": 0, "inputs": [{"name": "model", "type": "MODEL", "link": None}],
             "outputs": [{"name": "MODEL", "type": "MODEL", "links": None}], "properties": {},
             "widgets_values": values}
            for values in ([256, 64, True], [256, 64, True, "moving"])
        ],
        "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip
    saved["nodes"][1]["id"] = 2
    tab.evaluate("graph => window.app.loadGraphData(graph)", saved)
    values = "n => Object.fromEntries(n.widgets.map(w => [w.name, w.value]))"
    old, later = tab.evaluate(f"() => window.app.graph._nodes.map({values})")
    new = tab.evaluate(f"() => ({values})(window.LiteGraph.createNode('VCD_TiledPatch'))")
    assert old == {"tile_size": 256, "overlap": 64, "shift_grid": True, "grid": "fixed"}
    assert later == {**old, "grid": "moving"}
    assert new["grid"] == "moving"
    assert tab.errors() == []


def test_the_run_button_makes_the_video(tab):
    tab.open_template("00_noise_prior")
    before = len(tab.server.get("/history"))
    tab.page.keyboard.press("Escape")
    tab.page.get_by_test_id("queue-button").first.click()
    tab.page.wait_for_function(
        "() => { const n = window.app.graph._nodes.find(n => n.type === 'SaveVideo');"
        " return n && (window.app.nodeOutputs?.[n.id] || n.images || n.videoContainer); }",
        timeout=120_000,
    )
    history = tab.server.get("/history")
    assert len(history) == before + 1
    files = tab.server.outputs(list(history.values())[-1])
    assert any(f.suffix == ".mp4" and f.stat().st_size > 1000 for f in files)
    tab.page.wait_for_timeout(1500)
    tab.shot("run_00_noise_prior")
    assert tab.errors() == []


RELEASE_GRAPH = {
    "nodes": [
        {
            "id": 1, "type": "MagicAlbum3DGaussianNoise", "pos": [100, 100], "size": [315, 154], "flags": {},
            "order": 0, "mode": 0, "outputs": [{"name": "LATENT", "type": "LATENT", "links": [1], "slot_index": 0}],
            "properties": {"Node name for S&R": "MagicAlbum3DGaussianNoise"},
            "widgets_values": [320, 448, 12, 1234, "fixed", 0.15],
        },
        {
            "id": 2, "type": "PreviewAny", "pos": [500, 100], "size": [315, 154], "flags": {}, "order": 1, "mode": 0,
            "inputs": [{"name": "source", "type": "*", "link": 1}],
            "outputs": [], "properties": {}, "widgets_values": [],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "LATENT"]], "groups": [], "config": {}, "extra": {}, "version": 0.4,
    "last_node_id": 2, "last_link_id": 1,
}  # fmt: skip


def test_a_graph_of_the_release_gets_our_node_in_place_of_its_own(tab):
    tab.open_template("00_noise_prior")
    tab.evaluate("graph => window.app.loadGraphData(graph)", RELEASE_GRAPH)
    tab.page.get_by_text("View details").first.click()
    tab.page.get_by_role("button").filter(has_text="Replace").first.click()
    node = "window.app.graph._nodes.find(n => n.type === 'VCD_NoisePriorLatent')"
    tab.page.wait_for_function(f"() => {node}?.widgets?.find(w => w.name === 'width')?.value === 320")
    values = tab.evaluate(f"() => Object.fromEntries({node}.widgets.map(w => [w.name, w.value]))")
    expected = {"width": 320, "height": 448, "frames": 12, "seed": 1234, "layout": "magic-me"}
    assert {name: values[name] for name in expected} == expected
    assert values["gamma"] == pytest.approx(0.15)
    assert values["fixed"] == "fixed"  # the page names the control widget after its default
    assert tab.evaluate(f"() => {node}.outputs[0].links.length") == 1


@both_kinds_of_nodes
def test_the_help_page_opens(tab, nodes_2):
    tab.settings(Comfy_VueNodes_Enabled=nodes_2)
    tab.open_template("00_noise_prior")
    tab.page.keyboard.press("Escape")
    with tab.page.expect_response(lambda r: r.url.endswith("docs/VCD_NoisePriorPreview.md")) as answer:
        tab.evaluate(
            "() => { const n = window.app.graph._nodes.find(n => n.type === 'VCD_NoisePriorPreview');"
            " window.app.canvas.selectNode(n); }"
        )
        for selector in ("[data-testid='info-button']", "button[aria-label*='Info' i]", "[class*='lucide--info']"):
            button = tab.page.locator(selector).first
            if button.count():
                button.click(timeout=5000)
                break
        else:
            pytest.fail("the page has no info button for the selected node")
    assert answer.value.ok
    tab.page.get_by_text("Common mistakes").first.wait_for()
    tab.shot(f"help{'_nodes2' if nodes_2 else ''}")
    assert tab.errors() == []


@both_kinds_of_nodes
def test_names_and_tooltips_are_korean_after_switching(tab, nodes_2):
    tab.settings(Comfy_Locale="ko", Comfy_VueNodes_Enabled=nodes_2)
    tab.open_template("02_t2v_builtin_motion")
    korean = json.loads((ROOT / "locales" / "ko" / "nodeDefs.json").read_text(encoding="utf-8"))
    node = "window.app.graph._nodes.find(n => n.type === 'VCD_ApplyNoisePrior')"
    assert tab.evaluate(f"() => {node}.title") == korean["VCD_ApplyNoisePrior"]["display_name"]
    labels = tab.evaluate(f"() => {node}.widgets.map(w => w.label)")
    assert korean["VCD_ApplyNoisePrior"]["inputs"]["gamma"]["name"] in labels
    if nodes_2:
        shown = tab.page.locator("[data-node-id]").filter(has_text=korean["VCD_ApplyNoisePrior"]["display_name"])
        shown.first.wait_for()
    tab.page.wait_for_timeout(500)
    tab.shot(f"korean{'_nodes2' if nodes_2 else ''}")


@both_kinds_of_nodes
def test_what_a_node_found_is_shown_in_it(tab, nodes_2):
    """A text is shown when its node runs, and again when the server repeats a result that it kept."""
    tab.settings(Comfy_VueNodes_Enabled=nodes_2)
    tab.open_template("01_quickstart")
    graph = {
        "nodes": [
            {"id": 1, "type": "VCD_IdLoader", "pos": [100, 100], "size": [320, 170], "flags": {}, "order": 0, "mode": 0,
             "outputs": [{"name": "id", "type": "VCD_ID", "links": None},
                         {"name": "prompt", "type": "STRING", "links": [1]}],
             "properties": {}, "widgets_values": ["vcd_tiny_robin.safetensors", "man", 0.6 if nodes_2 else 0.5]},
            {"id": 2, "type": "PreviewAny", "pos": [500, 100], "size": [320, 150], "flags": {}, "order": 1, "mode": 0,
             "inputs": [{"name": "source", "type": "*", "link": 1}],
              "outputs": [], "properties": {}, "widgets_values": []},
        ],
        "links": [[1, 1, 1, 2, 0, "STRING"]], "groups": [], "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip
    tab.evaluate("graph => window.app.loadGraphData(graph)", graph)
    tab.page.get_by_test_id("queue-button").first.click()
    tab.page.wait_for_function(
        "() => window.app.graph.getNodeById(1).widgets.some(w => String(w.value).includes('4 tokens; width 96'))"
    )
    tab.server.wait_for_all()
    tab.evaluate("graph => window.app.loadGraphData(graph)", graph)  # a fresh page of the same graph: nothing runs
    says = "() => window.app.graph.getNodeById(1).widgets.some(w => String(w.value).includes('4 tokens'))"
    assert not tab.evaluate(says)
    tab.page.get_by_test_id("queue-button").first.click()
    tab.page.wait_for_function(says)
    tab.shot(f"text_in_node{'_nodes2' if nodes_2 else ''}")
    assert tab.errors() == []


@both_kinds_of_nodes
def test_the_quickstart_runs_with_the_run_button(tab, nodes_2):
    tab.settings(Comfy_VueNodes_Enabled=nodes_2)
    tab.open_template("01_quickstart")
    tab.page.keyboard.press("Escape")
    tab.page.get_by_test_id("queue-button").first.click()
    tab.page.wait_for_function(
        "() => { const n = window.app.graph._nodes.filter(n => n.type === 'SaveVideo');"
        " return n.length && n.every(n => window.app.nodeOutputs?.[n.id]); }",
        timeout=400_000,
    )
    entry = tab.server.wait_for_all()
    files = check_outputs(tab.server, entry)
    assert sum(f.suffix == ".mp4" and f.stat().st_size > 1000 for f in files) == 1
    assert "No face was found" not in json.dumps(entry["outputs"])  # its second stage would show nothing
    tab.page.wait_for_timeout(2500)
    tab.shot(f"run_01_quickstart{'_nodes2' if nodes_2 else ''}")
    assert tab.errors() == []
