"""``python run.py serve``: leave ComfyUI up with the pack in it, until Ctrl+C."""

from __future__ import annotations

import os
import sys

from .host import PACK, step
from .server import Server, host_from_environment, taken


def main() -> int:
    port = int(os.environ.get("VCD_PORT", "0"))
    if port and taken(port):
        print(
            f"Port {port} is taken by another program. Stop it, or give another --port; without --port a free one is "
            "chosen."
        )
        return 1
    step("Starting ComfyUI", "10 s")
    with Server(host_from_environment(), port=port) as server:
        quickstart = f"{server.url}/?template=01_quickstart&source={PACK}"
        print(
            f"Open {quickstart} in a browser for the quickstart, or {server.url} for the page as you left it; the "
            f"other graphs stand under Templates, Extensions. The log is {server.log}. Ctrl+C stops the server.",
            flush=True,
        )
        assert server.process is not None
        try:
            return server.process.wait()
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())
