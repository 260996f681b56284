"""``python run.py serve``: leave ComfyUI up with the pack in it, until Ctrl+C."""

from __future__ import annotations

import os
import sys

from .host import step
from .server import Server, host_from_environment


def main() -> int:
    step("Starting ComfyUI", "10 s")
    with Server(host_from_environment(), port=int(os.environ.get("VCD_PORT", "0"))) as server:
        print(f"Open {server.url} in a browser. The log is {server.log}. Ctrl+C stops the server.", flush=True)
        assert server.process is not None
        try:
            return server.process.wait()
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())
