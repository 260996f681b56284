"""What video models are shown besides the text, put there by the host's own nodes: whole, under tiles, in a face's
window."""

import random

import pytest
import torch

from dev import video_models
from vcd_core.tiny import world

SIDE, COUNT = 128, 9
CELL = {"ltxv": 32}


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def frames(count=COUNT, side=SIDE):
    take = world.random_take(random.Random(5), framing="medium")
    drawn = torch.stack([torch.tensor(world.render(take, i).image) for i in range(count)]).float() / 255
    return drawn[:, :side, :side].contiguous()


def shown(case, vae, positive, negative, side=SIDE, count=COUNT):
    """The conditionings, latent and noise mask that the host's own node of a case makes of our clip."""
    from comfy_extras import nodes_camera_trajectory, nodes_hunyuan, nodes_lt, nodes_wan

    size, images = {"width": side, "height": side, "length": count, "batch_size": 1}, frames(count, side)
    if case == "i2v":
        return nodes_wan.WanImageToVideo.execute(positive, negative, vae, **size, start_image=images[:1]).args
    if case == "vace":
        masks = torch.zeros(count, side, side)
        masks[:, : side // 2] = 1
        made = nodes_wan.WanVaceToVideo.execute(
            positive, negative, vae, **size, strength=1.0, control_video=images, control_masks=masks
        )
        return made.args[:3]
    if case == "camera":
        poses = nodes_camera_trajectory.WanCameraEmbedding.execute("Zoom In", side, side, count).args[0]
        return nodes_wan.WanCameraImageToVideo.execute(
            positive, negative, vae, **size, start_image=images[:1], camera_conditions=poses
        ).args
    if case == "fun":
        return nodes_wan.Wan22FunControlToVideo.execute(
            positive, negative, vae, **size, ref_image=images[:1], control_video=images
        ).args
    if case == "phantom":
        positive, _, negative, latent = nodes_wan.WanPhantomSubjectToVideo.execute(
            positive, negative, vae, **size, images=images[:2]
        ).args
        return positive, negative, latent
    if case in ("v1 (concat)", "v2 (replace)", "custom"):
        positive, latent = nodes_hunyuan.HunyuanImageToVideo.execute(
            positive, vae, **size, guidance_type=case, start_image=images[:1]
        ).args
        if case == "v1 (concat)":
            negative = [[negative[0][0], {**positive[0][1], **negative[0][1]}]]
        return positive, negative, latent
    if case == "start":
        return nodes_lt.LTXVImgToVideo.execute(positive, negative, images[:1], vae, **size, strength=0.9).args
    if case == "guides":
        latent = {"samples": torch.zeros(1, 128, 1 + (count - 1) // 8, side // 32, side // 32)}
        return nodes_lt.LTXVAddGuide.execute(positive, negative, vae, latent, images[:1], 8, 0.8).args
    return (
        positive,
        negative,
        {"samples": torch.zeros(1, vae.latent_channels, 1 + (count - 1) // 4, side // 8, side // 8)},
    )


CASES = {
    "i2v": "wan21_i2v", "vace": "wan21_vace", "camera": "wan21_camera", "fun": "wan21_fun", "phantom": "wan21",
    "v1 (concat)": "hunyuan_i2v", "v2 (replace)": "hunyuan", "custom": "hunyuan", "start": "ltxv", "guides": "ltxv",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(pack):
    pack("nodes.host.model")
    known = {}

    def make(case):
        kind = CASES[case]
        if kind not in known:
            known[kind] = video_models.model(kind), video_models.vae(kind)
        return *known[kind], video_models.prompt(kind, 1), video_models.prompt(kind, 2)

    return make


def sampled(pack, model, positive, negative, latent, steps=1):
    import comfy.sample

    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(3))
    return comfy.sample.sample(
        model, noise, steps, 1.0, "euler", "simple", positive, negative, latent["samples"],
        noise_mask=latent.get("noise_mask"), seed=3, disable_pbar=True,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_tile_is_the_untiled_sampler_and_several_are_not_cut_in_vain(pack, made, case):
    model, vae, positive, negative = made(case)
    side = 4 * 64 if CASES[case] == "ltxv" else SIDE
    shown_to = shown(case, vae, positive, negative, side)
    tiled = pack("nodes.tiled")
    whole = sampled(pack, model, *shown_to)
    cell = CELL.get(CASES[case], 8)
    one = sampled(pack, tiled.TiledPatch.execute(model, side, 0).args[0], *shown_to)
    assert (one - whole).abs().max() < 1e-5 * whole.abs().max()
    tiles = sampled(pack, tiled.TiledPatch.execute(model, side // 2 + 2 * cell, 4 * cell).args[0], *shown_to)
    assert tiles.shape == whole.shape
    assert tiles.isfinite().all()
    assert not torch.allclose(tiles, whole, atol=1e-5)


REFINE = {
    "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "gamma": 0.1, "seed": 1, "refine_size": 64,
    "crop_factor": 3.0, "aspect": 1.0, "feather": 4.0, "paste_factor": 1.6, "match_colour": False, "which": "all",
    "index": 0, "denoise": 0.5,
}  # fmt: skip
ENLARGE = {
    "scale": 2.0, "tile_size": 128, "overlap": 32, "steps": 1, "cfg": 1.0, "sampler_name": "euler",
    "scheduler": "normal", "gamma": 0.1, "seed": 1, "denoise": 0.3,
}  # fmt: skip
DRAWN = [case for case in CASES if case not in ("start", "guides", "camera")]


@pytest.mark.parametrize("case", DRAWN)
def test_a_face_is_refined_with_what_the_model_is_shown(pack, made, case):
    model, vae, positive, negative = made(case)
    images = frames()
    positive, negative, _ = shown(case, vae, positive, negative)
    out, _, missed = pack("nodes.face").FaceRefine.execute(images, model, vae, positive, negative, **REFINE).args
    assert missed == 0
    assert not torch.equal(out, images)
    assert torch.equal(out[:, :8], images[:, :8])


@pytest.mark.parametrize("case", DRAWN)
def test_a_clip_is_enlarged_with_what_the_model_is_shown(pack, made, case):
    model, vae, positive, negative = made(case)
    positive, negative, _ = shown(case, vae, positive, negative)
    images = frames()
    (large,) = pack("nodes.tiled").TiledDenoise.execute(images, model, vae, positive, negative, **ENLARGE).args
    assert large.shape == (COUNT, 2 * SIDE, 2 * SIDE, 3)
    assert large.isfinite().all()


@pytest.mark.parametrize("stage", ["face", "tiled"])
def test_guides_are_refused_by_name_before_anything_is_drawn(pack, made, stage):
    model, vae, positive, negative = made("guides")
    positive, negative, _ = shown("guides", vae, positive, negative)
    run = pack("nodes.face").FaceRefine if stage == "face" else pack("nodes.tiled").TiledDenoise
    inputs = REFINE if stage == "face" else {**ENLARGE, "overlap": 64}
    with pytest.raises(ValueError, match="'keyframe_idxs', which this pack cannot change"):
        run.execute(frames(), model, vae, positive, negative, **inputs)
