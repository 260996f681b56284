"""Every bundled graph, exported to API form by the page itself, runs on the newest and on the oldest supported host.

SD 1.5 and its motion module are random ones of full size, at 64 pixels and one or two steps; identities are random;
weights of other models that are not to be had are left out of the graph where it runs without them.
"""

import json
from pathlib import Path

import pytest
import torch
from kinds import check_outputs
from PIL import Image
from safetensors.torch import save_file

from dev.host import HOST, OLDEST, prepare
from dev.random_models import full_size
from dev.server import Server

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
APPS = {f"{name}.app": name for name in ("01_quickstart", "05_face_refine")}  # the same graphs, as forms
NEEDS = {
    "03_t2v_animatediff_evolved": "AnimateDiff-Evolved is not there",
    "04_prompt_to_segmentation": "Grounding DINO, SAM and SAM 3 are not there",
    "04_train_identity_sam3": "SAM 3 is not there",
}
SMALL = {
    "EmptyLatentImage": {"width": 64, "height": 64, "batch_size": 8},
    "KSampler": {"steps": 1, "cfg": 1.0},
    "VCD_FaceRefine": {"steps": 1, "cfg": 1.0, "refine_size": 64},
    "VCD_TiledDenoise": {"steps": 1, "cfg": 1.0, "scale": 1.5, "tile_size": 64, "overlap": 16},
    "VCD_IdTrainer": {"steps": 2, "batch": 1, "size": 64, "sample_every": 0},
    "VCD_Pictures": {"folder": "vcd_graph_tests"},
    "LoadVideo": {"file": "vcd_graph_tests.mp4"},
    "LoadImage": {"image": "vcd_graph_tests.png"},
}


TINY = {  # of the graphs that run as they are, so that they run fast
    "VCD_TinyClip": {"frames": 8},
    "VCD_FaceRefine": {"steps": 2},
    "VCD_TiledDenoise": {"steps": 2},
    "VCD_IdTrainer": SMALL["VCD_IdTrainer"] | {"resume": False},
}
RATE = 12  # of the clip that graphs load
FRAMES = 9
VIDEO = {"12_wan22_faces_and_tiles": "wan22_5b", "13_ltx2_with_sound": "ltx2", "14_wan_vace": "wan21_vace"}
TAUGHT = {"04_train_identity_sdxl": "sdxl", "04_train_identity_wan": "wan21"}
VIDEO_SMALL = {
    "VCD_FaceRefine": {"steps": 1, "cfg": 1.0, "refine_size": 64},
    "VCD_TiledDenoise": {"steps": 1, "cfg": 1.0, "scale": 2.0, "tile_size": 64, "overlap": 32},
    "LoadVideo": SMALL["LoadVideo"],
}


@pytest.fixture(scope="module")
def exported(browser, page_server):
    """The graphs as the page sends them to the server."""
    page = browser.new_page()
    page.goto(page_server.url, wait_until="load")
    page.wait_for_function("() => window.app?.graph && Object.keys(LiteGraph.registered_node_types).length > 100")
    found = {}
    for name in GRAPHS:
        if name not in NEEDS:
            graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
            page.evaluate("graph => window.app.loadGraphData(graph)", graph)
            found[name] = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    page.close()
    return found


@pytest.fixture(scope="module")
def files(page_server):
    """What the graphs load, small: a checkpoint, motion, identities, a clip, pictures."""
    import av

    from vcd_core.tiny import world

    base = page_server.host.base
    models = full_size(base / "models")
    (base / "models" / "embeddings" / "vcd").mkdir(parents=True, exist_ok=True)
    made = [base / "models" / "embeddings" / "vcd" / f"{name}.safetensors" for name in ("my_id", "her_id")]
    made = [path for path in made if not path.exists()]
    for path in made:
        save_file({"emb_params": torch.randn(4, 768) * 0.02}, path)
    frames = [
        frame.image
        for frame in world.render_take(world.random_take(__import__("random").Random(1), framing="close-up"))
    ]
    frames = frames[:FRAMES]
    pictures = base / "input" / "vcd_graph_tests"
    pictures.mkdir(parents=True, exist_ok=True)
    for i in (0, 8):
        made.append(pictures / f"{i}.png")
        Image.fromarray(frames[i]).save(made[-1])
    made.append(base / "input" / "vcd_graph_tests.png")
    Image.fromarray(frames[0]).save(made[-1])
    made.append(base / "input" / "vcd_graph_tests.mp4")
    with av.open(str(made[-1]), "w") as out:
        stream = out.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in frames:
            small = av.VideoFrame.from_image(Image.fromarray(frame).resize((64, 64)))
            out.mux(stream.encode(small))
        out.mux(stream.encode())
    yield models
    for path in made:
        path.unlink()


@pytest.fixture(scope="module")
def oldest_server():
    if not HOST.is_dir():
        pytest.skip("the oldest host is set up by run.py, not with --comfy DIR")
    with Server(prepare(None, OLDEST), arguments=("--disable-api-nodes",)) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def both_servers(page_server, request):
    """Up before the first graph: a server that starts empties the folder of previews, which the other knows as done."""
    if HOST.is_dir():
        request.getfixturevalue("oldest_server")


def fitted(prompt, models):
    """The graph with small sizes and the files that are there."""
    prompt = json.loads(json.dumps(prompt))
    absent = {key for key, node in prompt.items() if node["class_type"] in ("CLIPVisionLoader", "CLIPLoader")}
    instead: dict[str, list] = {}
    for key, node in prompt.items():
        if node["class_type"] == "VCD_PromptToSegmentation":
            instead[key] = [node["inputs"]["images"][0], 1]  # the pictures' own masks
        if node["class_type"] == "FreeU_V2":  # divides by zero where the deepest features are one cell, as at 64 pixels
            instead[key] = node["inputs"]["model"]
    prompt = {key: node for key, node in prompt.items() if key not in absent and key not in instead}
    kinds = {node["class_type"] for node in prompt.values()}
    scheduled = any("|" in str(node["inputs"].get("prompt")) for node in prompt.values())
    frames = 24 if "ContextWindowsManual" in kinds else 16 if scheduled else 8
    small = {**SMALL, "EmptyLatentImage": {**SMALL["EmptyLatentImage"], "batch_size": frames}}
    for node in prompt.values():
        inputs = node["inputs"]
        for name, value in list(inputs.items()):
            if isinstance(value, list) and value[0] in absent:
                del inputs[name]
            elif isinstance(value, list) and value[0] in instead:
                inputs[name] = instead[value[0]]
        if "VCD_TinyClip" in kinds:
            inputs.update(TINY.get(node["class_type"], {}))
        if "VCD_TinyModel" not in kinds:
            inputs.update(small.get(node["class_type"], {}))
            if node["class_type"] == "CheckpointLoaderSimple":
                inputs["ckpt_name"] = models["sd15"]
            if node["class_type"] == "VCD_MotionModule":
                inputs["motion_module"] = models["motion"]
    return prompt


def with_tiny_classes(prompt, kind):
    """A graph for a video model with the host's own classes at a tiny size in place of its files."""
    kept, instead = {}, {}
    for key, node in json.loads(json.dumps(prompt)).items():
        name = node["class_type"]
        if name in ("UNETLoader", "CheckpointLoaderSimple", "VAELoader"):
            kept["tiny"] = {"class_type": "VCDTest_VideoModel", "inputs": {"kind": kind}}
            instead |= {(key, 0): ["tiny", int(name == "VAELoader")], (key, 2): ["tiny", 1]}
        elif name == "CLIPTextEncode":
            kept[key] = {"class_type": "VCDTest_VideoPrompt", "inputs": {"kind": kind, "seed": int(key)}}
        elif name == "LTXVAudioVAEEncode":
            kept[key] = {"class_type": "VCDTest_VideoSound", "inputs": {"seconds": FRAMES / RATE}}
        elif name not in ("CLIPLoader", "LTXAVTextEncoderLoader", "LTXVAudioVAELoader"):
            kept[key] = node
            node["inputs"].update(VIDEO_SMALL.get(name, {}))
    for node in kept.values():
        for name, value in node["inputs"].items():
            node["inputs"][name] = instead.get(tuple(value), value) if isinstance(value, list) else value
    return kept


def with_tiny_checkpoint(prompt, kind):
    """A graph that learns on another model than SD 1.5, with the host's own classes at a tiny size for its files."""
    outputs = {"CheckpointLoaderSimple": (0, 1, 2), "UNETLoader": (0,), "CLIPLoader": (1,), "VAELoader": (2,)}
    instead = {
        (key, slot): ["tiny", output]
        for key, node in prompt.items()
        for slot, output in enumerate(outputs.get(node["class_type"], ()))
    }
    kept = {key: node for key, node in json.loads(json.dumps(prompt)).items() if (key, 0) not in instead}
    kept["tiny"] = {"class_type": "VCDTest_Checkpoint", "inputs": {"kind": kind}}
    for node in kept.values():
        for name, value in node["inputs"].items():
            node["inputs"][name] = instead.get(tuple(value), value) if isinstance(value, list) else value
        if node["class_type"] == "EmptyHunyuanLatentVideo":
            node["inputs"].update(width=64, height=64, length=FRAMES)
    return kept


def rate_of(path):
    import av

    with av.open(str(path)) as video:
        return video.streams.video[0].average_rate


def without_previews(prompt):
    """A prompt without what the page shows of a video, which it adds as soon as it has it."""
    shown = "video-preview"
    return {
        key: {**node, "inputs": {name: value for name, value in node["inputs"].items() if name != shown}}
        for key, node in prompt.items()
    }


def test_apps_are_the_graphs_of_their_names(exported):
    for app, name in APPS.items():
        assert without_previews(exported[app]) == without_previews(exported[name])


RUNS = [(name, host) for host in ("newest", "oldest") for name in GRAPHS if name not in APPS]
RUNS.remove(("01_quickstart", "newest"))  # test_page runs it, by the page's own button


@pytest.mark.slow
@pytest.mark.parametrize(("name", "host"), RUNS)
def test_every_graph_runs(request, exported, files, page_server, name, host):
    if name in NEEDS:
        pytest.skip(NEEDS[name])
    server = page_server if host == "newest" else request.getfixturevalue("oldest_server")
    if name in VIDEO:
        prompt = with_tiny_classes(exported[name], VIDEO[name])
    else:
        taught = with_tiny_checkpoint(exported[name], TAUGHT[name]) if name in TAUGHT else exported[name]
        prompt = fitted(taught, files)
    entry = server.run(prompt, 600)
    server.free()  # other workers' servers need the memory too
    made = check_outputs(server, entry)
    if name in ("05_face_refine", "06_tiled_upscale", *VIDEO):
        assert [rate_of(path) for path in made if path.suffix == ".mp4"] == [RATE]
