"""Video Custom Diffusion for ComfyUI, from a fresh checkout to a video:

    python run.py demo      make a video from a bundled graph on a real ComfyUI server
    python run.py test      everything that CI runs (--device cuda: on this machine's GPU)
    python run.py harden    all that tries to break the pack, within the hour, and its figures
    python run.py serve     leave the server up, to open in a browser
    python run.py bench     the figures that the README quotes
    python run.py farm      a study of many graphs on many machines (STUDY.yaml), or a long clip (film CLIP GRAPH)

A ComfyUI is set up in .host/ on the first run (about 3 GB), or give the folder of yours with --comfy DIR.
Python 3.11 or newer and pip are all that is needed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, ROOT)  # a portable ComfyUI's Python does not look beside the script

from dev import host  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["demo", "test", "harden", "serve", "bench", "farm", "train-tiny"])
    parser.add_argument("what", nargs="*", help="bench: which benchmark; farm: the study; test: arguments for pytest")
    parser.add_argument("--comfy", metavar="DIR", help="use the ComfyUI in this folder")
    parser.add_argument("--host-version", default=host.NEWEST, choices=list(host.PINS), help="the ComfyUI to set up")
    parser.add_argument(
        "--ade", metavar="DIR", help="test, bench: a ComfyUI-AnimateDiff-Evolved folder to compare with"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="test: where the tests' ComfyUI computes (cpu)")
    parser.add_argument("--port", type=int, default=0, help="serve: the port (a free one by default)")
    arguments, rest = parser.parse_known_args()
    try:
        prepared = host.prepare(
            arguments.comfy,
            arguments.host_version,
            for_tests=arguments.command in ("test", "harden"),
            for_farm=arguments.command == "farm",
        )
        if arguments.command in ("test", "harden") and not arguments.comfy:
            host.prepare(None, host.OLDEST)
    except host.SetUpError as error:
        print(f"\nSet-up stopped: {error}", file=sys.stderr)
        return 1
    environment = {
        **os.environ,
        "PYTHONUTF8": "1",
        "VCD_COMFY": str(prepared.comfy),
        "VCD_BASE": str(prepared.base),
        "VCD_FRONT_END": str(prepared.front_end or ""),
        "VCD_ADE": str(arguments.ade or ""),
        "VCD_PORT": str(arguments.port),
        "VCD_DEVICE": arguments.device or ("cpu" if arguments.command in ("test", "harden") else ""),
        "VCD_FROM": os.getcwd(),
    }
    module = f"dev.{arguments.command.replace('-', '_')}"
    start = f"import sys, runpy; sys.path.insert(0, {ROOT!r}); "
    start += f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    command = [str(prepared.python), "-c", start, *arguments.what, *rest]
    try:
        return subprocess.run(command, cwd=host.ROOT, env=environment).returncode
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
