"""``python run.py bench [name ...]``: re-run the figures that the README quotes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from .host import ROOT


def main() -> int:
    folder = ROOT / "benchmarks"
    known = sorted(path.stem for path in folder.glob("*.py") if "def main" in Path(path).read_text(encoding="utf-8"))
    names = sys.argv[1:] or known
    unknown = set(names) - set(known)
    if unknown:
        print(f"No benchmark {', '.join(sorted(unknown))}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in names:
        print(f"\n== bench {name}", flush=True)
        if importlib.import_module(f"benchmarks.{name}").main():
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
