"""Frames in and out of the stages, with the host's own classes in this process: NaN, transparency, device and
precision."""

import math

import pytest
import torch

from vcd_core.tiny import world


@pytest.fixture(scope="module")
def tiny_model(pack):
    return pack("nodes.tiny").load_tiny()


@pytest.fixture
def prompts(pack, tiny_model):
    encode = pack("nodes.host.text").encode_text
    return [encode(tiny_model[1], text, {}) for text in ("a photo of a man", "")]


def frames(count=4, framing="medium"):
    import random

    clip = world.random_take(random.Random(5), framing=framing)
    return torch.stack([torch.tensor(world.render(clip, i).image) for i in range(count)]).float() / 255


REFINE = {
    "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "gamma": 0.1, "seed": 1, "refine_size": 64,
    "crop_factor": 3.0, "aspect": 1.0, "feather": 4.0, "paste_factor": 1.6, "match_colour": False, "which": "all",
    "index": 0,
}  # fmt: skip
ENLARGE = {
    "scale": 1.5, "tile_size": 128, "overlap": 16, "steps": 1, "cfg": 1.0, "sampler_name": "euler",
    "scheduler": "normal", "gamma": 0.1, "seed": 1,
}  # fmt: skip


def refine(pack, models, prompts, images, denoise=0.5, vae=None, **more):
    node = pack("nodes.face").FaceRefine
    model, _, own = models
    inputs = {**REFINE, "denoise": denoise, **more}
    return node.execute(images=images, model=model, vae=vae or own, positive=prompts[0], negative=prompts[1], **inputs)


def enlarge(pack, models, prompts, images, denoise=0.2, vae=None, **more):
    node = pack("nodes.tiled").TiledDenoise
    model, _, own = models
    inputs = {**ENLARGE, "denoise": denoise, **more}
    return node.execute(images=images, model=model, vae=vae or own, positive=prompts[0], negative=prompts[1], **inputs)


def track(pack, images):
    return pack("nodes.face").FaceTrack.execute(images, "all", 0, 0.6, 8, 3, False)


@pytest.fixture
def inference():
    with torch.inference_mode():
        yield


def with_alpha(images):
    ramp = torch.linspace(0, 1, images.shape[2]).expand(*images.shape[:3])
    return torch.cat([images, ramp[..., None]], -1)


def test_transparency_is_kept(pack, tiny_model, prompts, inference):
    images = with_alpha(frames())
    refined = refine(pack, tiny_model, prompts, images).args[0]
    assert torch.equal(refined[..., 3], images[..., 3])
    assert not torch.equal(refined[..., :3], images[..., :3])
    large = enlarge(pack, tiny_model, prompts, images).args[0]
    assert large.shape == (4, 192, 192, 4)
    assert (large[..., 3] - with_alpha(torch.zeros(4, 192, 192, 3))[..., 3]).abs().max() < 0.02
    nobody = torch.full((2, 64, 64, 4), 0.5)
    assert torch.equal(refine(pack, tiny_model, prompts, nobody).args[0], nobody)
    face = pack("nodes.face")
    crops, crop = face.FaceCrop.execute(images, track(pack, images).args[0], 0, 64, 3.0, 1.0).args
    pasted = face.FacePaste.execute(images, crop, crops * 0.5, 4.0, 1.6, False).args[0]
    assert torch.equal(pasted[..., 3], images[..., 3])


def test_broken_frames_are_named_where_they_come_in(pack, tiny_model, prompts, inference):
    images = frames()
    faces = track(pack, images).args[0]
    images[2, 5, 5, 1] = math.nan
    node = pack("nodes.face").FaceCrop
    for call in (
        lambda: track(pack, images),
        lambda: node.execute(images, faces, 0, 64, 3.0, 1.0),
        lambda: refine(pack, tiny_model, prompts, images),
        lambda: enlarge(pack, tiny_model, prompts, images),
    ):
        with pytest.raises(ValueError, match="images hold NaN or infinite values in frame 2"):
            call()


class BrokenVae:
    """The tiny model's VAE, which decodes some frames to NaN."""

    def __init__(self, vae, broken):
        self.vae, self.broken, self.at = vae, broken, 0

    def __getattr__(self, name):
        return getattr(self.vae, name)

    def decode(self, latents):
        out = self.vae.decode(latents).clone()
        for i in range(len(out)):
            if self.at + i in self.broken:
                out[i, 3, 4] = math.nan
        self.at += len(out)
        return out


def test_frames_that_the_vae_decodes_to_nan_are_named_and_the_others_kept(pack, tiny_model, prompts, inference, caplog):
    images = frames()
    node = enlarge(pack, tiny_model, prompts, images, vae=BrokenVae(tiny_model[2], {1}))
    whole = enlarge(pack, tiny_model, prompts, images).args[0]
    only_enlarged = enlarge(pack, tiny_model, prompts, images, denoise=0.0).args[0]
    assert "frame 1" in node.ui["text"][0]
    assert "VAE" in node.ui["text"][0]
    assert torch.equal(node.args[0][[0, 2, 3]], whole[[0, 2, 3]])
    assert torch.equal(node.args[0][1], only_enlarged[1])
    caplog.clear()
    refined = refine(pack, tiny_model, prompts, images, vae=BrokenVae(tiny_model[2], {1})).args[0]
    assert torch.equal(refined[1], images[1])
    assert not torch.equal(refined[0], images[0])
    assert "The VAE decoded frame 1 to NaN" in caplog.text


def test_freenoise_leaves_a_stages_noise(pack, tiny_model, prompts, inference, monkeypatch):
    """FreeNoise repeats the frames of the noise in another order; the stage correlates them after that."""
    import comfy.samplers
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    model, clip, vae = tiny_model
    windows = ContextWindowsManualNode.execute(
        model=model, context_length=8, context_overlap=4, context_schedule="standard_static", context_stride=1,
        closed_loop=False, fuse_method="pyramid", dim=0, freenoise=True,
    ).args[0]  # fmt: skip
    given, sample = [], comfy.samplers.KSAMPLER.sample

    def seen(self, guider, sigmas, extra_args, callback, noise, *rest, **named):
        given.append(noise.clone())
        return sample(self, guider, sigmas, extra_args, callback, noise, *rest, **named)

    monkeypatch.setattr(comfy.samplers.KSAMPLER, "sample", seen)
    enlarge(pack, (windows, clip, vae), prompts, frames(32), gamma=0.5, scale=2.0)
    enlarge(pack, tiny_model, prompts, frames(32), gamma=0.5, scale=2.0)
    shuffled, plain = given
    assert not torch.equal(shuffled, plain)
    for noise in (shuffled, plain):
        near = (noise[1:] * noise[:-1]).mean() / noise.var()
        assert abs(float(near) - 0.5) < 0.04


def test_results_are_where_and_what_the_host_hands_on(pack, tiny_model, prompts, inference, monkeypatch):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "intermediate_dtype", lambda: torch.float16)
    images = frames()
    faces, preview, _, mask, count = track(pack, images).args
    assert count == len(faces.tracks)
    face = pack("nodes.face")
    crops, crop = face.FaceCrop.execute(images, faces, 0, 256, 3.0, 1.0).args
    pasted = face.FacePaste.execute(images, crop, crops, 4.0, 1.6, False).args[0]
    refined, pairs, _ = refine(pack, tiny_model, prompts, images).args
    large = enlarge(pack, tiny_model, prompts, images).args[0]
    noise = pack("nodes.noise")
    drawn = noise.NoisePriorLatent.execute(64, 64, 4, 0.1, 0, "comfy").args[0]["samples"]
    shown = noise.NoisePriorPreview.execute(4, 0.1, 0).args
    for result in (preview, mask, crops, pasted, refined, pairs, large, drawn, *shown):
        assert result.dtype == torch.float16
    assert (pasted.float() - images).abs().max() < 1 / 255
    monkeypatch.setattr(comfy.model_management, "intermediate_device", lambda: torch.device("meta"))
    assert pack("nodes.host.memory").handed_on(images).device.type == "meta"
