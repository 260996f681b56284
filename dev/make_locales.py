"""Writes ``locales/<language>/nodeDefs.json`` and ``main.json``: ``python -m dev.make_locales`` with a host set up.

The translations stand in ``dev/translations.json`` under the English text, so that a text that several nodes share is
translated once, and a text that was changed in a node is seen to lack its translation.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from .host import ROOT, prepare
from .server import Server

LANGUAGES = ("ko", "zh", "ja")
FOLDERS = ("video_custom_diffusion", "video-custom-diffusion", "ComfyUI-Video-Custom-Diffusion")
TITLE = "Video Custom Diffusion"  # of the pack's graphs under Templates, whichever of FOLDERS it lies in
TRANSLATIONS = ROOT / "dev" / "translations.json"


def definitions(object_info: dict[str, Any], language: str) -> tuple[dict[str, Any], list[str]]:
    """The node definitions in a language as the page reads them, and the texts that have no translation yet."""
    known = json.loads(TRANSLATIONS.read_text(encoding="utf-8"))
    missing: list[str] = []

    def say(kind: str, text: str) -> str:
        found = known[kind].get(text, {}).get(language, "")
        if not found:
            missing.append(text)
        return found

    def entry(name: str, tooltip: str | None) -> dict[str, str]:
        return {"name": say("names", name)} | ({"tooltip": say("texts", tooltip)} if tooltip else {})

    nodes: dict[str, dict[str, Any]] = {}
    for node, info in object_info.items():
        if not node.startswith("VCD_"):
            continue
        inputs = {
            name: entry(name, (spec[1] if len(spec) > 1 else {}).get("tooltip"))
            for group in ("required", "optional")
            for name, spec in info["input"].get(group, {}).items()
        }
        tooltips = info.get("output_tooltips") or [None] * len(info["output"])
        outputs = {
            str(i): entry(name, tip) for i, (name, tip) in enumerate(zip(info["output_name"], tooltips, strict=True))
        }
        nodes[node] = {
            "display_name": say("texts", info["display_name"]),
            "description": say("texts", info["description"]),
        }
        nodes[node] |= {"inputs": inputs} | ({"outputs": outputs} if outputs else {})
    return nodes, missing


def write(language: str, name: str, texts: dict[str, Any]) -> None:
    path = ROOT / "locales" / language / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT).as_posix()}")


def main() -> int:
    with Server(prepare(None), arguments=("--disable-api-nodes",)) as server:
        info = server.get("/object_info")
    for language in LANGUAGES:
        nodes, missing = definitions(info, language)
        if missing:
            print(f"{language}: without translation:", *sorted(set(missing)), sep="\n  ")
            return 1
        write(language, "nodeDefs", nodes)
    for language in ("en", *LANGUAGES):
        write(language, "main", {"templateWorkflows": {"category": dict.fromkeys(FOLDERS, TITLE)}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
