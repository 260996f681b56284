"""The state of a training, as a file that is whole or refused."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from . import files


@dataclass(frozen=True)
class State:
    """What :meth:`vcd_core.training.Training.save` wrote.

    Attributes:
        vectors: the tokens, [n, d].
        losses: of the steps that were done.
        optimizer: what AdamW keeps of the tokens; empty before the first step.
        about: what a training that goes on from here must have in common with it.
        goal: how many steps were wanted; None where an older version did not tell.
        scale: of the gradients; None likewise.
    """

    vectors: torch.Tensor
    losses: list[float]
    optimizer: dict[str, torch.Tensor]
    about: dict[str, str]
    goal: int | None = None
    scale: float | None = None

    def write(self, path: Path) -> None:
        """Write it whole or not at all.

        Raises:
            OSError: it cannot be written, see :func:`vcd_core.files.write_bytes`.
        """
        tensors = {"vectors": self.vectors, "losses": torch.tensor(self.losses, dtype=torch.float64)}
        tensors |= {f"optimizer.{key}": value for key, value in self.optimizer.items()}
        numbers = {"goal": self.goal, "scale": self.scale}
        told = {key: f"{value:.17g}" for key, value in numbers.items() if value is not None}
        files.write_whole(path, tensors, {**self.about, **told})


def read(path: Path) -> State:
    """Read one.

    Raises:
        ValueError: it cannot be read, is not the state of a training, or not as one was written.

    Example:
        >>> import tempfile
        >>> about = {"model": "m", "pictures": "p", "settings": "{}"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     State(torch.ones(1, 4), [], {}, about, goal=200).write(Path(folder, "me.safetensors"))
        ...     read(Path(folder, "me.safetensors")).goal
        200
    """
    tensors, about = files.read_state(path)
    vectors, losses = tensors.get("vectors"), tensors.get("losses")
    if vectors is None or losses is None or {"model", "pictures", "settings"} - set(about):
        raise ValueError(f"{path.name} is not the state of a training.")
    kept = {key.removeprefix("optimizer."): value for key, value in tensors.items() if key.startswith("optimizer.")}
    numbers = {key: about.pop(key) for key in ("goal", "scale") if key in about}
    faults = {
        "its settings": not _is_object(about["settings"]),
        "its number of steps": not re.fullmatch("[0-9]{1,9}", numbers.get("goal", "0"), re.ASCII),
        "the scale of its gradients": not _is_above_zero(numbers.get("scale", "1")),
        "its losses": losses.ndim != 1 or not _are_numbers(losses, torch.float64),
        "its tokens": vectors.ndim != 2 or not _are_numbers(vectors),
        "what its optimizer keeps": not _are_averages(kept, vectors, len(losses.flatten())),
    }
    wrong = [part for part, there in faults.items() if there]
    if wrong:
        raise ValueError(
            f"{path.name}, the state of a training, is not as it was written: wrong are {', '.join(wrong)}. Remove it, "
            "give the training another name, or turn resume off to begin anew."
        )
    return State(
        vectors,
        losses.tolist(),
        kept,
        about,
        int(numbers["goal"]) if "goal" in numbers else None,
        float(numbers["scale"]) if "scale" in numbers else None,
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_above_zero(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _are_numbers(values: torch.Tensor, dtype: torch.dtype = torch.float32) -> bool:
    return values.dtype == dtype and bool(values.isfinite().all())


def _are_averages(kept: dict[str, torch.Tensor], vectors: torch.Tensor, steps: int) -> bool:
    """Whether this is what AdamW keeps after so many steps: their number, averages of gradients and of squares."""
    if not steps:
        return not kept
    shapes = {"step": (), "exp_avg": vectors.shape, "exp_avg_sq": vectors.shape}
    if {key: tuple(value.shape) for key, value in kept.items()} != {key: tuple(of) for key, of in shapes.items()}:
        return False
    return all(map(_are_numbers, kept.values())) and bool(kept["step"] == steps and (kept["exp_avg_sq"] >= 0).all())
