"""Clips of any length and size through any VAE that the host has, and the latents that its models sample."""

from unittest import mock

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tally import INPUTS, count, hard

from dev import video_models

ROUNDING = 1e-6  # of float32 in 0..1


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def lent(module, channels, times, cell, pictures=False):
    """The host's VAE object around one of its own autoencoders at a tiny size."""
    vae = video_models._around(video_models.fill(module, 0), channels, times, cell)
    vae.not_video = pictures
    return vae


def hunyuan15(pictures):
    """HunyuanVideo 1.5's autoencoder, or HunyuanImage 2.1's, which takes clips of one frame."""
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    at = "comfy.ldm.hunyuan_video.vae_refiner."
    sizes = {
        "block_out_channels": [32] * 5, "in_channels": 3, "out_channels": 3, "num_res_blocks": 1, "z_channels": 16,
        "ffactor_spatial": 16, "ffactor_temporal": 4, "downsample_match_channel": True, "upsample_match_channel": True,
    } | ({"refiner_vae": False} if pictures else {})  # fmt: skip
    regularizer = "DiagonalGaussianRegularizer" if pictures else "EmptyRegularizer"
    module = AutoencodingEngine(
        regularizer_config={"target": f"comfy.ldm.models.autoencoder.{regularizer}"},
        encoder_config={"target": f"{at}Encoder", "params": sizes},
        decoder_config={"target": f"{at}Decoder", "params": sizes},
    )
    return lent(module, 16, 4, 16, pictures)


def loaded(module):
    """As the host loads a file of this autoencoder's weights."""
    import comfy.sd

    return comfy.sd.VAE(
        sd=module if isinstance(module, dict) else video_models.fill(module, 0).state_dict(), dtype=torch.float32
    )


def wan_of(channels, made):
    import comfy.ldm.wan.vae

    sizes = {
        "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "temperal_downsample": [False, True, True],
    }  # fmt: skip
    return loaded(comfy.ldm.wan.vae.WanVAE(dim=8, z_dim=16, image_channels=channels, conv_out_channels=made, **sizes))


def small(kind, channels):
    """The small autoencoders for previews, which the host takes as VAEs too."""
    import comfy.taesd.taehv
    import comfy.taesd.taesd

    return loaded({"taesd": comfy.taesd.taesd.TAESD, "taehv": comfy.taesd.taehv.TAEHV}[kind](latent_channels=channels))


@pytest.fixture(scope="module")
def vae_of(pack):
    """``vae_of("ltxv")``: a VAE, made once."""
    pictures = pack("nodes.host.pictures")
    others = {
        "tiny": lambda: pack("nodes.tiny").TinyModel.execute().args[2],
        "pixels": lambda: loaded({"pixel_space_vae": torch.ones(1)}),
        "hunyuan 1.5": lambda: hunyuan15(False),
        "hunyuan image": lambda: hunyuan15(True),
        "wan, layers": lambda: wan_of(4, 4),
        "taesd": lambda: small("taesd", 4),
        "taehv": lambda: small("taehv", 16),
        "taehv 2.2": lambda: small("taehv", 48),
    }
    known = {}

    def make(kind):
        if kind not in known:
            known[kind] = others[kind]() if kind in others else video_models.vae(kind)
            pictures.check_vae(known[kind])
        return known[kind]

    return make


class Progress:
    """What a stage tells of its progress."""

    done = 0

    def advance(self, units=1):
        self.done += units


VAES = (
    *video_models.KINDS, "h3", "tiny", "pixels", "taesd", "taehv", "taehv 2.2", "wan, layers", "hunyuan 1.5",
    "hunyuan image",
)  # fmt: skip
sides = st.integers(1, 50)


@pytest.mark.parametrize("kind", VAES)
@given(frames=st.integers(1, 12), height=sides, width=sides, patch=st.integers(1, 2), large=st.booleans())
@example(frames=2, height=1, width=1, patch=1, large=False)
@example(frames=6, height=33, width=17, patch=2, large=True)
@hard(1, 15)
def test_clips_of_any_size_come_back_as_they_went_in(pack, vae_of, kind, frames, height, width, patch, large):
    """``large``: in tiles, as large pictures are."""
    count(INPUTS)
    pictures, vae, progress = pack("nodes.host.pictures"), vae_of(kind), Progress()
    images = random(frames, height, width, 3)
    codec = pictures.Codec(vae, frames, height, width, patch)
    with torch.inference_mode(), mock.patch.object(pictures, "_large", return_value=large):
        latent = codec.encode(images, progress)
        out = codec.decode(latent, progress)
    assert out.shape == images.shape
    assert out.isfinite().all()
    assert progress.done == 2 * frames
    assert latent.shape[-1] % patch == latent.shape[-2] % patch == 0
    assert latent.ndim != 5 or latent.shape[2] == pictures.latents_of(vae, codec.taken[0])
    if kind == "pixels":
        assert torch.allclose(out, images, atol=ROUNDING)


def test_vaes_that_change_the_size_of_pictures_are_refused(pack):
    check, cascade = pack("nodes.host.pictures").check_vae, wan_of(3, 3)
    cascade.downscale_ratio, cascade.upscale_ratio = 32, 8
    for vae in (cascade, wan_of(3, 12)):
        with pytest.raises(ValueError, match=r"gives pictures back at another size than it gets them.*plain VAE"):
            check(vae)


@pytest.fixture(scope="module")
def models(pack):
    return {kind: video_models.model(kind) for kind in [*video_models.KINDS, "h3"]}


@given(kind=st.sampled_from([*video_models.KINDS, "h3"]), frames=st.integers(1, 500))
@hard(60, 2_000)
def test_a_vae_makes_the_latent_frames_that_its_model_samples(pack, vae_of, models, kind, frames):
    count(INPUTS)
    frames = max(frames, 5) if kind == "h3" else frames  # where its own nodes begin
    pictures, latents, vae = pack("nodes.host.pictures"), pack("nodes.host.latents"), vae_of(kind)
    taken = pictures.frames_taken(vae, frames)
    made = pictures.latents_of(vae, taken)
    assert made == latents.latent_frames(models[kind], frames)
    covered = latents.pictures_covered(models[kind], made)
    assert sum(covered) == taken >= frames
    assert made == 1 or sum(covered[:-1]) < frames or kind == "h3"  # which takes only some numbers of latent frames


@given(
    st.lists(st.lists(st.integers(1, 5), min_size=3, max_size=4), max_size=3), st.integers(0, 3),
    st.tuples(*[st.integers(1, 4)] * 4),
)  # fmt: skip
@hard(60, 2_000)
def test_what_changes_the_video_of_a_latent_leaves_its_other_parts_to_the_bit(pack, others, at, video):
    import comfy.utils

    count(INPUTS)
    latents = pack("nodes.host.latents")
    shapes = [(1, *shape) for shape in others if len(shape) != 4]
    at = min(at, len(shapes))
    shapes.insert(at, (1, *video))
    parts = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
    packed, told = comfy.utils.pack_latents(parts)
    doubled = latents.on_the_video(lambda x, factor: x * factor, told)(packed if len(parts) > 1 else parts[0], 2.0)
    found = comfy.utils.unpack_latents(doubled, told) if len(parts) > 1 else [doubled]
    assert torch.equal(found.pop(at), parts.pop(at) * 2)
    assert all(torch.equal(one, other) for one, other in zip(found, parts, strict=True))
