"""``python -m dev.no_network COMMAND ...``: runs a command where there is no network but the loopback (Linux).

Anything that would reach out fails there at once, whoever asks for it.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys

_LOOPBACK = (  # the flags of an interface: SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
    "import fcntl, os, socket, struct, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    "r = fcntl.ioctl(s, 0x8913, struct.pack('16sh22x', b'lo', 0)); f = struct.unpack('16sh22x', r)[1] | 1; "
    "fcntl.ioctl(s, 0x8914, struct.pack('16sh22x', b'lo', f)); s.close(); os.execvp(sys.argv[1], sys.argv[1:])"
)


def inside(command: list[str], python: str = sys.executable) -> list[str]:
    """The command that runs ``command`` in a network namespace of its own."""
    return ["unshare", "--map-root-user", "--net", python, "-c", _LOOPBACK, *command]


@functools.cache
def missing() -> str:
    """Why that cannot be done here; empty where it can."""
    if shutil.which("unshare") is None:
        return "there is no unshare (util-linux) here"
    done = subprocess.run(inside(["true"]), capture_output=True, text=True)
    return "" if done.returncode == 0 else f"this system makes no network namespace: {done.stderr.strip()[-200:]}"


def main() -> int:
    if why := missing():
        print(f"Not run: {why}.", file=sys.stderr)
        return 1
    return subprocess.run(inside(sys.argv[1:])).returncode


if __name__ == "__main__":
    sys.exit(main())
