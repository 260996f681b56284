"""The noise prior on the host's own video models, with and without sound, in this process."""

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


def given(model, kind, latent=None, step=False):
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

    def add(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
        draw = noise_sampler or comfy.k_diffusion.sampling.default_noise_sampler(x, seed=extra_args["seed"])
        kept.append(draw(sigmas[0], sigmas[1]))
        return x

    sampler = comfy.samplers.KSAMPLER(add) if step else Take(None)
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


@pytest.mark.parametrize("kind", WITH_SOUND)
@pytest.mark.parametrize("layout", ["comfy", "magic-me"])
def test_noise_correlates_the_video_and_leaves_the_sounds_noise(applied, prior, kind, layout):
    import comfy.sample

    latent = video_models.empty(kind)
    stock = comfy.sample.prepare_noise(latent["samples"], 7).unbind()
    noise = prior(gamma=0.5, layout=layout).generate_noise(latent)
    assert noise.is_nested
    video, sound = noise.unbind()
    assert torch.equal(sound, stock[1])
    assert torch.equal(video, core.sample(video.shape, 0.5, 7, layout))
    if layout == "comfy":
        zero = prior(gamma=0.0).generate_noise(latent).unbind()
        assert all(torch.equal(a, b) for a, b in zip(zero, stock, strict=True))
        assert torch.equal(given(applied(kind, gamma=0.5), kind)[0], video)


def test_the_video_is_found_wherever_it_stands_and_parts_without_one_are_refused(prior):
    import comfy.nested_tensor
    import comfy.sample

    sound, video = torch.zeros(1, 8, 9, 16), torch.zeros(1, 4, 5, 8, 8)
    latent = {"samples": comfy.nested_tensor.NestedTensor([sound, video])}
    stock = comfy.sample.prepare_noise(latent["samples"], 7).unbind()
    found = prior(gamma=0.5).generate_noise(latent).unbind()
    assert torch.equal(found[0], stock[0])
    assert torch.equal(found[1], core.correlate(stock[1], 0.5, 2))
    latent = {"samples": comfy.nested_tensor.NestedTensor([sound, torch.zeros(1, 1, 5)])}
    with pytest.raises(ValueError, match=r"2 parts, \[1, 8, 9, 16\], \[1, 1, 5\], and none is a video"):
        prior(gamma=0.5).generate_noise(latent)


@pytest.mark.parametrize("kind", WITH_SOUND)
def test_a_prompt_for_each_frame_is_refused_with_sound_too(applied, kind):
    import comfy.sample

    latent = video_models.empty(kind)["samples"]
    (text, more), *_ = video_models.prompt(kind)
    many = [[text.expand(5, -1, -1), more]]
    with pytest.raises(ValueError, match="has 5 rows, a prompt for each frame"):
        comfy.sample.sample(
            applied(kind, gamma=0.5), comfy.sample.prepare_noise(latent, 7), 1, 1.0, "euler", "simple", many,
            video_models.prompt(kind), latent, disable_pbar=True, seed=7,
        )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_models_tell_which_pictures_a_latent_frame_covers(pack, models, kind):
    latents = pack("nodes.host.latents")
    assert latents.pictures_covered(models(kind), 5) == COVERS[kind]
    # H3 begins anew with every fifth latent frame
    assert latents.pictures_covered(models(kind), 7)[5:] == ([1, 4] if kind == "h3" else COVERS[kind][1:3])
    each = COVERS[kind][1]
    expected = (
        {1: 2, 5: 2, 6: 7, 22: 7, 23: 12} if kind == "h3" else {1: 1, 2: 2, each + 1: 2, each + 2: 3, 8 * each + 1: 9}
    )
    assert {count: latents.latent_frames(models(kind), count) for count in expected} == expected


def test_a_model_that_does_not_tell_counts_latent_frames(pack, models, monkeypatch):
    latents, model = pack("nodes.host.latents"), models("wan21")
    monkeypatch.setattr(type(model.get_model_object("latent_format")), "temporal_downscale_ratio", 1)
    assert latents.pictures_covered(model, 5) == [1] * 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["keys", "pictures", "latent frames"])
def test_schedules_count_pictures(applied, prior, models, kind, form):
    """In all three forms, on a MODEL and as NOISE."""
    covers, latent = COVERS[kind], video_models.empty(kind)
    starts = [sum(covers[:i]) for i in range(1, 5)]
    total = sum(covers)
    by_picture = [0.9 * i / (total - 1) for i in range(total - 1)]
    expected = [by_picture[start - 1] for start in starts]
    schedule = {
        "keys": f"0: 0, {total - 1}: 0.9",
        "pictures": ", ".join(map(repr, by_picture)),
        "latent frames": ", ".join(map(repr, expected)),
    }[form]
    stock = given(models(kind), kind, latent)[0]
    wanted = core.correlate(stock, expected, 2)
    assert torch.allclose(given(applied(kind, gamma=0.1, gamma_schedule=schedule), kind, latent)[0], wanted, atol=1e-6)
    noise = prior(gamma=0.1, gamma_schedule=schedule, model=models(kind)).generate_noise(latent)
    assert torch.allclose(parts(noise)[0], wanted, atol=1e-6)


def test_without_a_model_a_schedule_of_noise_counts_latent_frames(prior, models):
    latent = video_models.empty("wan21")
    wanted = core.sample(latent["samples"].shape, [0.0, 0.2, 0.4, 0.6], 7)
    assert torch.equal(prior(gamma=0.1, gamma_schedule="0: 0, 3: 0.6").generate_noise(latent), wanted)
    pictures = {"samples": torch.zeros(5, 4, 8, 8)}  # frames along the batch are pictures, whatever is connected
    noise = prior(gamma=0.1, gamma_schedule="0: 0, 3: 0.6", model=models("wan21")).generate_noise(pictures)
    assert torch.equal(noise, core.sample((5, 4, 8, 8), [0.0, 0.2, 0.4, 0.6], 7))


@pytest.mark.parametrize("way", ["model", "noise"])
def test_a_list_of_another_length_is_refused_with_both_counts(applied, prior, models, way):
    schedule = ", ".join(["0.1"] * 7)
    with pytest.raises(ValueError, match=r"7 values.*17 frames.*16 transitions.*4 between its 5 latent frames"):
        if way == "model":
            given(applied("wan21", gamma=0.1, gamma_schedule=schedule), "wan21")
        else:
            noise = prior(gamma=0.1, gamma_schedule=schedule, model=models("wan21"))
            noise.generate_noise(video_models.empty("wan21"))


@pytest.mark.parametrize("kind", ["wan21", *WITH_SOUND])
def test_a_closed_loop_is_circulant_along_the_latent_frames(applied, prior, kind):
    latent = video_models.empty(kind, latent_frames=7, side=64)
    expected = core.covariance(7, 0.5, closed_loop=True)
    noises = (
        given(applied(kind, gamma=0.5, closed_loop=True), kind, latent)[0],
        parts(prior(gamma=0.5, closed_loop=True).generate_noise(latent))[0],
    )
    for noise in noises:
        measured = core.measured_covariance(noise.movedim(2, 0))
        assert (measured - expected).abs().max() < 0.03
    assert expected[0, 6] == expected[0, 1]
    assert torch.equal(*noises)


def test_every_sampler_goes_with_the_prior(models, applied):
    import comfy.samplers

    model, half, zero = models("wan21"), applied("wan21", gamma=0.5), applied("wan21", gamma=0.0)
    assert len(comfy.samplers.SAMPLER_NAMES) > 40
    for name in comfy.samplers.SAMPLER_NAMES:
        (found,), (nothing,), (stock,) = (sampled(m, "wan21", name) for m in (half, zero, model))
        assert found.isfinite().all(), name
        assert torch.equal(nothing, stock), name
        assert not torch.allclose(found, stock, atol=1e-3), name
