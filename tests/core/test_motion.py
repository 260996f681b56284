"""Motion modules: the maths against a plain reference, files, placement, refusals."""

import math
from types import SimpleNamespace

import pytest
import torch
from einops import einsum, rearrange
from safetensors.torch import save_file

from dev import random_models
from vcd_core import motion as core
from vcd_core.motion import MotionInfo, MotionModel, build, inspect, merge_lora, read, slots

SMALL = (32, 32, 64, 64)
PREFIX = "down_blocks.2.motion_modules.1"


def small_file(version="v2", seed=0):
    return {k: v.float() for k, v in random_models.motion_state_dict(version, SMALL, seed).items()}


def layer_norm(x, weight, bias):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def reference(state, prefix, x, frames):
    """A motion module written out step by step from the file's tensors."""
    w = {
        k.removeprefix(f"{prefix}.temporal_transformer."): v.double()
        for k, v in state.items()
        if k.startswith(prefix + ".")
    }
    x = x.double()
    groups = rearrange(x, "n (g c) h w -> n g (c h w)", g=32)
    mean, var = groups.mean(-1, keepdim=True), groups.var(-1, keepdim=True, unbiased=False)
    h = rearrange((groups - mean) / (var + 1e-6).sqrt(), "n g (c h w) -> n h w (g c)", h=x.shape[2], w=x.shape[3])
    h = h * w["norm.weight"] + w["norm.bias"]
    h = h @ w["proj_in.weight"].T + w["proj_in.bias"]
    h = rearrange(h, "(b f) h w c -> b h w f c", f=frames)
    block = "transformer_blocks.0."
    for i in range(2):
        a = f"{block}attention_blocks.{i}."
        n = layer_norm(h, w[f"{block}norms.{i}.weight"], w[f"{block}norms.{i}.bias"])
        n = n + w[f"{a}pos_encoder.pe"][0, :frames]
        q, k, v = (rearrange(n @ w[f"{a}to_{p}.weight"].T, "... f (m d) -> ... m f d", m=8) for p in "qkv")
        scores = einsum(q, k, "... i d, ... j d -> ... i j") / math.sqrt(q.shape[-1])
        out = rearrange(scores.softmax(-1) @ v, "... m f d -> ... f (m d)")
        h = h + out @ w[f"{a}to_out.0.weight"].T + w[f"{a}to_out.0.bias"]
    n = layer_norm(h, w[f"{block}ff_norm.weight"], w[f"{block}ff_norm.bias"])
    value, gate = (n @ w[f"{block}ff.net.0.proj.weight"].T + w[f"{block}ff.net.0.proj.bias"]).chunk(2, -1)
    gelu = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    h = h + (value * gelu) @ w[f"{block}ff.net.2.weight"].T + w[f"{block}ff.net.2.bias"]
    h = h @ w["proj_out.weight"].T + w["proj_out.bias"]
    return x + rearrange(h, "b h w f c -> (b f) c h w")


@pytest.mark.parametrize(("clips", "frames"), [(1, 16), (2, 8), (3, 1), (1, 32)])
def test_module_is_the_written_out_maths(clips, frames):
    state = small_file()
    module = build(state).down_blocks[2].motion_modules[1]
    x = torch.randn(clips * frames, 64, 3, 5, generator=torch.Generator().manual_seed(1))
    expected = reference(state, PREFIX, x, frames)
    assert torch.allclose(module(x, frames).double(), expected, atol=1e-4)
    half = module(x, frames, strength=0.5).double()
    assert torch.allclose(half, (x.double() + expected) / 2, atol=1e-4)
    assert torch.equal(module(x, frames, strength=0.0), x)


def test_positions_are_computed_part_by_part_and_in_whatever_parts_the_same(monkeypatch):
    module = build(small_file()).down_blocks[0].motion_modules[0]
    x = torch.randn(32, 32, 5, 4, generator=torch.Generator().manual_seed(0))
    seen = []
    monkeypatch.setattr(module.temporal_transformer, "_along_time", lambda part: (seen.append(len(part)), part)[1])
    monkeypatch.setattr(core, "_positions_at_once", lambda _: 16)
    module(x, 16)
    assert seen == [16, 16, 8]
    monkeypatch.undo()
    whole = module(x, 16)
    monkeypatch.setattr(core, "_positions_at_once", lambda _: 3)
    torch.testing.assert_close(module(x, 16), whole)


@pytest.mark.parametrize(("device", "most"), [("cpu", 1 << 20), ("meta", 1 << 25)])
def test_the_parts_are_as_large_as_the_device_likes_and_never_nothing(device, most):
    for frames, width in ((32, 320), (24, 1280)):
        parts = core._positions_at_once(torch.empty(1, frames, width, device=device))
        assert parts * frames * width <= most < (parts + 1) * frames * width
    for frames, width in ((1, 32), (2, 64)):
        assert 8 * core._positions_at_once(torch.empty(1, frames, width, device=device)) == 1 << 15 < 65536
    assert core._positions_at_once(torch.empty(1, 5000, 1280, device="cpu")) == 1


def test_attention_is_the_fused_kernels():
    q, k, v = torch.randn(3, 37, 16, 64, generator=torch.Generator().manual_seed(0)).unbind()
    split = [rearrange(t, "s f (n d) -> s n f d", n=8) for t in (q, k, v)]
    fused = rearrange(torch.nn.functional.scaled_dot_product_attention(*split), "s n f d -> s f (n d)")
    assert torch.allclose(core.attend(q, k, v), fused, atol=1e-6)


def test_frames_of_a_clip_see_each_other_and_no_other_clip():
    module = build(small_file()).down_blocks[0].motion_modules[0]
    x = torch.randn(8, 32, 2, 2, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[0] = x[0].flip(0)
    difference = (module(x, 4) - module(changed, 4)).abs().flatten(1).amax(1)
    assert (difference[:4] > 1e-6).all()
    assert (difference[4:] == 0).all()


@pytest.mark.parametrize(("version", "frames", "tensors"), [("v1", 24, 560), ("v2", 32, 588), ("v3", 32, 560)])
def test_versions_are_told_apart_and_come_back_whole(version, frames, tensors, tmp_path):
    state = random_models.motion_state_dict(version, SMALL)
    assert len(state) == tensors
    save_file(state, tmp_path / "mm.safetensors")
    again = read(tmp_path / "mm.safetensors")
    assert inspect(again) == MotionInfo(version, SMALL, frames)
    model = build(again)
    assert {k: v.dtype for k, v in model.state_dict().items()} == {k: v.dtype for k, v in state.items()}
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_file_without_position_encoding_gets_the_usual_one():
    """AnimateLCM's."""
    state = small_file("v3")
    bare = {key: value for key, value in state.items() if not key.endswith(".pe")}
    assert inspect(bare) == MotionInfo("v3", SMALL, 64)
    built = build(bare)
    x = torch.randn(16, 32, 2, 2, generator=torch.Generator().manual_seed(0))
    one, other = (model.down_blocks[0].motion_modules[0](x, 16) for model in (built, build(state)))
    assert torch.allclose(one, other, atol=2e-3)  # the file's encoding is in half precision
    built.down_blocks[0].motion_modules[0](torch.zeros(64, 32, 2, 2), 64)


def test_layers_of_a_host_that_have_no_weights_before_they_are_loaded():
    """ComfyUI's are so where it loads models as they are used."""

    class Late(torch.nn.Linear):
        def __init__(self, *sizes, bias=True):
            super().__init__(*sizes, bias=bias)
            self.weight = self.bias = None

        def _load_from_state_dict(self, state, prefix, *_):
            for name in ("weight", "bias"):
                if prefix + name in state:
                    setattr(self, name, torch.nn.Parameter(state[prefix + name]))

    ops = SimpleNamespace(Linear=Late, LayerNorm=torch.nn.LayerNorm, GroupNorm=torch.nn.GroupNorm)
    state = small_file()
    model = build(state, ops=ops)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert len(model.state_dict()) == len(state)
    with pytest.raises(ValueError, match="1 tensors are missing"):
        build(
            {key: value for key, value in state.items() if not key.endswith("mid_block.0.proj_in.weight")}
            | {"x.temporal_transformer": state[f"{PREFIX}.temporal_transformer.norm.bias"]},
            ops=ops,
        )


@pytest.mark.slow
def test_a_full_size_file_comes_back_whole(tmp_path):
    state = random_models.motion_state_dict("v2")
    assert (len(state), round(sum(v.numel() for v in state.values()) / 1e6)) == (588, 454)
    save_file(state, tmp_path / "mm.safetensors")
    model = build(read(tmp_path / "mm.safetensors"))
    assert model.info == MotionInfo("v2", core.SD15_CHANNELS, 32)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_checkpoints_with_prefixes_and_wrappers_are_read(tmp_path):
    state = small_file()
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "mm.ckpt")
    assert set(read(tmp_path / "mm.ckpt")) == set(state)


def test_a_hostile_pickle_is_refused(tmp_path):
    import os

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"state_dict": Hostile()}, tmp_path / "mm.ckpt")
    with pytest.raises(ValueError, match=r"mm\.ckpt cannot be read"):
        read(tmp_path / "mm.ckpt")
    assert not (tmp_path / "owned").exists()


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "aborted.ckpt").touch()
    with pytest.raises(ValueError, match=r"aborted\.ckpt cannot be read"):
        read(tmp_path / "aborted.ckpt")


def test_motion_lora_adds_its_product():
    state = small_file()
    lora = random_models.motion_lora_state_dict(state)
    key = "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_out.0.weight"
    source = key.replace("to_out.0.weight", "processor.to_out_lora.{}.weight")
    merged = merge_lora(state, lora, 0.5)
    expected = state[key] + 0.5 * lora[source.format("up")] @ lora[source.format("down")]
    assert torch.allclose(merged[key], expected, atol=1e-6)
    assert all(torch.equal(v, state[k]) for k, v in merge_lora(state, lora, 0.0).items())
    v3 = {k: v for k, v in state.items() if "mid_block" not in k}
    assert set(merge_lora(v3, lora, 1.0)) == set(v3)
    with pytest.raises(ValueError, match="no AnimateDiff motion LoRA"):
        merge_lora(state, state, 1.0)
    with pytest.raises(ValueError, match="other motion modules"):
        merge_lora(random_models.motion_state_dict("v2", (32, 64, 64, 64)), lora, 1.0)


SPATIAL = {
    f"down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{part}.weight": torch.ones(4, 4)
    for part in ("down", "up")
}


@pytest.mark.parametrize(
    "lora",
    [
        SPATIAL,
        {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.ones(4, 4)},
        {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": torch.ones(4, 4)},
    ],
)
def test_a_lora_for_the_spatial_layers_is_sent_to_the_node_that_loads_it(lora):
    for read_as in (lambda: inspect(lora, "x.ckpt"), lambda: merge_lora(small_file(), lora, 1.0, "x.ckpt")):
        with pytest.raises(
            ValueError, match=r"x\.ckpt is no .*LoRA for the model's own layers.*'Load LoRA'"
        ) as refused:
            read_as()
        assert "choose it as" not in str(refused.value)


def test_of_a_lora_with_temporal_and_spatial_layers_the_temporal_half_is_taken():
    state = small_file()
    lora = random_models.motion_lora_state_dict(state)
    both, alone = merge_lora(state, {**SPATIAL, **lora}, 0.5), merge_lora(state, lora, 0.5)
    assert all(torch.equal(value, both[key]) for key, value in alone.items())
    assert core.spatial_part({**SPATIAL, **lora}) == list(SPATIAL)
    assert core.spatial_part(lora) == []


def test_files_in_the_wrong_place_are_sent_to_the_right_one_and_not_back():
    state = small_file()
    other = {"unet.down_blocks.0.motion_modules.0.temporal_transformer.to_q.lora_A.weight": torch.ones(4, 4)}
    unknown = {**random_models.motion_lora_state_dict(state), "down_blocks.0.motion_modules.0.alpha": torch.ones(1)}
    for said, lora in (
        ("it is a motion module; choose it as motion_module", state),
        ("its layout is another than", other),
        ("other temporal tensors, first down_blocks.0.motion_modules.0.alpha", unknown),
    ):
        with pytest.raises(ValueError, match=f"no AnimateDiff motion LoRA.*{said}"):
            merge_lora(state, lora, 1.0)


class ResBlock(torch.nn.Module):
    def __init__(self, out_channels):
        super().__init__()
        self.out_channels = out_channels


class SpatialTransformer(torch.nn.Module):
    pass


class Upsample(torch.nn.Module):
    pass


class Unet(torch.nn.Module):
    """The skeleton of SD 1.5's UNet: kinds and widths of its layers, nothing else."""

    def __init__(self, widths=SMALL):
        super().__init__()
        s, conv = torch.nn.Sequential, torch.nn.Identity
        inputs = [s(conv())]
        for level, width in enumerate(widths):
            attention = [SpatialTransformer()] if level < 3 else []
            inputs += [s(ResBlock(width), *attention), s(ResBlock(width), *attention)]
            inputs += [s(conv())] if level < 3 else []
        outputs = []
        for level, width in reversed(list(enumerate(widths))):
            attention = [SpatialTransformer()] if level < 3 else []
            for i in range(3):
                up = [Upsample()] if i == 2 and level else []
                outputs.append(s(ResBlock(width), *attention, *up))
        self.input_blocks, self.output_blocks = torch.nn.ModuleList(inputs), torch.nn.ModuleList(outputs)
        self.middle_block = s(ResBlock(widths[-1]), SpatialTransformer(), ResBlock(widths[-1]))


def test_modules_stand_where_animatediff_puts_them():
    unet, model = Unet(), build(small_file())
    placed = list(slots(unet, model))
    assert [module.level for *_, module in placed] == ["down"] * 8 + ["mid"] + ["up"] * 12
    for block, at, module in placed:
        block.insert(at, module)
    kinds = [[type(part).__name__ for part in block] for block in [*unet.input_blocks, *unet.output_blocks]]
    assert [i for i, k in enumerate(kinds[:12]) if "MotionModule" in k] == [1, 2, 4, 5, 7, 8, 10, 11]
    assert kinds[1] == ["ResBlock", "SpatialTransformer", "MotionModule"]
    assert kinds[10] == ["ResBlock", "MotionModule"]
    assert kinds[12 + 2] == ["ResBlock", "MotionModule", "Upsample"]
    assert kinds[12 + 5] == ["ResBlock", "SpatialTransformer", "MotionModule", "Upsample"]
    assert kinds[12 + 11] == ["ResBlock", "SpatialTransformer", "MotionModule"]
    middle = [type(part).__name__ for part in unet.middle_block]
    assert middle == ["ResBlock", "SpatialTransformer", "MotionModule", "ResBlock"]
    assert len(list(slots(Unet(), build(small_file("v3"))))) == 20


@pytest.mark.parametrize("unet", [Unet((32, 64, 64, 64)), torch.nn.Linear(2, 2)])
def test_other_unets_are_refused(unet):
    with pytest.raises(ValueError, match=r"made for blocks of \(32, 32, 64, 64\) channels"):
        list(slots(unet, build(small_file())))


def test_other_files_are_named():
    state = small_file()
    cases = {
        "motion LoRA": random_models.motion_lora_state_dict(state),
        "at 3 resolutions": {k: v for k, v in state.items() if ".3." not in k[:14]},
        "HotshotXL": {"down_blocks.0.temporal_attentions.0.norm.weight": torch.ones(1)},
        "it is a checkpoint": {"model.diffusion_model.out.0.weight": torch.ones(1)},
        "no temporal modules": {"lora_unet_x.alpha": torch.ones(1)},
    }
    for message, tensors in cases.items():
        with pytest.raises(ValueError, match=message):
            inspect(tensors, "x.safetensors")
    del state["up_blocks.1.motion_modules.0.temporal_transformer.norm.weight"]
    with pytest.raises(ValueError, match="not whole: 1 tensors"):
        build(state)


def test_clips_that_do_not_fit_are_refused():
    module = build(small_file("v1")).down_blocks[0].motion_modules[0]
    with pytest.raises(ValueError, match="cannot be divided"):
        module(torch.zeros(10, 32, 2, 2), 4)
    with pytest.raises(ValueError, match=r"32 frames.*at most 24.*Context Windows"):
        module(torch.zeros(32, 32, 2, 2), 32)


def test_a_new_model_leaves_the_unet_unchanged():
    model = MotionModel(MotionInfo("v2", SMALL, 16))
    model.start()
    x = torch.randn(16, 64, 2, 2)
    assert torch.equal(model.mid_block.motion_modules[0](x, 16), x)
