"""Prompt to Segmentation in graphs queued on the real server: real classes of tiny random size, found in the model
folders."""

import shutil

import pytest
import torch
from PIL import Image

from dev import clips
from dev.server import QueueError
from vcd_core import plots

transformers = pytest.importorskip("transformers")
SETTINGS = {
    "prompt": "a man . his dog", "detector": "vcd-test-dino", "segmenter": "vcd-test-sam", "threshold": 0.0,
    "text_threshold": 0.0, "which": "best", "index": 0, "dilate": 0, "fill_holes": True, "if_none": "empty mask",
}  # fmt: skip


@pytest.fixture(scope="module")
def models(bench):
    """The folders of the core tests' tiny models, in the server's model folders."""
    import test_segmentation as core

    base = bench.server.host.base / "models"
    places = {"grounding-dino": base / "grounding-dino" / "vcd-test-dino", "sams": base / "sams" / "vcd-test-sam"}
    try:
        core.write_dino(places["grounding-dino"])
    except clips.Missing as missing:
        pytest.skip(str(missing))
    core.write_sam(places["sams"])
    yield
    for place in places.values():
        shutil.rmtree(place)


def node(graph, images, **changes):
    return graph.VCD_PromptToSegmentation(images=images, **{**SETTINGS, **changes})


def world(graph, frames=3):
    return graph.VCDTest_World(framing="close-up", action="standing", people=1, seed=1, frames=frames)


def test_masks_boxes_and_overlay_of_a_clip(bench, models):
    graph = bench.graph()
    images = world(graph)
    found = node(graph, images)
    images, masks, boxes, overlay = bench.tensors(graph, images, found, [found[0], 1], [found[0], 2])
    assert masks.shape == images.shape[:3]
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert [len(here) for here in boxes] == [1] * 3
    assert torch.equal(overlay, plots.numbered_boxes(plots.with_masks(images, masks), boxes))
    assert not torch.equal(overlay, images)


@pytest.fixture
def folder(bench):
    """Two pictures of different sizes, as VCD Pictures gives them."""
    place = bench.server.host.base / "input" / "vcd_tests_rooms"
    place.mkdir(parents=True, exist_ok=True)
    for i, size in enumerate([(96, 128), (160, 80)]):
        Image.effect_noise(size, 60).convert("RGB").save(place / f"{i}.png")
    yield place.name
    for path in place.iterdir():
        path.unlink()


def test_a_list_of_pictures_of_any_sizes_is_one_run(bench, models, folder):
    graph = bench.graph()
    found = node(graph, graph.VCD_Pictures(folder=folder))
    masks, overlay = bench.tensors(graph, found, [found[0], 2])  # of a list the last is kept
    assert masks.shape == (1, 80, 160)
    assert overlay.shape == (1, 80, 160, 3)
    graph = bench.graph()
    with pytest.raises(QueueError, match=r"2 of 2 pictures \(number 0, 1,"):
        bench.tensors(
            graph, node(graph, graph.VCD_Pictures(folder=folder), threshold=1.0, if_none="stop with an error")
        )


def test_boxes_go_into_the_face_nodes(bench, models):
    graph = bench.graph()
    images = graph.EmptyImage(width=128, height=96, batch_size=4, color=0x808080)  # no face is found here without boxes
    found = node(graph, images)
    track = graph.VCD_FaceTrack(
        images=images, which="all", index=0, threshold=0.6, max_gap=8, min_length=1, small_faces=False,
        bboxes=[found[0], 1],
    )  # fmt: skip
    assert bench.tensors(graph, [track[0], 3]).amax((1, 2)).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"threshold": 1.0, "if_none": "stop with an error"}, r"Nothing was found in 3 of 3 pictures \(number 0, 1, 2"),
        ({"detector": "vcd-test-nothing"}, "is not in"),
        ({"detector": "../sams/vcd-test-sam"}, "is not in"),
    ],
)
def test_bad_input_is_refused(bench, models, changes, message):
    graph = bench.graph()
    with pytest.raises(QueueError, match=message):
        bench.tensors(graph, node(graph, world(graph), **changes))
