"""AnimateDiff motion modules for SD 1.5 (arXiv 2307.04725): file -> modules, and where they stand in the UNet.

A motion module is a small transformer over time after a block of the UNet: at every position of the feature map the
frames attend to each other. ``MotionModel`` has the names of the original files, so its ``state_dict`` is such a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from . import files
from .words import shown

HEADS, GROUPS = 8, 32
SD15_CHANNELS = (320, 640, 1280, 1280)
Level = Literal["down", "mid", "up"]
_ATTENTION_BATCH = 1 << 15  # fused attention kernels take no more than 65535 sequences at once
_FIRST = "down_blocks.0.motion_modules.0.temporal_transformer"
_ENCODING = ".pos_encoder.pe"
_WIDTH = re.compile(r"down_blocks\.(\d)\.motion_modules\.0\.temporal_transformer\.proj_in\.weight")
_DOWN = "_lora.down.weight"
_LORA = re.compile(r"lora[._](?:down|up|A|B)\b|lora_(?:down|up)\.")
_UNSTATED_FRAMES = 64  # of AnimateLCM, whose file leaves out its position encoding
StateDict = dict[str, torch.Tensor]


class MotionInfo(NamedTuple):
    """What a motion file is."""

    version: Literal["v1", "v2", "v3"]
    channels: tuple[int, ...]  # of the four resolutions, e.g. SD15_CHANNELS
    frames: int  # the longest clip its position encoding covers


class TemporalAttention(nn.Module):
    """Self-attention along time with a position encoding added to its input (not to the residual)."""

    def __init__(self, width: int, frames: int, ops: Any = nn) -> None:
        super().__init__()
        if width % HEADS:
            raise ValueError(f"Motion modules have {HEADS} heads; {width} channels cannot be divided among them.")
        self.to_q = ops.Linear(width, width, bias=False)
        self.to_k = ops.Linear(width, width, bias=False)
        self.to_v = ops.Linear(width, width, bias=False)
        self.to_out = nn.ModuleList([ops.Linear(width, width)])
        self.pos_encoder = nn.Module()
        self.pos_encoder.register_buffer("pe", sinusoid(frames, width)[None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [positions, frames, width] -> the same shape; frame i of any window has position i."""
        pe = self.pos_encoder.pe
        x = x + pe[:, : x.shape[1]].to(x)  # type: ignore[index]
        return self.to_out[0](attend(self.to_q(x), self.to_k(x), self.to_v(x)))


class _GatedLinear(nn.Module):
    def __init__(self, width: int, inner: int, ops: Any) -> None:
        super().__init__()
        self.proj = ops.Linear(width, 2 * inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, width: int, ops: Any) -> None:
        super().__init__()
        self.net = nn.ModuleList([_GatedLinear(width, 4 * width, ops), nn.Identity(), ops.Linear(4 * width, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net[2](self.net[0](x))


class _TemporalBlock(nn.Module):
    def __init__(self, width: int, frames: int, ops: Any) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList([TemporalAttention(width, frames, ops) for _ in range(2)])
        self.norms = nn.ModuleList([ops.LayerNorm(width) for _ in range(2)])
        self.ff = _FeedForward(width, ops)
        self.ff_norm = ops.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, attention in zip(self.norms, self.attention_blocks, strict=True):
            x = x + attention(norm(x))
        return x + self.ff(self.ff_norm(x))


class _TemporalTransformer(nn.Module):
    def __init__(self, width: int, frames: int, ops: Any) -> None:
        super().__init__()
        self.norm = ops.GroupNorm(GROUPS, width, eps=1e-6)
        self.proj_in = ops.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([_TemporalBlock(width, frames, ops)])
        self.proj_out = ops.Linear(width, width)

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        height, width = x.shape[-2:]
        x = rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=frames)
        x = torch.cat([self._along_time(part) for part in x.split(_positions_at_once(x))])
        return rearrange(x, "(b h w) f c -> (b f) c h w", h=height, w=width)

    def _along_time(self, x: torch.Tensor) -> torch.Tensor:
        """Some positions of a clip [positions, frames, width] -> the same shape; none sees another."""
        return self.proj_out(self.transformer_blocks[0](self.proj_in(x)))


def _positions_at_once(x: torch.Tensor) -> int:
    """How many positions of [positions, frames, width] are computed together.

    Inside, each is eight times as large. On a CPU that stays in its cache; elsewhere less memory is taken at once, and
    fused attention takes the sequences of all heads.
    """
    values = 1 << (20 if x.device.type == "cpu" else 25)
    return min(max(1, values // (x.shape[1] * x.shape[2])), _ATTENTION_BATCH // HEADS)


class MotionModule(nn.Module):
    """One motion module: features [clips * frames, C, h, w] -> the same, its branch added with ``strength``."""

    def __init__(self, width: int, frames: int, level: Level, ops: Any = nn) -> None:
        super().__init__()
        self.level, self.frames = level, frames
        self.temporal_transformer = _TemporalTransformer(width, frames, ops)

    def forward(self, x: torch.Tensor, frames: int, strength: float = 1.0) -> torch.Tensor:
        check_frames(x.shape[0], frames, self.frames)
        branch = self.temporal_transformer(x, frames)
        return x + (branch if strength == 1.0 else strength * branch)


class _Resolution(nn.Module):
    def __init__(self, count: int, width: int, frames: int, level: Level, ops: Any) -> None:
        super().__init__()
        self.motion_modules = nn.ModuleList([MotionModule(width, frames, level, ops) for _ in range(count)])


class MotionModel(nn.Module):
    """A file's motion modules: two at each resolution on the way down, three on the way up, one in the middle (v2).

    Args:
        info: version, channels and frames (``inspect`` reads them off a file).
        ops: where ``Linear``, ``LayerNorm`` and ``GroupNorm`` come from; ``torch.nn`` unless a host brings its own.

    Example:
        >>> small = MotionModel(MotionInfo("v2", (32, 32, 64, 64), 24))
        >>> small.mid_block.motion_modules[0](torch.zeros(16, 64, 4, 4), frames=16).shape
        torch.Size([16, 64, 4, 4])
    """

    def __init__(self, info: MotionInfo, ops: Any = nn) -> None:
        super().__init__()
        self.info = info
        widths, frames = info.channels, info.frames
        self.down_blocks = nn.ModuleList([_Resolution(2, width, frames, "down", ops) for width in widths])
        self.up_blocks = nn.ModuleList([_Resolution(3, width, frames, "up", ops) for width in reversed(widths)])
        if info.version == "v2":
            self.mid_block = _Resolution(1, widths[-1], frames, "mid", ops)

    def start(self, seed: int = 0) -> None:
        """Random weights for training from nothing: every branch starts at zero, so the UNet is unchanged at first."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in self.named_parameters():
                if name.endswith("bias") or ".proj_out." in name:
                    value.zero_()
                elif value.ndim == 1:
                    value.fill_(1.0)
                else:
                    value.normal_(0, 1 / math.sqrt(value.shape[1]), generator=generator)


def read(path: str | Path) -> StateDict:
    """The tensors of a motion file or motion LoRA (.safetensors, or .ckpt / .pt / .pth read with ``weights_only``).

    Raises:
        ValueError: a file that cannot be read so, with the reason.
    """
    path = Path(path)
    state, _ = files.read(path, "a motion module")
    entries: dict[str, Any] = state if isinstance(state, dict) else {}
    inner = entries.get("state_dict")
    entries = inner if isinstance(inner, dict) else entries
    tensors = {str(key).removeprefix("module."): value for key, value in entries.items() if torch.is_tensor(value)}
    if not tensors:
        raise ValueError(f"{path.name} holds no tensors; expected an AnimateDiff motion module.")
    return tensors


def inspect(state: StateDict, name: str = "The file") -> MotionInfo:
    """What motion file this is.

    Raises:
        ValueError: it is something else; the message says what.
    """
    widths: dict[int, int] = {}
    for key, value in state.items():
        if (match := _WIDTH.fullmatch(key)) and value.ndim:
            widths[int(match[1])] = value.shape[0]
    if sorted(widths) != [0, 1, 2, 3]:
        raise ValueError(f"{name} is no AnimateDiff motion module for SD 1.5: {_what_is(state, widths)}.")
    if uneven := [width for width in widths.values() if width % GROUPS or not width]:
        raise ValueError(
            f"{name} is no AnimateDiff motion module: it has {uneven[0]} channels, no multiple of {GROUPS}."
        )
    encoding = next((v for key, v in state.items() if key.endswith(_ENCODING) and v.ndim == 3), None)
    frames = _UNSTATED_FRAMES if encoding is None else encoding.shape[1]
    if any(key.startswith("mid_block.") for key in state):
        version: Literal["v1", "v2", "v3"] = "v2"
    else:
        version = "v3" if encoding is None or frames == 32 else "v1"
    return MotionInfo(version, tuple(widths[i] for i in range(4)), frames)


def build(state: StateDict, name: str = "The file", ops: Any = nn, dtype: torch.dtype | None = None) -> MotionModel:
    """The modules of a motion file's tensors, in ``dtype`` (by default the file's).

    Raises:
        ValueError: not such a file (see :func:`inspect`), or tensors that are missing or of another shape.
    """
    info = inspect(state, name)
    state = {key: value for key, value in state.items() if "temporal_transformer" in key}
    with torch.device("meta"):
        model = MotionModel(info, ops)
        expected = MotionModel(info).state_dict()  # a host's layers may have no weights before they are loaded
    left_out = not any(key.endswith(_ENCODING) for key in state)
    encodings = [key for key in expected if left_out and key.endswith(_ENCODING)]
    wrong = [k for k in expected if k not in state and k not in encodings] + [k for k in state if k not in expected]
    wrong += [k for k, v in state.items() if k in expected and _differs(v, expected[k])]
    if wrong:
        raise ValueError(
            f"{name} is not whole: {len(wrong)} tensors are missing, unknown or misshapen, first {shown(wrong[0])}."
        )
    state |= {key: sinusoid(info.frames, expected[key].shape[2])[None] for key in encodings}
    dtype = dtype or state[f"{_FIRST}.proj_in.weight"].dtype
    model.load_state_dict({key: value.to(dtype) for key, value in state.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _differs(value: torch.Tensor, expected: torch.Tensor) -> bool:
    return value.shape != expected.shape or not value.is_floating_point()


def merge_lora(state: StateDict, lora: StateDict, strength: float, name: str = "The file") -> StateDict:
    """A motion file's tensors with a motion LoRA (``v2_lora_*``) added: ``W + strength * up @ down``, in float32.

    Of a LoRA that is also for the model's spatial layers (:func:`spatial_part`) the temporal half is taken.

    Raises:
        ValueError: a file that is no motion LoRA, or one for other modules.
    """
    merged = dict(state)
    temporal = {key: value for key, value in lora.items() if _is_temporal(key)}
    downs = [key for key in temporal if key.endswith(_DOWN)]
    if not downs:
        raise ValueError(f"{name} is no AnimateDiff motion LoRA: {_what_is(lora, {}, lora=True)}.")
    unknown = [k for k in temporal if k not in downs and k.replace(".up.", ".down.") not in downs]
    if unknown:
        raise ValueError(
            f"{name} is no AnimateDiff motion LoRA alone: it has other temporal tensors, first {shown(unknown[0])}."
        )
    for key in downs:
        target = key.replace(".processor.", ".").replace(_DOWN, ".weight").replace("to_out.", "to_out.0.")
        down, up = lora[key], lora.get(key.replace(".down.", ".up."))
        if up is None:
            raise ValueError(f"{name} is not whole: {shown(key)} has no matching up weight.")
        if target.startswith("mid_block.") and target not in state:
            continue  # a LoRA of v2 on a file without a mid block
        if target not in state or not _fits(state[target], up, down):
            raise ValueError(f"{name} is a LoRA for other motion modules: {shown(target)} does not fit.")
        change = strength * (up.float() @ down.float())
        merged[target] = (merged[target].float() + change).to(state[target].dtype)
    return merged


def _fits(weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> bool:
    """Whether the product of a LoRA's two tensors has a weight's shape."""
    floats = up.is_floating_point() and down.is_floating_point()
    return (
        floats and up.ndim == down.ndim == 2 and up.shape[1] == len(down) and weight.shape == (len(up), down.shape[1])
    )


def spatial_part(lora: StateDict) -> list[str]:
    """The tensors of a LoRA that are for the model's own, spatial layers and not for motion modules."""
    return [key for key in lora if "lora" in key and not _is_temporal(key)]


def _is_temporal(key: str) -> bool:
    return "motion_modules" in key or "temporal" in key


def slots(unet: Any, model: Any) -> Iterator[tuple[Any, int, MotionModule]]:
    """Where each motion module goes: (block of the UNet, index to insert at, module).

    After each block with a ResNet layer, before an upsampling; in the middle (v2) after the spatial transformer. On SD
    1.5 that is input blocks 1, 2, 4, 5, 7, 8, 10, 11, the middle block, and all twelve output blocks.

    Raises:
        ValueError: a UNet of another shape than SD 1.5's.
    """
    found = unet_channels(unet)
    if found != model.info.channels:
        raise ValueError(
            f"This model's UNet has blocks of {found or 'another kind'}; the motion module is made for blocks of "
            f"{model.info.channels} channels. Use an SD 1.5 model."
        )
    down = [block for block in unet.input_blocks if _width(block)]
    up = list(unet.output_blocks)
    modules = [module for level in model.down_blocks for module in level.motion_modules]
    for block, module in zip(down, modules, strict=True):
        yield block, len(block), module
    if model.info.version == "v2":
        yield unet.middle_block, 2, model.mid_block.motion_modules[0]
    modules = [module for level in model.up_blocks for module in level.motion_modules]
    for block, module in zip(up, modules, strict=True):
        kinds = [type(part).__name__ for part in block]
        yield block, kinds.index("Upsample") if "Upsample" in kinds else len(block), module


def unet_channels(unet: Any) -> tuple[int, ...] | None:
    """The channels of the four resolutions of an SD 1.5-shaped UNet, or None for any other."""
    inputs, outputs = getattr(unet, "input_blocks", None), getattr(unet, "output_blocks", None)
    if inputs is None or outputs is None or len(inputs) != 12 or len(outputs) != 12:
        return None
    down = [_width(block) for block in inputs]
    up = [_width(block) for block in outputs]
    levels = tuple(down[i] for i in (1, 4, 7, 10))
    even = [w for i in range(4) for w in (levels[i], levels[i])]
    if [w for w in down if w] != even or up != [w for w in reversed(levels) for _ in range(3)]:
        return None
    return levels


def check_frames(batch: int, frames: int, longest: int) -> None:
    """Raise ``ValueError`` unless ``batch`` is whole clips of ``frames`` frames that the position encoding covers."""
    if frames < 1 or batch % frames:
        raise ValueError(f"A batch of {batch} frames cannot be divided into clips of {frames} frames.")
    if frames > longest:
        raise ValueError(
            f"The clip has {frames} frames at once, and this motion module was made for at most {longest}. Put "
            "'Context Windows (Manual)' (dim 0, context length 16) after the model, or make the clip shorter. Where it "
            "is there, lower its context length: newer ComfyUI adds a frame to its windows."
        )


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int = HEADS) -> torch.Tensor:
    """Multi-head attention over [sequences, frames, width], scaled by 1/sqrt(width / heads).

    On a GPU at most 65535 sequences of all heads, which is what fused kernels take.
    """
    q, k, v = (rearrange(t, "s f (n d) -> s n f d", n=heads) for t in (q, k, v))
    # plain products are faster than fused kernels on 16 frames
    product = _plain_attention if q.device.type == "cpu" else F.scaled_dot_product_attention
    return rearrange(product(q, k, v), "s n f d -> s f (n d)")


def _plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.matmul(torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)).softmax(-1), v)


def sinusoid(frames: int, width: int) -> torch.Tensor:
    """The sinusoidal position encoding [frames, width] of AnimateDiff's files."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = torch.arange(frames)[:, None] * rate
    table = torch.zeros(frames, width)
    table[:, 0::2], table[:, 1::2] = angle.sin(), angle.cos()
    return table


def _width(block: Any) -> int:
    """The output channels of a block's ResNet layer, 0 without one."""
    return next((part.out_channels for part in block if type(part).__name__ == "ResBlock"), 0)


def _what_is(state: StateDict, widths: dict[int, int], lora: bool = False) -> str:
    """What a file is that is no motion module, or (``lora``) no motion LoRA."""
    keys = list(state)
    temporal = [key for key in keys if _is_temporal(key)]
    if any(_LORA.search(key) for key in keys):
        if not temporal:
            return (
                "it is a LoRA for the model's own layers (as v3_sd15_adapter is); load it with "
                "'Load LoRA', before this node"
            )
        if lora:
            return f"its layout is another than that of AnimateDiff's (first tensor {shown(temporal[0])})"
        return "it is a motion LoRA; choose it as motion_lora"
    if any("temporal_attentions" in key for key in keys):
        return "it is a HotshotXL module, for SDXL"
    if lora and any(key.endswith(".temporal_transformer.proj_in.weight") for key in keys):
        return "it is a motion module; choose it as motion_module"
    if widths:
        return f"it has motion modules at {len(widths)} resolutions where SD 1.5 has 4 (SDXL has 3)"
    if any(key.startswith("model.diffusion_model.") for key in keys):
        return "it is a checkpoint; load it with CheckpointLoaderSimple"
    if temporal:
        return f"its motion modules have another layout (first tensor {shown(temporal[0])})"
    return f"it has no temporal modules (first tensor {shown(keys[0])})"
