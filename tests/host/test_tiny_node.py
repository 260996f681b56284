"""The embedded model on the real server: it draws what the prompt says, moves, and carries its identity."""

import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dev.server import QueueError
from vcd_core.evaluate import dynamics
from vcd_core.tiny import model as tiny
from vcd_core.tiny import world

MOTION, ROBIN = tiny.MOTION_FILE.name, tiny.IDENTITY_FILE.name
SIZE = 128


def clip(graph, prompt, motion=True, frames=16, size=SIZE, steps=12, seed=3, identity=None):
    loader = graph.VCD_TinyModel()
    model, text, vae = loader, [loader[0], 1], [loader[0], 2]
    if motion:
        model = graph.VCD_MotionModule(
            model=model, motion_module=MOTION, strength=1.0, beta_schedule="linear (AnimateDiff)"
        )
    ids = {"ids.id0": graph.VCD_IdLoader(file=identity, class_word="man", strength=1.0)} if identity else {}
    positive = graph.VCD_IdTextEncode(clip=text, prompt=prompt, frames=frames, blend=1, **ids)
    negative = graph.CLIPTextEncode(clip=text, text="")
    latent = graph.EmptyLatentImage(width=size, height=size, batch_size=frames)
    sampled = graph.KSampler(
        model=model, positive=positive, negative=negative, latent_image=latent, seed=seed, steps=steps, cfg=4.0,
        sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    return graph.VAEDecode(samples=sampled, vae=vae)


def test_weights_fit_into_git():
    files = [path for path in tiny.WEIGHTS.rglob("*") if path.is_file()]
    assert {tiny.MODEL_FILE, tiny.MOTION_FILE, tiny.IDENTITY_FILE} <= set(files)
    assert sum(path.stat().st_size for path in files) < 20e6


def test_live_previews_show_its_colours(pack):
    """As near to a frame, made eight times smaller, as one linear map for all latents comes."""
    model, _, vae = pack("nodes.tiny").load_tiny()
    shown, seen = model.model.latent_format, []
    from latent_preview import Latent2RGBPreviewer

    previewer = Latent2RGBPreviewer(shown.latent_rgb_factors, shown.latent_rgb_factors_bias)
    for seed in range(6):
        frame = torch.from_numpy(world.render_take(world.random_take(random.Random(seed)))[4].image.copy()) / 255
        with torch.inference_mode():
            latent = model.model.process_latent_in(vae.encode(frame[None]))
        preview = torch.from_numpy(np.asarray(previewer.decode_latent_to_preview(latent)).copy()) / 255
        small = torch.nn.functional.avg_pool2d(frame.movedim(-1, 0), SIZE // 16).movedim(0, -1)
        seen.append((preview - small).abs().mean())
    assert torch.stack(seen).mean() < 0.07


def test_scenes_follow_the_prompt(bench):
    """The corners above: blue sky on the beach, dark at night, bright in the snow."""
    graph = bench.graph()
    prompts = [
        f"a photo of a pale man with short red hair, blue shirt, standing {w}"
        for w in ("on the beach", "at night", "in the snow")
    ]
    beach, night, snow = (
        images[:, 4:30, 4:24].mean((0, 1, 2))
        for images in bench.tensors(graph, *(clip(graph, p, motion=False, frames=4) for p in prompts))
    )
    assert night.mean() < 0.35 < 0.6 < snow.mean()
    assert beach[2] > beach[0] + 0.15


def test_shirts_follow_the_prompt(bench):
    graph = bench.graph()
    prompts = [
        f"a close-up of a pale man with short black hair, {c} shirt, standing in the snow" for c in ("red", "blue")
    ]
    red, blue = (
        images[:, 112:126, 50:78].mean((0, 1, 2))
        for images in bench.tensors(graph, *(clip(graph, p, motion=False, frames=4) for p in prompts))
    )
    assert red[0] > red[2] + 0.2
    assert blue[2] > blue[0] + 0.2


def test_the_motion_module_draws_the_frames_of_a_clip_together(bench):
    """A person who stands: what differs between the frames is what the module has not yet learned to hold."""
    graph = bench.graph()
    prompt = "a close-up of a pale man with short red hair, blue shirt, standing on the beach"
    apart, together = bench.tensors(graph, clip(graph, prompt, motion=False), clip(graph, prompt))
    assert float(together.std(0).mean()) < 0.92 * float(apart.std(0).mean())
    assert float(dynamics(together).mean()) > 0.02


def test_the_identity_that_ships_looks_like_its_person(bench):
    person = world.identities(1)[0]
    graph = bench.graph()
    prompt = "a close-up of a V*, standing in the snow"
    with_id, without = bench.tensors(
        graph,
        clip(graph, prompt, motion=False, frames=4, identity=ROBIN),
        clip(graph, prompt.replace("V*", person.class_word), motion=False, frames=4),
    )
    shirt = torch.tensor(world.SHIRTS[person.shirt]) / 255
    near, far = ((images[:, 112:126, 50:78].mean((1, 2)) - shirt).abs().mean() for images in (with_id, without))
    assert near < 0.75 * far


def test_other_sizes_work(bench):
    graph = bench.graph()
    images = bench.tensors(
        graph, clip(graph, "a photo of a man in the forest", motion=False, frames=1, size=192, steps=4)
    )
    assert images.shape == (1, 192, 192, 3)
    red, green, blue = images.mean((0, 1, 2))
    assert green > 0.08 + max(red, blue)  # a forest


def test_identities_of_another_width_are_refused(bench, tiny):
    folder = bench.server.host.base / "models" / "embeddings" / "vcd_tests"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": torch.randn(4, 768)}, folder / "sd15.safetensors")
    graph = bench.graph()
    with pytest.raises(QueueError, match=r"768 wide.*96 wide"):
        bench.tensors(graph, clip(graph, "V*", identity="vcd_tests/sd15.safetensors"))
    (folder / "sd15.safetensors").unlink()
    graph, model, *_ = tiny()
    identity = graph.VCD_IdLoader(file=ROBIN, class_word="man", strength=1.0)
    node = graph.VCD_IdTextEncode(clip=[model[0], 1], prompt="V*", frames=16, blend=1, **{"ids.id0": identity})
    with pytest.raises(QueueError, match=r"96 wide.*64 wide"):
        bench.tensors(graph, node)


def test_a_missing_weights_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors is not there.*train-tiny"):
        tiny.load_weights(tmp_path / "gone.safetensors")
