"""Tiled VCD in graphs queued on the real server."""

import numpy as np
import pytest
import torch
from graphs import FRAMES, SAMPLER, STEPS, ksampler, motion, same, windows

from dev.server import QueueError
from vcd_core import tiled as core

DENOISE = {
    "scale": 2.0, "tile_size": 64, "overlap": 16, "steps": 3, "cfg": 4.0, "sampler_name": "euler",
    "scheduler": "normal", "denoise": 0.3, "gamma": 0.1, "seed": 5,
}  # fmt: skip


def latent(graph, width, height, frames=FRAMES, seed=9):
    return graph.VCD_NoisePriorLatent(width=width, height=height, frames=frames, gamma=0.0, seed=seed, layout="comfy")


def noise(graph, model, width, height, frames=FRAMES):
    """What sampling starts from, as a latent: a part of it can be drawn alone with the noise that it has in the
    whole."""
    sigmas = graph.BasicScheduler(model=model, scheduler="normal", steps=STEPS, denoise=1.0)
    more = {"model": model, "sigmas": sigmas, "layout": "comfy"}
    return graph.VCD_NoisePriorLatent(width=width, height=height, frames=frames, gamma=0.0, seed=9, **more)


def part(graph, samples, x, width=64, height=64):
    return graph.LatentCrop(samples=samples, width=width, height=height, x=x, y=0)


def draw(graph, model, positive, negative, start, last=STEPS):
    """The steps up to ``last`` from a latent as it is."""
    return graph.KSamplerAdvanced(
        model=model, positive=positive, negative=negative, latent_image=start, add_noise="disable", noise_seed=1,
        steps=STEPS, cfg=4.0, start_at_step=0, end_at_step=last, return_with_leftover_noise="disable", **SAMPLER,
    )  # fmt: skip


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


@pytest.mark.parametrize("tile_size", [128, 4096, 0])  # 0: what memory allows, here all
def test_one_tile_is_the_untiled_sampler(bench, tiny, tile_size):
    graph, model, _, positive, negative = tiny()
    source = latent(graph, 128, 96)
    plain = ksampler(graph, model, positive, negative, source)
    tiled = ksampler(graph, patch(graph, model, tile_size, 16), positive, negative, source)
    assert same(*bench.samples(graph, plain, tiled))


SAMPLERS = ["euler", "dpmpp_2m", "heun", "uni_pc"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_tile_is_cut_and_put_back_in_its_place_under_any_sampler(bench, tiny, sampler):
    """What follows from each cell alone comes out as without tiles."""
    graph, model, _, positive, negative = tiny()
    known = graph.VCDTest_KnownAnswer(model=model, places=False)
    ways = ({}, {"shift_grid": True}, {"grid": "moving"})
    patches = [patch(graph, known, 96, 32, **way) for way in ways]
    source = latent(graph, 128, 128, 4)
    plain, *others = bench.samples(
        graph, *(ksampler(graph, m, positive, negative, source, sampler_name=sampler) for m in (known, *patches))
    )
    assert all(same(plain, tiled, 1e-4) for tiled in others)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tiles_are_blended_by_the_weights_of_each_steps_grid(bench, tiny, sampler):
    """The last step's answer is the picture (uni_pc leaves a thousandth of the noise); each tile's is the same
    everywhere."""
    graph, model, _, positive, negative = tiny()
    known = graph.VCDTest_KnownAnswer(model=model, places=True)
    patches = [patch(graph, known, 96, 32), patch(graph, known, 96, 32, shift_grid=True)]
    source = latent(graph, 128, 128, 4)
    found = bench.samples(
        graph, *(ksampler(graph, m, positive, negative, source, sampler_name=sampler) for m in patches)
    )
    answer = torch.arange(144).view(12, 12) / 144
    for samples, shift in zip(found, ((0.0, 0.0), core.shifts(STEPS - 1)), strict=True):
        grid, expected = core.grid(16, 16, 12, 4, shift), torch.zeros(16, 16)
        for tile, weight in zip(grid.tiles, grid.weights, strict=True):
            tile.cut(expected).add_(weight * answer)
        assert same(samples * 0.18215, expected.expand_as(samples), 5e-3 if sampler == "uni_pc" else 1e-5)


def test_all_frames_of_a_tile_move_together(bench, tiny):
    """Without overlap each tile is the clip that its noise gives alone, whichever node comes first."""
    graph, model, _, positive, negative = tiny()
    moved = motion(graph, model)
    start = noise(graph, moved, 128, 64)
    patches = patch(graph, moved, 64, 0), motion(graph, patch(graph, model, 64, 0))
    whole = [draw(graph, m, positive, negative, start) for m in patches]
    halves = [draw(graph, moved, positive, negative, part(graph, start, x)) for x in (0, 64)]
    one, other, left, right = bench.samples(graph, *whole, *halves)
    assert same(one, torch.cat([left, right], -1))
    assert same(one, other)


def test_windows_in_time_and_tiles_in_space_hold_at_once(bench, tiny):
    graph, model, _, positive, negative = tiny()
    moved = windows(graph, motion(graph, model), length=16)
    start = noise(graph, moved, 128, 64, 24)
    late = windows(graph, patch(graph, motion(graph, model), 64, 0), length=16)
    whole = [draw(graph, m, positive, negative, start, 1) for m in (patch(graph, moved, 64, 0), late)]
    halves = [draw(graph, moved, positive, negative, part(graph, start, x), 1) for x in (0, 64)]
    one, other, left, right = bench.samples(graph, *whole, *halves)
    assert one.shape == (24, 4, 8, 16)
    assert same(one, torch.cat([left, right], -1))
    assert same(one, other)


def test_a_masked_prompt_reaches_only_its_tiles(bench, tiny):
    graph, model, _, positive, negative = tiny()
    start = noise(graph, model, 192, 64, 4)
    left = graph.SolidMask(value=1.0, width=64, height=64)
    none = graph.SolidMask(value=0.0, width=192, height=64)
    mask = graph.MaskComposite(destination=none, source=left, x=0, y=0, operation="add")
    person = graph.CLIPTextEncode(clip=[model[0], 1], text="one woman")
    masked = graph.ConditioningSetMask(conditioning=person, mask=mask, strength=1.0, set_cond_area="default")
    there, both = (graph.ConditioningCombine(conditioning_1=positive, conditioning_2=c) for c in (masked, person))
    whole = draw(graph, patch(graph, model, 64, 0), there, negative, start, 1)
    tiles = [
        draw(graph, model, prompt, negative, part(graph, start, x), 1)
        for x, prompt in ((0, both), (64, positive), (128, positive), (0, positive))
    ]
    whole, *tiles, without = bench.samples(graph, whole, *tiles)
    assert same(whole, torch.cat(tiles, -1))
    assert not same(without, tiles[0], 1e-3)


@pytest.mark.parametrize("host", ["bench", "oldest_bench"])
def test_batched_tiles_give_the_same_and_halve_when_memory_runs_out(host, request, tiny):
    bench = request.getfixturevalue(host)
    graph, model, _, positive, negative = tiny()
    source = latent(graph, 128, 128, 4)
    moved = motion(graph, model)
    moving = [
        ksampler(graph, patch(graph, m, 64, 16, grid="moving"), positive, negative, source)
        for m in (moved, graph.VCDTest_ManyTiles(model=moved, most=1000))
    ]
    one = ksampler(graph, patch(graph, moved, 64, 16), positive, negative, source)
    many = ksampler(
        graph, patch(graph, graph.VCDTest_ManyTiles(model=moved, most=1000), 64, 16), positive, negative, source
    )
    short = ksampler(
        graph, patch(graph, graph.VCDTest_ManyTiles(model=moved, most=10), 64, 16), positive, negative, source
    )
    said = bench.listen()
    one, many, short, alone, stacked = bench.samples(graph, one, many, short, *moving)
    graph, model, _, positive, negative = tiny()
    usual = graph.VCDTest_ManyTiles(model=model, most=0)  # the server goes on with one tile at a time
    bench.tensors(graph, ksampler(graph, usual, positive, negative, latent(graph, 64, 64, 1), steps=1))
    assert same(one, many)
    assert same(one, short)
    assert same(alone, stacked)  # tiles of one size together
    assert "refused a batch of 72" in said()


def test_denoise_enlarges_and_draws_anew(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = pictures(graph, vae)
    drawn = denoise(graph, images, model, vae, positive, negative)
    again = denoise(graph, images, model, vae, positive, negative, cfg=4.0 + 1e-9)
    kept = denoise(graph, images, model, vae, positive, negative, denoise=0.0)
    enlarged = graph.ImageScale(image=images, upscale_method="lanczos", width=128, height=128, crop="disabled")
    drawn, again, kept, enlarged = bench.tensors(graph, drawn, again, kept, enlarged)
    assert drawn.shape == (8, 128, 128, 3)
    assert torch.equal(kept, enlarged)
    assert torch.equal(drawn, again)
    assert not same(drawn, kept, 0.1)


def test_the_frame_that_changed_most_is_shown_before_and_after(bench, tiny):
    from PIL import Image

    graph, model, vae, positive, negative = tiny()
    images = pictures(graph, vae)
    node = denoise(graph, images, model, vae, positive, negative)
    large = graph.ImageScale(image=images, upscale_method="lanczos", width=128, height=128, crop="disabled")
    drawn, before = bench.tensors(graph, node, large)
    (shown,) = bench.server.run(graph.prompt)["outputs"][node[0]]["images"]
    with Image.open(bench.server.host.base / "temp" / shown["subfolder"] / shown["filename"]) as file:
        picture = torch.from_numpy(np.asarray(file.convert("RGB")).copy()) / 255
    at = int((drawn - before).abs().flatten(1).mean(1).argmax())
    assert (picture - torch.cat([before[at], drawn[at]], 1)).abs().max() < 0.01


def test_denoise_uses_the_noise_prior(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = pictures(graph, vae)
    ours = denoise(graph, images, model, vae, positive, negative, gamma=0.9, denoise=0.6, scale=1.0)
    applied = graph.VCD_ApplyNoisePrior(model=model, gamma=0.9)
    encoded, usual = graph.VAEEncode(pixels=images, vae=vae), {"seed": DENOISE["seed"], "denoise": 0.6}
    stock, alone = (
        graph.VAEDecode(samples=ksampler(graph, m, positive, negative, encoded, **usual), vae=vae)
        for m in (applied, model)
    )
    ours, stock, alone = bench.tensors(graph, ours, stock, alone)
    assert same(ours, stock)
    assert not same(ours, alone, 0.01)


def test_a_noise_prior_on_the_model_is_not_added_to_the_nodes_own(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = pictures(graph, vae)
    applied = graph.VCD_ApplyNoisePrior(model=model, gamma=0.9)
    a, b = (denoise(graph, images, m, vae, positive, negative, denoise=1.0, scale=1.0) for m in (model, applied))
    a, b = bench.tensors(graph, a, b)
    assert torch.equal(a, b)


def test_a_video_vae_is_refused_before_anything_is_drawn(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images, told = pictures(graph, vae), graph.VCDTest_Told(model=model)
    node = denoise(graph, images, told, graph.VCDTest_VideoVae(vae=vae), positive, negative)
    said = bench.listen()
    with pytest.raises(QueueError, match="VAE and MODEL do not fit"):
        bench.tensors(graph, node)
    assert "predicts" not in said()


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
        ({"tile_size": 70, "overlap": 64}, "multiples of 8 pixels, 64 and 64"),
        ({"tile_size": 56}, "tile_size is 56; expected 64 to 4096, or 0"),
        ({"tile_size": 4104}, "tile_size is 4104; expected 64 to 4096, or 0"),
        ({"tile_size": -8}, "tile_size is -8; expected 64 to 4096, or 0"),
        ({"scale": 0.5}, "smaller than min"),
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
    for value in (0.4, 0.6):
        said = bench.listen()
        images = pictures(graph, vae)
        bench.tensors(graph, denoise(graph, images, model, vae, positive, negative, denoise=value, steps=1))
        assert ("tiles begin to repeat content" in said()) == (value > 0.4)


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
    """Each half is drawn by its prompt (the VAE lets them touch a little); before their enlargement both would lie in
    one tile."""
    graph, model, vae, positive, negative = tiny()
    images = pictures(graph, vae, 128, 64, 2)
    other = graph.CLIPTextEncode(clip=[model[0], 1], text="one woman and another thing entirely")

    def halves(left, right):
        areas = [
            graph.ConditioningSetArea(conditioning=prompt, width=64, height=64, x=x, y=0, strength=1.0)
            for prompt, x in ((left, 0), (right, 64))
        ]
        return graph.ConditioningCombine(conditioning_1=areas[0], conditioning_2=areas[1])

    one, two, twice, both = bench.tensors(
        graph,
        *(
            denoise(graph, images, model, vae, prompt, negative, tile_size=64, overlap=0)
            for prompt in (positive, other, halves(positive, positive), halves(positive, other))
        ),
    )
    assert same(one, twice, 1e-4)
    for alone, place in ((one, slice(0, 112)), (two, slice(144, 256))):
        apart = (one - two)[:, :, place].abs().mean()
        assert (both - alone)[:, :, place].abs().mean() < 0.2 * apart


def test_the_host_makes_room_for_a_tile(bench, tiny):
    graph, model, _, positive, negative = tiny()
    tiled = graph.VCDTest_Told(model=patch(graph, model, 64, 16))
    said = bench.listen()
    bench.samples(graph, ksampler(graph, tiled, positive, negative, latent(graph, 192, 128, 4), steps=1))
    assert "prepares [4, 4, 8, 8]" in said()
    assert "predicts [8, 4, 8, 8]" in said()  # a tile's frames with the prompt and without


def test_a_control_net_is_cut_to_each_tile(bench, tiny):
    graph, model, _, positive, negative = tiny()
    net, start = graph.VCDTest_ControlNet(), noise(graph, model, 192, 64, 2)
    grey, white = (graph.EmptyImage(width=64, height=64, batch_size=1, color=c) for c in (0x808080, 0xFFFFFF))
    base = graph.EmptyImage(width=192, height=64, batch_size=1, color=0x808080)
    hint = graph.ImageCompositeMasked(destination=base, source=white, x=128, y=0, resize_source=False)

    def run(model, hint, start):
        applied = graph.ControlNetApplyAdvanced(
            positive=positive, negative=negative, control_net=net, image=hint, strength=1.0, start_percent=0.0,
            end_percent=1.0,
        )  # fmt: skip
        return draw(graph, model, applied, [applied[0], 1], start, 1)

    tiles = [
        run(model, image, part(graph, start, x)) for x, image in ((0, grey), (64, grey), (128, white), (128, grey))
    ]
    whole, *tiles, other = bench.samples(graph, run(patch(graph, model, 64, 0), hint, start), *tiles)
    assert same(whole, torch.cat(tiles, -1))
    assert not same(tiles[-1], other, 1e-3)
