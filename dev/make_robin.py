"""``python -m dev.make_robin``: learns the identity that ships beside the tiny model's weights."""

from __future__ import annotations

import sys

from vcd_core.tiny import model as tiny
from vcd_core.tiny import world

from .studio import RECIPE, Studio

SEED = 1


def main() -> int:
    sys.argv = sys.argv[:1]  # the host reads the command line
    studio = Studio()
    person = world.identities(1)[0]
    identity = studio.learn(person, SEED)
    core = studio.module("vcd_core.identity")
    about = {
        "class_word": person.class_word,
        "base_model": "VCD Tiny Model",
        "steps": str(RECIPE["steps"]),
        "learning_rate": f"{RECIPE['learning_rate']:g}",
        "pictures": "6",
        "seed": str(SEED),
        "who": world.describe(person),
    }
    tokens = core.IdTokens("vcd_tiny_robin", identity.tokens.vectors, about)
    print(core.save(tokens, tiny.IDENTITY_FILE.parent, "vcd_tiny_robin", overwrite=True), world.describe(person))
    return 0


if __name__ == "__main__":
    sys.exit(main())
