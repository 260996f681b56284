"""The motion node in graphs queued on the real server, and beside AnimateDiff-Evolved where that is installed."""

import pytest
import torch
from graphs import SAMPLER, SIZE, empty, evolved, ksampler, motion, same, three_ways, windows

from dev.server import QueueError


def sample(graph, model, positive, negative, frames=16, **changes):
    latent = graph.EmptyLatentImage(width=64, height=64, batch_size=frames)
    return ksampler(graph, model, positive, negative, latent, **{"steps": 2, "seed": 3, **changes})


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_each_version_moves_the_clip_and_leaves_the_model_as_it_was(bench, tiny, version):
    graph, model, _, positive, negative = tiny()
    before = sample(graph, model, positive, negative)
    moved = sample(graph, motion(graph, model, f"test_tiny_{version}.safetensors"), positive, negative)
    after = sample(graph, model, positive, negative, seed=4)
    again = sample(graph, model, positive, negative, seed=3, cfg=4.0 + 1e-9)
    before, moved, after, again = bench.samples(graph, before, moved, after, again)
    assert (moved - before).abs().mean() > 0.02 * before.abs().mean()
    assert same(before, again)
    assert not same(before, after)


def test_v1_takes_statistics_over_the_clip_where_animatediff_did(bench, tiny):
    """Residual blocks and the output see a clip as one volume; attention, the motion modules' too, sees its frames."""
    graph, model, *_ = tiny()
    v1, v2 = (motion(graph, model, f"test_tiny_{version}.safetensors") for version in ("v1", "v2"))
    pooled, none = bench.tensors(graph, *(graph.VCDTest_PooledNorms(model=one) for one in (v1, v2)))
    during, after = pooled.split("|")
    assert none.strip() == "|"
    assert not after
    assert "out.0" in during.split()
    assert all(name == "out.0" or name.endswith(("in_layers.0", "out_layers.0")) for name in during.split())
    assert len(during.split()) > 20


def test_strength_zero_is_the_model_without_motion(bench, tiny):
    graph, model, _, positive, negative = tiny()
    off = motion(graph, model, strength=0.0, beta_schedule="the model's own")
    a, b = bench.samples(graph, sample(graph, off, positive, negative), sample(graph, model, positive, negative))
    assert same(a, b)


def test_places_have_their_own_scale(bench, tiny):
    graph, model, _, positive, negative = tiny()
    none = motion(graph, model, down_scale=0.0, mid_scale=0.0, up_scale=0.0)
    off = motion(graph, model, strength=0.0)
    down, others, without = (
        motion(graph, model, "test_tiny_down.safetensors", **changes)
        for changes in ({}, {"mid_scale": 0.0, "up_scale": 0.0}, {"down_scale": 0.0})
    )
    mid = motion(graph, model, down_scale=0.0, up_scale=0.0)
    none, off, down, others, without, mid = bench.samples(
        graph, *(sample(graph, m, positive, negative) for m in (none, off, down, others, without, mid))
    )
    assert same(none, off)
    assert same(down, others)
    assert same(without, off)
    assert not same(down, off, 1e-2)
    assert not same(mid, off, 1e-3)


def test_motion_begins_and_ends_within_the_sampling(bench, tiny):
    """Motion up to the middle is two samplers in a row, one with it and one without; and the reverse."""
    graph, model, _, positive, negative = tiny()
    moves, still = motion(graph, model), motion(graph, model, strength=0.0)

    def advanced(model, source, first, last):
        return graph.KSamplerAdvanced(
            model=model, positive=positive, negative=negative, latent_image=source, noise_seed=77, steps=4, cfg=4.0,
            add_noise="disable" if first else "enable", start_at_step=first, end_at_step=last,
            return_with_leftover_noise="disable" if first else "enable", **SAMPLER,
        )  # fmt: skip

    def in_a_row(first, second):
        return advanced(second, advanced(first, empty(graph), 0, 2), 2, 4)

    def whole(**part):
        return ksampler(graph, motion(graph, model, **part), positive, negative, empty(graph), steps=4)

    ends, begins, always, early, late = bench.samples(
        graph, whole(end_percent=0.5), whole(start_percent=0.5), whole(start_percent=0.0, end_percent=1.0),
        in_a_row(moves, still), in_a_row(still, moves),
    )  # fmt: skip
    assert same(ends, early)
    assert same(begins, late)
    assert not same(ends, always, 1e-3)
    graph, model, _, positive, negative = tiny()
    with pytest.raises(QueueError, match=r"start_percent is 0\.6 and end_percent 0\.4"):
        bench.samples(
            graph, sample(graph, motion(graph, model, start_percent=0.6, end_percent=0.4), positive, negative)
        )


def test_the_schedule_keeps_what_the_model_predicts(bench, tiny):
    """A v-prediction model that was told so by ComfyUI's own node stays one."""
    graph, model, _, positive, negative = tiny()
    told = graph.ModelSamplingDiscrete(model=model, sampling="v_prediction", zsnr=False)
    changes = [{"strength": 0.0}, {"strength": 0.0, "beta_schedule": "the model's own"}]
    v, own, stock, eps = bench.samples(
        graph,
        *(sample(graph, motion(graph, told, **change), positive, negative) for change in changes),
        sample(graph, told, positive, negative),
        sample(graph, motion(graph, model, **changes[0]), positive, negative),
    )
    assert same(own, stock)
    assert not same(v, eps, 1e-2)
    assert not same(v, own, 1e-2)  # the betas are AnimateDiff's


def test_a_second_module_replaces_the_first(bench, tiny):
    graph, model, _, positive, negative = tiny()
    twice = motion(graph, motion(graph, model, "test_tiny_v1.safetensors"), "test_tiny_v3.safetensors")
    once = motion(graph, model, "test_tiny_v3.safetensors")
    a, b = bench.samples(graph, *(sample(graph, m, positive, negative) for m in (twice, once)))
    assert same(a, b)


def test_two_clones_with_different_modules_do_not_mix(bench, tiny):
    graph, model, _, positive, negative = tiny()
    v2, v3 = (motion(graph, model, f"test_tiny_{v}.safetensors") for v in ("v2", "v3"))
    first = sample(graph, v2, positive, negative)
    other = sample(graph, v3, positive, negative)
    again = sample(graph, v2, positive, negative, cfg=4.0 + 1e-9)
    first, other, again = bench.samples(graph, first, other, again)
    assert same(first, again)
    assert not same(first, other, 1e-3)


def test_motion_lora_and_its_strength(bench, tiny):
    graph, model, _, positive, negative = tiny()
    lora = {"motion_lora": "test_tiny_lora.safetensors"}
    models = [motion(graph, model), motion(graph, model, **lora, lora_strength=0.0), motion(graph, model, **lora)]
    plain, zero, full = bench.samples(graph, *(sample(graph, m, positive, negative) for m in models))
    assert same(plain, zero)
    assert not same(plain, full, 1e-3)


def test_long_clips_need_context_windows_and_work_with_them(bench, tiny):
    graph, model, _, positive, negative = tiny()
    moved = motion(graph, model, "test_tiny_v1.safetensors")
    apart = windows(graph, moved, length=16, context_overlap=0, causal_window_fix=False)
    long = sample(graph, apart, positive, negative, frames=32)
    whole = sample(graph, windows(graph, moved, length=40), positive, negative, frames=16)
    plain = sample(graph, moved, positive, negative, frames=16)
    long, whole, plain = bench.samples(graph, long, whole, plain)
    assert same(long[:16], plain)  # a window is a clip of its own: the first has the noise of a shorter clip
    assert not same(long[16:], plain, 1e-2)
    assert same(whole, plain)
    graph, model, _, positive, negative = tiny()
    with pytest.raises(QueueError, match=r"40 frames at once.*at most 24.*Context Windows"):
        bench.tensors(
            graph, sample(graph, motion(graph, model, "test_tiny_v1.safetensors"), positive, negative, frames=40)
        )


def test_each_window_sees_the_hints_of_its_frames(bench, tiny):
    graph, model, _, positive, negative = tiny()
    net = graph.VCDTest_ControlNet()
    apart = windows(graph, motion(graph, model), length=8, context_overlap=0, causal_window_fix=False)
    grey, white = (
        graph.EmptyImage(width=SIZE, height=SIZE, batch_size=8, color=colour) for colour in (0x808080, 0xFFFFFF)
    )

    def run(first, second):
        applied = graph.ControlNetApplyAdvanced(
            positive=positive, negative=negative, control_net=net, image=graph.ImageBatch(image1=first, image2=second),
            strength=1.0, start_percent=0.0, end_percent=1.0,
        )  # fmt: skip
        return sample(graph, apart, applied, [applied[0], 1], frames=16)

    usual, early, late = bench.samples(graph, run(grey, grey), run(white, grey), run(grey, white))
    assert torch.equal(usual[8:], early[8:])
    assert not torch.equal(usual[:8], early[:8])
    assert torch.equal(usual[:8], late[:8])
    assert not torch.equal(usual[8:], late[8:])


def test_short_clips_are_warned_of(bench, tiny):
    graph, model, _, positive, negative = tiny()
    for frames in (8, 5):
        said = bench.listen()
        bench.tensors(graph, sample(graph, motion(graph, model), positive, negative, frames=frames))
        assert ("AnimateDiff moves 5 frames" in said()) == (frames == 5)


def test_noise_prior_works_with_motion(bench, tiny):
    graph, model, _, positive, negative = tiny()
    orders = [
        motion(graph, graph.VCD_ApplyNoisePrior(model=model, gamma=0.4)),
        graph.VCD_ApplyNoisePrior(model=motion(graph, model), gamma=0.4),
    ]
    orders.append(motion(graph, model))
    a, b, without = bench.samples(graph, *(sample(graph, m, positive, negative) for m in orders))
    assert same(a, b)
    assert not same(a, without, 1e-2)


def test_oldest_host_gives_the_same_frames(bench, oldest_bench, tiny):
    results = []
    for where in (bench, oldest_bench):
        graph, model, _, positive, negative = tiny()
        nodes = [motion(graph, model, f"test_tiny_{v}.safetensors") for v in ("v1", "v2")]
        results.append(where.samples(graph, *(sample(graph, m, positive, negative) for m in nodes)))
    for a, b in zip(*results, strict=True):
        assert same(a, b)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("test_sdxl.safetensors", "at 3 resolutions where SD 1.5 has 4"),
        ("test_other.safetensors", "no temporal modules"),
        ("test_broken.safetensors", "test_broken.safetensors cannot be read"),
        ("../checkpoints/x.safetensors", "Value not in list"),
    ],
)
def test_other_files_are_refused_by_what_they_are(bench, tiny, file, message):
    graph, model, _, positive, negative = tiny()
    with pytest.raises(QueueError, match=message):
        bench.tensors(graph, sample(graph, motion(graph, model, file), positive, negative))


@pytest.mark.slow
def test_a_full_size_module_is_refused_by_a_small_unet_and_runs_on_a_full_one(bench, tiny, full_size):
    graph, model, _, positive, negative = tiny()
    with pytest.raises(QueueError, match=r"UNet has blocks of \(32, 64, 128, 128\).*320, 640, 1280, 1280"):
        bench.tensors(graph, sample(graph, motion(graph, model, full_size["motion"]), positive, negative))
    graph, model, positive, negative = full(bench, full_size)
    moved = sample(graph, motion(graph, model, full_size["motion"]), positive, negative, steps=1, frames=8)
    assert bench.samples(graph, moved).isfinite().all()


def full(bench, files):
    graph = bench.graph()
    loader = graph.CheckpointLoaderSimple(ckpt_name=files["sd15"])
    positive = graph.CLIPTextEncode(clip=[loader[0], 1], text="a man on the beach")
    negative = graph.CLIPTextEncode(clip=[loader[0], 1], text="")
    return graph, loader, positive, negative


@pytest.mark.slow
def test_the_same_frames_as_animatediff_evolved(bench, ade, full_size):
    graph, model, positive, negative = full(bench, full_size)
    vae = [model[0], 2]
    models = [motion(graph, model, full_size["motion"]), evolved(graph, model, full_size["motion"], 1)]
    models += [evolved(graph, model, full_size["motion"], 2), model]
    frames = [graph.VAEDecode(samples=sample(graph, m, positive, negative), vae=vae) for m in models]
    ours, first, second, still = bench.tensors(graph, *frames, timeout=1800)
    assert (ours - first).abs().mean() < 1 / 255
    assert (ours - second).abs().mean() < 1 / 255
    assert (ours - still).abs().mean() > 2 / 255


@pytest.mark.slow
@pytest.mark.parametrize("generation", [1, 2])
def test_the_noise_prior_under_animatediff_evolved(bench, ade, full_size, generation):
    graph, model, positive, negative = full(bench, full_size)
    moved = evolved(graph, model, full_size["motion"], generation)
    a, b, c = bench.samples(graph, *three_ways(graph, moved, positive, negative, 0.5))
    assert same(a, b, 1e-3)
    assert same(b, c, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("generation", [1, 2])
def test_face_and_tiled_under_animatediff_evolved_and_its_windows(bench, ade, full_size, generation):
    graph, model, positive, negative = full(bench, full_size)
    vae = [model[0], 2]
    moved = evolved(graph, model, full_size["motion"], generation, context=8)
    images = graph.VCDTest_World(framing="close-up", action="standing", people=1, seed=2, frames=12)
    sampling = {"cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "gamma": 0.1, "seed": 1, "steps": 1}
    face = graph.VCD_FaceRefine(
        images=images, model=moved, vae=vae, positive=positive, negative=negative, **sampling, denoise=0.8,
        refine_size=64, crop_factor=2.0, aspect=1.0, feather=4.0, paste_factor=1.6, match_colour=False, which="all", index=0,
    )  # fmt: skip
    tiled = graph.VCD_TiledDenoise(
        images=images, model=moved, vae=vae, positive=positive, negative=negative, **sampling, denoise=0.3, scale=1.0,
        tile_size=80, overlap=16,
    )  # fmt: skip
    images, face, tiled = bench.tensors(graph, images, face, tiled, timeout=1800)
    for result in (face, tiled):
        assert result.shape == images.shape
        assert result.isfinite().all()
        assert (result - images).abs().mean() > 0.005
