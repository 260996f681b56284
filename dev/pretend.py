"""A pretend GPU for machines without one: tensors that name another device, compute on the CPU, and refuse to meet
tensors of the CPU as those of a real GPU would.

Made of PyTorch's registration of back ends in Python.  ``host_on_it`` lets ComfyUI use it in this process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")
DEVICE = torch.device("pretend:0")
aten = torch.ops.aten
MAY_MIX = {
    aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put_.default, aten.index_put.default,
    aten._index_put_impl_.default, aten.set_.source_Tensor,
}  # what a real device too takes from the CPU  # fmt: skip
PLAIN = {aten._local_scalar_dense.default, aten.equal.default, aten.is_same_size.default}  # these give no tensors
CPU_GENERATOR = torch.Generator
_on_device: dict[int, torch.Generator] = {}  # generators that were asked for on the device; they live on the CPU


class OnDevice(torch.Tensor):
    """A tensor of the pretend device around one of the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, requires_grad: bool = False) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=DEVICE, requires_grad=requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _call(func, args, kwargs or {})

    def numpy(self, *args: Any, **named: Any) -> Any:
        raise TypeError("can't convert pretend:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()


class OnTheDevice(TorchDispatchMode):
    """Within it tensors may be asked for on the pretend device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Any(type):
    def __instancecheck__(cls, one: object) -> bool:
        return isinstance(one, CPU_GENERATOR)


class Generator(metaclass=_Any):
    """In place of ``torch.Generator``."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = CPU_GENERATOR()
        if torch.device(device).type == DEVICE.type:
            _on_device[made._cdata] = made  # type: ignore[attr-defined]
        return made


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator on what lies within the tensors; its result lies where a device's own would."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with OnTheDevice():
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    ours = [one for one in tensors if isinstance(one, OnDevice)]
    if func is aten._has_compatible_shallow_copy_type.default:
        return len(ours) in (0, len(tensors))
    there = _result_there(func, args, kwargs, bool(ours))
    _refuse_mixing(func, args, kwargs, tensors, ours, there)
    inside = {**tree_map(_inner, kwargs)}
    if inside.get("device") is not None:
        inside["device"] = torch.device("cpu")
    if inside.get("pin_memory"):
        inside["pin_memory"] = False
    out = func(*tree_map(_inner, args), **inside)
    if func in PLAIN or not there:
        return out
    known = {id(one.held): one for one in ours}
    return tree_map(lambda one: _outer(one, known), out)


def _outer(value: Any, known: dict[int, OnDevice]) -> Any:
    if not isinstance(value, torch.Tensor) or isinstance(value, OnDevice):
        return value
    return known[id(value)] if id(value) in known else OnDevice(value)


def _inner(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


def _result_there(func: Any, args: Any, kwargs: dict[str, Any], any_ours: bool) -> bool:
    """Whether the result lies on the device."""
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"]).type == DEVICE.type
    if func in (aten._to_copy.default, aten.copy_.default):
        return isinstance(args[0], OnDevice)
    return any_ours


def _refuse_mixing(func: Any, args: Any, kwargs: dict[str, Any], tensors: Any, ours: Any, there: bool) -> None:
    if ours and func not in MAY_MIX and any(one.dim() and not isinstance(one, OnDevice) for one in tensors):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two: pretend:0 and cpu! ({func})"
        )
    if func is aten.index.Tensor and ours and not isinstance(args[0], OnDevice):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    drawn = kwargs.get("generator")
    if drawn is not None and there and drawn._cdata not in _on_device:
        raise RuntimeError(f"Expected a 'pretend' device type for generator but found 'cpu' ({func})")


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> torch.Tensor:
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype or torch.get_default_dtype(), device="cpu"))


def _empty(size: Any, dtype: Any = None, **_: Any) -> torch.Tensor:
    return OnDevice(torch.empty(size, dtype=dtype or torch.get_default_dtype(), device="cpu"))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _inner(target).copy_(_inner(source))
    return target


_library = torch.library.Library("aten", "IMPL", "PrivateUse1")
_library.impl("empty_strided", lambda size, stride, dtype=None, *_, **__: _empty_strided(size, stride, dtype))
_library.impl("empty.memory_format", lambda size, dtype=None, *_, **__: _empty(size, dtype))
_library.impl("_copy_from", _copy_from)
_library.impl("_local_scalar_dense", lambda one: one.held.item())


MEMORY = ("whole", "half", "offloaded", "dynamic")  # how much of a model fits into the device's memory


def host_on_it(folder: Path, half: torch.dtype | None = None, fits: str = "whole") -> None:
    """ComfyUI's modules in this process, which compute on the pretend device.

    Args:
        half: the precision in which models compute; None: float32.
        fits: of ``MEMORY``; dynamic: by the host's dynamic loading, where it has that.
    """
    sys.path.insert(0, str(folder))
    sys.argv = ["main.py", "--cpu", "--use-pytorch-cross-attention"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management as memory

    gib = 2**30
    memory.cpu_state = memory.CPUState.GPU
    memory.vram_state = memory.VRAMState.NO_VRAM if fits == "offloaded" else memory.VRAMState.NORMAL_VRAM
    memory.set_vram_to = memory.vram_state
    memory.get_torch_device = lambda: DEVICE
    memory.text_encoder_device = memory.vae_device = lambda: DEVICE
    memory.get_free_memory = lambda dev=None, torch_free_too=False: (8 * gib, 8 * gib) if torch_free_too else 8 * gib
    memory.get_total_memory = lambda dev=None, torch_total_too=False: (
        (16 * gib, 16 * gib) if torch_total_too else 16 * gib
    )
    memory.soft_empty_cache = lambda force=False: None
    memory.should_use_fp16 = lambda *_, **__: half == torch.float16
    memory.should_use_bf16 = lambda *_, **__: half == torch.bfloat16
    memory.vae_dtype = lambda *_, **__: torch.float32
    torch.Generator = Generator  # type: ignore[misc]
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    if fits == "half":
        _load_half()
    elif fits == "dynamic":
        _load_dynamically()


def _load_half() -> None:
    """The host finds room for half of each model's weights, and casts the others layer by layer."""
    import comfy.model_management as memory

    load = memory.LoadedModel.model_load
    memory.LoadedModel.model_load = lambda self, room=0, *args, **named: load(
        self, max(self.model_memory() // 2, 1), *args, **named
    )


class Room:
    """In place of the memory that the host's dynamic loading reserves: every second weight stays on the device, the
    others are copied each time."""

    def __init__(self, size: int, device: int) -> None:
        self.taken = 0

    def alloc(self, size: int) -> tuple[Room, torch.Tensor, bool]:
        self.taken += 1
        return self, torch.empty(size, dtype=torch.uint8, device=DEVICE), bool(self.taken % 2)

    def prioritize(self, *_: Any) -> None:
        """There is none to take room from."""

    def loaded_size(self) -> int:
        return 0

    def free_memory(self, size: int) -> int:
        return 0


class Pinned:
    """In place of the memory that it reserves on the CPU: none."""

    size = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def truncate(self, *_: Any, **__: Any) -> None:
        """Nothing is held."""


def _moved_first(load_list: Any) -> Any:
    """The host's own list of what to load, weights beside modules moved before: it sets ``param.data``, which tensors
    made in Python do not take from another device."""

    def listed(self: Any, for_dynamic: bool = False, default_device: Any = None) -> Any:
        for module in self.model.modules() if default_device is not None else ():
            own = module._parameters
            if len(list(module.parameters())) > len(list(module.parameters(recurse=False))):
                own.update({
                    name: torch.nn.Parameter(weight.to(default_device), requires_grad=False)
                    for name, weight in own.items()
                    if weight is not None and weight.device.type != DEVICE.type
                })  # fmt: skip
        return load_list(self, for_dynamic)

    return listed


def _load_dynamically() -> None:
    import comfy.memory_management
    import comfy.model_patcher
    import comfy.pinned_memory
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch

    comfy.memory_management.aimdo_enabled = True
    patcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.model_patcher.CoreModelPatcher, patcher._load_list = patcher, _moved_first(patcher._load_list)
    comfy.pinned_memory.get_pin = lambda *_, **__: None
    comfy.pinned_memory.pin_memory = lambda *_, **__: False
    comfy_aimdo.host_buffer.HostBuffer = Pinned
    comfy_aimdo.torch.aimdo_to_tensor = lambda room, device: room[1]
    found = comfy_aimdo.model_vbar
    found.ModelVBAR = Room
    found.vbar_fault = lambda room: b"there" if room[2] else None
    found.vbar_unpin = lambda room: None
    found.vbars_analyze = lambda *_: 0
