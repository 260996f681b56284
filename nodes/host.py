"""The one door to ComfyUI: every import of comfy, folder_paths and comfy_execution of this pack stands here.

The rest of ``nodes/`` sees ComfyUI through these functions and through ``comfy_api``, so a change in the host is
mended in one place.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import inspect
import logging
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import comfy.conds
import comfy.k_diffusion.sampling as k_diffusion
import comfy.ldm.models.autoencoder
import comfy.ldm.modules.attention
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import latent_preview
import torch
import torch.utils.checkpoint
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy_api.latest import ComfyAPI, io
from comfy_execution.utils import get_executing_context
from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel
from einops import rearrange
from PIL import Image
from torch.utils.weak import WeakTensorKeyDictionary

from ..vcd_core import id_tokens, metrics, tiles

Model = Any  # comfy.model_patcher.ModelPatcher
Latent = dict[str, Any]

NOISE_PRIOR = "vcd_noise_prior"
CLIPS_IN_BATCH = "vcd_clips_in_batch"  # transformer option: how many clips each conditioning's batch holds


async def register_replacement(replacement: io.NodeReplace) -> None:
    """Offer one of our nodes where a graph holds a node that is not installed."""
    await ComfyAPI().node_replacement.register(replacement)


def intermediate_device() -> torch.device:
    """Where ComfyUI keeps latents and pictures between nodes."""
    return comfy.model_management.intermediate_device()


def with_initial_noise(model: Model, transform: Callable[[torch.Tensor], torch.Tensor]) -> Model:
    """A clone of ``model`` whose samplers start from ``transform(noise)``; a second call replaces the first.

    SAMPLER_SAMPLE wrappers run inside every OUTER_SAMPLE wrapper, so noise that another pack draws there is transformed
    too, whatever the order of the nodes.  Arguments stay positional: some packs read them from the end.
    """

    def wrapper(executor, guider, sigmas, extra_args, callback, noise, *rest):  # type: ignore[no-untyped-def]
        return executor(guider, sigmas, extra_args, callback, transform(noise), *rest)

    return _with_wrapper(model, comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, NOISE_PRIOR, wrapper)


def with_step_noise(model: Model, transform: Callable[[torch.Tensor], torch.Tensor]) -> Model:
    """A clone whose ancestral and SDE samplers add ``transform(noise)`` at each step; a second call replaces the first.

    Samplers that add no noise, and those that were given a noise of their own, stay as they are.
    """

    def wrapper(executor, noise, latent, sampler, *rest, **named):  # type: ignore[no-untyped-def]
        return executor(noise, latent, _with_step_noise(sampler, transform), *rest, **named)

    return _with_wrapper(model, comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, NOISE_PRIOR, wrapper)


def _with_step_noise(sampler: Any, transform: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of a SAMPLER whose steps add ``transform`` of the noise that they would have added."""
    function = getattr(sampler, "sampler_function", None)
    if function is None or "noise_sampler" in sampler.extra_options:
        return sampler
    if "noise_sampler" not in inspect.signature(function).parameters:
        return sampler

    @functools.wraps(function)
    def run(model, x, sigmas, extra_args=None, **options):  # type: ignore[no-untyped-def]
        noise = _step_noise(function.__name__, x, sigmas, (extra_args or {}).get("seed"))
        options["noise_sampler"] = lambda now, then: transform(noise(now, then))
        return function(model, x, sigmas, extra_args=extra_args, **options)

    sampler = copy.copy(sampler)
    sampler.sampler_function = run
    return sampler


def _step_noise(name: str, x: torch.Tensor, sigmas: torch.Tensor, seed: int | None) -> Callable[..., torch.Tensor]:
    """The noise that the host's sampler function of this name draws where it is given none."""
    if "dpmpp" in name and "_sde" in name and (sigmas > 0).any():
        on_cpu = not name.endswith("_gpu")
        return k_diffusion.BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=seed, cpu=on_cpu)
    return k_diffusion.default_noise_sampler(x, seed=seed)


def without_noise_prior(model: Model) -> Model:
    """A clone whose samplers take the noise that they are given, and draw their own at each step."""
    model = model.clone()
    for kind in (comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, comfy.patcher_extension.WrappersMP.OUTER_SAMPLE):
        model.remove_wrappers_with_key(kind, NOISE_PRIOR)
    return model


def _with_wrapper(model: Model, kind: str, key: str, wrapper: Callable[..., Any]) -> Model:
    """A clone with a wrapper; a second one with the same key replaces the first."""
    model = model.clone()
    model.remove_wrappers_with_key(kind, key)
    model.add_wrapper_with_key(kind, key, wrapper)
    return model


def latent_that_starts_as(model: Model, sigmas: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The LATENT from which a sampler that adds no noise starts exactly as it would from ``noise`` and an empty latent.

    The host multiplies a non-zero latent by the model's scale factor and then asks the model's ``noise_scaling`` for the
    starting point; both are undone here.

    Raises:
        ValueError: no sigmas, or a model (flow matching) whose starting point does not depend on the latent.
    """
    if sigmas.numel() < 2:
        raise ValueError("SIGMAS is empty (denoise 0?); expected the schedule that the sampler will use.")
    sampling = model.get_model_object("model_sampling")
    sigma = sigmas[:1].to("cpu", torch.float32)
    largest = float(sampling.sigma_max)  # on the model's device once it is loaded
    from_start = math.isclose(float(sigma), largest, rel_tol=1e-5) or float(sigma) > largest
    zeros = torch.zeros_like(noise)
    start = sampling.noise_scaling(sigma, noise, zeros, from_start)
    weight = float(sampling.noise_scaling(sigma, torch.zeros(1), torch.ones(1), from_start))
    if abs(weight) < 1e-6:
        raise ValueError(
            "This model starts from pure noise and ignores the latent at the first step (flow matching), so the noise "
            "cannot be handed over as a LATENT. Use '3D Noise Prior' with SamplerCustomAdvanced, or "
            "'Apply 3D Noise Prior'."
        )
    return model.model.process_latent_out(start / weight)


def predicts(model: Model) -> str:
    """ "eps", "v" or the host's name of what else a model predicts, as it is or as a node (ModelSamplingDiscrete) told it."""
    kinds = {comfy.model_sampling.EPS: "eps", comfy.model_sampling.V_PREDICTION: "v"}
    sampling = type(model.get_model_object("model_sampling"))
    how = next(kind for kind in sampling.__mro__ if "calculate_denoised" in vars(kind))
    return kinds.get(how, how.__name__)


def latent_cell(model: Model) -> int:
    """How many pixels a side one cell of a model's latents is."""
    return int(getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8))


def latent_channels(model: Model) -> tuple[int, int]:
    """Channels and dimensions (2 for pictures, 3 for video) of the model's latents."""
    latent_format = model.get_model_object("latent_format")
    return latent_format.latent_channels, latent_format.latent_dimensions


def add_model_folder(name: str, folder: str, extensions: set[str]) -> None:
    """Let files under ``models/<folder>`` (or an absolute folder) be chosen by ``name``, after those already there."""
    path = os.path.join(folder_paths.models_dir, folder)
    known, kinds = folder_paths.folder_names_and_paths.get(name, ([], set()))
    if path not in known:
        known = [*known, path]
    folder_paths.folder_names_and_paths[name] = (known, set(kinds) | extensions)


def model_files(name: str) -> list[str]:
    """The files that can be chosen under a model folder's name."""
    return folder_paths.get_filename_list(name)


def model_file(name: str, file: str) -> str:
    """The path of a chosen file; a name that leaves its folder, or a file that is gone, raises with where it was sought."""
    path = folder_paths.get_full_path(name, file)
    if path is None:
        places = "\n".join(folder_paths.get_folder_paths(name))
        raise ValueError(f"{file} is not there. It was looked for in:\n{places}")
    return path


def model_folders(name: str) -> list[str]:
    """The folders with a ``config.json`` (models of the transformers library) directly under a model folder's places."""
    found = {
        entry.name
        for place in folder_paths.get_folder_paths(name)
        if os.path.isdir(place)
        for entry in os.scandir(place)
        if os.path.isfile(os.path.join(entry.path, "config.json"))
    }
    return sorted(found)


def models_path(name: str) -> Path:
    """The first place of a model folder."""
    return Path(folder_paths.get_folder_paths(name)[0])


def model_path(name: str, choice: str) -> Path:
    """The path of a chosen file or folder; a name that leaves its place, or one that is gone, raises."""
    for place in folder_paths.get_folder_paths(name):
        path = os.path.abspath(os.path.join(place, choice))
        if os.path.commonpath((os.path.abspath(place), path)) == os.path.abspath(place) and os.path.exists(path):
            return Path(path)
    raise ValueError(f"{choice} is not in {' or '.join(folder_paths.get_folder_paths(name))}.")


def input_subfolders() -> list[str]:
    """The folders under ComfyUI's input folder, linked ones too; what lies in a linked folder (it may be a whole drive) is not listed."""
    top = folder_paths.get_input_directory()
    found = [os.path.relpath(os.path.join(path, name), top) for path, names, _ in os.walk(top) for name in names]
    return sorted(name.replace(os.sep, "/") for name in found)


def input_subfolder(name: str) -> Path:
    """The path of a folder under the input folder, which may be a link; a name that leaves it, or one that is gone, raises."""
    top = Path(os.path.abspath(folder_paths.get_input_directory()))
    path = Path(os.path.abspath(top / name))
    if not path.is_relative_to(top) or not path.is_dir():
        raise ValueError(f"{name} is not a folder in {top}.")
    return path


def output_folder(name: str) -> Path:
    """A folder of this name in ComfyUI's output folder; it need not be there yet."""
    return Path(folder_paths.get_output_directory()) / name


def make_room(gib: float) -> None:
    """Unload models until this much memory of the device is free, for models that the host does not manage."""
    comfy.model_management.free_memory(gib * 2**30, torch_device())


def torch_device() -> torch.device:
    """The device that ComfyUI computes on."""
    return comfy.model_management.get_torch_device()


def embedding_folders() -> list[str]:
    """Where prompts look for ``embedding:name``."""
    return folder_paths.get_folder_paths("embeddings")


def forget_file_lists() -> None:
    """Let lists of model files be read anew: a file was written."""
    folder_paths.filename_list_cache.clear()


def _tokenizers(clip: Any) -> dict[str, Any]:
    """A CLIP's tokenizers by the key of their embeddings (clip_l, clip_g)."""
    parts = vars(clip.tokenizer).values()
    return {part.embedding_key: part for part in parts if hasattr(part, "embedding_key")}


def text_widths(clip: Any) -> dict[str, int]:
    """The width of each of a CLIP's text encoders."""
    widths = {}
    for key, part in _tokenizers(clip).items():
        encoder = getattr(clip.cond_stage_model, key, None)
        table = encoder.transformer.get_input_embeddings().weight if encoder is not None else None
        widths[key] = part.embedding_size if table is None else table.shape[1]
    return widths


def encode_text(clip: Any, text: str, vectors: dict[str, dict[str, torch.Tensor]]) -> Any:
    """The conditioning of a prompt in which ``embedding:name`` may stand for vectors that are in no file.

    Args:
        vectors: name -> the token vectors for each text encoder. Without any it is the host's own CLIP Text Encode.
    """
    if not vectors:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))
    clip = clip.clone()
    clip.tokenizer = tokenizer_with(clip, vectors)
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def _with_vectors(tokenizer: Any, vectors: dict[str, torch.Tensor]) -> Any:
    """A tokenizer that finds these names beside the files it knows."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.embedding_directory = tokenizer.embedding_directory or []
    known = tokenizer._try_get_embedding
    names_it = (
        len(known("vcd_no_such_file")) == 3
    )  # older hosts give vectors and rest, newer ones the name between them

    def find(name: str) -> Any:
        first, *rest = name.split()
        match = re.match(r"\w+", first)
        if match and match.group(0) in vectors:
            left = " ".join(part for part in (first[match.end() :], *rest) if part)
            found = vectors[match.group(0)]
            return (found, match.group(0), left) if names_it else (found, left)
        return known(name)

    tokenizer._try_get_embedding = find
    return tokenizer


class TrainingModel:
    """A model whose text tokens can be trained: the :class:`~vcd_core.id_training.Backend` over MODEL, CLIP and VAE.

    To be made and used inside :func:`gradients`.
    """

    MARK = "vcd_id_in_training"

    def __init__(self, model: Model, clip: Any, vae: Any, class_word: str) -> None:
        self.prediction = predicts(model)
        if self.prediction not in ("eps", "v"):
            raise ValueError(
                f"This model ({kind_of(model)}) predicts {self.prediction}; identities are trained on models that predict "
                "noise (eps) or v. Use SD 1.5 or a finetune of it, without a node that tells it to sample otherwise."
            )
        if list(text_widths(clip)) != ["clip_l"] or kind_of(model) != "SD15":
            raise ValueError(
                f"This model ({kind_of(model)}, text encoders {', '.join(text_widths(clip)) or 'unknown'}) is not SD 1.5; "
                "identities are trained on SD 1.5 and its finetunes."
            )
        config = model.model.model_config.unet_config
        latent, context = config.get("in_channels", 4), config.get("context_dim")
        if latent != 4 or config.get("adm_in_channels") or context != text_widths(clip)["clip_l"]:
            raise ValueError(
                f"MODEL and CLIP do not fit: the UNet takes {latent} channels and text {context} wide, the CLIP's is "
                f"{text_widths(clip)['clip_l']} wide. Take both from one SD 1.5 checkpoint (not an inpainting one)."
            )
        if model.injections:
            raise ValueError(
                "Layers were added to this MODEL (a motion module?); an identity is learned from single pictures. Connect the "
                "model as it is before 'AnimateDiff Motion Module'."
            )
        if vae.latent_channels != 4:
            raise ValueError(
                f"The VAE's latents have {vae.latent_channels} channels; SD 1.5's have 4. Take its own VAE."
            )
        self.model, self.clip, self.vae = _always_loaded(model), _clip_always_loaded(clip), vae
        self.class_word = class_word
        self.load()
        self.sigmas = self.model.model.model_sampling.sigmas.detach().clone().cpu()
        norms = self._table().norm(dim=1)
        self.norm = float(norms[norms > 0].mean())
        self.identity = self._identity()

    def _identity(self) -> str:
        """A digest of a few numbers of every weight, as half precision has them, so that it does not depend on the dtype."""
        digest = hashlib.sha256(repr((self.clip.layer_idx, self.prediction)).encode())
        digest.update(self.sigmas.numpy().tobytes())
        for part in (self.model.model, self.clip.cond_stage_model, self.vae.first_stage_model):
            for name, value in sorted(part.state_dict().items()):
                flat = value.detach().flatten()
                sample = flat[:: max(1, flat.numel() // 4)][:4].half().cpu().contiguous()
                digest.update(name.encode() + sample.numpy().tobytes())
        for key, patches in sorted(self.model.patches.items(), key=str):  # of weights that are not loaded
            digest.update(repr((key, [patch[0] for patch in patches])).encode())
        return digest.hexdigest()[:16]

    def load(self, latents: Sequence[int] | None = None) -> None:
        """Load model and text encoder, with weights that gradients can flow through, and room for latents of this shape."""
        patchers = [self.model, self.clip.patcher]
        room = 0 if latents is None else 3 * self.model.memory_required(list(latents))
        comfy.model_management.load_models_gpu(patchers, memory_required=room, force_full_load=True)
        for patcher in patchers:
            _allow_gradients(patcher.model)

    def _table(self) -> torch.Tensor:
        weight = self.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
        return weight.detach().float().cpu().clone()

    def words(self, text: str) -> torch.Tensor:
        for name in re.findall(r"embedding:([^\s,:()]+)", text):
            if self.clip.tokenizer.clip_l._try_get_embedding(name)[0] is None:
                raise ValueError(f"There is no embedding '{name}' in models/embeddings.")
        tokenizer, table = self.clip.tokenizer.clip_l, self._table()
        found = [token for section in self.clip.tokenize(text)["l"] for token, *_ in section]
        rows = [
            token.detach().float().cpu() if torch.is_tensor(token) else table[int(token)]
            for token in found
            if torch.is_tensor(token) or token not in (tokenizer.start_token, tokenizer.end_token)
        ]
        return torch.stack(rows) if rows else table[:0]

    def text(self, captions: Sequence[str], vectors: torch.Tensor) -> torch.Tensor:
        known = {self.MARK: {"clip_l": vectors}}
        mark = {self.MARK: f"embedding:{self.MARK}"}
        sections = []
        for caption in captions:
            written = id_tokens.place(caption, mark, {self.MARK: self.class_word})
            tokens = tokenizer_with(self.clip, known).tokenize_with_weights(written)["l"]
            if len(tokens) != 1:
                raise ValueError(
                    f"The caption {caption!r} with {len(vectors)} tokens is too long for one prompt of 75."
                )
            sections += tokens
        with _norms_of_copies(self.clip.cond_stage_model):
            encoded = self.clip.encode_from_tokens({"l": sections})  # [1, captions * length, width]
        return rearrange(encoded, "1 (n l) d -> n l d", n=len(captions))

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            latents = self.vae.encode(pictures.movedim(1, -1))
            return self.model.model.process_latent_in(latents).float().cpu().clone()

    def denoise(self, noised: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        device = self.model.load_device
        self.load(noised.shape)  # encoding text or pictures may have unloaded it
        noised, sigma, context = noised.to(device), sigma.to(device), context.to(device)
        options = {"optimized_attention_override": _attention_with_gradients}
        return self.model.model.apply_model(noised, sigma, c_crossattn=context, transformer_options=options).cpu()


def _attention_with_gradients(_: Any, *arguments: Any, **named: Any) -> torch.Tensor:
    """PyTorch's attention in place of what ComfyUI was started with, which may be for sampling only (SageAttention)."""
    found: torch.Tensor = comfy.ldm.modules.attention.attention_pytorch(*arguments, **named)
    return found


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Nodes run in inference mode; here gradients can be taken, the same ones each time (cuDNN's deterministic ways)."""
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.backends.cudnn.deterministic = deterministic


@contextlib.contextmanager
def _norms_of_copies(encoder: torch.nn.Module) -> Iterator[None]:
    """While this lasts, norms keep copies for the backward pass: the host's text encoder then adds to their input in place.

    (PyTorch's ``allow_mutation_on_saved_tensors`` watches every operation instead, which took half of a small model's step.)
    """
    norms = [part for part in encoder.modules() if isinstance(part, torch.nn.LayerNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(), *inputs[1:])) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _always_loaded(patcher: Any) -> Any:
    """A patcher whose weights stay where they are loaded; the host's dynamic one fetches them for each call."""
    if patcher.is_dynamic() and getattr(patcher, "cached_patcher_init", None) is not None:
        return patcher.clone(disable_dynamic=True)
    return patcher


def _clip_always_loaded(clip: Any) -> Any:
    patcher = _always_loaded(clip.patcher)
    if patcher is not clip.patcher:
        clip = clip.clone()
        clip.patcher, clip.cond_stage_model = patcher, patcher.model
    return clip


def _allow_gradients(module: torch.nn.Module) -> None:
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


@contextlib.contextmanager
def recomputed(model: Model) -> Iterator[None]:
    """While this lasts, what the UNet's layers compute is not kept for the backward pass but computed again there."""

    def forward(layer: torch.nn.Module, *args: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return type(layer).forward(layer, *args, **named)
        call = MethodType(type(layer).forward, layer)
        return torch.utils.checkpoint.checkpoint(call, *args, use_reentrant=False, **named)

    layers = [part for block in _blocks(model.model.diffusion_model) for part in block if _has_forward(part)]
    for layer in layers:
        layer.forward = MethodType(forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _has_forward(part: torch.nn.Module) -> bool:
    return any(True for _ in part.children()) and "forward" not in vars(part)


def tokenizer_with(clip: Any, vectors: dict[str, dict[str, torch.Tensor]]) -> Any:
    """A CLIP's tokenizer to which ``embedding:name`` may also name vectors that are in no file."""
    tokenizer = copy.copy(clip.tokenizer)
    for attribute, part in list(vars(tokenizer).items()):
        if hasattr(part, "embedding_key"):
            setattr(tokenizer, attribute, _with_vectors(part, {n: v[part.embedding_key] for n, v in vectors.items()}))
    return tokenizer


def blend_conditioning(rows: list[Any], weights: torch.Tensor, empty: Any) -> Any:
    """One conditioning with a row for each frame.

    Args:
        rows: conditionings [1, tokens, width] with their options.
        weights: [frames, len(rows)], how much each counts in each frame.
        empty: the empty prompt's conditioning, to bring shorter rows to the longest.
    """
    longest = max(tensor.shape[1] for tensor, _ in rows)
    padded = []
    for tensor, _ in rows:
        missing = (longest - tensor.shape[1]) // empty[0].shape[1]
        padded.append(torch.cat([tensor, *[empty[0]] * missing], 1))
    blended = torch.einsum("fk,ktd->ftd", weights.to(padded[0]), torch.cat(padded))
    options = dict(rows[0][1])
    pooled = [entry.get("pooled_output") for _, entry in rows]
    if all(torch.is_tensor(p) for p in pooled):
        options["pooled_output"] = weights.to(pooled[0]) @ torch.cat(pooled)
    return [[blended, options]]


def operations(model: Model) -> tuple[Any, torch.dtype]:
    """The host's layers for weights beside this model's, which cast and move them as it does, and their dtype."""
    dtype = model.model_dtype()
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):  # 8-bit weights are for the model alone
        dtype = model.model.manual_cast_dtype or torch.float16
    return comfy.ops.pick_operations(dtype, model.model.manual_cast_dtype), dtype


def kind_of(model: Model) -> str:
    """What kind of model this is, in the host's words; "SD15" for SD 1.5."""
    if not hasattr(model.model.diffusion_model, "input_blocks"):
        return type(model.model).__name__
    config = model.model.model_config.unet_config
    if config.get("adm_in_channels"):
        return type(model.model).__name__
    return "SD20" if config.get("context_dim") == 1024 else "SD15"


def with_beta_schedule(model: Model, schedule: str) -> Model:
    """A clone with another noise schedule of the host's, 0.00085-0.012; "sqrt_linear" is the one that is linear in beta."""

    class Settings:
        sampling_settings = {"beta_schedule": schedule, "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000}

    current = model.get_model_object("model_sampling")
    if not isinstance(current, comfy.model_sampling.ModelSamplingDiscrete):
        logging.warning("The beta schedule is left as it is: %s has no betas.", type(current).__name__)
        return model
    # of the same kind, so that what a ModelSamplingDiscrete node chose (v prediction, LCM, zsnr) stays
    sampling = type(current)(Settings, zsnr=getattr(current, "zsnr", None))
    model = model.clone()
    model.add_object_patch("model_sampling", sampling)
    return model


def with_blocks(
    model: Model,
    key: str,
    extra: torch.nn.Module,
    kind: type[torch.nn.Module],
    slots: Callable[[torch.nn.Module, torch.nn.Module], Iterable[tuple[Any, int, torch.nn.Module]]],
    call: Callable[[torch.nn.Module, torch.Tensor, int], torch.Tensor],
) -> Model:
    """A clone of ``model`` with the modules of ``extra`` put into its UNet while it is loaded.

    The host loads, offloads and unloads ``extra`` together with the model; nothing of it is kept here.

    Args:
        key: the name of this addition; a second one with the same name replaces the first.
        extra: the module that owns the weights.
        kind: the class of the modules that are put in.
        slots: ``slots(unet, extra)`` gives (block, index, module) for each of them.
        call: ``call(module, features, frames)`` is their forward pass; frames are those of one clip in the batch.
    """
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    model = model.clone()
    patcher = comfy.model_patcher.ModelPatcher(extra, load_device=device, offload_device=offload)
    model.set_additional_models(key, [patcher])

    def inject(owner: Model) -> None:
        module = owner.get_additional_models_with_key(key)[0].model
        for block, at, part in list(slots(owner.model.diffusion_model, module)):
            block.insert(at, part)

    def eject(owner: Model) -> None:
        for block in _blocks(owner.model.diffusion_model):
            for at in reversed([i for i, part in enumerate(block) if isinstance(part, kind)]):
                del block[at]

    def patch(layer, x, emb, context, transformer_options, *_):  # type: ignore[no-untyped-def]
        return call(layer, x, clip_frames(x.shape[0], transformer_options))

    model.set_injections(key, [comfy.patcher_extension.PatcherInjection(inject, eject)])
    # the modules are in the UNet while it samples and no longer: they shift the names of the layers behind them, by which
    # other branches of the graph find what to patch
    callbacks = comfy.patcher_extension.CallbacksMP
    for kind_of_call, act in ((callbacks.ON_PRE_RUN, "inject_model"), (callbacks.ON_CLEANUP, "eject_model")):
        model.remove_callbacks_with_key(kind_of_call, key)
        model.add_callback_with_key(kind_of_call, key, operator.methodcaller(act))
    patches = model.model_options["transformer_options"].setdefault("patches", {})
    others = [entry for entry in patches.get("forward_timestep_embed_patch", []) if entry[0] is not kind]
    patches["forward_timestep_embed_patch"] = [*others, (kind, patch)]
    return model


def with_hints_of_windows(model: Model, key: str) -> Model:
    """A clone whose ControlNets see, in each context window, the hints of its frames.

    The host hands every window the hints of the whole clip, of which the nets then take the first.
    """

    def wrapper(executor, base, conds, x, timestep, model_options):  # type: ignore[no-untyped-def]
        window = model_options.get("transformer_options", {}).get("context_window")
        if window is None or window.dim != 0:
            return executor(base, conds, x, timestep, model_options)
        before = getattr(window, "causal_anchor_index", None)  # a frame that newer hosts put before a window
        frames = [before, *window.index_list] if before is not None and before >= 0 else list(window.index_list)
        if len(frames) != x.shape[0]:
            return executor(base, conds, x, timestep, model_options)
        controls: dict[int, Any] = {}

        def of_window(entry: dict[str, Any]) -> dict[str, Any]:
            control = entry.get("control")
            if control is None:
                return entry
            if id(control) not in controls:
                controls[id(control)] = _with_hint(control, lambda hint: _of_frames(hint, frames))
            return {**entry, "control": controls[id(control)]}

        conds = [cond if cond is None else [of_window(entry) for entry in cond] for cond in conds]
        return executor(base, conds, x, timestep, model_options)

    return _with_wrapper(model, comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, key, wrapper)


def with_norms_over_frames(model: Model, key: str, frames: Callable[[], int]) -> Model:
    """A clone whose UNet takes the statistics of its residual blocks' group norms over all frames of a clip together.

    So AnimateDiff v1 was trained: there residual blocks and the output see the clip as one volume, attention its frames.
    """

    def pooled(norm: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        clip = rearrange(x, "(b f) c h w -> b c (f h) w", f=frames())
        return rearrange(type(norm).forward(norm, clip), "b c (f h) w -> (b f) c h w", f=frames())

    def norms(owner: Model) -> list[torch.nn.GroupNorm]:
        unet = owner.model.diffusion_model
        blocks = [part for part in unet.modules() if isinstance(part, ResBlock)]
        return [
            part for block in (*blocks, unet.out) for part in block.modules() if isinstance(part, torch.nn.GroupNorm)
        ]

    def inject(owner: Model) -> None:
        for norm in norms(owner):
            norm.forward = MethodType(pooled, norm)  # type: ignore[method-assign]

    def eject(owner: Model) -> None:
        for norm in norms(owner):
            norm.__dict__.pop("forward", None)

    model = model.clone()
    model.set_injections(key, [comfy.patcher_extension.PatcherInjection(inject, eject)])
    return model


def with_unet_call(model: Model, key: str, before: Callable[[torch.Tensor, dict[str, Any]], None]) -> Model:
    """A clone that calls ``before(x, transformer_options)`` ahead of every pass through the UNet."""

    def wrapper(executor, x, timesteps, context=None, y=None, control=None, transformer_options=None, **kwargs):  # type: ignore[no-untyped-def]
        before(x, transformer_options or {})
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    return _with_wrapper(model, comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, key, wrapper)


class WhileSampling:
    """Whether the sampler is within a part of the sampling, given from 0 to 1 as for the host's ControlNets.

    ``attached(model, key)`` is a clone that tells it, before each sampling, what noise its own schedule has there.
    """

    def __init__(self, part: tuple[float, float]) -> None:
        self.part, self.now = part, True
        self.sigmas = (math.inf, 0.0)

    def attached(self, model: Model, key: str) -> Model:
        kind = comfy.patcher_extension.CallbacksMP.ON_PRE_RUN
        model = model.clone()
        model.remove_callbacks_with_key(kind, key)
        model.add_callback_with_key(kind, key, self._begin)
        return model

    def _begin(self, owner: Model) -> None:
        sampling = owner.get_model_object("model_sampling")
        first, last = (float(sampling.percent_to_sigma(value)) for value in self.part)
        self.sigmas = (first, last)

    def update(self, transformer_options: dict[str, Any]) -> bool:
        """Whether the step that these options belong to is within the part; kept in ``now``."""
        sigmas = transformer_options.get("sigmas")
        if self.part != (0.0, 1.0) and sigmas is not None:
            self.now = self.sigmas[0] >= float(sigmas.flatten()[0]) > self.sigmas[1]
        return self.now


def clip_frames(batch: int, transformer_options: dict[str, Any]) -> int:
    """The frames of one clip in a UNet batch: the host stacks whole clips, one for each conditioning."""
    clips = len(transformer_options.get("cond_or_uncond", (0,))) * transformer_options.get(CLIPS_IN_BATCH, 1)
    if batch % clips:
        raise ValueError(f"A batch of {batch} frames cannot be divided into {clips} clips.")
    return batch // clips


def _blocks(unet: torch.nn.Module) -> list[torch.nn.Sequential]:
    return [*unet.input_blocks, unet.middle_block, *unet.output_blocks]  # type: ignore[list-item,misc]


def with_tiles(
    model: Model,
    key: str,
    grid_of: Callable[[int, int, int], tiles.Grid],
    on_tiles: Callable[[float], None] | None = None,
) -> Model:
    """A clone that predicts tile by tile and blends the predictions before the sampler's update.

    It wraps the host's ``calc_cond_batch``: inside context windows in time, outside everything that happens for one
    prediction, so samplers, schedules, ControlNets and masks work as they are, each cut to the tile.  The host frees memory
    for a tile before it samples, not for the whole picture.

    Args:
        grid_of: ``grid_of(height, width, step)`` gives the tiles for a latent of this size at this step.
        on_tiles: called after each model call with the part of this step's tiles that is done, 0..1.
    """

    hints = WeakTensorKeyDictionary()

    def wrapper(executor, base, conds, x, timestep, model_options):  # type: ignore[no-untyped-def]
        if x.ndim not in (4, 5):
            raise ValueError(
                f"This model samples latents of {x.ndim} axes, which have no tiles; expected 4, or 5 (video)."
            )
        grid = grid_of(x.shape[-2], x.shape[-1], _step(timestep, model_options))
        if len(grid.tiles) == 1:
            results = executor(base, conds, x, timestep, model_options)
            if on_tiles:
                on_tiles(1.0)
            return results
        out = [torch.zeros_like(x) for _ in conds]
        # windows of another pack that run inside ours know the clip's frames alone, not a stack of tiles
        others_inside = executor.idx < len(executor.wrappers) - 1
        size = 1 if others_inside else _tiles_at_once(base, x, grid, conds, model_options)
        waiting = list(range(len(grid.tiles)))
        while waiting:
            comfy.model_management.throw_exception_if_processing_interrupted()
            group = waiting[:size]
            results = None
            try:
                results = _predict(executor, base, conds, x, timestep, model_options, grid, group, hints)
            except Exception as error:
                _raise_unless_memory(error)
                if size == 1:
                    raise RuntimeError("Out of memory on a single tile. Use a smaller tile_size.") from error
            if results is None:  # out of memory; what it held is freed only now that the error is gone
                comfy.model_management.soft_empty_cache()
                size = max(1, size // 2)
                continue
            for total, parts in zip(out, results, strict=True):
                for number, part in zip(group, parts.chunk(len(group)), strict=True):
                    grid.tiles[number].cut(total).add_(part * grid.weights[number].to(part))
            waiting = waiting[size:]
            if on_tiles:
                on_tiles(1 - len(waiting) / len(grid.tiles))
        return out

    def prepare(executor, patcher, noise_shape, *args, **kwargs):  # type: ignore[no-untyped-def]
        tile = grid_of(noise_shape[-2], noise_shape[-1], 0).tiles[0]
        return executor(patcher, [*noise_shape[:-2], tile.height, tile.width], *args, **kwargs)

    wrappers = comfy.patcher_extension.WrappersMP
    model = _with_wrapper(model, wrappers.PREPARE_SAMPLING, key, prepare)
    done = comfy.patcher_extension.CallbacksMP.ON_CLEANUP
    model.remove_callbacks_with_key(done, key)
    model.add_callback_with_key(done, key, lambda owner: hints.clear())
    return _with_wrapper(model, wrappers.CALC_COND_BATCH, key, wrapper)


def _raise_unless_memory(error: Exception) -> None:
    """Raise what is not a lack of memory; hosts before ``raise_non_oom`` tell it by its class."""
    if hasattr(comfy.model_management, "raise_non_oom"):
        comfy.model_management.raise_non_oom(error)
    elif not isinstance(error, comfy.model_management.OOM_EXCEPTION):
        raise error


def _predict(executor, base, conds, x, timestep, model_options, grid, group, hints):  # type: ignore[no-untyped-def]
    """The model's predictions for a group of tiles, stacked along the batch."""
    parts = torch.cat([grid.tiles[number].cut(x) for number in group])
    controls: dict[int, Any] = {}
    cut = [_cut_conds(cond, grid.tiles[group[0]], x, controls, hints) for cond in conds]
    if len(group) > 1:
        options = dict(model_options.get("transformer_options", {}), **{CLIPS_IN_BATCH: len(group)})
        model_options = {**model_options, "transformer_options": options}
    return executor(base, cut, parts, torch.cat([timestep] * len(group)), model_options)


def _tiles_at_once(
    base: Any, x: torch.Tensor, grid: tiles.Grid, conds: list[Any], model_options: dict[str, Any]
) -> int:
    """How many tiles fit into memory together.

    One on a CPU, which gains nothing, where conditionings differ by place or have rows that are not those of the frames,
    which the host repeats over the whole stack, or where other packs patch the attention: they may give each frame its own
    (IPAdapter) and would take a stack of tiles for one long clip.
    """
    options = model_options.get("transformer_options", {})
    patched = options.get("patches_replace") or any(name.startswith("attn") for name in options.get("patches", {}))
    placed = any(
        key in entry for cond in conds for entry in cond or () for key in ("mask", "area", "control", "gligen")
    )
    per_place = any(
        isinstance(value, comfy.conds.CONDNoiseShape)
        or (torch.is_tensor(value.cond) and value.cond.ndim and len(value.cond) not in (1, len(x)))
        for cond in conds
        for entry in cond or ()
        for value in entry["model_conds"].values()
    )
    if x.device.type == "cpu" or placed or per_place or patched:
        return 1
    tile = grid.tiles[0]
    shape = [2 * x.shape[0], *x.shape[1:-2], tile.height, tile.width]
    free = comfy.model_management.get_free_memory(x.device)
    return int(max(1, min(len(grid.tiles), free // (1.5 * base.memory_required(shape)))))


def _cut_conds(
    entries: list[dict[str, Any]] | None,
    tile: tiles.Tile,
    x: torch.Tensor,
    controls: dict[int, Any],
    hints: WeakTensorKeyDictionary,
) -> list[dict[str, Any]] | None:
    """A conditioning cut to one tile; an entry whose mask or area does not reach the tile is left out.

    ``controls`` remembers the ControlNets cut to this tile, so that conditionings that share one still do.
    """
    if entries is None:
        return None
    kept = []
    for entry in entries:
        part = dict(entry)
        if "mask" in part:
            part["mask"] = tile.cut(part["mask"])
            if not part["mask"].any():
                continue
        if part.get("area") is not None:
            area = _cut_area(part["area"], tile)
            if area is None:
                continue
            part["area"] = area
        if part.get("gligen") is not None:
            kind, gligen, boxes = part.pop("gligen")
            inside = [(box[0], *area) for box in boxes if (area := _cut_area(box[1:], tile))]
            if inside:
                part["gligen"] = (kind, gligen, inside)
        part["model_conds"] = {name: _cut_value(value, tile, x) for name, value in part["model_conds"].items()}
        if part.get("control") is not None:
            key = id(part["control"])
            if key not in controls:
                controls[key] = _cut_control(part["control"], tile, x, hints)
            part["control"] = controls[key]
        kept.append(part)
    return kept


def _cut_value(value: Any, tile: tiles.Tile, x: torch.Tensor) -> Any:
    if isinstance(value, comfy.conds.CONDNoiseShape) and value.cond.shape[-2:] == x.shape[-2:]:
        return type(value)(tile.cut(value.cond))
    return value


def _cut_area(area: Any, tile: tiles.Tile) -> tuple[int, ...] | None:
    """An area (height, width, top, left) within the tile's own coordinates."""
    height, width, top, left = area[-4:] if len(area) == 4 else (*area[1:3], *area[4:6])
    bottom, right = min(top + height, tile.top + tile.height), min(left + width, tile.left + tile.width)
    top, left = max(top, tile.top), max(left, tile.left)
    if bottom <= top or right <= left:
        return None
    inside = (bottom - top, right - left, top - tile.top, left - tile.left)
    return inside if len(area) == 4 else (area[0], *inside[:2], area[3], *inside[2:])


def _cut_control(control: Any, tile: tiles.Tile, x: torch.Tensor, hints: WeakTensorKeyDictionary) -> Any:
    """A ControlNet whose hint is cut to the tile; the net itself is shared.

    ``hints`` remembers, for each hint, what it is at the picture's size: tiles and steps after the first find it there.
    """
    ratio = control.compression_ratio
    if getattr(control, "vae", None) is not None:
        ratio *= control.vae.spacial_compression_encode()
    place = tiles.Tile(*(v * ratio for v in tile))

    def cut(hint: torch.Tensor) -> torch.Tensor:
        full = (x.shape[-1] * ratio, x.shape[-2] * ratio)
        if (hint.shape[-1], hint.shape[-2]) == full:
            return place.cut(hint)
        large = hints.get(hint)
        if large is None or (large.shape[-1], large.shape[-2]) != full:
            hints[hint] = large = comfy.utils.common_upscale(hint, *full, control.upscale_algorithm, "center")
        return place.cut(large)

    return _with_hint(control, cut)


def _with_hint(control: Any, cut: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of a ControlNet, and of those chained before it, that sees ``cut(hint)``."""
    part = copy.copy(control)
    for name, value in vars(control).items():  # some packs bind methods to the instance
        if isinstance(value, MethodType) and value.__self__ is control:
            setattr(part, name, MethodType(value.__func__, part))
    if control.cond_hint_original is not None:
        part.cond_hint_original = cut(control.cond_hint_original)
    part.extra_concat_orig = [e if e.shape[-1] == 1 else cut(e) for e in getattr(control, "extra_concat_orig", [])]
    part.cond_hint = part.extra_concat = None
    if control.previous_controlnet is not None:
        part.previous_controlnet = _with_hint(control.previous_controlnet, cut)
    return part


def _step(timestep: torch.Tensor, model_options: dict[str, Any]) -> int:
    sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
    if sigmas is None:
        return 0
    return int((sigmas > timestep.reshape(-1)[0] + 1e-5).sum())


def stop_if_asked() -> None:
    """Stop here if the user has interrupted."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def shown(text: str) -> dict[str, tuple[str]]:
    """A node's ``ui`` that says ``text``; it is also drawn in the node, which the page does of itself for few nodes only."""
    context = get_executing_context()
    if context is not None:
        from server import PromptServer

        PromptServer.instance.send_progress_text(text, context.node_id)
    return {"text": (text,)}


def preview_picture(images: torch.Tensor) -> Any:
    """The first of IMAGE as the progress bar shows it."""
    picture = Image.fromarray((images[0].clamp(0, 1) * 255).round().byte().cpu().numpy())
    return ("JPEG", picture, latent_preview.MAX_PREVIEW_RESOLUTION)


SAMPLER_NAMES: list[str] = comfy.samplers.SAMPLER_NAMES
SCHEDULER_NAMES: list[str] = comfy.samplers.SCHEDULER_NAMES


class Progress:
    """The node's progress bar over ``total`` units, with a preview of what is being sampled."""

    def __init__(self, total: int) -> None:
        self.total, self.done = max(1, total), 0.0
        self.preview: Any = None
        self.bar = comfy.utils.ProgressBar(self.total)

    def advance(self, units: float = 1) -> None:
        self.move_to(self.done + units)

    def move_to(self, units: float) -> None:
        """Show ``units`` of the total as done, and stop here if the user has interrupted."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.done = min(self.total, max(self.done, units))
        self.bar.update_absolute(int(self.done), self.total, self.preview)


@dataclass(frozen=True)
class Sampling:
    """How to sample: what a KSampler's widgets say."""

    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float
    seed: int


def sample(
    model: Model,
    noise: torch.Tensor,
    positive: Any,
    negative: Any,
    latent: torch.Tensor,
    settings: Sampling,
    on_step: Callable[[int, Any], None],
) -> torch.Tensor:
    """Sample from ``latent`` plus ``noise`` as a KSampler does; ``on_step(step, preview)`` is called after each step."""
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def callback(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        on_step(step, previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None)

    return comfy.sample.sample(
        model, noise, settings.steps, settings.cfg, settings.sampler_name, settings.scheduler, positive, negative,
        latent, denoise=settings.denoise, callback=callback, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=settings.seed,
    )  # fmt: skip


def check_vae(vae: Any, frames: int) -> None:
    """Raise ``ValueError`` for a VAE that is not there, or that compresses frames together where there are several."""
    if vae is None:
        raise ValueError("VAE is missing: the checkpoint holds none. Load it with its own loader.")
    if frames > 1 and getattr(vae, "latent_dim", 2) != 2:
        raise ValueError(
            "This VAE is that of a video model, which puts several frames into one latent; expected the VAE of a model of "
            "pictures, whose frames lie along the batch (SD 1.5 with a motion module, SDXL)."
        )


def cell(vae: Any) -> int:
    """How many pixels a side one latent cell of a VAE is."""
    return int(vae.spacial_compression_encode())


def encode(vae: Any, images: torch.Tensor, progress: Progress) -> torch.Tensor:
    """IMAGE [F, H, W, 3] (sides multiples of :func:`cell`) to latents, some frames at a time and, where they are large, in tiles."""
    parts = []
    for chunk in images.split(frames_at_once(images.shape[1:3])):
        parts.append(vae.encode_tiled(chunk) if _large(chunk.shape[1:3]) else vae.encode(chunk))
        progress.advance(len(chunk))
    return torch.cat(parts)


def decode(vae: Any, latents: torch.Tensor, progress: Progress) -> torch.Tensor:
    """Latents [F, C, h, w] to IMAGE in one preallocated result on the CPU, some frames at a time."""
    size = (latents.shape[-2] * cell(vae), latents.shape[-1] * cell(vae))
    out = torch.empty(latents.shape[0], *size, 3)
    at = 0
    for chunk in latents.split(frames_at_once(size)):
        out[at : at + len(chunk)] = vae.decode_tiled(chunk) if _large(size) else vae.decode(chunk)
        at += len(chunk)
        progress.advance(len(chunk))
    return out


def frames_at_once(size: Sequence[int]) -> int:
    """How many frames of this size to handle at a time: four of 512x512, one of 1024x1024."""
    return max(1, 4 * 512 * 512 // (size[0] * size[1]))


def _large(size: Sequence[int]) -> bool:
    return size[0] * size[1] > 1024 * 1024


def upscale(upscale_model: Any, images: torch.Tensor, height: int, width: int, progress: Progress) -> torch.Tensor:
    """IMAGE through an UPSCALE_MODEL and to this size, some frames at a time into one result on the CPU.

    The host makes its tiles smaller where memory runs out.
    """
    out = torch.empty(len(images), height, width, images.shape[3])
    at = 0
    for chunk in images.split(max(1, frames_at_once(images.shape[1:3]) // 2)):
        try:
            large = ImageUpscaleWithModel.execute(upscale_model, chunk).args[0].cpu()
        except Exception as error:
            _raise_unless_memory(error)
            raise RuntimeError(
                "The upscale model ran out of memory even on 128-pixel tiles. Use a smaller upscale model, or none: "
                "the frames are then enlarged with Lanczos."
            ) from error
        out[at : at + len(chunk)] = resize(large, height, width)
        at += len(chunk)
        progress.advance(len(chunk))
    return out


def resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """IMAGE resampled with Lanczos, frame by frame on the CPU."""
    if images.shape[1:3] == (height, width):
        return images
    out = torch.empty(len(images), height, width, images.shape[3])
    for i in range(len(images)):
        one = images[i : i + 1].movedim(-1, 1)
        out[i] = comfy.utils.common_upscale(one, width, height, "lanczos", "disabled")[0].movedim(0, -1)
    return out


AREA_CELL = 8  # pixels that the host counts as one in a conditioning's area
WHOLE_PICTURE = (
    "area",
    "set_area_to_bounds",
    "gligen",
    "concat_latent_image",
    "concat_mask",
)  # what cuts do not take over


def conditioning_of(
    conditioning: Any,
    frames: range,
    clip: int,
    picture: tuple[int, int],
    cut: Callable[[torch.Tensor], torch.Tensor],
    controls: dict[int, Any],
) -> Any:
    """A conditioning for a video that was cut out of some frames of a clip.

    Rows are those of the frames; masks and ControlNet hints are cut as the pictures were, and areas as the masks that they
    are; what then lies nowhere in the video is left out, unless nothing would remain.  GLIGEN boxes, which are places in the whole picture, are left
    out, as is the latent of the whole picture that inpainting models are shown (they then draw all of the cut anew).  Hints
    of fewer frames are repeated, as the host does.

    Args:
        picture: height and width of the clip; a hint of another shape is fitted to it as the host does, by its middle.
        cut: ``cut(images [frames, H, W, C])``, given those of the video, gives its frames.
        controls: remembers the ControlNets cut so, so that conditionings that share one still do.
    """

    def cut_hint(control: Any, hint: torch.Tensor) -> torch.Tensor:
        hint = _of_frames(hint, frames)
        if tuple(hint.shape[-2:]) != picture:
            hint = comfy.utils.common_upscale(hint, picture[1], picture[0], control.upscale_algorithm, "center")
        return cut(hint.movedim(1, -1)).movedim(-1, 1)

    part: list[Any] = []
    elsewhere: list[Any] = []
    for tensor, options in conditioning:
        area = options.get("area")
        options = {k: v for k, v in options.items() if k not in WHOLE_PICTURE}
        whole = tensor.shape[0] == clip and clip > 1
        if whole and torch.is_tensor(options.get("pooled_output")) and len(options["pooled_output"]) == clip:
            options["pooled_output"] = options["pooled_output"][frames.start : frames.stop]
        masks = [options["mask"]] if "mask" in options else []
        masks += [_mask_of_area(area, picture)] if area is not None else []
        if masks:
            there = (cut(_of_frames(mask, frames)[..., None])[..., 0] for mask in masks)
            options["mask"] = torch.stack(list(there)).prod(0).clamp(0, 1)
        if options.get("control") is not None:
            control = options["control"]
            if id(control) not in controls:
                controls[id(control)] = _with_hint(control, partial(cut_hint, control))
            options["control"] = controls[id(control)]
        rows = tensor[frames.start : frames.stop] if whole else tensor
        if masks and not _reaches(options["mask"]):
            elsewhere.append([rows, {k: v for k, v in options.items() if k != "mask"}])
        else:
            part.append([rows, options])
    return part or elsewhere


def _reaches(mask: torch.Tensor) -> bool:
    """Whether anything of a mask [F, H, W] is left where the sampler sees it, in the latent's cells."""
    cells = torch.nn.functional.interpolate(mask[:, None], scale_factor=1 / AREA_CELL, mode="bilinear")
    return bool(cells.amax() > 0.01)


def _mask_of_area(area: tuple[Any, ...], picture: tuple[int, int]) -> torch.Tensor:
    """The mask [1, H, W] of a conditioning's area: height, width, top and left in latent cells, or parts of the picture."""
    shares = isinstance(area[0], str)
    places = area[1:] if shares else area
    height, width, top, left = (
        round(float(value) * (side if shares else AREA_CELL)) for value, side in zip(places, 2 * picture, strict=True)
    )
    mask = torch.zeros(1, *picture)
    mask[:, top : top + height, left : left + width] = 1
    return mask


def enlarged_areas(conditioning: Any, scale: float) -> Any:
    """A conditioning whose areas and GLIGEN boxes, places in a clip's latent, fit the clip enlarged by ``scale``."""

    def enlarged(place: Any) -> Any:
        return place if isinstance(place[0], str) else tuple(round(value * scale) for value in place)

    changed = []
    for tensor, options in conditioning:
        options = dict(options)
        if options.get("area") is not None:
            options["area"] = enlarged(options["area"])
        if options.get("gligen") is not None:
            kind, gligen, boxes = options["gligen"]
            options["gligen"] = (kind, gligen, [(box[0], *enlarged(box[1:])) for box in boxes])
        changed.append([tensor, options])
    return changed


def _of_frames(rows: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
    """The rows of these frames; fewer rows than frames in the clip are repeated."""
    return rows[torch.as_tensor(list(frames)) % len(rows)]


def embed_images(clip_vision: Any, images: torch.Tensor) -> torch.Tensor:
    """The CLIP vision (or DINOv2) embeddings [N, d] of IMAGE, some at a time.

    Raises:
        ValueError: a model that gives no single embedding of a picture (SigLIP).
    """
    parts = []
    for part in images.split(16):
        stop_if_asked()
        parts.append(clip_vision.encode_image(part[..., :3])["image_embeds"].float().cpu())
    if parts[0].ndim != 2:
        raise ValueError(
            f"This CLIP vision model ({vision_kind(clip_vision)}) gives no single embedding of a picture; expected a CLIP "
            "(ViT-L/14, ViT-H) or, for DINO, a DINOv2."
        )
    return torch.cat(parts)


def vision_kind(clip_vision: Any) -> str:
    """What kind of model a CLIP_VISION is, in the host's words; "dinov2" for DINOv2."""
    return str(getattr(clip_vision, "model_type", "unknown"))


def embed_text(clip: Any, text: str) -> torch.Tensor:
    """The prompt's embedding [d] in the space that CLIP shares between pictures and text.

    Raises:
        ValueError: a text encoder without projection into that space.
    """
    encoders = (getattr(clip.cond_stage_model, name, None) for name in ("clip_g", "clip_h", "clip_l"))
    encoder = next((encoder for encoder in encoders if encoder is not None), None)
    projection = getattr(getattr(encoder, "transformer", None), "text_projection", None)
    if projection is None:
        raise ValueError("This CLIP has no text encoder of the CLIP family; CLIP-T cannot be computed with it.")
    pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled="unprojected")[1][0].float().cpu()
    weight = projection.weight.detach().float().cpu()
    if not _is_projection(weight) or _files_lack(clip, "text_projection"):
        raise ValueError(
            "This CLIP came without a text projection (checkpoints of SD 1.5 and the usual clip_l.safetensors leave it out), so "
            "CLIP-T would be meaningless. Load OpenAI's clip-vit-large-patch14 with 'Load CLIP' for it."
        )
    return pooled @ weight.T


def _is_projection(weight: torch.Tensor) -> bool:
    """Whether weights were loaded: the host leaves those of a missing layer as zeros or as whatever the memory held."""
    spread = float(weight.std()) if torch.isfinite(weight).all() else math.inf
    identity = weight.shape[0] == weight.shape[1] and torch.equal(weight, torch.eye(len(weight)))
    return 1e-4 < spread < 10 and not identity


def _files_lack(clip: Any, layer: str) -> bool:
    """Whether the files that a CLIP was loaded from are known and none holds this layer."""
    from safetensors import safe_open

    paths = re.findall(r"'([^']+\.safetensors)'", repr(getattr(clip.patcher, "cached_patcher_init", None)))
    if not paths or not all(os.path.isfile(path) for path in paths):
        return False
    for path in paths:
        with safe_open(path, "pt") as file:
            if any(key.removesuffix(".weight").endswith(layer) for key in file.keys()):  # noqa: SIM118
                return False
    return True


def likeness(clip_vision: Any, reference: torch.Tensor, crops: list[torch.Tensor]) -> list[float]:
    """The mean cosine between a reference picture's and each set of crops' CLIP vision embeddings."""
    wanted = embed_images(clip_vision, reference)
    return [float(metrics.to_references(embed_images(clip_vision, images), wanted).mean()) for images in crops]


def check_conditioning(conditioning: Any, frames: int, name: str) -> None:
    """Raise ``ValueError`` where a conditioning has rows for another number of frames than the clip."""
    for tensor, options in conditioning:
        for what, found in (("rows", tensor.shape[0]), ("mask frames", len(options.get("mask", "1")))):
            if found not in (1, frames):
                raise ValueError(
                    f"{name} has {found} {what}, but the clip has {frames} frames; expected 1 or {frames}."
                )


def small_sd15(
    unet: dict[str, Any], heads: int, text: dict[str, Any], autoencoder: torch.nn.Module, embeddings: list[str]
) -> tuple[Model, Any, Any]:
    """An SD 1.5 of other sizes in the host's own classes: MODEL, CLIP and VAE, their weights still to be filled in.

    Args:
        unet: the UNet's configuration, as the host's model detection writes it.
        heads: attention heads of the UNet.
        text: CLIP-L's configuration.
        autoencoder: a module with ``encode`` and ``decode`` over pictures in -1..1, 8 times smaller, 4 channels.
        embeddings: folders in which prompts look for ``embedding:name``.

    The model predicts v and has AnimateDiff's noise schedule (linear betas 0.00085-0.012).
    """
    config = comfy.supported_models.SD15({**unet, "dtype": torch.float32})
    config.unet_config["num_heads"] = heads
    config.sampling_settings = {"beta_schedule": "sqrt_linear", "linear_start": 0.00085, "linear_end": 0.012}
    config.set_inference_dtype(torch.float32, None)
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    # of exactly this class: AnimateDiff-Evolved asks for it
    base = comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType.V_PREDICTION, device="cpu")
    model = comfy.model_patcher.CoreModelPatcher(base, load_device=device, offload_device=offload)

    target = config.clip_target({})
    target.params = {}
    options = {"dtype": torch.float32, "clip_l_model_config": text}
    clip = comfy.sd.CLIP(target, embedding_directory=embeddings, model_options=options)

    vae = _empty_vae()
    vae.first_stage_model = autoencoder.eval().requires_grad_(False)
    vae.patcher = comfy.model_patcher.CoreModelPatcher(
        vae.first_stage_model, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    vae.memory_used_encode = lambda shape, dtype: 400 * shape[2] * shape[3] * 4
    vae.memory_used_decode = lambda shape, dtype: 400 * shape[2] * shape[3] * 64 * 4
    return model, clip, vae


def _empty_vae() -> Any:
    """The host's VAE object around the smallest autoencoder it takes; the caller puts its own in."""
    parameters = {
        "ddconfig": {
            "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
            "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
        },
        "embed_dim": 4,
    }  # fmt: skip
    weights = comfy.ldm.models.autoencoder.AutoencoderKL(**parameters).state_dict()
    return comfy.sd.VAE(sd=weights, config={"params": parameters}, dtype=torch.float32)
