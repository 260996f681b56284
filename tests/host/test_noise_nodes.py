"""The noise prior's nodes in graphs queued on the real server."""

import pytest
import torch
from graphs import FRAMES, SAMPLER, SEED, SIZE, STEPS, custom, empty, given_noise, ksampler, same, three_ways, windows

from dev.server import QueueError
from vcd_core import noise as core
from vcd_core import plots


@pytest.mark.parametrize("more", [{}, {"gamma_schedule": "0: 0.0, 8: 0.9"}, {"closed_loop": True}])
def test_three_ways_in_give_the_same_frames(bench, tiny, more):
    graph, model, _, positive, negative = tiny()
    ways = three_ways(graph, model, positive, negative, 0.5, **more)
    without = graph.VCD_ApplyNoisePrior(model=model, gamma=0.5 if more else 0.0)
    a, b, c, other = bench.samples(graph, *ways, ksampler(graph, without, positive, negative, empty(graph)))
    assert same(a, b)
    assert torch.equal(b, c)
    assert not same(c, other, 0.1)


def test_three_ways_in_agree_where_a_node_chose_another_latent_format(bench, tiny):
    """Also while the model is loaded as it was, without that node."""
    graph, model, _, positive, negative = tiny()
    told = graph.ModelSamplingContinuousEDM(
        model=model, sampling="edm_playground_v2.5", sigma_max=80.0, sigma_min=0.002
    )
    as_latent, as_noise, as_model = three_ways(graph, told, positive, negative, 0.5)
    stock = ksampler(graph, model, positive, negative, empty(graph), seed=5)
    _, a, b, c = (bench.samples(graph, run) for run in (stock, as_latent, as_noise, as_model))
    assert same(a, b, 1e-4)
    assert torch.equal(b, c)


def test_oldest_host_gives_the_same_frames(bench, oldest_bench, tiny):
    graph, model, _, positive, negative = tiny()
    ways = three_ways(graph, model, positive, negative, 0.5)
    old = oldest_bench.samples(graph, *ways)
    graph, model, _, positive, negative = tiny()
    new = bench.samples(graph, *three_ways(graph, model, positive, negative, 0.5))
    for a, b in zip(old, new, strict=True):
        assert same(a, b)


def test_gamma_zero_is_the_stock_sampler_and_the_patch_stays_on_its_clone(bench, tiny):
    graph, model, _, positive, negative = tiny()
    zero = ksampler(graph, graph.VCD_ApplyNoisePrior(model=model, gamma=0.0), positive, negative, empty(graph))
    half = ksampler(graph, graph.VCD_ApplyNoisePrior(model=model, gamma=0.5), positive, negative, empty(graph))
    stock = ksampler(graph, model, positive, negative, empty(graph))
    zero, half, stock = bench.samples(graph, zero, half, stock)
    assert torch.equal(zero, stock)
    assert not same(half, stock, 0.1)
    near = lambda x: torch.nn.functional.cosine_similarity(x[1:].flatten(1), x[:-1].flatten(1)).mean()  # noqa: E731
    assert near(half) > near(stock) + 0.2


def test_a_second_patch_replaces_the_first(bench, tiny):
    graph, model, _, positive, negative = tiny()
    twice = graph.VCD_ApplyNoisePrior(model=graph.VCD_ApplyNoisePrior(model=model, gamma=0.9), gamma=0.3)
    once = graph.VCD_ApplyNoisePrior(model=model, gamma=0.3)
    a, b = bench.samples(graph, *(ksampler(graph, m, positive, negative, empty(graph)) for m in (twice, once)))
    assert torch.equal(a, b)


STOCHASTIC = [
    "euler_ancestral", "euler_ancestral_cfg_pp", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "ddpm", "lcm", "er_sde", "seeds_2", "seeds_3", "sa_solver",
]  # fmt: skip


@pytest.mark.parametrize("sampler_name", STOCHASTIC)
def test_samplers_that_add_noise_keep_the_prior(bench, tiny, sampler_name):
    graph, model, _, positive, negative = tiny()

    def with_prior(gamma, **changes):
        patched = graph.VCD_ApplyNoisePrior(model=model, gamma=gamma, **changes)
        return ksampler(graph, patched, positive, negative, empty(graph), sampler_name=sampler_name)

    stock = ksampler(graph, model, positive, negative, empty(graph), sampler_name=sampler_name)
    zero, one, start_alone, stock = bench.samples(
        graph, with_prior(0.0), with_prior(1.0), with_prior(1.0, each_step=False), stock
    )
    assert torch.equal(zero, stock)  # the host's own noise, correlated by nothing
    assert same(one, one[:1].expand_as(one))  # without motion, one noise for all makes one frame of all
    assert not same(start_alone, one, tolerance=0.01)


def test_a_second_patch_that_leaves_the_steps_alone_replaces_one_that_did_not(bench, tiny):
    graph, model, _, positive, negative = tiny()
    once = graph.VCD_ApplyNoisePrior(model=model, gamma=0.5, each_step=False)
    twice = graph.VCD_ApplyNoisePrior(
        model=graph.VCD_ApplyNoisePrior(model=model, gamma=0.9), gamma=0.5, each_step=False
    )
    runs = (ksampler(graph, m, positive, negative, empty(graph), sampler_name="euler_ancestral") for m in (once, twice))
    assert torch.equal(*bench.samples(graph, *runs))


def test_partial_denoise_starts_from_the_latent_plus_correlated_noise(bench, tiny):
    graph, model, _, positive, negative = tiny()
    start = graph.VCD_NoisePriorLatent(width=SIZE, height=SIZE, frames=FRAMES, gamma=0.0, seed=5, layout="comfy")
    noise = graph.VCD_NoisePrior(gamma=0.5, seed=SEED, layout="comfy")
    a = custom(graph, model, positive, negative, noise, start, denoise=0.5)
    patched = graph.VCD_ApplyNoisePrior(model=model, gamma=0.5)
    b = ksampler(graph, patched, positive, negative, start, denoise=0.5)
    alone = ksampler(graph, model, positive, negative, start, denoise=0.5)
    a, b, alone = bench.samples(graph, a, b, alone)
    assert same(a, b)
    assert not same(b, alone, 0.1)


def test_no_noise_stays_no_noise(bench, tiny):
    graph, model, _, positive, negative = tiny()
    latent = graph.VCD_NoisePriorLatent(width=SIZE, height=SIZE, frames=4, gamma=0.0, seed=5, layout="comfy")
    runs = [
        graph.KSamplerAdvanced(
            model=m, positive=positive, negative=negative, latent_image=latent, add_noise="disable", noise_seed=1,
            steps=2, cfg=1.0, start_at_step=0, end_at_step=9, return_with_leftover_noise="disable", **SAMPLER,
        )
        for m in (model, graph.VCD_ApplyNoisePrior(model=model, gamma=0.7))
    ]  # fmt: skip
    assert torch.equal(*bench.samples(graph, *runs))


def test_same_seed_same_bits(bench, tiny):
    def once(salt):
        graph, model, _, positive, negative = tiny(prompt=f"a man{' ' * salt}")  # not answered from the cache
        noise = graph.VCD_NoisePrior(gamma=0.2, seed=SEED, layout="comfy")
        return bench.samples(graph, custom(graph, model, positive, negative, noise, empty(graph)))

    assert torch.equal(once(0), once(1))


def picked(graph, index, size=SIZE):
    latent = graph.EmptyLatentImage(width=size, height=size, batch_size=len(index.split(",")))
    return graph.VCDTest_BatchIndex(samples=latent, index=index)


@pytest.mark.parametrize("which", ["bench", "oldest_bench"])
@pytest.mark.parametrize(
    "schedule", ["", "0: 0.2, 8: 0.9", ", ".join(f"{0.02 * (i + 1):g}" for i in range(FRAMES - 1))]
)
def test_a_part_of_a_batch_has_its_part_of_the_clips_noise_in_all_three_ways(request, tiny, which, schedule):
    where = request.getfixturevalue(which)
    graph, model, _, positive, negative = tiny()
    more = {"gamma": 0.6, "gamma_schedule": schedule}
    sigmas = graph.BasicScheduler(model=model, scheduler="normal", steps=STEPS, denoise=1.0)
    size = {"width": SIZE, "height": SIZE, "frames": FRAMES, "layout": "comfy", "seed": SEED}
    clip = graph.VCD_NoisePriorLatent(model=model, sigmas=sigmas, **size, **more)

    def part(samples):
        return graph.LatentFromBatch(samples=samples, batch_index=9, length=4)

    as_latent = graph.KSamplerAdvanced(
        model=model, positive=positive, negative=negative, latent_image=part(clip), add_noise="disable", noise_seed=1,
        steps=STEPS, cfg=4.0, start_at_step=0, end_at_step=1000, return_with_leftover_noise="disable", **SAMPLER,
    )  # fmt: skip
    noise = graph.VCD_NoisePrior(seed=SEED, layout="comfy", **more)
    as_noise = custom(graph, model, positive, negative, noise, part(empty(graph)))
    patched = graph.VCD_ApplyNoisePrior(model=model, **more)
    as_model = ksampler(graph, patched, positive, negative, part(empty(graph)))
    whole = ksampler(graph, patched, positive, negative, empty(graph))
    a, b, c, whole = where.samples(graph, as_latent, as_noise, as_model, whole)
    assert same(a, b)
    assert torch.equal(b, c)
    assert same(whole[9:13], c)


@pytest.mark.parametrize("index", ["4,5,15", "15,4,4,0", "3", "0,0,0", "0,1,2"])
@pytest.mark.parametrize("size", [SIZE, 24])  # of the smaller a frame is no multiple of 16 values
def test_frames_that_were_picked_are_found_in_any_order(bench, tiny, index, size):
    graph, model, _, positive, negative = tiny()
    latent = picked(graph, index, size)
    noise = graph.VCD_NoisePrior(gamma=0.6, seed=SEED, layout="comfy")
    as_noise = custom(graph, model, positive, negative, noise, latent)
    patched = graph.VCD_ApplyNoisePrior(model=model, gamma=0.6)
    whole = custom(graph, model, positive, negative, noise, picked(graph, ",".join(map(str, range(FRAMES))), size))
    a, b, whole = bench.samples(graph, as_noise, ksampler(graph, patched, positive, negative, latent), whole)
    assert torch.equal(a, b)
    assert same(a, whole[[int(i) for i in index.split(",")]], 1e-4)


def test_what_is_added_at_a_step_has_the_covariance_of_the_picked_frames(bench, tiny):
    graph, model, _, positive, negative = tiny()
    frames, patched = [9, 4, 5], graph.VCD_ApplyNoisePrior(model=model, gamma=0.5)
    latent = picked(graph, ",".join(map(str, frames)), 1024)
    noise = bench.samples(graph, given_noise(graph, patched, positive, negative, latent, step=True))
    measured = core.measured_covariance(noise / noise.std())
    assert (measured - core.covariance(10, 0.5)[frames][:, frames]).abs().max() < 0.02


def test_noise_from_elsewhere_is_a_whole_clip_and_a_part_of_a_loop_is_refused(bench, tiny):
    graph, model, _, positive, negative = tiny()
    noise = graph.RandomNoise(noise_seed=1)
    patched = graph.VCD_ApplyNoisePrior(model=graph.VCD_ApplyNoisePrior(model=model, gamma=0.9), gamma=0.5)
    other = graph.VCD_NoisePrior(gamma=0.0, seed=2, layout="magic-me")
    ours = graph.VCD_NoisePrior(gamma=0.5, seed=1, layout="comfy")
    runs = [
        custom(graph, m, positive, negative, n, empty(graph))
        for m, n in ((patched, noise), (model, ours), (patched, other), (model, other))
    ]
    by_model, by_noise, over_other, alone = bench.samples(graph, *runs)
    assert same(by_model, by_noise)
    assert not same(over_other, alone, 0.1)
    looped = graph.VCD_ApplyNoisePrior(model=model, gamma=0.5, closed_loop=True)
    with pytest.raises(QueueError, match="closed_loop needs the length of the whole"):
        bench.samples(graph, ksampler(graph, looped, positive, negative, picked(graph, "4,5,6")))


@pytest.mark.parametrize("which", ["bench", "oldest_bench"])
@pytest.mark.parametrize("frames", [range(48), range(3, 99, 2)], ids=["clip", "part"])
def test_freenoise_leaves_the_prior_in_either_order(request, tiny, which, frames):
    """FreeNoise repeats frames in another order; what reaches the sampler is correlated after that."""
    where = request.getfixturevalue(which)
    graph, model, _, positive, negative = tiny()
    latent = picked(graph, ",".join(map(str, frames)), 1024)

    def prior(model):
        return graph.VCD_ApplyNoisePrior(model=model, gamma=0.5)

    orders = (windows(graph, prior(model), freenoise=True), prior(windows(graph, model, freenoise=True)))
    runs = [given_noise(graph, m, positive, negative, latent) for m in (*orders, windows(graph, model, freenoise=True))]
    behind, before, alone = where.samples(graph, *runs)
    assert torch.equal(behind, before)
    assert same(behind, core.correlate_picked(alone, 0.5, list(frames)))
    noise, expected = behind / behind.std(), 0.5**frames.step
    near = torch.stack([(a * b).mean() for a, b in zip(noise[1:], noise[:-1], strict=True)])
    assert abs(float(near.mean()) - expected) < 0.01
    assert (near - expected).abs().max() < 0.1  # frames that FreeNoise repeats five apart add a little of themselves


def test_latent_is_the_unit_variance_field(bench):
    graph = bench.graph()
    node = graph.VCD_NoisePriorLatent(width=64, height=96, frames=8, gamma=0.3, seed=2, layout="magic-me")
    assert torch.equal(bench.samples(graph, node), core.sample((8, 4, 12, 8), 0.3, 2, "magic-me"))


def test_graphs_with_the_releases_node_run_with_ours_in_its_place(bench):
    graph = bench.graph()
    old = graph.MagicAlbum3DGaussianNoise(width=64, height=64, batch_size=6, seed=3, cov_factor=0.15)
    for node in graph.prompt.values():
        node["_meta"] = {"title": ""}
    graph.prompt["2"] = {"class_type": "VCDTest_Save", "inputs": {"name": "replaced", "value": old}, "_meta": {}}
    entry = bench.server.run(graph.prompt)
    assert entry["outputs"]["2"]["tensor"] == ["replaced"]
    file = bench.server.host.base / "output" / "vcd_tests" / "replaced.pt"
    found = torch.load(file)["samples"]
    file.unlink()
    assert torch.equal(found, core.sample((6, 4, 8, 8), 0.15, 3, "magic-me"))
    listed = bench.server.get("/node_replacements")["MagicAlbum3DGaussianNoise"][0]
    assert listed["new_node_id"] == "VCD_NoisePriorLatent"


def test_preview_shows_what_was_asked_for(bench):
    graph = bench.graph()
    node = graph.VCD_NoisePriorPreview(frames=5, gamma=0.5, seed=7)
    figure, noise = bench.tensors(graph, node, [node[0], 1])
    drawn = core.sample((5, 4, 64, 64), 0.5, 7)
    assert torch.equal(
        noise, (drawn[:, :3] / 4 + 0.5).clamp(0, 1).repeat_interleave(4, 2).repeat_interleave(4, 3).movedim(1, -1)
    )
    sigma = torch.tensor([[0.5 ** abs(m - n) for n in range(5)] for m in range(5)])
    assert figure.shape[-1] == 3
    for left, matrix in ((28, sigma), (500, core.measured_covariance(drawn))):
        assert torch.equal(figure[0, 74 : 74 + 432, left : left + 432], plots.to_tensor(plots.heat_map(matrix, 432))[0])


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("0.1, 0.2 | 0.3", [0.1, 0.2, 0.3]),
        ("0.1\n0.2\n0.3", [0.1, 0.2, 0.3]),
        ("0: 0.1 | 2: 0.3", [0.1, 0.2, 0.3]),
        ("0: 0.5\n2: 0.5", [0.5, 0.5, 0.5]),
    ],
)
def test_schedules_may_be_divided_by_bars_and_lines(bench, schedule, values):
    graph = bench.graph()
    noise = bench.samples(graph, graph.VCD_NoisePriorLatent(**{**LATENT, "gamma_schedule": schedule}))
    assert same(noise, core.sample((4, 4, 8, 8), values, 0))


LATENT = {"width": 64, "height": 64, "frames": 4, "gamma": 0.1, "seed": 0, "layout": "comfy"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 60}, "multiples of 8"),
        ({"frames": 0}, "smaller than min"),
        ({"gamma": 1.5}, "bigger than max"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"gamma_schedule": "0.1, 0.2"}, "2 values.*3 transitions"),
        ({"gamma_schedule": "slow"}, "cannot be read"),
        ({"gamma_schedule": "-4: 0.1, 2: 0.3"}, "whole numbers from 0; found '-4: 0.1'"),
        ({"gamma_schedule": "0: 0.1, 2: 0.3, 2: 0.5"}, "frame 2 after frame 2"),
        ({"gamma_schedule": "0: 0.1", "closed_loop": True}, "closed loop"),
    ],
)
def test_bad_input_is_refused_at_the_node(bench, changes, message):
    graph = bench.graph()
    node = graph.VCD_NoisePriorLatent(**{**LATENT, **changes})
    with pytest.raises(QueueError, match=message):
        bench.tensors(graph, node)


def test_sigmas_without_model_is_refused(bench, tiny):
    graph, model, *_ = tiny()
    sigmas = graph.BasicScheduler(model=model, scheduler="normal", steps=STEPS, denoise=1.0)
    with pytest.raises(QueueError, match="SIGMAS is connected without MODEL"):
        bench.tensors(graph, graph.VCD_NoisePriorLatent(**LATENT, sigmas=sigmas))


def test_a_model_or_a_latent_without_sigmas_gives_unit_noise_of_its_shape(bench, tiny):
    graph, model, *_ = tiny()
    with_model = graph.VCD_NoisePriorLatent(**LATENT, model=model)
    with_latent = graph.VCD_NoisePriorLatent(**{**LATENT, "width": 512, "frames": 9}, latent=empty(graph))
    expected = core.sample((4, 4, 8, 8), 0.1, 0)
    by_model, by_latent = bench.samples(graph, with_model, with_latent)
    assert same(by_model, expected)
    assert same(by_latent, core.sample((FRAMES, 4, SIZE // 8, SIZE // 8), 0.1, 0))


@pytest.mark.parametrize("way", ["model", "noise"])
def test_a_schedule_for_another_clip_length_is_refused_before_sampling(bench, tiny, way):
    graph, model, _, positive, negative = tiny()
    schedule, model = "0.1, 0.2, 0.3", graph.VCDTest_Told(model=model)
    said = bench.listen()
    if way == "model":
        patched = graph.VCD_ApplyNoisePrior(model=model, gamma=0.1, gamma_schedule=schedule)
        node = ksampler(graph, patched, positive, negative, empty(graph))
    else:
        noise = graph.VCD_NoisePrior(gamma=0.1, seed=0, layout="comfy", gamma_schedule=schedule)
        node = custom(graph, model, positive, negative, noise, empty(graph))
    with pytest.raises(QueueError, match=r"3 values.*16 frames.*15 transitions"):
        bench.tensors(graph, node)
    assert "predicts" not in said()
