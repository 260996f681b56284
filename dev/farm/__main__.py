"""``python run.py farm STUDY.yaml``: a study on many machines; ``python run.py farm film CLIP GRAPH``: a long clip."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..graph import to_api
from ..host import step
from .film import ends, open_film
from .pool import RayPool
from .run import run
from .study import StudyError, bundled_or, read, read_graph

HERE = Path(os.environ.get("VCD_FROM", "."))
FILM = "film"


def main() -> int:
    made_film = sys.argv[1:2] == [FILM]
    parser = argparse.ArgumentParser(prog="run.py farm film" if made_film else "run.py farm", description=__doc__)
    if made_film:
        parser.add_argument("clip", type=Path, help="a video of any length")
        parser.add_argument("graph", help="what refines it: a bundled graph or a file, in either form")
        parser.add_argument("--film", metavar="ID", help="the node that saves the film, where several save something")
    else:
        parser.add_argument("study", type=Path, help="what to do: a graph, and what varies over it; or 'film'")
    parser.add_argument("--workers", type=int, default=0, help="how many ComfyUIs (one for each GPU)")
    parser.add_argument("--address", help="a Ray cluster that runs (ray://host:10001); without it, this machine")
    parser.add_argument("--out", type=Path, help="the folder of results (beside the study, or the clip)")
    given = parser.parse_args(sys.argv[1 + made_film :])
    return on_workers(given, refine_film if made_film else do_study)


def on_workers(given: argparse.Namespace, work: Callable[[argparse.Namespace, RayPool], int]) -> int:
    """Do something on a farm; 2 where it was refused."""
    for name in ("study", "clip"):
        if name in given and not (HERE / getattr(given, name)).is_file():
            print(f"{HERE / getattr(given, name)} is not there.", file=sys.stderr)
            return 2
    step("Starting the workers", "1 minute")
    try:
        pool = RayPool(given.workers, given.address)
    except (ValueError, ConnectionError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        return work(given, pool)
    except (StudyError, Refused) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        pool.close()


class Refused(ValueError):
    """A graph or a clip that no film can be made of."""


def do_study(given: argparse.Namespace, pool: RayPool) -> int:
    """Run a study; 1 where jobs failed."""
    study = HERE / given.study
    jobs = read(study, to_api, pool.nodes())
    folder = HERE / given.out if given.out else study.with_suffix("")
    step(f"{len(jobs)} jobs on {pool.workers} workers, into {folder}")
    return told(run(jobs, folder, pool, show), f"figures: {folder / 'figures.json'}")


def refine_film(given: argparse.Namespace, pool: RayPool) -> int:
    """Refine a film; 1 where scenes failed."""
    clip = HERE / given.clip
    folder = HERE / given.out if given.out else clip.with_name(f"{clip.stem} refined")
    try:
        graph = bundled_or(given.graph, HERE)
        if graph is None:
            raise ValueError(f"{given.graph} is not there, neither as a file nor among the bundled graphs.")
        found = ends(read_graph(graph, to_api, pool.nodes()), pool.nodes(), given.film)
        step("Looking for the scenes")
        film = open_film(clip, found, folder)
    except ValueError as error:
        raise Refused(str(error)) from error
    step(f"{len(film.reel.scenes)} scenes on {pool.workers} workers, into {folder}")
    return told(film.run(pool, show), f"film: {folder / 'film.mp4'}")


def told(failed: list[str], where: str) -> int:
    """Say what failed and where the rest is."""
    print("\n".join([f"\n{len(failed)} failed:", *failed]) if failed else "\nall is done")
    if not failed or where.startswith("figures"):
        print(where)
    return 1 if failed else 0


def show(text: str) -> None:
    print(f"\r{text:<60}", end="" if sys.stdout.isatty() else "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
