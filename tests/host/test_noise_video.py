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


def sampled(model, kind, sampler="euler", latent=None, steps=2, seed=7):
    """What a KSampler makes of an empty latent, its parts in a list."""
    import comfy.sample

    latent = (latent or video_models.empty(kind))["samples"]
    drawn = comfy.sample.prepare_noise(latent, seed)
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


@pytest.mark.parametrize("kind", KINDS)
def test_noise_and_model_give_the_same_video(models, applied, prior, kind):
    """In the host's own SamplerCustomAdvanced, on an empty latent of the kind."""
    import comfy.samplers
    import comfy_extras.nodes_custom_sampler as nodes

    schedule, runs = {"gamma": 0.1, "gamma_schedule": "0: 0.2, 16: 0.9"}, []
    ways = (
        (models(kind), prior(**schedule, model=models(kind))),
        (applied(kind, **schedule), nodes.Noise_RandomNoise(7)),
        (models(kind), nodes.Noise_RandomNoise(7)),
    )
    for model, noise in ways:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(video_models.prompt(kind, 1), video_models.prompt(kind, 2))
        guider.set_cfg(1.0)
        sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.5, 0.0])
        out = nodes.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, video_models.empty(kind)).args[0]
        runs.append(list(parts(out["samples"])))
    by_noise, by_model, stock = runs
    assert all(torch.equal(a, b) for a, b in zip(by_noise, by_model, strict=True))
    assert not torch.allclose(by_noise[0], stock[0], atol=1e-3)


@pytest.mark.parametrize("kind", WITH_SOUND)
@pytest.mark.parametrize("step", [False, True], ids=["start", "step"])
def test_apply_correlates_the_video_and_leaves_the_sounds_noise(models, applied, kind, step):
    latent = video_models.empty(kind, height=64, width=64)
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
    noise = prior(gamma=0.1, gamma_schedule=schedule, model=models("wan21"))
    model, latent = applied("wan21", gamma=0.1, gamma_schedule=schedule), video_models.empty("wan21")
    with pytest.raises(ValueError, match=r"7 values.*17 frames.*16 transitions.*4 between its 5 latent frames"):
        given(model, "wan21") if way == "model" else noise.generate_noise(latent)


@pytest.mark.parametrize("kind", ["wan21", *WITH_SOUND])
def test_a_closed_loop_is_circulant_along_the_latent_frames(applied, prior, kind):
    latent = video_models.empty(kind, latent_frames=7, height=64, width=64)
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


WINDOWS = {
    "manual": {
        "context_length": 16, "context_overlap": 4, "context_schedule": "standard_static", "context_stride": 1,
        "closed_loop": False, "fuse_method": "pyramid", "dim": 2,
    },
    "wan": {
        "context_length": 61, "context_overlap": 16, "context_schedule": "standard_static", "context_stride": 1,
        "closed_loop": False, "fuse_method": "pyramid",
    },
}  # fmt: skip


def windowed(model, node, freenoise):
    """``model`` behind the host's node for windows of 16 latent frames that share 4."""
    import comfy_extras.nodes_context_windows as nodes

    kind = {"manual": nodes.ContextWindowsManualNode, "wan": nodes.WanContextWindowsManualNode}[node]
    return kind.execute(model, **WINDOWS[node], freenoise=freenoise).args[0]


def seen_in_windows(model, latent):
    """What each window of the first step saw: the latent frames of it, and their noise."""
    seen = []

    def look(apply_model, given):
        window = given["c"]["transformer_options"]["context_window"]
        anchor = getattr(window, "causal_anchor_index", None)
        indices = [*([] if anchor is None else [anchor]), *window.index_list]
        seen.append((indices, given["input"][:1].clone()))
        return torch.zeros_like(given["input"])

    model = model.clone()
    model.set_model_unet_function_wrapper(look)
    sampled(model, "wan21", latent=latent, steps=1)
    return seen


@pytest.mark.parametrize("node", WINDOWS)
@pytest.mark.parametrize("freenoise", [False, True], ids=["", "freenoise"])
@pytest.mark.parametrize("order", ["prior first", "windows first"])
def test_the_prior_holds_over_the_joins_of_context_windows(pack, models, applied, node, freenoise, order):
    latent = video_models.empty("wan21", latent_frames=40, height=32, width=32)
    if order == "prior first":
        model = windowed(applied("wan21", gamma=0.5), node, freenoise)
    else:
        model = pack("nodes.noise").ApplyNoisePrior.execute(windowed(models("wan21"), node, freenoise), 0.5).args[0]
    seen = seen_in_windows(model, latent)
    assert [indices[-1] for indices, _ in seen] == [15, 27, 39]
    whole = torch.full(latent["samples"].shape, torch.nan)
    for indices, noise in seen:
        known = whole[:, :, indices].isnan()
        assert torch.equal(torch.where(known, noise, whole[:, :, indices]), noise)  # windows share what they share
        whole[:, :, indices] = noise
    near = neighbours(whole)
    assert (near - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("order", ["prior first", "windows first"])
def test_freenoise_on_video_and_sound_leaves_the_prior_and_the_sounds_noise(pack, models, applied, order):
    latent = video_models.empty("ltx2", latent_frames=40, height=8, width=8)
    alone = windowed(models("ltx2"), "manual", True)
    if order == "prior first":
        model = windowed(applied("ltx2", gamma=0.5), "manual", True)
    else:
        model = pack("nodes.noise").ApplyNoisePrior.execute(alone, 0.5).args[0]
    stock, found = given(alone, "ltx2", latent), given(model, "ltx2", latent)
    assert torch.equal(found[1], stock[1])
    assert torch.allclose(found[0], core.correlate(stock[0], 0.5, 2), atol=1e-6)
    assert (neighbours(found[0]) - 0.5).abs().max() < 0.05
    assert not torch.equal(stock[0], given(models("ltx2"), "ltx2", latent)[0])


CELLS = {"wan21": 8, "wan22_5b": 16, "hunyuan": 8, "ltxv": 32, "h3": 16}
LATENT = {"frames": 17, "gamma": 0.5, "seed": 7, "layout": "comfy"}


def as_latent(pack, **inputs):
    return pack("nodes.noise").NoisePriorLatent.execute(**{**LATENT, **inputs}).args[0]["samples"]


@pytest.mark.parametrize("kind", CELLS)
def test_a_latent_has_the_models_own_shape(pack, models, kind):
    cell, model = CELLS[kind], models(kind)
    found = parts(as_latent(pack, width=6 * cell, height=4 * cell, model=model))
    frames = {"ltxv": 3, "h3": 7}.get(kind, 5)  # H3 takes 5 frames, 22, 39 ...
    channels = video_models.empty(kind)["samples"].shape[1]
    assert found[0].shape == (1, channels, frames, 4, 6)
    assert torch.equal(found[0], core.sample(found[0].shape, 0.5, 7))
    if kind == "h3":
        import comfy_extras.nodes_minimax_h3 as nodes

        empty = nodes.EmptyMiniMaxH3LatentAV.execute(6 * cell, 4 * cell, 17).args[0]["samples"].unbind()
        assert [part.shape for part in found] == [part.shape for part in empty]
    scheduled = as_latent(pack, width=2 * cell, height=2 * cell, model=model, gamma_schedule="0: 0, 16: 0.8")
    covers = pack("nodes.host.latents").pictures_covered(model, frames)
    steps = [0.05 * (sum(covers[:i]) - 1) for i in range(1, frames)]
    steps = [min(step, 0.8) for step in steps]
    video = parts(scheduled)[0]
    assert torch.allclose(video, core.sample(video.shape, steps, 7), atol=1e-6)
    with pytest.raises(
        ValueError, match=rf"multiples of {cell}\. The nearest are {cell}x{2 * cell} and {2 * cell}x{2 * cell}"
    ):
        as_latent(pack, width=2 * cell - 1, height=2 * cell, model=model)


def test_a_latent_for_a_model_with_sound_takes_the_shape_of_the_one_connected(pack, models):
    with pytest.raises(ValueError, match=r"\(LTXAV\) draws video and sound.*Connect its empty latent"):
        as_latent(pack, width=64, height=64, model=models("ltx2"))
    import comfy.sample

    latent = video_models.empty("ltx2")
    found = as_latent(pack, width=64, height=64, model=models("ltx2"), latent=latent).unbind()
    stock = comfy.sample.prepare_noise(latent["samples"], 7).unbind()
    assert torch.equal(found[0], core.correlate(stock[0], 0.5, 2))
    assert torch.equal(found[1], stock[1])
    alone = as_latent(pack, width=1, height=1, latent={"samples": torch.zeros(1, 16, 5, 4, 4)})
    assert torch.equal(alone, core.sample((1, 16, 5, 4, 4), 0.5, 7))
    with pytest.raises(ValueError, match=r"4 channels and 2 dimensions; this model's \(WAN21\) have 16 and 3"):
        as_latent(pack, width=64, height=64, model=models("wan21"), latent={"samples": torch.zeros(3, 4, 8, 8)})


def test_a_flow_model_takes_no_noise_as_a_latent_at_its_start(pack, models):
    with pytest.raises(ValueError, match=r"flow matching.*Use '3D Noise Prior' with SamplerCustomAdvanced"):
        as_latent(pack, width=64, height=64, model=models("wan21"), sigmas=torch.tensor([1.0, 0.0]))
    model, sigma = models("wan21"), 0.25  # below its start the latent counts
    found = as_latent(pack, width=64, height=64, model=model, sigmas=torch.tensor([sigma, 0.0]))
    unit = as_latent(pack, width=64, height=64, model=model)
    expected = model.get_model_object("latent_format").process_out(unit * sigma / (1 - sigma))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["wan21", "h3"])
def test_the_preview_shows_the_latent_frames_and_says_what_they_hold(pack, models, kind, monkeypatch):
    nodes, figures = pack("nodes.noise"), []
    monkeypatch.setattr(nodes, "pictures_below", lambda *_: {})
    kept = nodes.plots.noise_prior_figure
    monkeypatch.setattr(nodes.plots, "noise_prior_figure", lambda *given: figures.append(given) or kept(*given))
    schedule = {"gamma": 0.1, "seed": 7, "gamma_schedule": "0: 0, 16: 0.8"}
    figure, noise = nodes.NoisePriorPreview.execute(16, **schedule, model=models(kind)).args
    sigma, _, _, label, names = figures[0]
    count = {"wan21": 5, "h3": 7}[kind]
    assert label.endswith(f"16 frames are {count} latent frames of this model")
    assert names[:5] == ["0", "1-4", "5-8", "9-12", "13-16"]
    assert names[5:] == ([] if kind == "wan21" else ["17", "18-21"])
    steps = [0.0, 0.2, 0.4, 0.6, 0.8, 0.8][: count - 1]
    assert torch.allclose(sigma, core.covariance(count, steps))
    assert len(noise) == count
    nodes.NoisePriorPreview.execute(5, 0.1, 7)
    assert figures[1][3:] == ("gamma 0.1, 5 frames", [])
    assert not torch.equal(figure, kept(*figures[0][:4]))
