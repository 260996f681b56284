"""Tiled VCD in graphs queued on the real server."""

import pytest
import torch
from graphs import FRAMES, ksampler, motion, same, windows

from dev.server import QueueError

DENOISE = {
    "scale": 2.0, "tile_size": 64, "overlap": 16, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal",
    "denoise": 0.3, "gamma": 0.1, "seed": 5,
}  # fmt: skip


def latent(graph, width, height, frames=FRAMES, seed=9):
    return graph.VCD_NoisePriorLatent(width=width, height=height, frames=frames, gamma=0.0, seed=seed, layout="comfy")


def patch(graph, model, tile_size, overlap, **more):
    return graph.VCD_TiledPatch(model=model, tile_size=tile_size, overlap=overlap, **more)


def pictures(graph, vae, width=64, height=64, frames=8):
    return graph.VAEDecode(samples=latent(graph, width, height, frames), vae=vae)


def denoise(graph, images, model, vae, positive, negative, **changes):
    inputs = {**DENOISE, **changes}
    return graph.VCD_TiledDenoise(images=images, model=model, vae=vae, positive=positive, negative=negative, **inputs)


@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral"])
def test_gamma_holds_at_each_step(bench, tiny, sampler_name):
    graph, model, vae, positive, negative = tiny()
    still = graph.RepeatImageBatch(image=pictures(graph, vae, frames=1), amount=4)
    inputs = (graph, still, model, vae, positive, negative)
    one, apart = bench.tensors(
        graph, *(denoise(*inputs, gamma=gamma, denoise=0.6, sampler_name=sampler_name) for gamma in (1.0, 0.0))
    )
    assert same(one, one[:1].expand_as(one))  # the same picture and one noise for all
    assert not same(apart, apart[:1].expand_as(apart), tolerance=0.01)


@pytest.mark.parametrize("tile_size", [128, 4096])
def test_one_tile_is_the_untiled_sampler(bench, tiny, tile_size):
    graph, model, _, positive, negative = tiny()
    source = latent(graph, 128, 96)
    plain = ksampler(graph, model, positive, negative, source)
    tiled = ksampler(graph, patch(graph, model, tile_size, 16), positive, negative, source)
    assert same(*bench.samples(graph, plain, tiled))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "uni_pc"])
def test_tiles_run_under_any_sampler_and_stay_near_the_whole(bench, tiny, sampler):
    graph, model, _, positive, negative = tiny()
    source = latent(graph, 128, 128, 4)
    settings = {"sampler_name": sampler, "denoise": 0.3}
    plain = ksampler(graph, model, positive, negative, source, **settings)
    tiled = ksampler(graph, patch(graph, model, 96, 32), positive, negative, source, **settings)
    shifted = ksampler(graph, patch(graph, model, 96, 32, shift_grid=True), positive, negative, source, **settings)
    plain, tiled, shifted = bench.samples(graph, plain, tiled, shifted)
    size = plain.abs().mean()
    assert 1e-4 * size < (tiled - plain).abs().mean() < 0.5 * size
    assert 1e-4 * size < (shifted - tiled).abs().mean() < 0.5 * size


def test_all_frames_of_a_tile_move_together(bench, tiny):
    graph, model, _, positive, negative = tiny()
    source = latent(graph, 96, 64)
    whole = ksampler(graph, motion(graph, model), positive, negative, source)
    tiled = ksampler(graph, patch(graph, motion(graph, model), 64, 16), positive, negative, source)
    other = ksampler(graph, motion(graph, patch(graph, model, 64, 16)), positive, negative, source)
    whole, tiled, other = bench.samples(graph, whole, tiled, other)
    assert same(tiled, other)
    assert tiled.isfinite().all()


def test_windows_in_time_and_tiles_in_space_hold_at_once(bench, tiny):
    graph, model, _, positive, negative = tiny()
    source = latent(graph, 96, 64, 24)
    tiled = patch(graph, windows(graph, motion(graph, model), length=16), 64, 16)
    out = ksampler(graph, tiled, positive, negative, source, steps=1)
    late = windows(graph, patch(graph, motion(graph, model), 64, 16), length=16)
    other = ksampler(graph, late, positive, negative, source, steps=1)
    out, other = bench.samples(graph, out, other)
    assert out.shape == (24, 4, 8, 12)
    assert same(out, other)


def test_a_masked_prompt_reaches_only_its_tiles(bench, tiny):
    graph, model, _, positive, negative = tiny()
    clip = [model[0], 1]
    source = latent(graph, 192, 64, 4)
    left = graph.SolidMask(value=1.0, width=64, height=64)
    none = graph.SolidMask(value=0.0, width=192, height=64)
    mask = graph.MaskComposite(destination=none, source=left, x=0, y=0, operation="add")

    def run(text):
        person = graph.CLIPTextEncode(clip=clip, text=text)
        masked = graph.ConditioningSetMask(conditioning=person, mask=mask, strength=1.0, set_cond_area="default")
        both = graph.ConditioningCombine(conditioning_1=positive, conditioning_2=masked)
        return ksampler(graph, patch(graph, model, 64, 0), both, negative, source, steps=1)

    a, b = bench.samples(graph, run("one woman"), run("another thing entirely"))
    assert (a[..., :8] - b[..., :8]).abs().mean() > 1e-5 * a.abs().mean()
    assert torch.equal(a[..., 8:], b[..., 8:])


@pytest.mark.parametrize("host", ["bench", "oldest_bench"])
def test_batched_tiles_give_the_same_and_halve_when_memory_runs_out(host, request, tiny):
    bench = request.getfixturevalue(host)
    graph, model, _, positive, negative = tiny()
    source = latent(graph, 128, 128, 4)
    moved = motion(graph, model)
    one = ksampler(graph, patch(graph, moved, 64, 16), positive, negative, source)
    many = ksampler(
        graph, patch(graph, graph.VCDTest_ManyTiles(model=moved, most=1000), 64, 16), positive, negative, source
    )
    short = ksampler(
        graph, patch(graph, graph.VCDTest_ManyTiles(model=moved, most=10), 64, 16), positive, negative, source
    )
    one, many, short = bench.samples(graph, one, many, short)
    graph, model, _, positive, negative = tiny()
    usual = graph.VCDTest_ManyTiles(model=model, most=0)  # the server goes on with one tile at a time
    bench.tensors(graph, ksampler(graph, usual, positive, negative, latent(graph, 64, 64, 1), steps=1))
    assert same(one, many)
    assert same(one, short)
    assert "refused a batch of 72" in bench.server.log_tail(400)


def test_denoise_enlarges_and_draws_anew(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = pictures(graph, vae)
    drawn = denoise(graph, images, model, vae, positive, negative)
    again = denoise(graph, images, model, vae, positive, negative, cfg=4.0 + 1e-9)
    kept = denoise(graph, images, model, vae, positive, negative, denoise=0.0)
    source, drawn, again, kept = bench.tensors(graph, images, drawn, again, kept)
    assert drawn.shape == kept.shape == (8, 128, 128, 3)
    assert torch.allclose(drawn, again, atol=1e-5)
    enlarged = torch.nn.functional.interpolate(source.movedim(-1, 1), scale_factor=2, mode="bicubic").movedim(1, -1)
    assert (kept - enlarged).abs().mean() < 0.02
    assert (drawn - kept).abs().mean() > 0.01
    assert drawn.isfinite().all()


def test_denoise_uses_the_noise_prior(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = pictures(graph, vae)
    a, b = (denoise(graph, images, model, vae, positive, negative, gamma=g, denoise=1.0, scale=1.0) for g in (0.0, 0.9))
    a, b = bench.tensors(graph, a, b)
    change = lambda x: (x[1:] - x[:-1]).abs().mean()  # noqa: E731
    assert change(b) < 0.8 * change(a)


def test_a_noise_prior_on_the_model_is_not_added_to_the_nodes_own(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = pictures(graph, vae)
    applied = graph.VCD_ApplyNoisePrior(model=model, gamma=0.9)
    a, b = (denoise(graph, images, m, vae, positive, negative, denoise=1.0, scale=1.0) for m in (model, applied))
    a, b = bench.tensors(graph, a, b)
    assert torch.equal(a, b)


def test_a_video_vae_is_refused_before_anything_is_drawn(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = pictures(graph, vae)
    node = denoise(graph, images, model, graph.VCDTest_VideoVae(vae=vae), positive, negative)
    with pytest.raises(QueueError, match="VAE and MODEL do not fit"):
        bench.tensors(graph, node)


def test_sizes_that_are_no_multiple_of_eight_keep_their_size(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = graph.ImageScale(
        image=pictures(graph, vae), upscale_method="bilinear", width=50, height=70, crop="disabled"
    )
    out = denoise(graph, images, model, vae, positive, negative, scale=1.5)
    assert bench.tensors(graph, out).shape == (8, 105, 75, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlap": 64}, "overlap must be smaller"),
        ({"tile_size": 68}, "multiples of 8"),
        ({"scale": 0.5}, "scale|smaller than min"),
        ({"gamma": float("nan")}, "gamma is nan"),
    ],
)
def test_bad_input_is_refused(bench, tiny, changes, message):
    graph, model, vae, positive, negative = tiny()
    with pytest.raises(QueueError, match=message):
        bench.tensors(graph, denoise(graph, pictures(graph, vae), model, vae, positive, negative, **changes))


def test_conditioning_for_another_clip_is_refused(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    rows = graph.VCDTest_Rows(conditioning=positive, rows=5)
    with pytest.raises(QueueError, match="positive has 5 rows, but the clip has 8 frames"):
        bench.tensors(graph, denoise(graph, pictures(graph, vae), model, vae, rows, negative))


def test_a_high_denoise_is_warned_of(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    bench.tensors(graph, denoise(graph, pictures(graph, vae), model, vae, positive, negative, denoise=0.6, steps=1))
    assert "begin to repeat content" in bench.server.log_tail(60)


def test_an_upscale_model_enlarges_and_makes_its_tiles_smaller_when_memory_runs_out(bench, tiny):
    for most in (9999, 130):
        graph, model, vae, positive, negative = tiny()
        images = pictures(graph, vae, 160, 96, 4)
        up = graph.VCDTest_Upscaler(most=most)
        kept = denoise(graph, images, model, vae, positive, negative, denoise=0.0, upscale_model=up)
        source, large = bench.tensors(graph, images, kept)
        assert torch.allclose(large, source.repeat_interleave(2, 1).repeat_interleave(2, 2), atol=1e-5)
    graph, model, vae, positive, negative = tiny()
    images = pictures(graph, vae, 160, 96, 4)
    none = graph.VCDTest_Upscaler(most=8)
    with pytest.raises(QueueError, match="ran out of memory even on 128-pixel tiles"):
        bench.tensors(graph, denoise(graph, images, model, vae, positive, negative, denoise=0.0, upscale_model=none))


def test_areas_are_places_in_the_clip(bench, tiny):
    """Two halves with one prompt are the prompt; before their enlargement they would leave most of the picture without one."""
    graph, model, vae, positive, negative = tiny()
    images = pictures(graph, vae, 128, 64, 2)
    halves = [
        graph.ConditioningSetArea(conditioning=positive, width=64, height=64, x=x, y=0, strength=1.0) for x in (0, 64)
    ]
    both = graph.ConditioningCombine(conditioning_1=halves[0], conditioning_2=halves[1])
    sizes = {"tile_size": 64, "overlap": 0}
    one, two = bench.tensors(
        graph,
        denoise(graph, images, model, vae, positive, negative, **sizes),
        denoise(graph, images, model, vae, both, negative, **sizes),
    )
    assert same(one, two, 1e-4)


def test_the_host_makes_room_for_a_tile(bench, tiny):
    graph, model, _, positive, negative = tiny()
    tiled = graph.VCDTest_Prepared(model=patch(graph, model, 64, 16))
    bench.samples(graph, ksampler(graph, tiled, positive, negative, latent(graph, 192, 128, 4), steps=1))
    assert "prepares [4, 4, 8, 8]" in bench.server.log_tail(40)


def test_a_control_net_is_cut_to_each_tile(bench, tiny):
    graph, model, _, positive, negative = tiny()
    net = graph.VCDTest_ControlNet()
    source = latent(graph, 192, 64, 2)

    def run(colour, tile_size):
        base = graph.EmptyImage(width=192, height=64, batch_size=1, color=0x808080)
        right = graph.EmptyImage(width=64, height=64, batch_size=1, color=colour)
        hint = graph.ImageCompositeMasked(destination=base, source=right, x=128, y=0, resize_source=False)
        applied = graph.ControlNetApplyAdvanced(
            positive=positive, negative=negative, control_net=net, image=hint, strength=1.0, start_percent=0.0,
            end_percent=1.0,
        )  # fmt: skip
        both = (applied, [applied[0], 1])
        return ksampler(graph, patch(graph, model, tile_size, 0), *both, source, steps=1)

    white, black, whole = bench.samples(graph, run(0xFFFFFF, 64), run(0x000000, 64), run(0xFFFFFF, 192))
    assert torch.equal(white[..., :16], black[..., :16])
    assert (white[..., 16:] - black[..., 16:]).abs().mean() > 1e-4 * white.abs().mean()
    assert whole.shape == white.shape
