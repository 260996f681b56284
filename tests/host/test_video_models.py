"""Every stage on the host's own video models, tiny and random, in this process."""

import random

import pytest
import torch

from dev import video_models
from dev.still import luma, still
from vcd_core.tiny import world

KINDS = video_models.KINDS


@pytest.fixture(scope="module")
def made(pack):
    """``made("wan21")``: MODEL, VAE, positive and negative of a kind, made once."""
    pack("nodes.host.model")
    known = {}

    def make(kind):
        if kind not in known:
            known[kind] = video_models.model(kind), video_models.vae(kind)
        prompts = video_models.prompt(kind, 1), video_models.prompt(kind, 2)
        return *known[kind], *prompts

    return make


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def frames(count, framing="medium", height=128, width=128):
    clip = world.random_take(random.Random(5), framing=framing)
    drawn = torch.stack([torch.tensor(world.render(clip, i % world.FRAMES).image) for i in range(count)]).float() / 255
    return drawn[:, :height, :width].contiguous()


class Progress:
    """What a stage tells of its progress."""

    done = 0.0

    def advance(self, units=1):
        self.done += units


@pytest.mark.parametrize("kind", KINDS)
def test_every_length_and_odd_sizes_come_back_as_they_went_in(pack, kind):
    pictures = pack("nodes.host.pictures")
    vae = video_models.vae(kind, lossless=True)
    cell = video_models.SHAPES[kind][1]
    for count in range(1, 201):
        images = torch.rand(count, 2 * cell, cell, 3, generator=torch.Generator().manual_seed(count))
        codec = pictures.Codec(vae, count, 2 * cell, cell)
        latent = codec.encode(images, Progress())
        assert latent.ndim == 5
        assert torch.equal(codec.decode(latent, Progress()), images)
    for height, width, patch in ((cell + 1, cell - 1, 1), (3, 5, 2), (2 * cell - 1, 3 * cell + 7, 2)):
        images = torch.rand(7, height, width, 3, generator=torch.Generator().manual_seed(height))
        codec = pictures.Codec(vae, 7, height, width, patch)
        latent = codec.encode(images, Progress())
        assert latent.shape[-1] % patch == latent.shape[-2] % patch == 0
        assert torch.equal(codec.decode(latent, Progress()), images)


@pytest.mark.parametrize(
    ("into", "out", "counts"),
    [
        (lambda n: max(0, (n + 5) // 6), lambda n: max(0, n * 6 - 5), {1: 1, 2: 7, 8: 13}),
        (
            lambda n: max(1, (n - 5) // 17 * 5 + 2) if n > 1 else 1,
            lambda n: max(1, (n - 2) // 5 * 17 + 5),
            {1: 1, 2: 5, 6: 22, 23: 39},
        ),
    ],
    ids=["6n+1", "17k+5"],
)
def test_the_next_length_is_asked_from_the_vae(pack, into, out, counts):
    pictures = pack("nodes.host.pictures")
    vae = video_models.vae("wan21", lossless=True)
    vae.downscale_ratio, vae.upscale_ratio = (into, 8, 8), (out, 8, 8)
    assert {frames: pictures.frames_taken(vae, frames) for frames in counts} == counts


ENLARGE = {
    "scale": 1.5, "tile_size": 128, "overlap": 64, "steps": 1, "cfg": 1.0, "sampler_name": "euler",
    "scheduler": "normal", "gamma": 0.1, "seed": 1,
}  # fmt: skip
REFINE = {
    "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "gamma": 0.1, "seed": 1, "refine_size": 64,
    "crop_factor": 3.0, "aspect": 1.0, "feather": 4.0, "paste_factor": 1.6, "match_colour": False, "which": "all",
    "index": 0,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 6])
def test_tiled_vcd_enlarges_and_draws_anew(pack, made, kind, count):
    model, vae, positive, negative = made(kind)
    node, images = pack("nodes.tiled").TiledDenoise, frames(count, height=120, width=104)
    one, kept = (
        node.execute(images, model, vae, positive, negative, **{**ENLARGE, "denoise": denoise}).args[0]
        for denoise in (0.3, 0.0)
    )
    assert one.shape == kept.shape == (count, 180, 156, 3)
    assert one.isfinite().all()
    assert not torch.equal(one, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_face_vcd_refines_and_leaves_the_rest(pack, made, kind):
    model, vae, positive, negative = made(kind)
    images = frames(6)
    node = pack("nodes.face").FaceRefine
    refined, pairs, missed = node.execute(images, model, vae, positive, negative, **{**REFINE, "denoise": 0.5}).args
    careful = {"redraw": "head", "paste_by": "change", "feather_share": 0.2, "large_face": 30, "small_face": 10}
    head = node.execute(images, model, vae, positive, negative, **{**REFINE, "denoise": 0.5, **careful}).args[0]
    there = (head - images).abs().amax(-1) > 0
    assert head.isfinite().all()
    assert 0.005 < there.float().mean() < ((refined - images).abs().amax(-1) > 0).float().mean()
    changed = (refined - images).abs().amax(-1) > 0
    assert missed == 0
    assert pairs.shape == (6, 64, 128, 3)
    assert 0.01 < changed.float().mean() < 0.35
    assert refined.isfinite().all()


@pytest.mark.parametrize("kind", [*KINDS, *video_models.WITH_SOUND])
def test_each_cell_is_drawn_with_its_own_denoise(pack, kind):
    """A model that sees single cells draws each as it would with that cell's own denoise, whatever the others'."""
    sampling, strength = pack("nodes.host.sampling"), pack("nodes.host.strength")
    model = pack("nodes.host.wrappers").with_wrapper(video_models.model(kind), "diffusion_model", "local", cells_alone)
    video, *sound = pack("nodes.host.latents").parts_of(video_models.empty(kind, 5, 4, 4)["samples"])
    source, noise = (torch.randn(video.shape, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    prompt = video_models.prompt(kind)

    def drawn(denoise, steps, share=None):
        settings = sampling.Sampling(steps, 1.0, "euler", "simple", denoise, 1)
        one = model if share is None else strength.with_strength(model, share, settings)
        return sampling.sample(one, noise, prompt, prompt, source, settings, lambda *_: None, *sound)

    share = torch.ones(1, 1, 5, 4, 4)
    share[:, :, 1], share[:, :, 2, 2:] = 0.5, 0.0
    whole, half, mixed = drawn(0.8, 4), drawn(0.4, 2), drawn(0.8, 4, share)
    assert torch.allclose(mixed[:, :, 3:], whole[:, :, 3:], atol=1e-5)
    assert torch.allclose(mixed[:, :, 1], half[:, :, 1], atol=1e-4)
    assert torch.allclose(mixed[:, :, 2, 2:], source[:, :, 2, 2:], atol=1e-5)
    assert not torch.allclose(whole[:, :, 1], half[:, :, 1], atol=1e-2)


def cells_alone(executor, x, *more, **inputs):
    return [one.sin() * 0.3 + 0.1 for one in x] if isinstance(x, list) else x.sin() * 0.3 + 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_face_vcd_in_three_nodes(pack, kind):
    """Crop, the host's own VAE Encode and Decode, paste: what loses nothing comes back as it was, at every length."""
    face, vae = pack("nodes.face"), video_models.vae(kind, lossless=True)
    for count in (1, 6, 14):
        images = frames(count)
        tracked = face.FaceTrack.execute(images, "all", 0, 0.6, 8, 1, False).args[0]
        crops, crop = face.FaceCrop.execute(images, tracked, 0, 264, 3.0, 1.0, vae=vae).args
        assert crops.shape[1] % vae.spacial_compression_encode() == 0
        decoded = vae.decode(vae.encode(crops))[0]
        assert len(decoded) == len(crops) >= count
        assert torch.allclose(
            face.FacePaste.execute(images, crop, decoded, 4.0, 1.6, False).args[0], images, atol=1 / 255
        )


@pytest.mark.parametrize("kind", KINDS)
def test_gamma_0_is_the_hosts_own_noise_and_gamma_1_one_noise(pack, made, kind):
    noise = pack("nodes.noise")
    channels = made(kind)[1].latent_channels
    latent = {"samples": torch.zeros(1, channels, 5, 4, 4)}
    import comfy.sample

    found = {
        gamma: noise.CorrelatedNoise(gamma, 7, "comfy", "", False).generate_noise(latent) for gamma in (0.0, 0.5, 1.0)
    }
    assert torch.equal(found[0.0], comfy.sample.prepare_noise(latent["samples"], 7))
    assert torch.equal(found[1.0], found[1.0][:, :, :1].expand_as(found[1.0]))


@pytest.mark.parametrize("kind", KINDS)
def test_another_models_vae_and_a_schedule_are_refused_before_anything_is_drawn(pack, made, kind):
    model, vae, positive, negative = made(kind)
    other = made("hunyuan" if kind == "ltxv" else "ltxv")[1]
    node, images = pack("nodes.tiled").TiledDenoise, frames(5)
    with pytest.raises(ValueError, match="VAE and MODEL do not fit"):
        node.execute(images, model, other, positive, negative, **{**ENLARGE, "denoise": 0.3})
    rows = [[positive[0][0].expand(5, -1, -1), positive[0][1]]]
    with pytest.raises(ValueError, match="positive has 5 rows, a prompt for each frame"):
        node.execute(images, model, vae, rows, negative, **{**ENLARGE, "denoise": 0.3})


@pytest.mark.parametrize("kind", KINDS)
def test_one_tile_is_the_untiled_sampler(pack, made, kind):
    model, vae, positive, negative = made(kind)
    sampling, tiled = pack("nodes.host.sampling"), pack("nodes.tiled")
    cell = video_models.SHAPES[kind][1]
    noise = torch.randn(1, vae.latent_channels, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    settings = sampling.Sampling(2, 1.0, "euler", "normal", 1.0, 1)

    def sample(model):
        latent = torch.zeros_like(noise)
        return sampling.sample(model, noise, positive, negative, latent, settings, lambda *_: None)

    whole = sample(model)
    assert torch.allclose(sample(tiled.with_tile_grid(model, 16 * cell, 4 * cell)), whole, atol=1e-5)
    tiles = sample(tiled.with_tile_grid(model, 4 * cell, 2 * cell))
    fixed, moving = (
        sample(tiled.with_tile_grid(model, 4 * cell, 0, grid)) for grid in (tiled.fixed, tiled.core.moving_grid)
    )
    assert tiles.isfinite().all()
    assert moving.isfinite().all()
    assert not torch.equal(fixed, moving)
    assert not torch.allclose(tiles, whole, atol=1e-5)
    if kind in ("wan21", "wan22_5b", "hunyuan"):  # which take two cells together
        assert tiled.fitting(model, 5 * cell, cell) == (4 * cell, 2 * cell)
        assert torch.equal(sample(tiled.with_tile_grid(model, 5 * cell, cell)), tiles)
        said = tiled.TiledPatch.execute(model, 5 * cell, cell).ui["text"][0]
        assert said == f"Tiles of {4 * cell} pixels with an overlap of {2 * cell}: what this model takes."
        with pytest.raises(ValueError, match=f"multiples of {2 * cell} pixels, {2 * cell} and {2 * cell}"):
            tiled.with_tile_grid(model, 3 * cell, cell)


@pytest.mark.parametrize("kind", [*KINDS, *video_models.WITH_SOUND])
def test_tiles_of_a_model_that_sees_single_cells_are_the_untiled_sampler(pack, kind):
    import comfy.sample

    def drawn(executor, x, *more, **inputs):
        return [one.sin() * 0.3 + 0.1 for one in x] if isinstance(x, list) else x.sin() * 0.3 + 0.1

    model = pack("nodes.host.wrappers").with_wrapper(video_models.model(kind), "diffusion_model", "local", drawn)
    latent, prompt = video_models.empty(kind, 2, 6, 4)["samples"], video_models.prompt(kind)
    noise = comfy.sample.prepare_noise(latent, 1)
    cell = video_models.SHAPES[kind][1]
    tiled = pack("nodes.tiled")
    whole, *others = (
        comfy.sample.sample(one, noise, 3, 1.0, "euler", "simple", prompt, prompt, latent, seed=1, disable_pbar=True)
        for one in (
            model,
            tiled.TiledPatch.execute(model, 2 * cell, 0).args[0],
            tiled.TiledPatch.execute(model, 2 * cell, 0, grid=tiled.MOVING).args[0],
            tiled.TiledPatch.execute(model, 4 * cell, 2 * cell, grid=tiled.MOVING).args[0],
        )
    )
    for tiles in others:
        for one, other in zip(*(x.unbind() if x.is_nested else [x] for x in (whole, tiles)), strict=True):
            assert torch.allclose(one, other, atol=1e-6)


def two_faces(pack, count=6):
    """A clip and two faces in it, the second from its third frame on."""
    boxes = [[{"x": 8, "y": 8, "width": 24, "height": 24}], [{"x": 80, "y": 72, "width": 24, "height": 24}]]
    face, images = pack("nodes.face"), frames(count)
    both = [boxes[0] + (boxes[1] if frame > 1 else []) for frame in range(count)]
    return images, face.FaceTrack.execute(images, "all", 0, 0.6, 8, 3, False, bboxes=both).args[0]


def failing(pack, monkeypatch, at, error):
    """Lets the ``at``-th face fail; which were begun."""
    stage, begun = pack("nodes.stage").Stage, []
    refine = stage.refine

    def fail(self, *args, **named):
        begun.append(len(begun))
        if len(begun) - 1 == at:
            raise error
        return refine(self, *args, **named)

    monkeypatch.setattr(stage, "refine", fail)
    return begun


def test_faces_refined_before_a_failure_are_kept(pack, made, monkeypatch, caplog):
    inputs = {**REFINE, "denoise": 0.5}
    (images, faces), node = two_faces(pack), pack("nodes.face").FaceRefine
    begun = failing(pack, monkeypatch, 1, RuntimeError("no more memory"))
    out = node.execute(images, *made("wan21"), faces=faces, **inputs)
    assert begun == [0, 1]
    changed = (out.args[0] - images).abs().amax((0, 3)) > 0
    assert changed[:64, :64].any()
    assert not changed[64:].any()
    assert "face 1 was left as it is. RuntimeError: no more memory" in caplog.text
    assert "1 of 2 faces refined (see the log)" in out.ui["text"][0]


def test_the_node_says_which_face_and_step_it_is_at_and_how_long_it_will_take(pack, made, monkeypatch):
    ui, said = pack("nodes.host.ui"), []
    monkeypatch.setattr(ui, "say", said.append)
    monkeypatch.setattr(ui.Progress, "EVERY", 0.0)
    monkeypatch.setattr(ui.Progress, "FIRST", -1.0)
    (images, faces), node = two_faces(pack), pack("nodes.face").FaceRefine
    node.execute(images, *made("wan21"), faces=faces, **{**REFINE, "denoise": 0.5, "steps": 2})
    steps = [text.split(", about")[0] for text in said if text.startswith("face")]
    assert steps == [f"face {face} of 2, step {step} of 2" for face in (1, 2) for step in (1, 2, 2)]
    monkeypatch.setattr(ui.time, "monotonic", iter([100.0, 130.0, 190.0]).__next__)
    progress = ui.Progress(10)
    for done in (5, 6):  # a training that goes on at its half
        progress.move_to(done)
        progress.tell("drawing")
    assert said[-2:] == ["drawing", "drawing, about 6 min left"]
    assert ui.spoken(5000) == "about 1 h 23 min left"


class Older(Exception):
    """What an interrupt is on hosts before 0.30, where it is an error like others."""


def test_a_failure_of_the_first_face_and_an_interrupt_are_raised(pack, made, monkeypatch):
    import comfy.model_management

    (images, faces), node = two_faces(pack), pack("nodes.face").FaceRefine
    memory = comfy.model_management
    for at, error in ((0, RuntimeError("no memory")), (1, memory.InterruptProcessingException()), (1, Older())):
        with monkeypatch.context() as patch:
            if isinstance(error, Older):
                patch.setattr(memory, "InterruptProcessingException", Older)
            failing(pack, patch, at, error)
            with pytest.raises(type(error)):
                node.execute(images, *made("wan21"), faces=faces, **{**REFINE, "denoise": 0.5})


def test_what_a_later_face_cannot_have_is_refused_before_the_first_is_drawn(pack, made, monkeypatch):
    (images, faces), node = two_faces(pack), pack("nodes.face").FaceRefine
    model, vae, positive, negative = made("wan21")
    heard = [[positive[0][0], {"audio_embed": torch.zeros(1, 6, 4, 8)}]]
    begun = failing(pack, monkeypatch, 9, RuntimeError())
    with pytest.raises(ValueError, match="'audio_embed', which this pack cannot change to other frames"):
        node.execute(images, model, vae, heard, negative, faces=faces, **{**REFINE, "denoise": 0.5})
    assert not begun


def test_values_that_no_rule_knows_are_refused_by_name_before_anything_is_drawn(pack, made):
    model, vae, positive, negative = made("wan21")
    strange = [[positive[0][0], {"of_another_pack": [torch.zeros(1, 32, 2, 8, 8)]}]]
    for node, inputs in (("face", REFINE), ("tiled", ENLARGE)):
        kind = pack(f"nodes.{node}")
        run = kind.FaceRefine if node == "face" else kind.TiledDenoise
        with pytest.raises(ValueError, match="'of_another_pack'"):
            run.execute(frames(5), model, vae, strange, negative, **{**inputs, "denoise": 0.3})


@pytest.mark.parametrize("way", ["prior", "tiles"])
def test_a_prompt_for_each_frame_is_refused_and_not_cut_to_the_first(pack, made, way):
    """The host takes the first row of many for a batch of one video."""
    model, _, positive, negative = made("wan21")
    many = [[torch.cat([positive[0][0]] * 9), positive[0][1]]]
    if way == "prior":
        model = pack("nodes.noise").ApplyNoisePrior.execute(model, 0.1).args[0]
    else:
        model = pack("nodes.tiled").TiledPatch.execute(model, 64, 16).args[0]
    sampling = pack("nodes.host.sampling")
    latent = torch.zeros(1, 16, 3, 16, 16)
    settings = sampling.Sampling(1, 1.0, "euler", "normal", 1.0, 0)
    with pytest.raises(ValueError, match="has 9 rows, a prompt for each frame"):
        sampling.sample(model, torch.zeros_like(latent), many, negative, latent, settings, lambda *_: None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_of_a_step_is_one_for_all_frames_at_gamma_1(pack, made, kind, monkeypatch):
    """What ancestral samplers add runs along time, which video latents have on an axis of its own."""
    model, vae, positive, negative = made(kind)
    added = []
    kept = pack("nodes.stage").prior.correlate

    def correlate(noise, gamma, *dim):
        added.append(kept(noise, gamma, *dim))
        return added[-1]

    monkeypatch.setattr(pack("nodes.stage").prior, "correlate", correlate)
    node, inputs = pack("nodes.tiled").TiledDenoise, {**ENLARGE, "sampler_name": "euler_ancestral", "steps": 3}
    node.execute(frames(9), model, vae, positive, negative, **{**inputs, "gamma": 1.0, "denoise": 0.4})
    assert added
    for noise in added:
        assert noise.ndim == 5
        assert noise.shape[2] > 1
        assert torch.equal(noise, noise[:, :, :1].expand_as(noise))


STILL = {
    "scale": 1.0, "overlap": 32, "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal",
    "denoise": 0.4, "gamma": 0.1, "seed": 1,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["wan21", "ltxv", "h3"])
@pytest.mark.parametrize("kept", [0.0, 0.3])
def test_tiles_of_a_still_do_not_step_in_brightness_with_the_vaes_blocks(pack, kind, kept, monkeypatch):
    """Against one tile; and with weights that differ from latent frame to latent frame, to see that it would show."""
    held, model, vae, seen = still(pack, kind, kept)
    tiled, prompt = pack("nodes.tiled"), video_models.prompt(kind)

    def brightness(tile_size):
        seen.clear()
        drawn = tiled.TiledDenoise.execute(held, model, vae, prompt, prompt, tile_size=tile_size, **STILL).args[0]
        assert drawn.shape == held.shape
        return luma(drawn)

    whole = brightness(128)
    assert len(seen) == 1
    tiles = brightness(64)
    assert len(seen) == 4
    assert (tiles - whole).abs().max() < 1e-4
    if not kept:  # what is left is the picture
        assert (tiles - luma(held)).abs().max() < 1e-4
        assert tiles.max() - tiles.min() < 1e-4
    grid = tiled.core.grid

    def pulsing(*args):
        found = grid(*args)
        count = vae.downscale_ratio[0](pack("nodes.host.pictures").frames_taken(vae, 39))
        uneven = 1 + 0.01 * (torch.arange(count) % 2)
        return found._replace(weights=[found.weights[0] * uneven[:, None, None], *found.weights[1:]])

    monkeypatch.setattr(tiled.core, "grid", pulsing)
    assert (brightness(64) - whole).abs().max() > 1e-4
