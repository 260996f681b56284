"""``denoise`` as a share of the steps, as a KSampler has it, and as a share of the noise, alike on every model."""

import pytest
import torch

from dev import video_models

MODELS = ("sd15", *video_models.KINDS, *video_models.WITH_SOUND)


@pytest.fixture(scope="module")
def made(pack):
    """``made("wan21")``: a MODEL of a kind, shifted as the host's node does it where a number is given."""
    tiny = pack("nodes.tiny")
    known = {}

    def make(kind, shift=None):
        if kind not in known:
            known[kind] = tiny.load_tiny()[0] if kind == "sd15" else video_models.model(kind)
        if shift is None:
            return known[kind]
        from comfy_extras.nodes_model_advanced import ModelSamplingSD3

        return ModelSamplingSD3().patch(known[kind], shift)[0]

    return make


def settings(pack, denoise, by_noise=True, scheduler="simple", sampler="euler", steps=20):
    return pack("nodes.host.sampling").Sampling(steps, 1.0, sampler, scheduler, denoise, 0, by_noise)


@pytest.mark.parametrize("kind", MODELS)
def test_a_share_of_the_noise_is_the_same_on_every_model(pack, made, kind):
    sampling = pack("nodes.host.sampling")
    for scheduler in ("simple", "normal", "karras", "beta"):
        for denoise in (0.1, 0.5, 0.8, 0.95):
            for steps in (1, 2, 20):
                sigmas = settings(pack, denoise, scheduler=scheduler, steps=steps).sigmas(made(kind))
                assert sampling.noise_share(made(kind), float(sigmas[0])) == pytest.approx(denoise, abs=1e-4)
                assert len(sigmas) == steps + 1
                assert (sigmas[1:] < sigmas[:-1]).all()
                assert sigmas[-1] == 0


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_the_shift_of_a_flow_model_moves_a_share_of_the_steps_and_not_one_of_the_noise(pack, made, shift):
    model = made("wan21", shift)
    by_steps = float(settings(pack, 0.8, by_noise=False).sigmas(model)[0])
    assert by_steps == pytest.approx(shift * 0.8 / (1 + (shift - 1) * 0.8), abs=0.01)
    assert float(settings(pack, 0.8).sigmas(model)[0]) == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "dpm_2"])
def test_a_share_of_the_steps_is_the_ksamplers(pack, made, sampler):
    import comfy.samplers

    for kind in ("sd15", "wan21"):
        model = made(kind)
        for denoise in (0.2, 0.8, 1.0):
            own = comfy.samplers.KSampler(model, 20, "cpu", sampler, "normal", denoise, {}).sigmas
            assert torch.equal(settings(pack, denoise, False, "normal", sampler).sigmas(model), own)
            if denoise == 1:
                assert torch.equal(settings(pack, denoise, True, "normal", sampler).sigmas(model), own)


def test_the_smallest_share_is_still_drawn(pack, made):
    sigmas = settings(pack, 0.01, scheduler="normal").sigmas(made("sd15"))
    assert sigmas[0] == pytest.approx(0.0101, abs=1e-4)
    assert sigmas[-1] == 0
    assert (sigmas[1:] < sigmas[:-1]).all()


def test_the_stage_says_where_it_starts(pack, made):
    stage = pack("nodes.stage").Stage(made("wan21", 8.0), None, settings(pack, 0.8, False), 0.1)
    assert stage.begin() == "Drawn from sigma 0.97, 97% noise."
    assert pack("nodes.stage").Stage(made("sd15"), None, settings(pack, 0.0), 0.1).begin() == ""
