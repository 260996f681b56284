"""What video models are shown besides the text, put there by the host's own nodes: whole, under tiles, in a face's
window."""

import random

import pytest
import torch

from dev import video_models
from dev.host import ROOT
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
    if case.startswith("vace"):
        masks = torch.zeros(count, side, side)
        masks[:, : side // 2] = 1
        reference = images[:1].flip(2) if case == "vace, reference" else None
        made = nodes_wan.WanVaceToVideo.execute(
            positive, negative, vae, **size, strength=1.0, control_video=images, control_masks=masks,
            reference_image=reference,
        )  # fmt: skip
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


CASES = {  # what is shown, and to which kind of model
    "i2v": "wan21_i2v", "vace": "wan21_vace", "vace, reference": "wan21_vace", "camera": "wan21_camera",
    "fun": "wan21_fun", "phantom": "wan21",
    "v1 (concat)": "hunyuan_i2v", "v2 (replace)": "hunyuan", "custom": "hunyuan", "start": "ltxv", "guides": "ltxv",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(pack):
    pack("nodes.host.model")
    known = {}

    def make(case):
        kind = CASES.get(case, case)
        if kind not in known:
            known[kind] = video_models.model(kind), video_models.vae(kind)
        return *known[kind], video_models.prompt(kind, 1), video_models.prompt(kind, 2)

    return make


def sampled(pack, model, positive, negative, latent, steps=1):
    import comfy.sample

    noise = comfy.sample.prepare_noise(latent["samples"], 3)
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
    "scale": 1.5, "tile_size": 128, "overlap": 64, "steps": 1, "cfg": 1.0, "sampler_name": "euler",
    "scheduler": "normal", "gamma": 0.1, "seed": 1, "denoise": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("stage", ["face", "tiled"])
def test_guides_are_refused_by_name_before_anything_is_drawn(pack, made, stage):
    model, vae, positive, negative = made("guides")
    positive, negative, _ = shown("guides", vae, positive, negative)
    run = pack("nodes.face").FaceRefine if stage == "face" else pack("nodes.tiled").TiledDenoise
    inputs = REFINE if stage == "face" else ENLARGE
    with pytest.raises(ValueError, match="'keyframe_idxs', which this pack cannot change"):
        run.execute(frames(), model, vae, positive, negative, **inputs)


@pytest.mark.parametrize("stage", ["face", "tiled"])
def test_a_reference_before_the_clip_is_seen_whole_and_drawn_beside_it(pack, made, stage):
    """VACE's: the model is shown it as a frame of its own, which does not come out and whose noise is its own."""
    model, vae, positive, negative = made("vace")
    positive, negative, _ = shown("vace, reference", vae, positive, negative)
    reference = positive[0][1]["vace_frames"][0][:, :16, :1]
    picture = vae.decode(reference)[0]
    pictures, seen = pack("nodes.host.pictures"), []

    def spy(executor, x, timestep, *more, **inputs):
        seen.append((x.clone(), inputs["vace_context"].clone()))
        return executor(x, timestep, *more, **inputs)

    spied = pack("nodes.host.wrappers").with_wrapper(model, "diffusion_model", "spy", spy)
    if stage == "face":
        inputs = {**REFINE, "crop_factor": 1.5, "aspect": 4.0, "refine_size": 64, "denoise": 0.05, "gamma": 1.0}
        out = pack("nodes.face").FaceRefine.execute(frames(), spied, vae, positive, negative, **inputs).args[0]
        size = pack("nodes.face").core.crop.crop_size(64, 4.0)
    else:
        inputs = {**ENLARGE, "scale": 1.5, "tile_size": 192, "overlap": 0, "denoise": 0.05, "gamma": 1.0}
        out = pack("nodes.tiled").TiledDenoise.execute(frames(), spied, vae, positive, negative, **inputs).args[0]
        size = (192, 192)
    assert len(out) == COUNT
    x, context = seen[0]
    shape = (4, *(side // 8 for side in size))  # a frame more than the clip
    assert tuple(x.shape[2:]) == tuple(context.shape[3:]) == shape
    whole = vae.encode(pictures.within(picture, *size))
    latent = model.model.process_latent_in(whole)
    assert torch.allclose(context[0, 0, :16, :1], latent[0], atol=1e-4)
    assert not context[0, 0, 16:, 0].any()  # nothing of it is to be drawn anew
    noise = x[:, :, 0] - x[:, :, 1]  # at gamma 1 the clip's frames have one noise, the reference another
    assert (x[:, :, 0] - latent[:, :, 0]).abs().mean() < 0.5 * latent.abs().mean()
    assert noise.abs().mean() > 0


@pytest.mark.parametrize("case", ["phantom", "vace, reference"])
def test_a_tile_may_see_its_own_part_of_the_clip_in_place_of_the_references(pack, made, case):
    model, vae, positive, negative = made(case)
    positive, negative, _ = shown(case, vae, positive, negative)
    tiled, seen, spied = pack("nodes.tiled"), [], model.clone()

    def spy(apply, call):
        value = call["c"]["time_dim_concat"] if case == "phantom" else call["c"]["vace_context"][:, 0, :16, :1]
        seen.append(value.clone())
        return apply(call["input"], call["timestep"], **call["c"])

    spied.set_model_unet_function_wrapper(spy)
    inputs = {**ENLARGE, "scale": 1.0, "tile_size": 64, "overlap": 0, "references": tiled.OWN_TILE}
    tiled.TiledDenoise.execute(frames(), spied, vae, positive, negative, **inputs)
    at = [4] if case != "phantom" else [2, 6]  # in the middle, and a quarter from each end
    latents = [model.model.process_latent_in(vae.encode(frames()[one : one + 1])) for one in at]
    whole = torch.cat(latents, 2)
    parts = [whole[..., top : top + 8, left : left + 8] for top in (0, 8) for left in (0, 8)]
    assert len(seen) == 4
    for found, part in zip(seen, parts, strict=True):
        assert torch.allclose(found, part, atol=1e-5)


def test_own_tiles_in_place_of_no_reference_are_refused(pack, made):
    tiled, (model, vae, positive, negative) = pack("nodes.tiled"), made("wan21")
    with pytest.raises(ValueError, match="positive holds no reference pictures"):
        tiled.TiledDenoise.execute(frames(), model, vae, positive, negative, **ENLARGE, references=tiled.OWN_TILE)


def test_a_reference_before_one_control_video_and_not_before_another_is_refused(pack, made):
    model, vae, positive, negative = made("vace")
    one, other = shown("vace, reference", vae, positive, negative), shown("vace", vae, positive, negative)
    with pytest.raises(ValueError, match="0 reference pictures before some of its control videos and 1 before others"):
        pack("nodes.tiled").TiledDenoise.execute(frames(), model, vae, one[0], other[1], **ENLARGE)


# the table of the README: its columns, each a kind of model and what it is shown ...
COLUMNS = {
    "Wan 2.1": ("wan21", ""), "Wan 2.2 5B": ("wan22_5b", ""), "LTX-Video": ("ltxv", ""), "Hunyuan": ("hunyuan", ""),
    "LTX-2": ("ltx2", ""), "MiniMax H3": ("h3", ""), "Wan, first picture": ("wan21_i2v", "i2v"),
    "Wan VACE": ("wan21_vace", "vace"), "Wan VACE, reference": ("wan21_vace", "vace, reference"),
    "Wan Fun, reference": ("wan21_fun", "fun"), "Wan Phantom": ("wan21", "phantom"),
    "Wan camera": ("wan21_camera", "camera"), "LTX-Video guides": ("ltxv", "guides"),
    "Hunyuan, first picture": ("hunyuan_i2v", "v1 (concat)"),
}  # fmt: skip
# ... its rows, and which cells say no
NODES = (
    "3D Noise Prior", "Apply 3D Noise Prior", "3D Noise Prior Latent", "Tiled VCD Patch", "Tiled VCD Denoise",
    "Face VCD in one node", "Face VCD in three nodes",
)  # fmt: skip
REFUSED = {
    (node, column)
    for node in ("Tiled VCD Denoise", "Face VCD in one node")
    for column in ("Wan camera", "LTX-Video guides")
} | {("3D Noise Prior Latent", column) for column in COLUMNS}  # flow models begin without the latent


def table():
    """What the README says, in Markdown."""
    lines = ["| | " + " | ".join(NODES) + " |", "|---|" + "---|" * len(NODES)]
    for column in COLUMNS:
        cells = ("refused" if (node, column) in REFUSED else "yes" for node in NODES)
        lines.append(f"| {column} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_noise(pack, model, positive, negative, latent):
    """Sampled from the NOISE node, as SamplerCustomAdvanced does."""
    import comfy.sample
    import comfy.samplers

    noise = pack("nodes.noise").NoisePrior.execute(0.5, 3, "comfy").args[0].generate_noise(latent)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 1)
    return comfy.sample.sample_custom(
        model, noise, 1.0, comfy.samplers.sampler_object("euler"), sigmas, positive, negative, latent["samples"],
        noise_mask=latent.get("noise_mask"), seed=3, disable_pbar=True,
    )  # fmt: skip


def by_latent(pack, model, latent):
    """The latent from which a sampler that adds no noise would start."""
    import comfy.samplers

    node, inputs = pack("nodes.noise").NoisePriorLatent, {"width": 128, "height": 128, "frames": 9, "latent": latent}
    inputs |= {"gamma": 0.5, "seed": 3, "layout": "comfy", "model": model}
    made, given = node.execute(**inputs).args[0]["samples"], latent["samples"]
    assert [one.shape for one in in_parts(made)] == [one.shape for one in in_parts(given)]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 1)
    return node.execute(**inputs, sigmas=sigmas).args[0]["samples"]


def in_parts(latent):
    return latent.unbind() if latent.is_nested else [latent]


def by_face(pack, model, vae, positive, negative, images):
    return pack("nodes.face").FaceRefine.execute(images, model, vae, positive, negative, **REFINE).args[0]


def by_three(pack, model, vae, positive, negative, images):
    """Crop, a sampler of one's own on a video of the crops, paste."""
    face = pack("nodes.face")
    faces = face.FaceTrack.execute(images, "all", 0, 0.6, 8, 3, False).args[0]
    crops, crop = face.FaceCrop.execute(images, faces, 0, 64, 3.0, 1.0, vae=vae).args
    return face.FacePaste.execute(images, crop, crops * 0.5, 4.0, 1.6, False).args[0]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("node", NODES)
def test_the_readmes_table_is_true(pack, made, node, column):
    kind, case = COLUMNS[column]
    model, vae, positive, negative = made(kind)
    side = 128
    latent = video_models.empty(kind, 2, 4, 4) if not case else None
    if case:
        positive, negative, latent = shown(case, vae, positive, negative, side)
    tiled, images = pack("nodes.tiled"), frames()
    runs = {
        "3D Noise Prior": lambda: by_noise(pack, model, positive, negative, latent),
        "Apply 3D Noise Prior": lambda: sampled(
            pack, pack("nodes.noise").ApplyNoisePrior.execute(model, 0.5).args[0], positive, negative, latent
        ),
        "3D Noise Prior Latent": lambda: by_latent(pack, model, latent),
        "Tiled VCD Patch": lambda: sampled(
            pack, tiled.TiledPatch.execute(model, 64, 32).args[0], positive, negative, latent
        ),
        "Tiled VCD Denoise": lambda: tiled.TiledDenoise.execute(
            images, model, vae, positive, negative, **ENLARGE
        ).args[0],
        "Face VCD in one node": lambda: by_face(pack, model, vae, positive, negative, images),
        "Face VCD in three nodes": lambda: by_three(pack, model, vae, positive, negative, images),
    }  # fmt: skip
    if (node, column) in REFUSED:
        of_noise = node == "3D Noise Prior Latent"
        why = "starts from pure noise and ignores" if of_noise else r"'(camera_conditions|keyframe_idxs)'"
        with pytest.raises(ValueError, match=why):
            runs[node]()
        return
    out = runs[node]()
    assert all(part.isfinite().all() for part in in_parts(out))
    if node.startswith("Face"):
        assert not torch.equal(out, images)
        assert torch.equal(out[:, :8], images[:, :8])
    elif node == "Tiled VCD Denoise":
        assert out.shape == (COUNT, 3 * SIDE // 2, 3 * SIDE // 2, 3)


def test_the_readme_has_this_table():
    assert table() in (ROOT / "README.md").read_text(encoding="utf-8")
