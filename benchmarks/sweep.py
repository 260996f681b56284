"""The figures of VCD Evaluate over gamma, tokens and stage, for a graph on a running server: CSV and PNG.

Without arguments it sweeps the bundled quickstart with the tiny model, for identities of one and four tokens that are
trained for it on the server:

    python run.py bench sweep

Any graph with Apply 3D Noise Prior, VCD ID Loader and some of the stages can be swept, on a server of yours, with the
models that DINO, CLIP-I and CLIP-T need:

    python -m benchmarks.sweep --server http://127.0.0.1:8188 --graph my_graph.json --gammas 0,0.1,0.2 --ids
    vcd/a1,vcd/a4 \\
        --references input_picture.png --dino dinov2-large.safetensors --prompt "a man" \\
        --clip-vision clip-vit-large-patch14.safetensors --clip clip-vit-large-patch14.safetensors
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from dev.graph import to_api
from dev.host import HOST, ROOT
from dev.server import Server, host_from_environment
from vcd_core import plots
from vcd_core.evaluate import PAPER, Figure

QUICKSTART = ROOT / "workflows" / "01_quickstart.json"
STAGES = {"VAEDecode": "T2V", "VCD_FaceRefine": "Face", "VCD_TiledDenoise": "Tiled"}
TOKENS = (1, 4)
PEOPLE = "vcd_sweep"


@contextlib.contextmanager
def server_of(url: str | None) -> Iterator[Any]:
    """The server at ``url``, or one of our own."""
    if url is None:
        with Server(host_from_environment(), arguments=("--disable-api-nodes",)) as server:
            yield server
    else:
        server = object.__new__(Server)
        server.url, server.process = url.rstrip("/"), None
        yield server


def train_identities(server: Any) -> list[str]:
    """Identities of the tiny model's world with one and with four tokens, trained by the pack's nodes; their names."""
    from dev.studio import RECIPE, SIDE, TEMPLATE, pictures_of
    from vcd_core.tiny import world

    person = world.identities(1)[0]
    folder = server.host.base / "input" / PEOPLE
    folder.mkdir(parents=True, exist_ok=True)
    for i, (image, mask) in enumerate(zip(*pictures_of(person), strict=True)):
        rgba = torch.cat([image, mask[..., None]], -1).mul(255).round().byte().numpy()
        Image.fromarray(rgba, "RGBA").save(folder / f"{i}.png")
        Image.fromarray(rgba[..., :3]).save(server.host.base / "input" / f"{PEOPLE}.png")
    names = []
    for tokens in TOKENS:
        trainer = {
            "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "images": ["2", 0], "masks": ["2", 1],
            "name": f"vcd_sweep/{tokens}_tokens", "class_word": person.class_word, "tokens": tokens, "size": SIDE,
            "fit": "whole picture", "template": TEMPLATE, "sample_every": 0, "resume": False, "seed": 0, **RECIPE,
        }  # fmt: skip
        names.append(f"vcd_sweep/{tokens}_tokens")
        server.run({
            "1": {"class_type": "VCD_TinyModel", "inputs": {}},
            "2": {"class_type": "VCD_Pictures", "inputs": {"folder": PEOPLE}},
            "3": {"class_type": "VCD_IdTrainer", "inputs": trainer},
            "4": {"class_type": "VCD_IdSave", "inputs": {"id": ["3", 0], "name": names[-1], "overwrite": True}},
        }, 1800)  # fmt: skip
    return names


def with_evaluation(prompt: dict[str, Any], options: SimpleNamespace) -> tuple[dict[str, Any], dict[str, str]]:
    """The graph with a VCD Evaluate behind each stage and without its own outputs; and which evaluation is which
    stage."""
    kept = {k: n for k, n in prompt.items() if not n["class_type"].startswith(("Save", "Preview"))}
    shared: dict[str, Any] = {"prompt": options.prompt}
    loaders = {
        "references": ("LoadImage", "image", options.references),
        "clip_vision": ("CLIPVisionLoader", "clip_name", options.clip_vision),
        "dino": ("CLIPVisionLoader", "clip_name", options.dino),
        "clip": ("CLIPLoader", "clip_name", options.clip),
    }
    for name, (kind, widget, file) in loaders.items():
        if file:
            kept[f"sweep_{name}"] = {"class_type": kind, "inputs": {widget: file}}
            shared[name] = [f"sweep_{name}", 0]
            if kind == "CLIPLoader":
                kept[f"sweep_{name}"]["inputs"]["type"] = "stable_diffusion"
    stages: dict[str, str] = {}
    for key, node in prompt.items():
        stage = STAGES.get(node["class_type"])
        if stage and stage not in stages.values():
            stages[f"sweep_{stage}"] = stage
            kept[f"sweep_{stage}"] = {"class_type": "VCD_Evaluate", "inputs": {"images": [key, 0], **shared}}
    return kept, stages


def read_table(text: str) -> dict[str, float]:
    """The figures of an evaluation's table."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip(): float(row[1]) for row in rows if row[0].strip() and row[1].strip()[:1] in "-0123456789"}


def run(
    prompt: dict[str, Any], server: Any, gamma: float, identity: str, stages: dict[str, str]
) -> dict[str, dict[str, float]]:
    """The figures of each stage with this gamma and identity."""
    prompt = json.loads(json.dumps(prompt))
    for node in prompt.values():
        if node["class_type"] == "VCD_ApplyNoisePrior":
            node["inputs"].update(gamma=gamma, gamma_schedule="")
        if node["class_type"] in ("VCD_FaceRefine", "VCD_TiledDenoise"):
            node["inputs"]["gamma"] = gamma
        if node["class_type"] == "VCD_IdLoader" and identity:
            node["inputs"]["file"] = f"{identity}.safetensors"
    outputs = server.run(prompt, 3600)["outputs"]
    return {stage: read_table(outputs[key]["text"][0]) for key, stage in stages.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", metavar="URL", help="a running ComfyUI; one is started without")
    parser.add_argument("--graph", type=Path, default=QUICKSTART, help="a saved graph")
    parser.add_argument("--gammas", default="0,0.1,0.2,0.4")
    parser.add_argument("--ids", default="", help="names of identities in models/embeddings, with commas")
    for name in ("references", "clip-vision", "dino", "clip", "prompt"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--out", type=Path, default=HOST / "bench")
    options = parser.parse_args(arguments or [])
    if options.server and not options.ids:
        parser.error("--server needs --ids: identities can be trained only on a server that is started here")
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with server_of(options.server) as server:
        own = options.graph == QUICKSTART and not options.ids
        identities = train_identities(server) if own else [name for name in options.ids.split(",") if name] or [""]
        graph = json.loads(options.graph.read_text(encoding="utf-8"))
        prompt = to_api(graph, server.get("/object_info")) if "nodes" in graph else graph
        prompt, stages = with_evaluation(prompt, SimpleNamespace(**vars(options)))
        for identity in identities:
            for gamma in (float(value) for value in options.gammas.split(",")):
                start = time.monotonic()
                for stage, figures in run(prompt, server, gamma, identity, stages).items():
                    rows.append({"identity": identity.split("/")[-1], "gamma": gamma, "stage": stage, **figures})
                print(f"{identity} gamma {gamma:g}: {time.monotonic() - start:.0f} s", flush=True)
    names = list(dict.fromkeys(key for row in rows for key in row))
    with (options.out / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    for stage in dict.fromkeys(row["stage"] for row in rows):
        part = [row for row in rows if row["stage"] == stage]
        chart = {
            f"{row['identity']} gamma {row['gamma']:g}": [
                Figure(n, torch.tensor([row[n]]), "") for n in names[3:] if n in row
            ]
            for row in part
        }
        plots.to_pil(plots.figures_chart(chart, PAPER)[0]).save(options.out / f"sweep_{stage}.png")
    print(f"wrote {options.out / 'sweep.csv'} and a chart for each stage")
    for row in rows:
        print(" ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{value}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
