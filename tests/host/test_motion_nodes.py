"""The motion node in graphs queued on the real server, and beside AnimateDiff-Evolved where that is installed."""

import asyncio
import html
import itertools
import struct
import types

import aiohttp
import pytest
import torch
from graphs import SAMPLER, SIZE, empty, evolved, finished, ksampler, motion, same, three_ways, windows
from served import TINY_CHANNELS

from dev import random_models
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


async def run_and_listen(server, graph):
    """Run a graph; what was written into its nodes, as (class of the node, text)."""
    texts = []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}/ws?clientId=texts") as socket:
        running = asyncio.create_task(asyncio.to_thread(server.run, graph.prompt))
        while not running.done():
            try:
                message = await socket.receive(timeout=0.5)
            except TimeoutError:
                continue
            if message.type is aiohttp.WSMsgType.BINARY and struct.unpack(">I", message.data[:4])[0] == 3:
                (size,) = struct.unpack(">I", message.data[4:8])
                node, text = message.data[8 : 8 + size].decode(), message.data[8 + size :].decode()
                texts.append((graph.prompt[node]["class_type"], text))
        await running
    return texts


def told(where, tiny, chain):
    """What the sampler of ``chain(graph, model)`` is told, and its first sigma."""
    graph, model, _, positive, negative = tiny()
    model = chain(graph, model)
    sigmas = graph.BasicScheduler(model=model, scheduler="simple", steps=4, denoise=1.0)
    first = float(where.tensors(graph, sigmas)[0])
    graph.VCDTest_Save(name="told", value=sample(graph, model, positive, negative, frames=8, seed=next(seeds)))
    texts = finished(run_and_listen(where.server, graph))
    return [text for kind, text in texts if kind == "KSampler"], first


seeds = itertools.count(100)  # what was drawn before is not drawn again


def told_to_sample(graph, model, sampling="lcm", zsnr=False):
    return graph.ModelSamplingDiscrete(model=model, sampling=sampling, zsnr=zsnr)


def edm(graph, model):
    return graph.ModelSamplingContinuousEDM(model=model, sampling="eps", sigma_max=120.0, sigma_min=0.002)


@pytest.mark.parametrize("which", ["bench", "oldest_bench"])
def test_a_node_in_front_of_the_motion_module_samples_at_its_noise_levels(request, tiny, which):
    where = request.getfixturevalue(which)
    _, expected = told(where, tiny, motion)
    _, own = told(where, tiny, lambda graph, model: model)
    assert own < 0.7 * expected
    for sampling in ("lcm", "v_prediction"):
        texts, first = told(
            where, tiny, lambda graph, model, how=sampling: motion(graph, told_to_sample(graph, model, how))
        )
        assert not "".join(texts).strip()
        assert first == expected


@pytest.mark.parametrize("which", ["bench", "oldest_bench"])
@pytest.mark.parametrize(
    "node", [told_to_sample, lambda *args: told_to_sample(*args, "v_prediction", True), edm], ids=["lcm", "zsnr", "edm"]
)
def test_what_replaces_the_beta_schedule_behind_the_motion_module_is_said_in_the_sampler(request, tiny, which, node):
    where = request.getfixturevalue(which)
    texts, _ = told(where, tiny, lambda graph, model: node(graph, motion(graph, model)))
    kind = "ModelSamplingContinuousEDM" if node is edm else "ModelSamplingDiscrete"
    way = "Leave that node out" if node is edm else "Connect that node before 'AnimateDiff Motion Module'"
    assert len(texts) == 1
    assert html.unescape(texts[0]).startswith(f"{kind} replaces the beta_schedule of 'AnimateDiff Motion Module'")
    assert way in html.unescape(texts[0])


def test_what_was_said_in_the_sampler_is_taken_back_when_it_holds_no_more(bench, tiny):
    def mended(graph, model):
        return motion(graph, told_to_sample(graph, model))

    def advised(graph, model):
        return told_to_sample(graph, motion(graph, model, beta_schedule="the model's own"))

    for better in (mended, advised):
        assert told(bench, tiny, lambda graph, model: told_to_sample(graph, motion(graph, model)))[0][0].strip()
        assert told(bench, tiny, better)[0] == [" "]
        assert told(bench, tiny, better)[0] == []


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_compute_dtype_may_be_set_on_either_side(bench, tiny, dtype, version):
    graph, model, _, positive, negative = tiny()
    file = f"test_tiny_{version}.safetensors"
    before = motion(graph, graph.ModelComputeDtype(model=model, dtype=dtype), file)
    behind = graph.ModelComputeDtype(model=motion(graph, model, file), dtype=dtype)
    models = (before, behind, motion(graph, model, file))
    a, b, full = bench.samples(graph, *(sample(graph, m, positive, negative, frames=8) for m in models))
    assert torch.equal(a, b)
    assert not torch.equal(a, full)
    assert same(a, full, 0.1)


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
        assert ("AnimateDiff moves" in said()) == (frames == 5)


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


@pytest.fixture(scope="module")
def here(pack):
    """The tiny model in this process, what it takes to sample it, and to put motion into it."""
    import comfy.sample

    motion_nodes, core, host = pack("nodes.motion"), pack("vcd_core.motion"), pack("nodes.host.model")

    def make(**dtypes):
        model, clip, _ = random_models.tiny_sd15(0, **dtypes)
        texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a man", "")]

        def sample(model, **changes):
            latent = torch.zeros(8, 4, 8, 8)
            options = {"denoise": 1.0, "seed": 3, "disable_pbar": True, **changes}
            noise = comfy.sample.prepare_noise(latent, 3)
            with torch.inference_mode():
                return comfy.sample.sample(model, noise, 1, 4.0, "euler", "normal", *texts, latent, **options)

        def moving(model, version="v1"):
            ops, dtype = host.operations(model)
            state = random_models.motion_state_dict(version, TINY_CHANNELS)
            motion = core.build(state, version, ops, dtype)
            moving = motion_nodes.with_motion(model, motion, 1.0, {"down": 1.0, "mid": 1.0, "up": 1.0})
            return pack("nodes.host.motion").with_beta_schedule(moving, "betas", "sqrt_linear")

        def state():
            named = list(model.model.diffusion_model.named_modules())
            return [(name, type(part).__name__, "forward" in vars(part)) for name, part in named]

        return types.SimpleNamespace(model=model, sample=sample, moving=moving, state=state)

    return make


LOADING = [
    ("model_management", "load_models_gpu"),
    ("model_management.LoadedModel", "model_load"),
    ("model_patcher.ModelPatcher", "model_patches_to"),
    ("model_patcher.ModelPatcher", "partially_load"),
    ("model_patcher.ModelPatcher", "unpatch_model"),
    ("model_patcher.ModelPatcher", "patch_model"),
    ("model_patcher.ModelPatcher", "load"),
    ("model_patcher.ModelPatcher", "patch_weight_to_device"),
    ("model_patcher.ModelPatcher", "unpin_weight"),
    ("model_patcher.ModelPatcher", "inject_model"),
    ("model_patcher.ModelPatcher", "apply_hooks"),
    ("model_patcher.ModelPatcher", "pre_run"),
    ("utils", "set_attr"),
    ("model_base.BaseModel", "apply_model"),
]


@pytest.mark.parametrize(("owner", "name"), LOADING, ids=[name for _, name in LOADING])
def test_whatever_fails_while_loading_the_unet_is_as_it_was(here, monkeypatch, owner, name):
    """The function fails at its first call, and at later ones: with the motion module's weights, then with the
    UNet's."""
    import comfy.model_base
    import comfy.model_management
    import comfy.utils

    tiny = here()
    module, _, kind = owner.partition(".")
    holder = getattr(getattr(comfy, module), kind) if kind else getattr(comfy, module)
    original, before, plain = getattr(holder, name), tiny.state(), tiny.sample(tiny.model)
    moved = tiny.sample(tiny.moving(tiny.model))
    assert tiny.state() == before
    for fails_at in (0, 1, 2, 3, 400, 900):
        calls, failed = itertools.count(), []

        def fail(*arguments, at=fails_at, calls=calls, failed=failed, **named):
            if next(calls) == at:
                failed.append(at)
                raise comfy.model_management.OOM_EXCEPTION("the test's")
            return original(*arguments, **named)

        comfy.model_management.unload_all_models()
        model = tiny.moving(tiny.model)
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, fail)
            try:
                tiny.sample(model)
            except comfy.model_management.OOM_EXCEPTION:
                assert failed
        assert tiny.state() == before
        assert torch.equal(tiny.sample(tiny.model), plain)
        assert torch.equal(tiny.sample(model), moved)
        if not failed:
            break
    assert fails_at > 0


def test_a_model_that_is_loaded_and_does_not_sample_keeps_the_names_of_its_layers(here):
    """By them other branches of the graph patch it, and a checkpoint of it is saved."""
    import comfy.model_management

    tiny = here()
    before = tiny.state()
    moving = tiny.moving(tiny.model)
    comfy.model_management.load_models_gpu([moving, *moving.get_additional_models()])
    assert tiny.state() == before
    assert moving.injections  # the trainer asks


def test_what_another_pack_injects_stays_as_the_host_left_it(here):
    from comfy.patcher_extension import PatcherInjection

    tiny = here()
    moved = tiny.sample(tiny.moving(tiny.model))

    def injected(model):
        model, there = model.clone(), []
        injection = PatcherInjection(lambda owner: there.append(1), lambda owner: there.append(-1))
        model.set_injections("other", [injection])
        return tiny.sample(model), model.is_injected, sum(there)

    _, *alone = injected(tiny.model)
    both, *with_ours = injected(tiny.moving(tiny.model))
    assert alone == with_ours == [True, 1]
    assert torch.equal(both, moved)


@pytest.mark.parametrize(
    ("dtype", "compute", "then"),
    [
        ("float16", None, None),
        ("bfloat16", None, "float32"),
        ("float32", "bfloat16", "float16"),
        ("float8_e4m3fn", "float32", None),
        ("float8_e4m3fn", "bfloat16", "float16"),
    ],
)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_weights_of_any_dtype_compute_in_any(here, dtype, compute, then, version):
    tiny = here(dtype=getattr(torch, dtype), compute=compute and getattr(torch, compute))
    told = tiny.model.clone()
    if then:
        told.set_model_compute_dtype(getattr(torch, then))
    before, behind = tiny.moving(told, version), tiny.moving(tiny.model, version)
    if then:
        behind.set_model_compute_dtype(getattr(torch, then))
    a, b = tiny.sample(before), tiny.sample(behind)
    assert a.isfinite().all()
    assert same(a, b, 0.05)
    assert not same(a, tiny.sample(told), 0.05)


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
        ("../checkpoints/x.safetensors", "is not there"),
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
    moved, still = (
        sample(graph, motion(graph, model, full_size["motion"], strength=s), positive, negative, steps=1, frames=8)
        for s in (1.0, 0.0)
    )
    assert not same(*bench.samples(graph, moved, still), 1e-2)


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
        refine_size=64, crop_factor=2.0, aspect=1.0, feather=4.0, paste_factor=1.6, match_colour=False, which="all",
        index=0,
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
