"""Memory and time of learning an identity on SDXL and Wan 1.3B, beside ComfyUI's own LoRA training of the same model.

The models are of real size with random weights in bfloat16, computed in float32, on pictures of 256x256, batch 1; text
encoders have real widths and few layers (context vectors ask them once for each caption), for tokens SDXL's are whole.
Each way trains in a process of its own: the peak is what it needs beside the loaded model, the time is that of a step,
from the difference of a longer and a shorter training.  Target: less of both than the LoRA's.

    python run.py bench training
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from dev import random_models, video_models
from dev.host import PACK, ROOT
from dev.random_models import enter_host
from dev.server import host_from_environment

from .measure import table
from .memory import peak, restart_peak

SIDE, SHORT, LONG, RANK = 256, 1, 3, 8
WAYS = ("context vectors", "context vectors, recomputed", "tokens", "tokens, recomputed", "LoRA", "LoRA, recomputed")
MODELS = ("sdxl", "wan21_1.3b")


def parts(model: str, whole: bool) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE; ``whole``: with text encoders of all their layers."""
    low = (torch.bfloat16, torch.float32)
    if model == "sdxl":
        return random_models.sdxl(*low, whole=whole)
    made = video_models.model(model, dtypes=low)
    return made, video_models.text_encoder("umt5xxl", width=4096), video_models.vae("wan21")


def learn(model: str, way: str) -> Callable[[int], object]:
    """A training of so many steps by the pack."""
    training, learned, gradients = (
        __import__(f"{PACK}.{name}", fromlist=["x"])
        for name in ("vcd_core.training", "nodes.host.learned", "nodes.host.gradients")
    )
    kind, _, recomputed = way.partition(", ")
    made = parts(model, whole=kind == "tokens")
    settings = training.Settings(size=SIDE, batch=1, variants=1, kind=kind)
    pictures = [torch.rand(SIDE, SIDE, 3, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    with gradients.gradients():
        backend = learned.backend_of(kind)(*made, "man")

    def run(steps: int) -> None:
        with gradients.gradients():
            prepared = training.prepare(pictures, None, SIDE)
            work = training.Training(backend, prepared, settings)
            again = gradients.recomputed(backend.model) if recomputed else contextlib.nullcontext()
            with again:
                for _ in range(steps):
                    work.advance()

    return run


def lora(model: str, way: str) -> Callable[[int], object]:
    """A LoRA's training of so many steps by the host's own node."""
    from comfy_extras.nodes_train import TrainLoraNode

    made, clip, vae = parts(model, whole=False)
    made.cached_patcher_init = (lambda disable_dynamic: made, ())  # the node loads a second model, which is not counted
    pictures = [torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    latents = [{"samples": vae.encode(picture)} for picture in pictures]
    told = clip.encode_from_tokens_scheduled(clip.tokenize("photo of a man"))

    def run(steps: int) -> None:
        once = {
            "batch_size": 1, "steps": steps, "grad_accumulation_steps": 1, "learning_rate": 1e-4, "rank": RANK,
            "optimizer": "AdamW", "loss_function": "MSE", "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32",
            "quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": way != "LoRA",
            "checkpoint_depth": 1, "offloading": False, "existing_lora": "[None]", "bucket_mode": False,
            "bypass_mode": False,
        }  # fmt: skip
        TrainLoraNode.execute([made], latents, [told], **{name: [value] for name, value in once.items()})

    return run


def measured(model: str, way: str) -> dict[str, float]:
    """Gigabytes beside the loaded model at the peak, and seconds a step.

    Raises:
        MemoryError, RuntimeError: it needs more than the machine has.
    """
    import resource

    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    host = host_from_environment()
    enter_host(host.comfy)
    sys.path.insert(0, str(host.base / "custom_nodes"))
    import folder_paths

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        folder_paths.set_output_directory(folder)
        run = (lora if way.startswith("LoRA") else learn)(model, way)
        restart_peak()
        before, times = peak(), []
        for steps in (SHORT, LONG):
            start = time.perf_counter()
            run(steps)
            times.append(time.perf_counter() - start)
    return {"memory": (peak() - before) / 2**30, "time": (times[1] - times[0]) / (LONG - SHORT)}


def in_a_process(model: str, way: str) -> dict[str, float] | None:
    code = f"import json; from benchmarks.training import measured; print(json.dumps(measured({model!r}, {way!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _cells(values: dict[str, float] | None, theirs: dict[str, float] | None) -> tuple[str, str]:
    if values is None:
        return "more than there is", "-"
    return f"{values['memory']:.2f}", "-" if theirs is None else f"{values['time'] / theirs['time']:.2f}"


def main() -> int:
    rows: list[list[str]] = []
    worse: list[tuple[str, str, str]] = []
    for model in MODELS:
        ways = [way for way in WAYS if model == "sdxl" or not way.startswith("tokens")]
        found = {way: in_a_process(model, way) for way in ways}
        for way, values in found.items():
            theirs = found["LoRA, recomputed" if "recomputed" in way else "LoRA"]
            rows.append([model, way, *_cells(values, theirs)])
            if values is not None and theirs is not None and not way.startswith("LoRA"):
                worse += [(model, way, name) for name in values if values[name] >= theirs[name]]
    table(["model", "way", "GiB beside the model", "time of a step beside the LoRA's"], rows)
    return len(worse)
