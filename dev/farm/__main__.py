"""``python run.py farm STUDY.yaml [--workers N] [--address ray://...] [--out DIR]``: a study on many machines."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..graph import to_api
from ..host import step
from .pool import RayPool
from .run import run
from .study import StudyError, read


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py farm", description=__doc__)
    parser.add_argument("study", type=Path, help="what to do: a graph, and what varies over it")
    parser.add_argument("--workers", type=int, default=0, help="how many ComfyUIs (one for each GPU)")
    parser.add_argument("--address", help="a Ray cluster that runs (ray://host:10001); without it, this machine")
    parser.add_argument("--out", type=Path, help="the folder of results (STUDY beside the study)")
    given = parser.parse_args()
    here = Path(os.environ.get("VCD_FROM", "."))
    study = here / given.study
    if not study.is_file():
        print(f"{study} is not there.", file=sys.stderr)
        return 2
    step("Starting the workers", "1 minute")
    try:
        pool = RayPool(given.workers, given.address)
    except (ValueError, ConnectionError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        jobs = read(study, to_api, pool.nodes())
        folder = here / given.out if given.out else study.with_suffix("")
        step(f"{len(jobs)} jobs on {pool.workers} workers, into {folder}")
        failed = run(jobs, folder, pool, show)
    except StudyError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        pool.close()
    print("\n".join([f"\n{len(failed)} of {len(jobs)} jobs failed:", *failed]) if failed else "\nall jobs are done")
    print(f"figures: {folder / 'figures.json'}")
    return 1 if failed else 0


def show(text: str) -> None:
    print(f"\r{text:<60}", end="" if sys.stdout.isatty() else "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
