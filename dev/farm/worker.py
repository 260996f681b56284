"""One ComfyUI of a farm: its server stays up and keeps its models from job to job."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from ..host import Host
from ..server import QueueError, Server
from .study import Prompt

REPORTERS = ("VCD_Evaluate", "VCD_Compare")
TEXTS = "PreviewAny"  # ComfyUI's Preview as Text
GIVEN = "given"
"""A file that a job brings is, in its graph, ``given/NAME [output]``: it has the same path with every worker."""
File = tuple[str, bytes]


class Worker:
    """A ComfyUI that does jobs.

    Args:
        host: the ComfyUI to start; workers of one machine share its models, and each has outputs of its own.
    """

    def __init__(self, host: Host) -> None:
        self.folder = host.base / "farm" / uuid.uuid4().hex[:8]
        self.folder.mkdir(parents=True)
        arguments = ("--disable-api-nodes", "--output-directory", str(self.folder))
        self.server = Server(host, arguments=arguments, outlives=False)
        self.server.start()

    def nodes(self) -> dict[str, Any]:
        """Which nodes and widgets this ComfyUI has."""
        found: dict[str, Any] = self.server.get("/object_info")
        return found

    def do(
        self, prompt: Prompt, files: Mapping[str, Callable[[], bytes]] | None = None
    ) -> tuple[dict[str, Any], list[File]]:
        """Run a graph: what its evaluating nodes found and its Preview as Text nodes showed, by node, and the files
        that it saved.

        Args:
            files: what the job brings, by name; a file that an earlier job brought is not asked for again.

        Raises:
            QueueError: the server refuses the graph, or a node fails; the message is the node's own.
        """
        for name, content in (files or {}).items():
            self._take(name, content)
        made = {key: self._reporting(key, node) for key, node in prompt.items()}
        try:
            outputs = self.server.run(made, timeout=24 * 3600)["outputs"]
            texts = {key: outputs[key]["text"] for key, node in prompt.items() if node["class_type"] == TEXTS}
            figures, saved = dict[str, Any](texts), []
            for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
                name = path.relative_to(self.folder).as_posix()
                if name.startswith(f"{GIVEN}/"):
                    continue
                if name.startswith("farm_report/") and name.endswith(".json"):
                    figures[name.split("/")[1]] = json.loads(path.read_text(encoding="utf-8"))
                saved.append((name, path.read_bytes()))
            return figures, saved
        finally:
            for child in self.folder.iterdir():
                if child.name != GIVEN:
                    shutil.rmtree(child) if child.is_dir() else child.unlink()

    def _take(self, name: str, content: Callable[[], bytes]) -> None:
        path = self.folder / GIVEN / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{name}").write_bytes(content())
            path.with_name(f".{name}").replace(path)

    def stop(self) -> None:
        """Stop the server; what it saved is gone."""
        self.server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _reporting(key: str, node: dict[str, Any]) -> dict[str, Any]:
        """A node of the graph, which writes its report where the worker finds it."""
        if node["class_type"] not in REPORTERS:
            return node
        return {**node, "inputs": {**node["inputs"], "report": f"farm_report/{key}/report"}}


def message_of(error: Exception) -> str:
    """Why a job failed, in the node's words."""
    return str(error) if isinstance(error, QueueError) else f"{type(error).__name__}: {error}"
