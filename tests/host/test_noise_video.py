"""The noise prior on the host's own video models, with and without sound, in this process."""

import itertools

import pytest
import torch

from dev import video_models
from vcd_core import noise as core

KINDS = video_models.KINDS + video_models.WITH_SOUND
WITH_SOUND = video_models.WITH_SOUND
COVERS = {"wan21": [1, 4, 4, 4, 4], "wan22_5b": [1, 4, 4, 4, 4], "hunyuan": [1, 4, 4, 4, 4], "ltxv": [1, 8, 8, 8, 8],
          "ltx2": [1, 8, 8, 8, 8], "h3": [1, 4, 4, 4, 4]}  # fmt: skip


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def models(pack):
    """``models(kind)``: a tiny MODEL, made once."""
    pack("nodes.host.model")
    known = {}
    return lambda kind: known.setdefault(kind, None) or known.update({kind: video_models.model(kind)}) or known[kind]


@pytest.fixture
def applied(pack, models):
    """``applied(kind, gamma=0.5)``: the MODEL behind 'Apply 3D Noise Prior'."""
    return lambda kind, **inputs: pack("nodes.noise").ApplyNoisePrior.execute(models(kind), **inputs).args[0]


@pytest.fixture
def prior(pack):
    """``prior(gamma=0.5, seed=1, layout="comfy")``: the NOISE of '3D Noise Prior'."""
    return lambda **inputs: pack("nodes.noise").NoisePrior.execute(**{"seed": 7, "layout": "comfy", **inputs}).args[0]


def parts(latent):
    return latent.unbind() if latent.is_nested else [latent]


def sampled(model, kind, sampler="euler", latent=None, noise=None, steps=2, seed=7):
    """What a KSampler makes of an empty latent, its parts in a list."""
    import comfy.sample

    latent = (latent or video_models.empty(kind))["samples"]
    drawn = comfy.sample.prepare_noise(latent, seed) if noise is None else noise
    positive, negative = video_models.prompt(kind, 1), video_models.prompt(kind, 2)
    out = comfy.sample.sample(
        model, drawn, steps, 1.0, sampler, "simple", positive, negative, latent, disable_pbar=True, seed=seed
    )
    return list(parts(out))


def given(model, kind, latent=None, step=False, monkeypatch=None):
    """The noise that the sampler starts from, or that its first step adds, taken apart; nothing is predicted."""
    import comfy.k_diffusion.sampling
    import comfy.sample
    import comfy.samplers
    import comfy.utils

    latent = (latent or video_models.empty(kind))["samples"]
    kept = []

    class Take(comfy.samplers.KSAMPLER):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *rest, **named):
            kept.append(noise)
            return noise

    def take(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
        kept.append(noise_sampler(sigmas[0], sigmas[1]))
        return x

    sampler = comfy.samplers.KSAMPLER(take) if step else Take(None)
    prompt = video_models.prompt(kind)
    comfy.sample.sample_custom(
        model, comfy.sample.prepare_noise(latent, 7), 1.0, sampler, torch.tensor([1.0, 0.5, 0.0]), prompt, prompt,
        latent, seed=7, disable_pbar=True,
    )  # fmt: skip
    return comfy.utils.unpack_latents(kept[0], [part.shape for part in parts(latent)])


def neighbours(noise, dim=2):
    """The measured correlation of each frame with the next."""
    frames = noise.movedim(dim, 0).flatten(1).double()
    frames = frames / frames.square().mean(1, keepdim=True).sqrt()
    return (frames[1:] * frames[:-1]).mean(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_sde", "uni_pc"])
def test_gamma_0_is_the_stock_sampler(models, applied, kind, sampler):
    stock, zero = sampled(models(kind), kind, sampler), sampled(applied(kind, gamma=0.0), kind, sampler)
    half = sampled(applied(kind, gamma=0.5), kind, sampler)
    for a, b in zip(stock, zero, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)
    assert not torch.allclose(stock[0], half[0], atol=1e-3)


@pytest.mark.parametrize("kind", WITH_SOUND)
@pytest.mark.parametrize("step", [False, True], ids=["start", "step"])
def test_apply_correlates_the_video_and_leaves_the_sounds_noise(models, applied, kind, step):
    latent = video_models.empty(kind, side=64)
    stock, found = given(models(kind), kind, latent, step), given(applied(kind, gamma=0.5), kind, latent, step)
    assert torch.equal(found[1], stock[1])
    assert torch.allclose(found[0], core.correlate(stock[0], 0.5, 2), atol=1e-6)
    assert (neighbours(found[0]) - 0.5).abs().max() < 0.02
