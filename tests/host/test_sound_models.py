"""Every stage on models that draw video and sound in one latent (LTX-2, MiniMax H3), tiny and random, in this
process."""

import types

import numpy as np
import pytest
import torch
from test_video_models import ENLARGE, REFINE, Progress, frames

from dev import video_models

KINDS = video_models.WITH_SOUND
SOUND = {"ltx2": (1, 8, 25, 16), "h3": (1, 32, 2, 25)}
AXIS = {"ltx2": 2, "h3": 3}
OTHER = {"ltx2": (1, 8, 25, 8), "h3": (1, 16, 2, 25)}  # of no model here


@pytest.fixture(scope="module")
def made(pack):
    """``made("ltx2")``: MODEL, VAE, positive and negative of a kind, made once."""
    pack("nodes.host.model")
    known = {}

    def make(kind):
        if kind not in known:
            known[kind] = video_models.model(kind), video_models.vae(kind)
        return *known[kind], video_models.prompt(kind, 1), video_models.prompt(kind, 2)

    return make


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def sound(kind, seed=3):
    return torch.randn(SOUND[kind], generator=torch.Generator().manual_seed(seed))


def recorded(pack, model):
    """A clone, and the list that each call of the model adds to: what it was shown, when, and its other inputs."""
    calls = []

    def wrapper(executor, x, timestep, *args, **inputs):
        calls.append(types.SimpleNamespace(video=x[0].clone(), sound=x[1].clone(), timestep=timestep, inputs=inputs))
        return executor(x, timestep, *args, **inputs)

    return pack("nodes.host.wrappers").with_wrapper(model, "diffusion_model", "record", wrapper), calls


def drawn(model, positive, negative, latent, seed=1, cfg=3.0, **options):
    """Video and sound as a KSampler draws them."""
    import comfy.sample

    settings = {"disable_pbar": True, "seed": seed, **options}
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(model, noise, 2, cfg, "euler", "normal", positive, negative, latent, **settings).unbind()


def tiled(pack, kind, model, tile=4, overlap=2):
    cell = video_models.SHAPES[kind][1]
    return pack("nodes.tiled").TiledPatch.execute(model, tile * cell, overlap * cell).args[0]


@pytest.mark.parametrize("kind", KINDS)
def test_one_tile_is_the_untiled_sampler_and_several_draw_sound_too(pack, made, kind):
    model, _, positive, negative = made(kind)
    latent = video_models.empty(kind, 2, 8, 12)["samples"]
    whole = drawn(model, positive, negative, latent)
    for part, same in zip(whole, drawn(tiled(pack, kind, model, 16), positive, negative, latent), strict=True):
        assert torch.allclose(part, same, atol=1e-5)
    tiles = drawn(tiled(pack, kind, model), positive, negative, latent)
    for part, other, of_latent in zip(whole, tiles, latent.unbind(), strict=True):
        assert other.shape == of_latent.shape
        assert other.isfinite().all()
        assert other.std() > 0.1 * part.std()
        assert not torch.allclose(other, part, atol=1e-5)
        assert (other - part).norm() < 0.2 * part.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_the_video_is_blended_and_the_sound_is_the_tiles_mean_by_area(pack, made, kind):
    model, _, positive, negative = made(kind)
    latent, values = (
        video_models.empty(kind, 2, 6, 10)["samples"],
        iter([80.0, *[0.0] * 7]),
    )  # eight tiles; the first in a corner
    grid = pack("vcd_core.tiled").grid(6, 10, 4, 2)
    model = model.clone()
    model.set_model_unet_function_wrapper(lambda _, shown: torch.full_like(shown["input"], next(values)))
    sigmas = torch.tensor([1.0, 0.0])
    found = drawn(tiled(pack, kind, model, 4, 2), positive, negative, latent, cfg=1.0, sigmas=sigmas)
    picture = torch.zeros(6, 10)
    grid.tiles[0].cut(picture).add_(80 * grid.weights[0])
    assert len(grid.tiles) == 8
    assert abs(picture.mean() - 10) > 0.5  # it does not count as much as the others
    assert torch.allclose(found[0], picture.expand_as(found[0]), atol=1e-4)
    assert torch.allclose(found[1], picture.mean().expand_as(found[1]), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tile_is_shown_its_video_the_whole_sound_and_its_part_of_the_masks(pack, made, kind):
    """The sound is given, and the right half of the picture; what is given is given to each tile."""
    import comfy.nested_tensor

    model, _, positive, negative = made(kind)
    model, calls = recorded(pack, model)
    given = sound(kind)
    picture = torch.randn(
        video_models.empty(kind, 2, 4, 12)["samples"].shape, generator=torch.Generator().manual_seed(5)
    )
    video_mask = (torch.arange(12) < 6).float().expand(1, 1, 2, 4, 12)
    nested = comfy.nested_tensor.NestedTensor
    mask = nested([video_mask, torch.zeros_like(given[:, :1])])
    found = drawn(
        tiled(pack, kind, model, 4, 0), positive, negative, nested([picture, given]), cfg=1.0, noise_mask=mask
    )
    assert len(calls) == 6  # three tiles in two steps
    for i, call in enumerate(calls):
        left = 4 * (i % 3)
        assert call.video.shape == (*picture.shape[:3], 4, 4)
        assert torch.equal(call.sound, given)
        own = video_mask[..., left : left + 4].expand_as(call.video)
        assert torch.equal(call.video[own == 0], picture[..., left : left + 4][own == 0])
        if kind == "ltx2":
            assert torch.equal(call.inputs["denoise_mask"], own)
            assert torch.equal(call.inputs["audio_denoise_mask"], torch.zeros_like(given))
    assert torch.allclose(found[0][..., 6:], picture[..., 6:], atol=1e-5)
    assert torch.allclose(found[1], given, atol=1e-5)


def test_a_mask_of_one_cell_holds_in_every_tile(pack):
    cut, tile = pack("nodes.host.cut"), pack("vcd_core.tiled").Tile(0, 4, 4, 4)
    mask = torch.rand(1, 1, 2, 1, 1)
    assert torch.equal(cut.Cut(region=tile, picture=(4, 12)).value("denoise_mask", mask), mask)


def test_keyframes_of_h3_are_cut_with_the_tile(pack, made):
    model, _, positive, negative = made("h3")
    model, calls = recorded(pack, model)
    first = torch.randn(1, 24, 1, 4, 12, generator=torch.Generator().manual_seed(6))
    more = {
        "minimax_keyframes": [{"resolved_frame_index": 0, "latent": first}],
        "minimax_frame_count": 5,
        "minimax_token_tags": torch.ones(1, 6, dtype=torch.long),
    }
    positive = [[positive[0][0], more]]
    latent = video_models.empty("h3", 2, 4, 12)["samples"]
    found = drawn(tiled(pack, "h3", model, 4, 0), positive, negative, latent, cfg=1.0)
    for i, call in enumerate(calls):
        payload = call.inputs["minimax_payload"]
        own = first[..., 4 * (i % 3) : 4 * (i % 3) + 4]
        assert torch.equal(payload["keyframes"][0]["latent"], own)
        assert torch.equal(payload["cond_video_latents"][0], own)
    assert found[0].isfinite().all()
    with pytest.raises(ValueError, match="'minimax_keyframes' in the conditioning has size"):
        drawn(tiled(pack, "h3", model, 4, 0), positive, negative, video_models.empty("h3", 2, 8, 24)["samples"])


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_asked_for_one_tile_and_the_whole_sound(pack, made, kind, monkeypatch):
    import comfy.sampler_helpers as helpers

    model, _, positive, negative = made(kind)
    asked, prepare = [], helpers._prepare_sampling

    def ask(patcher, shape, *args, **named):
        asked.append(list(shape))
        return prepare(patcher, shape, *args, **named)

    monkeypatch.setattr(helpers, "_prepare_sampling", ask)
    drawn(tiled(pack, kind, model), positive, negative, video_models.empty(kind, 2, 8, 12)["samples"])
    channels = {"ltx2": 128, "h3": 24}[kind]
    of_sound = video_models.empty(kind, 2, 8, 12)["samples"].unbind()[1].numel()
    assert asked == [[1, 1, channels * 2 * 4 * 4 + of_sound]]


def test_a_prompt_for_each_frame_is_refused(pack, made):
    model, _, positive, negative = made("ltx2")
    many = [[torch.cat([positive[0][0]] * 3), positive[0][1]]]
    with pytest.raises(ValueError, match="has 3 rows, a prompt for each frame"):
        drawn(tiled(pack, "ltx2", model), many, negative, video_models.empty("ltx2", 2, 8, 12)["samples"])


def test_a_face_of_h3_is_drawn_with_the_references_and_without_the_keyframes(pack, made):
    """Keyframes are pictures of the whole, of another size; what is referred to is seen whole whatever is drawn."""
    model, vae, positive, negative = made("h3")
    model, calls = recorded(pack, model)
    picture = torch.randn(1, 24, 1, 8, 8, generator=torch.Generator().manual_seed(6))
    reference = {"kind": "image", "latent_h": 8, "latent_w": 8, "latent": picture}
    keyframes = [{"resolved_frame_index": 0, "latent": picture}]
    positive = [[positive[0][0], {"minimax_refs": [reference], "minimax_keyframes": keyframes}]]
    pack("nodes.face").FaceRefine.execute(frames(5), model, vae, positive, negative, **{**REFINE, "denoise": 0.3})
    assert calls
    for call in calls:
        assert torch.equal(call.inputs["minimax_payload"]["cond_video_latents"][0], picture)
        assert "keyframes" not in call.inputs["minimax_payload"]


def check_shown(calls, kind, given):
    """At every call the model was shown this sound, and told that it is clean."""
    assert calls
    for call in calls:
        assert torch.equal(call.sound, given)
        if kind == "ltx2":
            assert call.inputs["a_timestep"].abs().max() == 0
            assert call.timestep.min() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("with_sound", [True, False], ids=["sound", "silence"])
def test_tiled_vcd_enlarges_and_draws_anew(pack, made, kind, count, with_sound):
    model, vae, positive, negative = made(kind)
    model, calls = recorded(pack, model)
    node, images = pack("nodes.tiled").TiledDenoise, frames(count, height=120, width=104)
    given = sound(kind) if with_sound else pack("nodes.host.nested").empty_sound(model, count)
    inputs = {**ENLARGE, "steps": 2} | ({"sound": {"samples": given}} if with_sound else {})
    one, kept = (
        node.execute(images, model, vae, positive, negative, **{**inputs, "denoise": denoise}).args[0]
        for denoise in (0.3, 0.0)
    )
    assert one.shape == kept.shape == (count, 180, 156, 3)
    assert one.isfinite().all()
    assert not torch.equal(one, kept)
    check_shown(calls, kind, given)
    assert len({tuple(call.video.shape) for call in calls}) == 1
    assert len(calls) >= 2 * 2 * 2  # at least 2x2 tiles in two steps


def tracked(pack, images, start, after):
    """The clip's face, as it is seen in some frames."""
    face, track = pack("nodes.face"), pack("vcd_core.face.track")
    found = face.track_faces(images).tracks[0]
    boxes, seen = np.array(found.boxes[start:after]), np.ones(after - start, bool)
    return track.Faces(*images.shape[:3], [track.Track(start, boxes, seen)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_sound", [True, False], ids=["sound", "silence"])
def test_face_vcd_refines_with_the_faces_part_of_the_sound_and_leaves_the_rest(pack, made, kind, with_sound):
    model, vae, positive, negative = made(kind)
    model, calls = recorded(pack, model)
    images, nested = frames(10), pack("nodes.host.nested")
    faces = tracked(pack, images, 3, 6)
    whole = sound(kind)
    given = whole.narrow(AXIS[kind], 7, 8) if with_sound else nested.empty_sound(model, 3)
    more = {"sound": {"samples": whole}} if with_sound else {}
    refined, pairs, missed = (
        pack("nodes.face")
        .FaceRefine.execute(
            images, model, vae, positive, negative, faces=faces, **{**REFINE, "steps": 2, "denoise": 0.5}, **more
        )
        .args
    )
    check_shown(calls, kind, given)
    assert missed == 7
    assert pairs.shape == (3, 64, 128, 3)
    assert refined.shape == images.shape
    assert refined.isfinite().all()
    outside = torch.ones(images.shape[:3], dtype=torch.bool)
    for i, (x, y, w, h) in enumerate(faces.tracks[0].boxes):
        side = max(w, h) + 8  # half of it beyond each edge is more than paste_factor and feather reach
        outside[3 + i, max(0, int(y - side / 2)) : int(y + h + side / 2), max(0, int(x - side / 2)) :][
            :, : int(w + 1.5 * side)
        ] = False
    assert torch.equal(refined[outside], images[outside])
    assert ((refined - images).abs().amax(-1) > 0)[3:6].float().mean() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_face_vcd_in_three_nodes(pack, made, kind):
    """Crop, the host's own VAE Encode, a sampler on video and sound, VAE Decode, paste."""
    face, nested = pack("nodes.face"), pack("nodes.host.nested")
    lossless = video_models.vae(kind, lossless=True)
    images = frames(6)
    faces = tracked(pack, images, 0, 6)
    crops, crop = face.FaceCrop.execute(images, faces, 0, 264, 3.0, 1.0, vae=lossless).args
    decoded = lossless.decode(lossless.encode(crops))[0]
    assert len(decoded) == len(crops) == {"ltx2": 9, "h3": 22}[kind]
    pasted = face.FacePaste.execute(images, crop, decoded, 4.0, 1.6, False).args[0]
    assert torch.allclose(pasted, images, atol=1 / 255)

    model, vae, positive, negative = made(kind)
    latent, _ = nested.with_sound(vae.encode(crops), sound(kind))
    video, heard = drawn(model, positive, negative, latent, denoise=0.5)
    pasted = face.FacePaste.execute(images, crop, vae.decode(video)[0], 4.0, 1.6, False).args[0]
    assert pasted.shape == images.shape
    assert not torch.allclose(heard, sound(kind), atol=1e-2)
    assert not torch.equal(pasted, images)


@pytest.mark.parametrize("kind", KINDS)
def test_every_length_comes_back_as_it_went_in(pack, kind):
    pictures, vae = pack("nodes.host.pictures"), video_models.vae(kind, lossless=True)
    cell = video_models.SHAPES[kind][1]
    for count in (1, 2, 5, 6, 21, 22, 23, 39, 40):
        images = torch.rand(count, 2 * cell, cell + 1, 3, generator=torch.Generator().manual_seed(count))
        codec = pictures.Codec(vae, count, 2 * cell, cell + 1)
        assert torch.allclose(codec.decode(codec.encode(images, Progress()), Progress()), images, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_the_stage_correlates_the_video_alone(pack, made, kind, gamma, monkeypatch):
    """Gamma 0 is the host's own noise of the whole latent, gamma 1 one noise for all frames; of the steps too."""
    import comfy.sample

    model, vae, positive, negative = made(kind)
    stage, nested = pack("nodes.stage"), pack("nodes.host.nested")
    correlate, seen = stage.prior.correlate, []

    def watch(noise, gamma, *dim):
        seen.append(correlate(noise, gamma, *dim))
        return seen[-1]

    monkeypatch.setattr(stage.prior, "correlate", watch)
    settings = pack("nodes.host.sampling").Sampling(3, 1.0, "euler_ancestral", "normal", 1.0, 7)
    clip = frames(9, height=64, width=64)
    how = stage.Stage(model, vae, settings, gamma, {"samples": sound(kind)})
    assert how.refine(clip, positive, negative, pack("nodes.host.ui").Progress(100)).shape == clip.shape
    latent, _ = nested.with_sound(torch.zeros_like(seen[0]), sound(kind))
    host, _ = comfy.sample.prepare_noise(latent, 7).unbind()
    assert len(seen) >= 3
    assert torch.equal(seen[0], host) == (gamma == 0)
    for noise in seen:
        assert noise.shape == host.shape
        assert torch.equal(noise, noise[:, :, :1].expand_as(noise)) == (gamma == 1)


def test_h3_is_told_that_the_given_sound_is_clean(pack, made):
    model, vae, positive, negative = made("h3")
    told = []
    hook = model.model.diffusion_model.time_embedder.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    inputs = {**REFINE, "steps": 8, "denoise": 0.8, "sound": {"samples": sound("h3")}}
    try:
        pack("nodes.face").FaceRefine.execute(frames(5), model, vae, positive, negative, **inputs)
        mine = list(told)
        told.clear()
        drawn(model, positive, negative, video_models.empty("h3", 2, 4, 4)["samples"], denoise=0.8)
    finally:
        hook.remove()
    assert len(mine) == 8
    assert all(times.max() > 0.95 for times in mine)
    assert mine[0].min() < 0.1  # the video's own
    assert told[0].max() < 0.5  # where the sound is drawn it is the model's own


@pytest.mark.parametrize("frame_rate", [24.0, 25.0, 30.0])
def test_silence_is_the_hosts_own_empty_sound(pack, made, frame_rate):
    from comfy.ldm.lightricks.vae.audio_vae import AudioVAE
    from comfy_extras.nodes_lt_audio import LTXVEmptyLatentAudio
    from comfy_extras.nodes_minimax_h3 import EmptyMiniMaxH3LatentAV

    nested = pack("nodes.host.nested")
    whole = types.SimpleNamespace(sampling_rate=16000, mel_hop_length=160, mel_bins=64)

    class Stub:
        autoencoder = whole
        sample_rate, mel_hop_length = AudioVAE.sample_rate, AudioVAE.mel_hop_length
        latents_per_second, latent_frequency_bins = AudioVAE.latents_per_second, 16
        num_of_latents_from_frames = AudioVAE.num_of_latents_from_frames

    vae = types.SimpleNamespace(latent_channels=8, first_stage_model=Stub())
    for count in range(1, 200):
        host = LTXVEmptyLatentAudio.execute(count, frame_rate, 1, vae).args[0]["samples"]
        assert torch.equal(nested.empty_sound(made("ltx2")[0], count, frame_rate), host)
        host = EmptyMiniMaxH3LatentAV.execute(64, 64, count).args[0]["samples"].unbind()[1]
        assert torch.equal(nested.empty_sound(made("h3")[0], count, frame_rate), host)
    named = [[None, {}], [None, {"frame_rate": frame_rate}]]
    assert nested.frame_rate_of(named) == frame_rate
    assert nested.frame_rate_of([[None, {}]]) == 25


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("first", "after", "begin", "end"),
    [(0, 10, 0, 25), (3, 6, 7, 15), (0, 1, 0, 3), (9, 10, 22, 25), (4, 8, 10, 20)],
)
def test_a_faces_part_of_the_sound_is_rounded_outward(pack, made, kind, first, after, begin, end):
    nested, whole = pack("nodes.host.nested"), sound(kind)
    found = nested.sound_of(made(kind)[0], {"samples": whole}, first, after, 10)
    assert torch.equal(found, whole.narrow(AXIS[kind], begin, end - begin))
    both, _ = nested.with_sound(torch.zeros(1, 2, 3, 4, 5), whole)  # as a sampler hands it on
    assert torch.equal(nested.sound_of(made(kind)[0], {"samples": both}, first, after, 10), found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("node", ["tiled.TiledDenoise", "face.FaceRefine"])
def test_what_does_not_fit_is_refused_by_name(pack, made, kind, node):
    model, vae, positive, negative = made(kind)
    module, name = node.split(".")
    inputs = {**(ENLARGE if module == "tiled" else REFINE), "denoise": 0.3}

    def refused(match, vae=vae, positive=positive, model=model, **more):
        with pytest.raises(ValueError, match=match):
            getattr(pack(f"nodes.{module}"), name).execute(
                frames(5), model, vae, positive, negative, **{**inputs, **more}
            )

    other = KINDS[kind == KINDS[0]]
    refused("VAE and MODEL do not fit", vae=made(other)[1])
    refused("VAE and MODEL do not fit", vae=video_models.vae("wan21"))
    refused("VAE is that of a sound model", vae=types.SimpleNamespace(latent_dim=1, latent_channels=32))
    refused("sound is a latent of shape", sound={"samples": torch.zeros(OTHER[kind])})
    refused("sound is a latent of shape", sound={"samples": torch.zeros(1, 64, 25)})
    refused("a mask or an area", positive=[[positive[0][0], {**positive[0][1], "mask": torch.ones(1, 128, 128)}]])
    plain = video_models.model("ltxv"), video_models.vae("ltxv"), video_models.prompt("ltxv")
    refused(
        "sound is connected, but this model", model=plain[0], vae=plain[1], positive=plain[2],
        sound={"samples": sound(kind)},
    )  # fmt: skip


def test_sound_of_another_length_is_told_of_in_the_log(pack, made, caplog):
    nested, model = pack("nodes.host.nested"), made("ltx2")[0]
    nested.check_sound(model, {"samples": torch.zeros(1, 8, 25, 16)}, 25)
    assert not caplog.records
    nested.check_sound(model, {"samples": torch.zeros(1, 8, 250, 16)}, 25)
    assert "The sound has 250 latent frames, 25 frames of video have about 25." in caplog.text


def test_another_model_that_draws_sound_is_refused_by_name(pack):
    model, vae = video_models.model("ltxv"), video_models.vae("ltxv")
    model.model.diffusion_model.audio_patchify_proj = torch.nn.Linear(4, 4)
    prompt = video_models.prompt("ltxv")
    with pytest.raises(ValueError, match=r"LTXV.* draws sound in a latent that this stage does not know"):
        pack("nodes.tiled").TiledDenoise.execute(frames(5), model, vae, prompt, prompt, **{**ENLARGE, "denoise": 0.3})


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_whose_weights_are_swapped_apart_count_as_together(pack, made, kind, monkeypatch):
    model, _, positive, negative = made(kind)
    latent, tiles = video_models.empty(kind, 2, 4, 8)["samples"], pack("nodes.host.tiles")
    both = [*positive, [negative[0][0], {**negative[0][1], "strength": 0.5}]]
    together = drawn(tiled(pack, kind, model), both, negative, latent, cfg=1.0)
    apart = [[lambda cond, i=i: cond and [cond[i]]] for i in range(2)]
    monkeypatch.setattr(tiles, "by_hooks", lambda conds: [[of(cond) for cond in conds] for (of,) in apart])
    for one, other in zip(together, drawn(tiled(pack, kind, model), both, negative, latent, cfg=1.0), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_tiles_within_the_hosts_context_windows(pack, made):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode as Windows

    model, _, positive, negative = made("ltx2")
    windows = Windows.execute(model, 4, 2, "standard_static", 1, False, "pyramid", 2, False).args[0]
    latent = video_models.empty("ltx2", 6, 8, 8, sound=24)["samples"]
    whole = drawn(windows, positive, negative, latent)
    for part, same in zip(whole, drawn(tiled(pack, "ltx2", windows, 16), positive, negative, latent), strict=True):
        assert torch.allclose(part, same, atol=1e-5)
    shown, calls = recorded(pack, windows)
    for part, other in zip(whole, drawn(tiled(pack, "ltx2", shown), positive, negative, latent), strict=True):
        assert other.isfinite().all()
        assert not torch.allclose(part, other, atol=1e-5)
        assert (part - other).norm() < 0.2 * part.norm()
    assert all(call.video.shape[2] < 6 and call.video.shape[-2:] == (4, 4) for call in calls)
    assert all(call.sound.shape[2] < 24 for call in calls)


def test_a_longer_clip_hears_its_own_sound_in_each_context_window(pack, made):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode as Windows

    model, vae, positive, negative = made("ltx2")
    shown, calls = recorded(pack, model)
    windows = Windows.execute(shown, 3, 1, "standard_static", 1, False, "pyramid", 2, False).args[0]
    images, given = frames(33), torch.arange(33.0).view(1, 1, 33, 1).expand(1, 8, 33, 16)
    large = pack("nodes.tiled").TiledDenoise.execute(
        images, windows, vae, positive, negative, sound={"samples": given}, **{**ENLARGE, "denoise": 0.3}
    )
    assert large.args[0].shape == (33, 192, 192, 3)
    assert large.args[0].isfinite().all()
    begins = set()
    for call in calls:
        begin, count = int(call.sound[0, 0, 0, 0]), call.sound.shape[2]
        assert count < 33
        assert torch.equal(call.sound, given[:, :, begin : begin + count])
        assert call.inputs["a_timestep"].abs().max() == 0
        begins.add(begin)
    assert len(begins) > 1
