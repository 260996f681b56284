"""How hard these tests try, and what they count: the figures that ``python run.py harden`` prints."""

from __future__ import annotations

import json
import os

from hypothesis import HealthCheck, settings

WHOLE = os.environ.get("VCD_HARDEN") == "whole"  # all of it; else the part that CI runs

INPUTS, FAULTS, HOSTS, PROMPTS = "inputs tried", "faults injected", "hosts covered", "prompts run"


def tries(few: int, many: int) -> int:
    """How many times to try: ``few`` in CI, ``many`` where all is run."""
    return many if WHOLE else few


def hard(few: int, many: int) -> settings:
    """hypothesis's settings: so many examples, the same each time."""
    return settings(
        max_examples=tries(few, many),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def count(kind: str, number: int = 1) -> None:
    """Add to one of the figures; where nobody adds them up, nothing is kept."""
    path = os.environ.get("VCD_TALLY")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps([kind, number]) + "\n")
