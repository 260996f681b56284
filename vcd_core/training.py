"""Extended textual inversion (Magic-Me, sec. 4.2): learn the few tokens that stand for a person, pet or thing.

Only the tokens are trained, or in their place context vectors, which stand beside what the text encoder gives. Text
encoder, diffusion model and autoencoder are frozen and reached through :class:`Backend`, so this file knows nothing of
the program around it, and a model may predict noise, v or a flow. The loss is the denoising error inside the subject's
mask, divided by the mask's area, so the background is not learned.

Every draw follows from the seed and the number of its step, so a training that was stopped and resumed ends with the
same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from . import files, training_state
from .identity import KINDS
from .pictures import BUCKET, CELL, FAR, FITS, NEAR, Picture, augment, cells, prepare
from .words import shown

MOST_TOKENS = 32
GRADIENT_SCALE = 2.0**14  # keeps gradients of half-precision models above what they round to zero; exact in float32
LESS = 2.0**-4  # what the scale is multiplied by where it makes such gradients overflow


class Backend(Protocol):
    """The frozen model that tokens are trained for; of context vectors the vocabulary is what the encoder gives.

    Latents are [N, C, h, w], or of a video model [N, C, T, h, w], where a picture is a clip of one frame.
    """

    sigmas: torch.Tensor  # [T], the noise levels of its training, rising
    prediction: str  # one of PREDICTIONS
    identity: str  # tells this model from others
    norm: float  # the mean norm of the vocabulary's vectors
    widths: list[int]  # of the parts of a vector, one for each text encoder that reads it
    rates: torch.Tensor  # [d], how far each number of a vector moves for a learning rate, beside CLIP's
    cell: int  # pixels of a latent cell, a side
    sides: int  # what the sides of its pictures are multiples of, in pixels

    def words(self, text: str) -> torch.Tensor:
        """The vocabulary's vectors [k, d] of a text."""

    def text(self, captions: Sequence[str], vectors: torch.Tensor) -> Sequence[Any]:
        """What the model is told by each of the captions, whose ``V*`` is ``vectors`` [n, d]; differentiable."""

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """A picture [1, 3, H, W] or a clip's frames [F, 3, H, W] in 0..1 to one latent of the model."""

    def covered(self, frames: int) -> list[int]:
        """How many frames of a clip each of its latent frames stands for; of a picture [1].

        Raises:
            ValueError: a number of frames that the model does not take.
        """

    def denoise(self, noised: torch.Tensor, sigma: torch.Tensor, told: Sequence[Any]) -> torch.Tensor:
        """The model's estimate of the clean latents, given :func:`noised` ones, sigmas [N] and what it is told for
        each; differentiable."""

    def differentiating(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which :meth:`text` and :meth:`denoise` are called and their gradient is taken."""


PREDICTIONS = ("eps", "v", "flow")


def noised(latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, prediction: str) -> torch.Tensor:
    """Latents [N, ...] at noise levels [N], as a model of this prediction was shown them in its training.

    ``clean + sigma noise``, or on the straight line of a flow ``(1 - sigma) clean + sigma noise``.

    Example:
        >>> noised(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.75]), "flow").tolist()
        [[0.25, 0.25]]
    """
    sigma = sigma.view(-1, *[1] * (latents.ndim - 1))
    return (latents * (1 - sigma) if prediction == "flow" else latents) + sigma * noise


def weighting(sigma: torch.Tensor, prediction: str) -> torch.Tensor:
    """How much the error of the clean estimate counts at each noise level.

    As published for the kind of model: the error of the noise for epsilon models (Ho 2020), of v (Salimans 2022), of
    the velocity for flows (Lipman 2022): 1 / sigma^2, (1 + sigma^2) / sigma^2, 1 / sigma^2.
    """
    return (1 + sigma**2 if prediction == "v" else torch.ones_like(sigma)) / sigma**2


def drawn_levels(
    sigmas: torch.Tensor, count: int, prediction: str, g: torch.Generator, part: tuple[float, float] = (0.0, 1.0)
) -> torch.Tensor:
    """Noise levels [count] as models of this kind are trained at: steps alike, of a flow logit-normal (Esser 2024).

    Args:
        sigmas: those of the model's steps, rising.
        part: the levels that a model knows which was trained at some of them alone, of 0 (clean) to 1 (noise): of a
            flow its sigmas, otherwise its steps.

    Example:
        >>> sigmas = torch.linspace(0.001, 1, 1000)
        >>> high = drawn_levels(sigmas, 1000, "flow", torch.Generator().manual_seed(0), (0.875, 1.0))
        >>> round(float(high.min()), 2), round(float(high.mean()), 2)
        (0.88, 0.94)
    """
    flow = prediction == "flow"
    levels = sigmas / sigmas[-1] if flow else torch.arange(1, len(sigmas) + 1, device=sigmas.device) / len(sigmas)
    first = int((levels < part[0]).sum())
    known = sigmas[first : max(int((levels <= part[1]).sum()), first + 1)]
    if flow:
        at = (torch.randn(count, generator=g).sigmoid() * len(known)).long()
        return known[at.clamp(max=len(known) - 1)]
    return known[torch.randint(len(known), (count,), generator=g)]


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults are the paper's.

    Attributes:
        class_word: what it is, written behind the tokens.
        template: the caption; ``V*`` is the tokens and the class word.
        initial_words: words whose vectors the tokens start from, in turn; empty: the class word.
        unmasked: the share of the draws that count the whole picture; 1 trains without masks.
        variants: how many augmentations of each picture are drawn, encoded once and kept.
        clamp_norm: keep each token's norm at most at the vocabulary's mean.
        kind: what is learned, one of :data:`vcd_core.identity.KINDS`; the backend must be of that kind.
        frames: how many frames of a clip a step sees together; what has fewer is a picture.
        noise_from, noise_to: the noise levels to learn at, see :func:`drawn_levels`.
    """

    class_word: str = "man"
    tokens: int = 4
    steps: int = 200
    batch: int = 4
    learning_rate: float = 1e-3
    size: int = 512
    fit: str = FITS[0]
    template: str = "photo of a V*"
    initial_words: str = ""
    unmasked: float = 0.05
    noise_offset: float = 0.1
    augment: bool = True
    variants: int = 16
    weight_decay: float = 0.0
    clamp_norm: bool = False
    seed: int = 0
    kind: str = KINDS[0]
    frames: int = 1
    noise_from: float = 0.0
    noise_to: float = 1.0

    def check(self) -> None:
        """Raise ``ValueError`` where a value cannot be trained with."""
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise ValueError(f"tokens is {self.tokens}; expected 1 to {MOST_TOKENS}. The paper uses 4.")
        if "V*" not in self.template:
            raise ValueError(f"The template {self.template!r} has no V*, which stands for the identity.")
        if self.size < BUCKET or self.size % CELL:
            raise ValueError(f"size is {self.size}; expected a multiple of {CELL} from {BUCKET} on (SD 1.5: 512).")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; expected one of {', '.join(KINDS)}.")
        if self.fit not in FITS:
            raise ValueError(f"fit is {self.fit!r}; expected one of {', '.join(FITS)}.")
        if not 0 <= self.noise_from < self.noise_to <= 1:
            raise ValueError(
                f"noise_from is {self.noise_from:g} and noise_to {self.noise_to:g}; expected 0 (clean) to 1 (noise), "
                "the first below the second."
            )


@dataclass(frozen=True)
class Batch:
    """What one step trains on: latents and noise [B, C, (T,) h, w], masks [B, T, h, w], captions and sigmas [B]."""

    latents: torch.Tensor
    masks: torch.Tensor
    captions: list[str]
    sigmas: torch.Tensor
    noise: torch.Tensor


class Album:
    """Prepared pictures and clips with their variants, each encoded once, the first time it is drawn.

    A variant of a clip is ``settings.frames`` of its frames in a row, in some of which the subject is seen.
    """

    def __init__(self, pictures: Sequence[Picture], backend: Backend, settings: Settings) -> None:
        self.pictures, self.backend, self.settings = list(pictures), backend, settings
        self.kept: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, str]] = {}
        self.starts = [self._starts(picture) for picture in self.pictures]
        self.shapes = [(self._frames(picture), *picture.mask.shape[1:]) for picture in self.pictures]

    def _frames(self, picture: Picture) -> int:
        """How many frames of a picture or clip a step sees."""
        return self.settings.frames if len(picture.mask) >= self.settings.frames else 1

    def _starts(self, picture: Picture) -> list[int]:
        """The frames that a variant may begin with."""
        seen = (cells(picture.mask, self.backend.cell).sum((1, 2)) >= 1).tolist()
        length = self._frames(picture)
        return [first for first in range(len(seen) - length + 1) if any(seen[first : first + length])]

    def _variants(self, number: int) -> int:
        """How many different variants a picture has."""
        return self.settings.variants if self.settings.augment or len(self.starts[number]) > 1 else 1

    def fingerprint(self) -> str:
        """Tells these pictures and masks from others."""
        digest = hashlib.sha256()
        for picture in self.pictures:
            for part in (picture.image, picture.mask):
                digest.update((part * 255).round().byte().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def variant(self, number: int, which: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        """Latents [C, (T,) h, w], cells [T, h, w] and the caption's beginning of a picture's variant."""
        if (number, which) not in self.kept:
            picture, words = self._shown(number, which), ""
            if self.settings.augment:
                picture, words = augment(picture, generator(self.settings.seed, "variant", number, which))
            each = cells(picture.mask, self.backend.cell).split(self.backend.covered(len(picture.mask)))
            masks = torch.stack([frames.mean(0) for frames in each])
            self.kept[number, which] = self.backend.encode(picture.image)[0], masks, words
        return self.kept[number, which]

    def _shown(self, number: int, which: int) -> Picture:
        """The frames of a clip that are in a variant; of a picture all."""
        picture, starts = self.pictures[number], self.starts[number]
        g = generator(self.settings.seed, "frames", number, which)
        first = starts[int(torch.randint(len(starts), (), generator=g))]
        at = slice(first, first + self._frames(picture))
        return Picture(picture.image[at], picture.mask[at])

    def draw(self, step: int) -> Batch:
        """The batch of a step; it depends on the seed and the step alone."""
        settings, g = self.settings, generator(self.settings.seed, "step", step)

        def below(count: int) -> int:
            return int(torch.randint(count, (), generator=g))

        shape = self.shapes[below(len(self.pictures))]
        alike = [number for number, other in enumerate(self.shapes) if other == shape]
        chosen = (alike[below(len(alike))] for _ in range(settings.batch))
        drawn = [self.variant(number, below(self._variants(number))) for number in chosen]
        latents = torch.stack([latent for latent, *_ in drawn])
        masks = torch.stack([mask for _, mask, _ in drawn])
        masks[torch.rand(settings.batch, generator=g) < settings.unmasked] = 1
        part = settings.noise_from, settings.noise_to
        sigmas = drawn_levels(self.backend.sigmas, settings.batch, self.backend.prediction, g, part)
        noise = torch.randn(latents.shape, generator=g)
        whole = torch.randn(*latents.shape[:2], *[1] * (latents.ndim - 2), generator=g)
        noise = noise + settings.noise_offset * whole
        return Batch(latents, masks, [words + settings.template for *_, words in drawn], sigmas, noise)


def generator(seed: int, *what: object) -> torch.Generator:
    """A generator that follows from a seed and from what it is for."""
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def masked_loss(backend: Backend, vectors: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The squared error of the model's prediction inside the masks, divided by their area, the mean over the batch.

    The error is that of the clean estimate, weighted by the noise level as :func:`weighting` says.
    """
    distinct = list(dict.fromkeys(batch.captions))
    told = dict(zip(distinct, backend.text(distinct, vectors), strict=True))
    shown = noised(batch.latents, batch.noise, batch.sigmas, backend.prediction)
    estimate = backend.denoise(shown, batch.sigmas, [told[caption] for caption in batch.captions]).float()
    weights = weighting(batch.sigmas, backend.prediction).to(estimate).view(-1, *[1] * (estimate.ndim - 1))
    error = (estimate - batch.latents.to(estimate)).pow(2) * weights
    masks = (batch.masks if error.ndim == 4 else batch.masks[:, None]).to(error).expand_as(error)
    return ((error * masks).flatten(1).sum(1) / masks.flatten(1).sum(1)).mean()


class Training:
    """A training under way.

    Attributes:
        vectors: the tokens, [n, d].
        losses: the loss of each step that was done.
    """

    def __init__(self, backend: Backend, pictures: Sequence[Picture], settings: Settings) -> None:
        settings.check()
        if settings.size % backend.sides:
            below = max(backend.sides, settings.size // backend.sides * backend.sides)
            raise ValueError(
                f"size is {settings.size}; this model takes multiples of {backend.sides}, the nearest are "
                f"{below} and {below + backend.sides}."
            )
        self.backend, self.settings = backend, settings
        backend.covered(settings.frames)
        self.album = Album(pictures, backend, settings)
        self.vectors = torch.nn.Parameter(initial_vectors(backend, settings))
        # the tokens are the one parameter, so decay reaches nothing else of the vocabulary
        self.optimizer = torch.optim.AdamW(
            [self.vectors], lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=False
        )
        self.losses: list[float] = []
        self.scale = GRADIENT_SCALE
        with torch.no_grad():  # a caption that is too long is found here, and not at the step that draws it
            backend.text([words + settings.template for words in ("", *FAR, *NEAR)], self.vectors)

    @property
    def step(self) -> int:
        """How many steps were done."""
        return len(self.losses)

    def advance(self) -> float:
        """Do one step and return its loss.

        Raises:
            ValueError: the loss is not a number; the tokens are as before the step.
        """
        batch = self.album.draw(self.step)
        value, gradient = self._gradient(batch)
        while math.isfinite(value) and not gradient.isfinite().all() and self.scale > 1:
            self.scale *= LESS
            value, gradient = self._gradient(batch)
        finite = math.isfinite(value) and bool(gradient.isfinite().all())
        if not (finite and self._move(gradient)):
            wrong = "where it leads" if finite else "its gradient"
            raise ValueError(
                f"The loss of step {self.step + 1} is {value} and {wrong} is not finite. Start ComfyUI with "
                "--force-fp32, or lower the learning rate, and go on: the state before this step is kept."
            )
        self.losses.append(value)
        return value

    def _move(self, gradient: torch.Tensor) -> bool:
        """Let the optimizer do a step; where it leads to what is no number, nothing has moved."""
        before = self.vectors.detach().clone()
        kept = {key: value.clone() for key, value in self.optimizer.state.get(self.vectors, {}).items()}
        self.vectors.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            self.vectors.copy_(torch.lerp(before, self.vectors, self.backend.rates))
            if self.settings.clamp_norm:
                self.vectors.copy_(self.vectors.renorm(2, 0, self.backend.norm))
            if all(value.isfinite().all() for value in (self.vectors, *self.optimizer.state[self.vectors].values())):
                return True
            self.vectors.copy_(before)
        self.optimizer.state[self.vectors] = kept
        return False

    def _gradient(self, batch: Batch) -> tuple[float, torch.Tensor]:
        """The loss of a batch and its gradient to the tokens."""
        self.optimizer.zero_grad()
        with self.backend.differentiating():
            loss = masked_loss(self.backend, self.vectors, batch)
            (loss * self.scale).backward()
        assert self.vectors.grad is not None
        return float(loss.detach()), self.vectors.grad / self.scale

    def about(self) -> dict[str, str]:
        """What a state must have in common with the training that goes on from it."""
        settings = asdict(replace(self.settings, steps=0, learning_rate=0.0))  # these two may change
        return {"model": self.backend.identity, "pictures": self.album.fingerprint(), "settings": json.dumps(settings)}

    def save(self, path: Path) -> None:
        """Write the state whole or not at all."""
        kept = self.optimizer.state.get(self.vectors, {})
        goal, scale = self.settings.steps, self.scale
        training_state.State(self.vectors.detach(), self.losses, dict(kept), self.about(), goal, scale).write(path)

    def resume(self, path: Path) -> None:
        """Go on from a state.

        Raises:
            ValueError: a file that cannot be read, or the state of another model, other pictures or other settings.
        """
        state = training_state.read(path)
        self._compare(state.about, path.stem)
        if state.vectors.shape != self.vectors.shape:
            raise ValueError(
                f"The training '{path.stem}' has tokens of {list(state.vectors.shape)}; expected "
                f"{list(self.vectors.shape)}. Give this training another name, or turn resume off to begin anew."
            )
        self.losses = list(state.losses)
        self.scale = GRADIENT_SCALE if state.scale is None else state.scale
        with torch.no_grad():
            self.vectors.copy_(state.vectors)
        self.optimizer.state[self.vectors] = dict(state.optimizer)

    def _compare(self, found: dict[str, str], name: str) -> None:
        wanted = self.about()
        different = [key for key in ("model", "pictures") if found[key] != wanted[key]]
        # what older states do not have stands as it was then
        before, now = asdict(Settings()) | json.loads(found["settings"]), json.loads(wanted["settings"])
        different += [
            f"{key} ({shown(before.get(key))} there, {now[key]} here)" for key in now if before.get(key) != now[key]
        ]
        if different:
            raise ValueError(
                f"The training '{name}' was begun otherwise and cannot go on from there: {', '.join(different)}. "
                "Set it back, give this training another name, or turn resume off to begin anew."
            )


def initial_vectors(backend: Backend, settings: Settings) -> torch.Tensor:
    """The tokens [n, d] before training: the initial words' vectors in turn, a little noise keeping copies apart."""
    text = settings.initial_words.strip() or settings.class_word.strip()
    words = backend.words(text) if text else torch.empty(0, 0)
    if not len(words):
        raise ValueError("There are no initial words and no class word to begin from. Write one, such as 'man'.")
    vectors = words[[i % len(words) for i in range(settings.tokens)]].float().cpu()
    noise = torch.randn(vectors.shape, generator=generator(settings.seed, "start"))
    spread = [part.float().std().cpu().expand(part.shape[1]) for part in words.split(backend.widths, 1)]
    return vectors + 0.1 * torch.cat(spread) * noise


def is_done(path: Path) -> bool:
    """Whether the training that wrote this state came to its end."""
    state = training_state.read(path)
    return state.goal is not None and len(state.losses) >= state.goal


@dataclass
class Report:
    """What a training gives: its tokens [n, d] and the loss of each step."""

    vectors: torch.Tensor
    losses: list[float] = field(default_factory=list)


def train(
    backend: Backend,
    images: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor] | None,
    settings: Settings,
    state: Path | None = None,
    resume: bool = True,
    save_every: int = 25,
    on_step: Callable[[Training], Any] = lambda training: None,
) -> Report:
    """Train an identity's tokens.

    Args:
        images, masks: see :func:`prepare`.
        state: where the state is written every ``save_every`` steps, at the end, and when the training is stopped.
        resume: go on from ``state`` if it is there. If anything but ``steps`` and ``learning_rate`` has changed, a
            training that came to its end is begun anew, its old state kept under a number; one that did not raises.
        on_step: called after each step; what it raises stops the training, its state being kept.

    Raises:
        ValueError: what cannot be trained with; see :func:`prepare`, :class:`Settings` and :meth:`Training.resume`.

    Example, with a backend that is no model at all:
        >>> class Mean:
        ...     sigmas, prediction, identity, norm = torch.linspace(0.1, 10, 100), "eps", "mean", 1.0
        ...     cell, sides, widths, rates, differentiating = 8, 8, [4], torch.ones(4), contextlib.nullcontext
        ...     words = staticmethod(lambda text: torch.zeros(1, 4))
        ...     text = staticmethod(lambda captions, vectors: vectors.mean(0).expand(len(captions), 1, 4))
        ...     encode = staticmethod(lambda frames: torch.nn.functional.avg_pool2d(frames, 8))
        ...     covered = staticmethod(lambda frames: [1])
        ...     denoise = staticmethod(lambda x, _, told: torch.stack(list(told))[:, 0, :3, None, None].expand_as(x))
        >>> pictures = [torch.full((64, 64, 3), 0.5)]
        >>> report = train(Mean(), pictures, None, Settings(size=64, steps=150, learning_rate=0.02, augment=False))
        >>> bool((report.vectors.mean(0)[:3] - 0.5).abs().max() < 0.1)
        True
    """
    training = Training(backend, prepare(images, masks, settings.size, settings.fit, backend.cell), settings)
    if resume and state is not None and state.is_file():
        try:
            training.resume(state)
        except ValueError:
            if not is_done(state):
                raise
            state.rename(files.free_path(state.parent, state.stem, overwrite=False))
    if training.step > settings.steps:
        raise ValueError(
            f"The training '{state.stem if state else ''}' has done {training.step} steps already, more than "
            f"{settings.steps}. Raise steps, or turn resume off to begin anew."
        )
    saved = training.step
    try:
        while training.step < settings.steps:
            training.advance()
            on_step(training)
            if state is not None and training.step % save_every == 0:
                saved = _try_to_save(training, state, saved)
    finally:
        if state is not None and training.step > saved:
            _try_to_save(training, state, saved)
    return Report(training.vectors.detach().clone(), list(training.losses))


def _try_to_save(training: Training, path: Path, saved: int) -> int:
    """Save, and return the step that is on disk; a full disk does not cost the training."""
    try:
        training.save(path)
    except OSError as error:
        logging.warning(
            "The state of the training could not be written (%s); on disk is step %d. Training goes on.", error, saved
        )
        return saved
    return training.step
