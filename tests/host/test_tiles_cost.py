"""What tiles spend: hints are encoded once, weights swapped once for each hook group and step; as much memory as there
is where the artist leaves the size to it."""

import pytest
import torch

from dev import random_models

STEPS = 2


@pytest.fixture(scope="module")
def models(pack):
    random_models_dir = pack("nodes.host.files").embedding_folders()
    return random_models.tiny_sd15(0, random_models_dir)


@pytest.fixture
def inference():
    with torch.inference_mode():
        yield


def prompt(pack, models, text):
    return pack("nodes.host.text").encode_text(models[1], text, {})


def sample(pack, models, positive, negative, tile_size=None, frames=2, width=16):
    sampling, model = pack("nodes.host.sampling"), models[0]
    if tile_size is not None:
        model = pack("nodes.tiled").with_tile_grid(model, tile_size, 16)
    noise = torch.randn(frames, 4, 8, width, generator=torch.Generator().manual_seed(3))
    settings = sampling.Sampling(STEPS, 4.0, "euler", "normal", 1.0, 3)
    return sampling.sample(model, noise, positive, negative, torch.zeros_like(noise), settings, lambda *_: None)


class Vae:
    """The tiny model's VAE, counting what it encodes."""

    def __init__(self, vae):
        self.vae, self.sizes = vae, []

    def __getattr__(self, name):
        return getattr(self.vae, name)

    def encode(self, pixels):
        self.sizes.append(tuple(pixels.shape[1:3]))
        return self.vae.encode(pixels)


class OfLatents(torch.nn.Module):
    """A hint's way into a ControlNet that takes latents, as those of SD 3 do."""

    def __init__(self):
        super().__init__()
        self.conv = random_models.fill(torch.nn.Conv2d(4, random_models.TINY_CHANNELS, 1), 1)

    def forward(self, hint, *_):
        return self.conv(hint)


def test_a_control_net_with_a_vae_encodes_its_hint_once(pack, models, inference):
    import comfy.latent_formats

    positive, negative = prompt(pack, models, "a man"), prompt(pack, models, "")
    vae, net = Vae(models[2]), random_models.tiny_controlnet()
    net.control_model.input_hint_block = OfLatents()
    net.latent_format, net.compression_ratio = comfy.latent_formats.SD15(), 1
    hint = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    control = net.copy().set_cond_hint(hint, 1.0, (0.0, 1.0), vae)
    given = [
        [[text, {**options, "control": control, "control_apply_to_uncond": True}]]
        for ((text, options),) in (positive, negative)
    ]
    sample(pack, models, *given, tile_size=64)
    assert vae.sizes == [(64, 128)]


def hooked(pack, models, text, seed):
    """A prompt with a weight hook of its own."""
    import comfy.hooks

    weight = models[0].model.diffusion_model.out[2].weight
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.05
    hooks = comfy.hooks.create_hook_lora({"diffusion_model.out.2.diff": change}, 1.0, 0.0)
    ((encoded, options),) = prompt(pack, models, text)
    return [[encoded, {**options, "hooks": hooks}]]


def test_weights_are_swapped_once_for_each_hook_group_and_step(pack, models, inference, monkeypatch):
    import comfy.model_patcher

    swaps = []
    patch = comfy.model_patcher.ModelPatcher.patch_hooks
    monkeypatch.setattr(
        comfy.model_patcher.ModelPatcher,
        "patch_hooks",
        lambda self, hooks: (swaps.append(hooks), patch(self, hooks))[1],
    )
    positive, negative = hooked(pack, models, "a man", 1), hooked(pack, models, "", 2)
    whole = sample(pack, models, positive, negative)
    usual = len([hooks for hooks in swaps if hooks is not None])
    swaps.clear()
    sample(pack, models, positive, negative, tile_size=64)
    assert len([hooks for hooks in swaps if hooks is not None]) == usual > 0
    plain = sample(pack, models, prompt(pack, models, "a man"), prompt(pack, models, ""))
    assert not torch.allclose(whole, plain, atol=1e-3)  # the hooks change something


def test_prompts_with_hooks_blend_as_without_tiles(pack, models, inference):
    """Two masked prompts with hooks and one for all: a tile as large as the picture, and tiles whose masks are
    constant."""
    left = torch.zeros(1, 64, 128)
    left[:, :, :64] = 1
    one, other = hooked(pack, models, "a man", 1), hooked(pack, models, "a woman", 2)
    one[0][1]["mask"], other[0][1]["mask"] = left, 0.5 + 0.5 * (1 - left)
    negative = prompt(pack, models, "")
    conds = [*one, *other, *prompt(pack, models, "a beach")]
    tiles = pack("nodes.host.tiles")
    by_hooks, found = tiles.by_hooks, []
    grouped = sample(pack, models, conds, negative, tile_size=64)
    tiles.by_hooks = lambda conds: (found.append(len(by_hooks(conds))), [conds])[1]
    try:
        together = sample(pack, models, conds, negative, tile_size=64)
    finally:
        tiles.by_hooks = by_hooks
    assert set(found) == {3}
    assert (grouped - together).abs().max() < 1e-4 * together.abs().max()


@pytest.mark.parametrize("cells", [5, 9, 20, 40])
def test_without_a_size_tiles_are_as_large_as_memory_allows(pack, models, inference, monkeypatch, cells):
    import comfy.model_management

    model, tiled, memory = models[0], pack("nodes.tiled"), pack("nodes.host.memory")
    shape = [2, 4, 8, 32]
    needed = memory.ROOM * model.model.memory_required([2 * shape[0], 4, cells, cells])
    monkeypatch.setattr(comfy.model_management, "minimum_inference_memory", lambda: 0)
    monkeypatch.setattr(model, "model_size", lambda: 0)
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device: needed * 1.01)
    side = min(cells, 32)
    assert tiled.affordable(model, 16, shape) == (8 * side, 16)
    assert tiled.affordable(model, 8 * cells, shape)[1] == side // 2 * 8
    monkeypatch.setattr(model, "model_size", lambda: 10 * needed)  # part of it is kept elsewhere then
    assert tiled.affordable(model, 16, shape)[0] == 8 * max(1, int(cells * 1.01**0.5 / 2))
    monkeypatch.setattr(model, "model_size", lambda: 0)
    text, told = prompt(pack, models, "a man"), []
    grid_of, tell = tiled.with_tile_grid, told.append
    monkeypatch.setattr(tiled, "with_tile_grid", lambda *args: grid_of(*args, tell=tell))
    monkeypatch.setattr(comfy.model_management, "free_memory", lambda *args, **more: [])
    chosen = sample(pack, models, text, text, tile_size=0, width=32)
    assert torch.equal(chosen, sample(pack, models, text, text, tile_size=8 * side, width=32))
    assert len(told) == 2
    assert told[0] == told[1]
    assert f" {8 * side} pixels" in told[0]
