"""MODEL, CLIP and VAE with gradients: what the training of an identity needs of ComfyUI."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from types import MethodType
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import torch
import torch.utils.checkpoint
from einops import rearrange

from ...vcd_core import identity
from .context import padding, tokens_beside, weights_in
from .model import Model, kind_of, of_video, predicts
from .motion import blocks
from .text import text_widths, tokenizer_with


class TrainingModel:
    """A model whose text tokens can be trained: the :class:`~vcd_core.training.Backend` over MODEL, CLIP and VAE.

    To be made and used inside :func:`gradients`.
    """

    MARK = "vcd_id_in_training"

    def __init__(self, model: Model, clip: Any, vae: Any, class_word: str) -> None:
        if of_video(model):
            raise ValueError(
                f"VCD ID Trainer learns tokens for SD 1.5; this model ({kind_of(model)}) is a video model, into which "
                "a subject goes as a LoRA (ComfyUI's 'Train LoRA' and 'Load LoRA'), or as reference pictures with the "
                "models made for them (Wan VACE by 'WanVaceToVideo', Phantom by 'WanPhantomSubjectToVideo')."
            )
        self.prediction = predicts(model)
        if self.prediction not in ("eps", "v"):
            raise ValueError(
                f"This model ({kind_of(model)}) predicts {self.prediction}; identities are trained on models that "
                "predict noise (eps) or v. Use SD 1.5 or a finetune of it, without a node that tells "
                "it to sample otherwise."
            )
        if list(text_widths(clip)) != ["clip_l"] or kind_of(model) != "SD15":
            raise ValueError(
                f"This model ({kind_of(model)}, text encoders {', '.join(text_widths(clip)) or 'unknown'}) is not SD "
                "1.5; identities are trained on SD 1.5 and its finetunes."
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
                "Layers were added to this MODEL (a motion module?); an identity is learned from single pictures. "
                "Connect the model as it is before 'AnimateDiff Motion Module'."
            )
        if vae.latent_channels != 4:
            raise ValueError(
                f"The VAE's latents have {vae.latent_channels} channels; SD 1.5's have 4. Take its own VAE."
            )
        self.model, self.clip, self.vae = _always_loaded(model), _clip_always_loaded(clip), vae
        self.patchers = [self.model, self.clip.patcher]  # what gradients flow through
        self.class_word = class_word
        self.load()
        self.sigmas = self.model.model.model_sampling.sigmas.detach().clone().cpu()
        norms = self._table().norm(dim=1)
        self.norm = float(norms[norms > 0].mean())
        self.identity = self._identity()

    def _identity(self) -> str:
        """A digest of a few numbers of every weight, in half precision, so that it does not depend on the dtype."""
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
        """Load what gradients flow through, with room for latents of this shape."""
        room = 0 if latents is None else 3 * self.model.memory_required(list(latents))
        comfy.model_management.load_models_gpu(self.patchers, memory_required=room, force_full_load=True)
        for patcher in self.patchers:
            _allow_gradients(patcher.model)

    def _table(self) -> torch.Tensor:
        weight = self.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
        return weight.detach().float().cpu().clone()

    def words(self, text: str) -> torch.Tensor:
        for written in re.findall(r"embedding:((?:\\[()]|[^\s,:()])+)", text):
            name = re.sub(r"\\([()])", r"\1", written)
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
            written = identity.insert(caption, mark, {self.MARK: self.class_word})
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


class ContextModel(TrainingModel):
    """A model beside whose prompts context vectors can be trained; no gradient flows through its text encoder.

    What the encoder gives is kept for each caption. The vocabulary is what it gives for words that stand alone.
    """

    def __init__(self, model: Model, clip: Any, vae: Any, class_word: str) -> None:
        super().__init__(model, clip, vae, class_word)
        self.kept: dict[str, tuple[torch.Tensor, int, float]] = {}
        self.empty = self._encoded("")[0]
        self.norm = float(self.empty.norm(dim=1).mean())
        self.patchers = [self.model]

    def _encoded(self, caption: str) -> tuple[torch.Tensor, int, float]:
        """A caption's rows [L, D], how many of them are padding, and the weight of ``V*`` in it."""
        if caption not in self.kept:
            marks = {self.MARK: {"clip_l": torch.empty(0, text_widths(self.clip)["clip_l"])}}
            written = identity.insert(caption, {self.MARK: f"embedding:{self.MARK}"}, {self.MARK: self.class_word})
            tokens = tokens_beside(self.clip, written, marks)
            if len(tokens["l"]) != 1:
                raise ValueError(f"The caption {caption!r} is too long for one prompt of 75.")
            with torch.no_grad():
                rows = self.clip.encode_from_tokens(tokens)[0].float().cpu().clone()
            weight = weights_in(self.clip, written, marks).get(self.MARK, 1.0)
            self.kept[caption] = rows, padding(self.clip, tokens), weight
        return self.kept[caption]

    def words(self, text: str) -> torch.Tensor:
        count = len(super().words(text))
        return self._encoded(text)[0][1 : count + 1]  # behind the start

    def text(self, captions: Sequence[str], vectors: torch.Tensor) -> torch.Tensor:
        found = []
        for caption in captions:
            rows, room, weight = self._encoded(caption)
            if room < len(vectors):
                raise ValueError(
                    f"The caption {caption!r} with {len(vectors)} context vectors is too long for one prompt of 75."
                )
            found.append(identity.beside(rows, [vectors], [weight], room, self.empty))
        return torch.stack(found)


def backend_of(kind: str) -> type[TrainingModel]:
    """The backend that learns this kind of vectors."""
    return ContextModel if kind == identity.CONTEXT else TrainingModel


def _attention_with_gradients(_: Any, *arguments: Any, **named: Any) -> torch.Tensor:
    """PyTorch's attention in place of what ComfyUI was started with, which may be for sampling only (SageAttention)."""
    found: torch.Tensor = comfy.ldm.modules.attention.attention_pytorch(*arguments, **named)
    return found


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Let gradients be taken in a node, which runs in inference mode; they are the same each time."""
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.backends.cudnn.deterministic = deterministic


@contextlib.contextmanager
def _norms_of_copies(encoder: torch.nn.Module) -> Iterator[None]:
    """Let norms keep copies for the backward pass: the host's text encoder changes their input in place.

    PyTorch's ``allow_mutation_on_saved_tensors`` watches every operation, which took half of a small model's step.
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

    layers = [part for block in blocks(model.model.diffusion_model) for part in block if _has_forward(part)]
    for layer in layers:
        layer.forward = MethodType(forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _has_forward(part: torch.nn.Module) -> bool:
    return any(True for _ in part.children()) and "forward" not in vars(part)
