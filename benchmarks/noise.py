"""The noise prior's cost: against drawing independent noise, against the release's way, and on the host's start.

Targets: at most 1.3 times ``torch.randn`` of the same shape and no more than one extra copy of memory, for 16, 256 and
4096 frames; under 0.3 s added to ComfyUI's start.
"""

from __future__ import annotations

import subprocess
import sys

import torch

from dev.host import PACK
from dev.server import host_from_environment
from vcd_core.noise import covariance, sample

from .measure import interleaved, peak_memory, table


def release(frames: int, gamma: float, seed: int) -> torch.Tensor:
    """What the release computes: a multivariate normal over frames, by its covariance matrix."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        law = torch.distributions.MultivariateNormal(torch.zeros(frames), covariance(frames, gamma).float())
        return law.sample((4, 64, 64)).permute(3, 0, 1, 2)


def time_and_memory() -> bool:
    rows, passed = [], True
    for frames, repeats in ((16, 60), (256, 15), (4096, 5)):
        shape = (frames, 4, 64, 64)
        cases = {
            "randn": lambda shape=shape: torch.randn(shape, generator=torch.Generator().manual_seed(0)),
            "sample": lambda shape=shape: sample(shape, 0.1, 0),
            "magic-me": lambda shape=shape: sample(shape, 0.1, 0, "magic-me"),
        }
        if frames <= 256:
            cases["release"] = lambda frames=frames: release(frames, 0.1, 0)
        seconds = interleaved(cases, repeats)
        base = "import torch; from vcd_core.noise import sample\n"
        plain = peak_memory(base + f"x = torch.randn({shape})")
        ours = peak_memory(base + f"x = sample({shape}, 0.1, 0)")
        copies = (ours - plain) / (frames * 4 * 64 * 64 * 4 / 2**20)
        ratio = seconds["sample"] / seconds["randn"]
        passed &= ratio <= 1.3 and (copies <= 1 or frames < 256)  # below that a copy is smaller than the noise of RSS
        other = f"{seconds['release'] / seconds['randn']:.2f}" if "release" in seconds else "-"
        rows.append(
            [str(frames), f"{seconds['randn'] * 1e3:.1f}", f"{ratio:.2f}",
             f"{seconds['magic-me'] / seconds['randn']:.2f}", other, f"{copies:+.2f}"]
        )  # fmt: skip
    head = ["frames", "randn, ms", "sample / randn", "magic-me layout / randn", "release's way / randn", "extra copies"]
    table(head, rows)
    return passed


def start_up() -> bool:
    """Seconds that importing the pack adds to a host that has imported its own nodes."""
    host = host_from_environment()
    code = f"""
import sys, time
sys.path.insert(0, {str(host.comfy)!r}); sys.argv = ["x", "--cpu"]
import comfy.options; comfy.options.enable_args_parsing()
import nodes, comfy_api.latest, asyncio
sys.path.insert(0, {str(host.base / "custom_nodes")!r})
start = time.perf_counter()
pack = __import__({PACK!r})
extension = asyncio.run(pack.comfy_entrypoint())
schemas = [node.GET_SCHEMA() for node in asyncio.run(extension.get_node_list())]
print("\\nSECONDS", time.perf_counter() - start, len(schemas))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=host.comfy)
    _, seconds, count = done.stdout.strip().splitlines()[-1].split()
    print(f"\nThe pack adds {float(seconds):.3f} s to the host's start ({count} nodes); target: under 0.3 s.")
    return float(seconds) < 0.3


def main() -> int:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    passed = time_and_memory() & start_up()
    print("\nall targets met" if passed else "\na target was missed")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
