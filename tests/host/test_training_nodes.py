"""Training an identity in graphs queued on the real server."""

import asyncio
import inspect

import pytest
import torch
from graphs import finished, motion, same
from PIL import Image
from safetensors.torch import load_file

from dev.random_models import TINY_TEXT
from dev.server import QueueError
from vcd_core import training as core
from vcd_core.identity import CONTEXT, load

FAST = {
    "name": "vcd_tests/anna", "class_word": "woman", "tokens": 4, "steps": 6, "batch": 2, "learning_rate": 0.01,
    "size": 64, "fit": "crop around the mask", "template": "photo of a V*", "sample_every": 3, "resume": False,
    "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(bench):
    folder = bench.server.host.base / "input" / "vcd_tests_people"
    folder.mkdir(parents=True, exist_ok=True)
    for i, size in enumerate([(90, 120), (128, 80)]):
        picture = Image.new("RGBA", size, (40, 60, 200, 0))
        picture.paste((220, 120, 90, 255), (20, 20, 70, 70))
        picture.save(folder / f"{i}.png")
    yield folder.name
    for path in folder.iterdir():
        path.unlink()


def states(bench):
    return bench.server.host.base / "output" / "vcd_training" / "vcd_tests"


@pytest.fixture(autouse=True)
def no_states(bench):
    yield
    for path in states(bench).glob("*"):
        path.unlink()


def train(graph, model, pictures, masks=True, **changes):
    folder = graph.VCD_Pictures(folder=pictures)
    more = {"masks": [folder[0], 1]} if masks else {}
    clip, vae = [model[0], 1], [model[0], 2]
    return graph.VCD_IdTrainer(model=model, clip=clip, vae=vae, images=folder, **more, **{**FAST, **changes})


def trained(bench, tiny, pictures, **changes):
    graph, model, *_ = tiny()
    node = train(graph, model, pictures, **changes)
    return bench.tensors(graph, node, [node[0], 1], [node[0], 2])


def watch(bench, graph, on_step):
    """Run ``graph`` and call ``on_step(step)`` as the training's progress bar moves: at once, then now and then."""

    def progress(kind, value, most):
        if kind == "VCD_IdTrainer" and most:
            on_step(value)

    finished(asyncio.wait_for(bench.server.watch(graph.prompt, progress), 300))


def test_trains_samples_and_plots(bench, tiny, pictures):
    tokens, loss, images = trained(bench, tiny, pictures)
    assert tokens.shape == (4, TINY_TEXT)
    assert len(loss["loss"]) == 6
    assert images.shape == (2, 64, 64, 3)  # after three steps and at the end
    assert not torch.equal(images[0], images[1])
    graph, model, *_ = tiny()
    node = train(graph, model, pictures, seed=4)
    shown = bench.server.run({**graph.prompt, "plot": _plot(node)}, 300)["outputs"]
    assert shown["plot"]["images"]
    assert "class word woman" in shown[node[0]]["text"][0]
    assert len(shown[node[0]]["images"]) == 2


def _plot(node):
    return {"class_type": "LossGraphNode", "inputs": {"loss": [node[0], 1], "filename_prefix": "vcd_tests/loss"}}


@pytest.mark.parametrize(
    "changes", [{"checkpointing": True}, {"sample_every": 0}], ids=["checkpointing", "without samples on the way"]
)
def test_what_does_not_touch_the_training_gives_the_same_bits(bench, tiny, pictures, changes):
    plain, changed = (trained(bench, tiny, pictures, **more)[0] for more in ({}, changes))
    assert torch.equal(plain, changed)


@pytest.mark.parametrize("changes", [{"noise_from": 0.7}, {"noise_to": 0.3}])
def test_at_other_noise_levels_it_is_another_training(bench, tiny, pictures, changes):
    whole, losses, _ = trained(bench, tiny, pictures, name="whole", noise_from=0.0, noise_to=1.0)
    part, others, _ = trained(bench, tiny, pictures, name="part", **changes)
    assert whole.shape == part.shape
    assert not torch.equal(whole, part)
    assert losses != others


def test_more_steps_resume_to_the_same_bits(bench, tiny, pictures):
    whole = trained(bench, tiny, pictures, steps=6)[0]
    first = trained(bench, tiny, pictures, steps=2)[0]
    assert not torch.equal(first, whole)
    graph, model, *_ = tiny()
    node = train(graph, model, pictures, steps=6, resume=True)
    graph.PreviewImage(images=[node[0], 2])
    steps = []
    watch(bench, graph, steps.append)
    assert (steps[0], steps[-1]) == (3, 6)
    assert torch.equal(bench.tensors(graph, node), whole)


def test_interrupt_keeps_what_is_trained(bench, tiny, pictures):
    """To the last step, though on the way a state is written only every so many."""
    graph, model, *_ = tiny()
    node = train(graph, model, pictures, steps=500, sample_every=0)
    graph.PreviewImage(images=[node[0], 2])
    seen = []

    def stop(step):
        if not seen:
            bench.server.post("/interrupt", {})
        seen.append(step)

    with pytest.raises(QueueError, match="interrupted"):
        watch(bench, graph, stop)
    done = len(load_file(states(bench) / "anna.safetensors")["losses"])
    assert done % inspect.signature(core.train).parameters["save_every"].default
    tokens, loss, _ = trained(bench, tiny, pictures, steps=done + 1, sample_every=0, resume=True)
    whole, losses, _ = trained(bench, tiny, pictures, steps=done + 1, sample_every=0)
    assert torch.equal(tokens, whole)
    assert loss == losses


def test_a_trained_identity_is_saved_listed_and_used(bench, tiny, pictures):
    graph, model, *_ = tiny()
    node = train(graph, model, pictures)
    saved = graph.VCD_IdSave(id=node, name="vcd_tests/trained", overwrite=True)
    clip = [model[0], 1]
    ours = graph.VCD_IdTextEncode(clip=clip, prompt="photo of V*", frames=16, blend=1, **{"ids.id0": node})
    file = bench.tensors(graph, saved)
    assert file == "vcd_tests/trained.safetensors"
    assert (
        file in bench.server.get("/object_info/VCD_IdLoader")["VCD_IdLoader"]["input"]["required"]["file"][1]["options"]
    )
    stock = graph.CLIPTextEncode(clip=clip, text="photo of embedding:vcd_tests/trained woman")
    a, b = (value[0][0] for value in bench.tensors(graph, ours, stock))
    assert torch.equal(a, b)


def test_context_vectors_are_learned_resumed_saved_and_used(bench, tiny, pictures):
    kind = {"kind": CONTEXT, "learning_rate": 0.1}
    whole, losses, samples = trained(bench, tiny, pictures, **kind)
    assert whole.shape == (4, TINY_TEXT)
    assert samples.shape[0] == 2
    trained(bench, tiny, pictures, **kind, steps=4, sample_every=0)
    graph, model, *_ = tiny()
    node = train(graph, model, pictures, **kind, resume=True)
    saved = graph.VCD_IdSave(id=node, name="vcd_tests/context", overwrite=True)
    clip = [model[0], 1]
    ours = graph.VCD_IdTextEncode(clip=clip, prompt="photo of V*", frames=16, blend=1, **{"ids.id0": node})
    stock = graph.CLIPTextEncode(clip=clip, text="photo of woman")
    resumed, again, file, rows, words = bench.tensors(graph, node, [node[0], 1], saved, ours, stock)
    assert torch.equal(resumed, whole)
    assert again == losses
    kept = load(bench.server.host.base / "models" / "embeddings" / file)
    assert kept.kind == CONTEXT
    assert torch.equal(kept.vectors, whole)
    assert torch.equal(rows[0][0][0, -4:], whole)
    assert torch.equal(rows[0][0][:, :-4], words[0][0][:, :-4])


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"template": "V* " * 75, "kind": CONTEXT}, "too long"),
        ({"template": "photo of a man"}, "no V\\*"),
        ({"name": "../outside"}, "not a file name inside"),
        ({"class_word": ""}, "no initial words"),
        ({"noise_from": 0.9, "noise_to": 0.5}, "noise_from is 0.9 and noise_to 0.5"),
        ({"template": "V* " * 20}, "too long"),
    ],
)
def test_bad_input_is_refused(bench, tiny, pictures, changes, shown):
    with pytest.raises(QueueError, match=shown):
        trained(bench, tiny, pictures, **changes)


def test_what_a_node_says_the_model_predicts_is_learned(bench, tiny, pictures):
    """The loss of v weighs noisy times as that of the noise does; the same v counted as noise vanishes there."""
    first = {}
    for sampling in ("eps", "v_prediction", "x0"):
        graph, model, *_ = tiny()
        told = graph.ModelSamplingDiscrete(model=model, sampling=sampling, zsnr=False)
        node = train(graph, model, pictures, steps=1, batch=16, sample_every=0)
        graph.prompt[node[0]]["inputs"]["model"] = told
        if sampling == "x0":
            with pytest.raises(QueueError, match="predicts X0; identities are trained"):
                bench.tensors(graph, node)
        else:
            first[sampling] = bench.tensors(graph, [node[0], 1])["loss"][0]
    assert first["v_prediction"] > 0.5 * first["eps"]


def test_a_model_that_moves_is_refused(bench, tiny, pictures):
    graph, model, *_ = tiny()
    node = train(graph, model, pictures)
    graph.prompt[node[0]]["inputs"]["model"] = motion(graph, model)
    with pytest.raises(QueueError, match="Connect the model as it is before"):
        bench.tensors(graph, node)


def test_masks_must_match(bench, tiny, pictures):
    graph, model, *_ = tiny()
    node = train(graph, model, pictures, masks=False)
    graph.prompt[node[0]]["inputs"]["masks"] = graph.SolidMask(value=1.0, width=90, height=120)
    with pytest.raises(QueueError, match="2 pictures and 1 masks"):
        bench.tensors(graph, node)


def test_training_does_not_depend_on_an_attention_without_gradients(bench, tiny, pictures):
    """SageAttention gives none, and ComfyUI says nothing: the tokens would learn from what is left."""
    found = []
    for on in (True, False):
        graph, model, *_ = tiny()
        patched = graph.VCDTest_SamplingAttention(model=model, on=on)
        node = train(graph, model, pictures)
        graph.prompt[node[0]]["inputs"]["model"] = patched
        found.append(bench.tensors(graph, node)[0])
    assert torch.equal(*found)


def test_the_empty_mask_of_load_image_is_named(bench, tiny, pictures):
    graph, model, *_ = tiny()
    node = train(graph, model, pictures, masks=False)
    mask = graph.SolidMask(value=0.0, width=64, height=64)
    graph.prompt[node[0]]["inputs"]["images"] = graph.EmptyImage(width=96, height=120, batch_size=1, color=0xCC8844)
    graph.prompt[node[0]]["inputs"]["masks"] = mask
    with pytest.raises(QueueError, match=r"without transparency\. Leave masks unconnected"):
        bench.tensors(graph, node)


def test_pictures_that_are_not_read_are_named(bench, pictures):
    other = bench.server.host.base / "input" / pictures / "phone.heic"
    other.write_bytes(b"")
    try:
        graph = bench.graph()
        node = graph.VCD_Pictures(folder=pictures)
        entry = bench.server.run({**graph.prompt, "9": {"class_type": "PreviewImage", "inputs": {"images": node}}})
    finally:
        other.unlink()
    assert entry["outputs"][node[0]]["text"] == ["2 pictures; not read (save as PNG or JPEG): phone.heic"]


def test_a_linked_folder_is_listed_and_read(bench, pictures, tmp_path):
    top = bench.server.host.base / "input"
    (tmp_path / "below").mkdir()
    (top / pictures / "._anna.jpg").write_bytes(b"what macOS leaves")
    for file in (top / pictures).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    link = top / "vcd_link"
    link.symlink_to(tmp_path, target_is_directory=True)
    try:
        listed = bench.server.get("/object_info/VCD_Pictures")["VCD_Pictures"]["input"]["required"]["folder"][1]
        graph = bench.graph()
        node = graph.VCD_Pictures(folder="vcd_link")
        entry = bench.server.run({**graph.prompt, "9": {"class_type": "PreviewImage", "inputs": {"images": node}}})
    finally:
        link.unlink()
        (top / pictures / "._anna.jpg").unlink()
    assert "vcd_link" in listed["options"]
    assert "vcd_link/below" not in listed["options"]
    assert entry["outputs"][node[0]]["text"] == ["2 pictures"]
    for outside in ("..", "../output", "/etc"):
        graph = bench.graph()
        with pytest.raises(QueueError, match="is not a folder in"):
            bench.tensors(graph, graph.VCD_Pictures(folder=outside))


def test_the_oldest_host_trains_the_same(bench, oldest_bench, tiny):
    found = []
    for where in (bench, oldest_bench):
        graph, model, *_ = tiny()
        picture = graph.EmptyImage(width=64, height=64, batch_size=2, color=0xCC8844)
        clip, vae = [model[0], 1], [model[0], 2]
        node = graph.VCD_IdTrainer(model=model, clip=clip, vae=vae, images=picture, **FAST)
        found.append(where.tensors(graph, node, [node[0], 1]))
    (new, loss), (old, losses) = found
    assert same(new, old, 1e-4)
    assert loss["loss"] == pytest.approx(losses["loss"], rel=1e-4)
