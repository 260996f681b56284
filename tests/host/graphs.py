"""Pieces of graphs in API form that several tests build on."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

FRAMES, SIZE, STEPS, SEED = 16, 64, 3, 77
SAMPLER = {"sampler_name": "euler", "scheduler": "normal"}


def same(a, b, tolerance=1e-5):
    """Equal up to ``tolerance`` of their own size: latents of random weights run to a hundred.

    Neither equal nor different are shapes that do not fit, and what is not finite.
    """
    assert a.shape == b.shape, f"{list(a.shape)} and {list(b.shape)} are not to be compared"
    assert a.isfinite().all(), "the first is not finite"
    assert b.isfinite().all(), "the second is not finite"
    return float((a - b).abs().max()) < tolerance * float(a.abs().max())


def empty(graph, frames=FRAMES):
    return graph.EmptyLatentImage(width=SIZE, height=SIZE, batch_size=frames)


def custom(graph, model, positive, negative, noise, latent, denoise=1.0):
    """SamplerCustomAdvanced with the same steps as ``ksampler``."""
    sigmas = graph.BasicScheduler(model=model, scheduler="normal", steps=STEPS, denoise=denoise)
    guider = graph.CFGGuider(model=model, positive=positive, negative=negative, cfg=4.0)
    sampler = graph.KSamplerSelect(sampler_name="euler")
    return graph.SamplerCustomAdvanced(noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent)


def ksampler(graph, model, positive, negative, latent, **changes):
    inputs = {"seed": SEED, "steps": STEPS, "cfg": 4.0, "denoise": 1.0, **SAMPLER, **changes}
    return graph.KSampler(model=model, positive=positive, negative=negative, latent_image=latent, **inputs)


def three_ways(graph, model, positive, negative, gamma, **more):
    """The noise prior as LATENT, as NOISE and on the MODEL, with the same seed and sampler."""
    sigmas = graph.BasicScheduler(model=model, scheduler="normal", steps=STEPS, denoise=1.0)
    size = {"width": SIZE, "height": SIZE, "frames": FRAMES, "layout": "comfy"}
    scaled = graph.VCD_NoisePriorLatent(model=model, sigmas=sigmas, gamma=gamma, seed=SEED, **size, **more)
    as_latent = graph.KSamplerAdvanced(
        model=model, positive=positive, negative=negative, latent_image=scaled, add_noise="disable", noise_seed=1,
        steps=STEPS, cfg=4.0, start_at_step=0, end_at_step=1000, return_with_leftover_noise="disable", **SAMPLER,
    )  # fmt: skip
    noise = graph.VCD_NoisePrior(gamma=gamma, seed=SEED, layout="comfy", **more)
    as_noise = custom(graph, model, positive, negative, noise, empty(graph))
    patched = graph.VCD_ApplyNoisePrior(model=model, gamma=gamma, **more)
    as_model = ksampler(graph, patched, positive, negative, empty(graph))
    return as_latent, as_noise, as_model


def given_noise(graph, model, positive, negative, latent, step=False):
    """The noise that a sampler of ``model`` is given to start from (of unit variance), or with ``step`` to add at a
    step."""
    sigmas = graph.BasicScheduler(model=model, scheduler="normal", steps=STEPS, denoise=1.0)
    return graph.SamplerCustom(
        model=model, positive=positive, negative=negative, latent_image=latent, sigmas=sigmas, cfg=1.0, add_noise=True,
        noise_seed=SEED, sampler=graph.VCDTest_NoiseSampler(step=step),
    )  # fmt: skip


def windows(graph, model, length=16, **changes):
    """The host's context windows over frames along the batch."""
    inputs = {
        "context_overlap": 4, "context_schedule": "standard_static", "context_stride": 1, "closed_loop": False,
        "fuse_method": "pyramid", "dim": 0, "freenoise": False, "cond_retain_index_list": "",
        "split_conds_to_windows": False, "latent_retain_index_list": "", "causal_window_fix": True, **changes,
    }  # fmt: skip
    return graph.ContextWindowsManual(model=model, context_length=length, **inputs)


def motion(graph, model, file="test_tiny_v2.safetensors", **changes):
    inputs = {"strength": 1.0, "beta_schedule": "linear (AnimateDiff)", **changes}
    return graph.VCD_MotionModule(model=model, motion_module=file, **inputs)


def evolved(graph, model, file, generation, context=None):
    """AnimateDiff-Evolved's loaders, first and second generation, with their defaults; ``context``: its own windows."""
    more = {}
    if context:
        options = graph.ADE_StandardStaticContextOptions(context_length=context, context_overlap=4)
        more["context_options"] = options
    if generation == 1:
        return graph.ADE_AnimateDiffLoaderGen1(model=model, model_name=file, beta_schedule="autoselect", **more)
    loaded = graph.ADE_LoadAnimateDiffModel(model_name=file)
    applied = graph.ADE_ApplyAnimateDiffModelSimple(motion_model=loaded)
    return graph.ADE_UseEvolvedSampling(model=model, beta_schedule="autoselect", m_models=applied, **more)


def finished(coroutine):
    """What a coroutine gives, run in a thread of its own: the page's tests leave a loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
