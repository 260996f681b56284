"""Gradients through the host's models, whose code and kernels are made for sampling."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import torch
import torch.utils._pytree as tree
import torch.utils.checkpoint
from torch.nn.grad import conv2d_input

from .model import Model
from .motion import blocks

try:  # the host's compiled kernels; older hosts have none
    import comfy.quant_ops
    from comfy_kitchen.backends import eager
except ImportError:
    eager = None


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Let gradients be taken in a node, which runs in inference mode; they are the same each time."""
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with torch.inference_mode(False), torch.enable_grad(), _the_hosts_own_training():
            yield
    finally:
        torch.backends.cudnn.deterministic = deterministic


@contextlib.contextmanager
def _the_hosts_own_training() -> Iterator[None]:
    """What the host's own training node switches, and its kernels that have no gradient in PyTorch's operations."""
    with contextlib.ExitStack() as stack:
        if hasattr(comfy.model_management, "in_training"):
            stack.callback(setattr, comfy.model_management, "in_training", comfy.model_management.in_training)
            comfy.model_management.in_training = True
        kernels = getattr(comfy.quant_ops, "ck", None) if eager is not None else None
        if kernels is not None:
            stack.callback(setattr, comfy.quant_ops, "ck", kernels)
            comfy.quant_ops.ck = _Eager(kernels)
        yield


class _Eager:
    """The host's kernels; those that turn and norm queries and keys as it writes them in PyTorch's operations."""

    def __init__(self, kernels: Any) -> None:
        self.kernels = kernels

    def __getattr__(self, name: str) -> Any:
        plain = getattr(eager, name, None) if "rope" in name else None
        return getattr(self.kernels, name) if plain is None else plain


def attention(_: Any, *arguments: Any, **named: Any) -> torch.Tensor:
    """PyTorch's attention in place of what ComfyUI was started with, which may be for sampling only (SageAttention)."""
    found: torch.Tensor = comfy.ldm.modules.attention.attention_pytorch(*arguments, **named)
    return found


def changes_in_place(model: Model) -> bool:
    """Whether a model may write over what its backward pass needs: all of the host's do but its UNets."""
    return not hasattr(model.model.diffusion_model, "input_blocks")


@contextlib.contextmanager
def norms_of_copies(encoder: torch.nn.Module) -> Iterator[None]:
    """Let norms keep copies for the backward pass: the host's CLIP changes their input in place.

    PyTorch's ``allow_mutation_on_saved_tensors`` watches every operation, which took half of a small model's step.
    """
    norms = [part for part in encoder.modules() if isinstance(part, torch.nn.LayerNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(), *inputs[1:])) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def always_loaded(patcher: Any) -> Any:
    """A patcher whose weights stay where they are loaded; the host's dynamic one fetches them for each call."""
    if patcher.is_dynamic() and getattr(patcher, "cached_patcher_init", None) is not None:
        return patcher.clone(disable_dynamic=True)
    return patcher


def clip_always_loaded(clip: Any) -> Any:
    patcher = always_loaded(clip.patcher)
    if patcher is not clip.patcher:
        clip = clip.clone()
        clip.patcher, clip.cond_stage_model = patcher, patcher.model
    return clip


def allow_gradients(module: torch.nn.Module) -> None:
    """Replace weights that were made in inference mode, which autograd refuses, by copies."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight.is_inference():
                fresh = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
                vars(fresh).update(vars(weight))  # what the host noted on it
                part._parameters[name] = fresh
        for name, value in part._buffers.items():
            if value is not None and value.is_inference():
                part._buffers[name] = value.clone()
        if hasattr(part, "_v_signature"):
            vars(part)["_v_signature"] = None  # the host's own copy of the weight is of inference mode too
    module.requires_grad_(False)


class _Frozen(torch.autograd.Function):
    """A linear layer or convolution with frozen weights: its backward pass needs the weights alone, cast anew.

    Left to PyTorch the cast copy of each weight is kept until then: of a model in 8 bits twice its size, and all of it
    on the device where the host streams it from elsewhere.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        found: torch.Tensor = type(layer).forward(layer, x)
        return found.clone() if found._is_view() else found  # what a model writes over may not be a view from here

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        layer = ctx.layer
        weight, bias, stream = comfy.ops.cast_bias_weight(layer, grad, offloadable=True)
        if isinstance(layer, torch.nn.Linear):
            found = grad @ weight
        else:
            size = (layer.stride, layer.padding, layer.dilation, layer.groups)
            found = conv2d_input(ctx.shape, weight, grad, *size)
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
        return found, None


@contextlib.contextmanager
def frozen(model: Model) -> Iterator[None]:
    """While this lasts, no layer of a model keeps a copy of its weights for the backward pass."""

    def forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            plain: torch.Tensor = type(layer).forward(layer, x)
            return plain
        found: torch.Tensor = _Frozen.apply(x, layer)
        return found

    parts = model.model.diffusion_model.modules()
    with _computed_by(forward, [part for part in parts if _plain(part)]):
        yield


@contextlib.contextmanager
def _computed_by(forward: Callable[..., Any], layers: Sequence[Any]) -> Iterator[None]:
    """While this lasts, ``forward(layer, ...)`` computes what these layers do."""
    for layer in layers:
        layer.forward = MethodType(forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _plain(part: torch.nn.Module) -> bool:
    """Whether a part is one of the host's linear layers or convolutions that cast their weights, used as it is."""
    casts = isinstance(part, (torch.nn.Linear, torch.nn.Conv2d)) and hasattr(part, "comfy_cast_weights")
    return casts and "forward" not in vars(part)


@contextlib.contextmanager
def recomputed(model: Model) -> Iterator[None]:
    """While this lasts, what a model's layers compute is not kept for the backward pass but computed again there."""
    again = _again_from_copies if changes_in_place(model) else _again

    def forward(layer: torch.nn.Module, *args: Any, **named: Any) -> Any:
        call = MethodType(type(layer).forward, layer)
        return again(call, args, named) if torch.is_grad_enabled() else call(*args, **named)

    layers = [layer for layer in layers_of(model.model.diffusion_model) if _has_forward(layer)]
    with _computed_by(forward, layers):
        yield


def layers_of(diffusion_model: torch.nn.Module) -> list[torch.nn.Module]:
    """What a model does one after the other: a UNet's layers, or the items of a transformer's lists of blocks."""
    if hasattr(diffusion_model, "input_blocks"):
        return [layer for block in blocks(diffusion_model) for layer in block]
    lists = [part for part in diffusion_model.children() if isinstance(part, torch.nn.ModuleList)]
    return [layer for part in lists for layer in part]


def _again(call: Callable[..., Any], args: Any, named: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(call, *args, use_reentrant=False, **named)


def _again_from_copies(call: Callable[..., Any], args: Any, named: Any) -> Any:
    """As :func:`_again`, for layers that write over what they are given or what they keep.

    Only the reentrant kind leaves what is kept in the backward pass to the watch on changes in place.
    """
    leaves, spec = tree.tree_flatten((args, named))
    places = [i for i, leaf in enumerate(leaves) if torch.is_tensor(leaf)]

    def run(*tensors: torch.Tensor) -> Any:
        filled = list(leaves)
        for i, tensor in zip(places, tensors, strict=True):
            filled[i] = tensor.clone()
        copies, by_name = tree.tree_unflatten(filled, spec)
        return call(*copies, **by_name)

    return torch.utils.checkpoint.checkpoint(run, *(leaves[i] for i in places), use_reentrant=True)


def _has_forward(part: torch.nn.Module) -> bool:
    return any(True for _ in part.children()) and "forward" not in vars(part)
