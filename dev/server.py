"""Starts a ComfyUI server on the loopback, queues graphs on it and fetches what they made."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from .host import HOST, Host, base_folder, prepare, with_pack

Progress = Callable[[str, int, int], None]


class QueueError(RuntimeError):
    """A graph that was refused or failed; ``details`` is the server's own account."""

    def __init__(self, message: str, details: Any) -> None:
        super().__init__(message)
        self.details = details


def host_from_environment() -> Host:
    """The host that ``run.py`` prepared; without it, the pinned one."""
    if "VCD_COMFY" not in os.environ:
        return prepare(None)
    front_end = os.environ.get("VCD_FRONT_END")
    folders = Path(os.environ["VCD_COMFY"]), base_folder(Path(os.environ["VCD_BASE"]))
    return with_pack(Host(Path(sys.executable), *folders, Path(front_end) if front_end else None))


class Server:
    """A running ComfyUI.

    Example:
        with Server(host) as server:
            files = server.outputs(server.run(prompt))
    """

    def __init__(
        self,
        host: Host,
        *,
        port: int = 0,
        arguments: tuple[str, ...] = (),
        python: str | None = None,
        outlives: bool = True,
    ) -> None:
        """``outlives`` off: on Linux the server ends with this process, even where that is killed."""
        self.host, self.arguments = host, arguments
        self.python = python or sys.executable
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = HOST / "logs" / f"server-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.first = None if outlives or platform.system() != "Linux" else _end_with_parent

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 180) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [self.python, str(self.host.comfy / "main.py"), "--listen", "127.0.0.1", "--port", str(self.port)]
        command += [
            "--disable-auto-launch",
            "--database-url",
            f"sqlite:///{self.log.with_suffix('.db')}",
            *self.arguments,
        ]
        if self.host.base != self.host.comfy:
            command += ["--base-directory", str(self.host.base)]
        if os.environ.get("VCD_DEVICE") == "cpu" or not _torch_has_device(self.python):
            command += ["--cpu"]
        environment = dict(os.environ)
        if self.host.front_end:
            environment["PYTHONPATH"] = str(self.host.front_end)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=self.host.comfy, env=environment,
                preexec_fn=self.first,
            )  # fmt: skip
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI stopped while starting. The end of {self.log}:\n{self.log_tail()}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"ComfyUI did not answer within {timeout:.0f} s. The end of {self.log}:\n{self.log_tail()}")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if platform.system() == "Windows" else signal.SIGINT)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for leftover in self.log.parent.glob(f"{self.log.stem}.db*"):
            leftover.unlink(missing_ok=True)

    def log_tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def queue(self, prompt: dict[str, Any], client_id: str = "") -> str:
        """Queue a graph in API form; returns its id, raises ``QueueError`` where the server refuses it."""
        try:
            details = self.post("/prompt", {"prompt": prompt, "client_id": client_id})
        except urllib.error.HTTPError as error:
            details = json.loads(error.read())
        errors = [
            f"{node['class_type']}: {e['message']} {e['details']}"
            for node in (details.get("node_errors") or {}).values()
            for e in node["errors"]
        ]
        if (
            errors or "prompt_id" not in details
        ):  # the server runs the part of a graph that is valid; we do not want that
            if "prompt_id" in details:
                self.post("/queue", {"delete": [details["prompt_id"]]})
            raise QueueError("\n".join(errors) or str(details.get("error")), details)
        return details["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """The history entry of a finished graph; raises ``QueueError`` with the node's own message where it failed."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry["status"]["completed"]:
                return entry
            if entry and entry["status"]["status_str"] == "error":
                failed = [m for kind, m in entry["status"]["messages"] if kind == "execution_error"]
                message = f"{failed[0]['node_type']}: {failed[0]['exception_message']}" if failed else "interrupted"
                raise QueueError(message.strip(), entry)
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI stopped. The end of {self.log}:\n{self.log_tail()}")
            time.sleep(0.1)
        raise TimeoutError(f"The graph was not done within {timeout:.0f} s.\n{self.log_tail()}")

    def free(self) -> None:
        """Let go of models and of kept results, as the page's own button does; the server does so when it is idle."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def wait_for_all(self, timeout: float = 600) -> dict[str, Any]:
        """The history entry of the last graph, once nothing is queued: the page shows outputs before a graph is
        finished."""
        deadline = time.monotonic() + timeout
        while any(self.get("/queue").values()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"The queue was not empty within {timeout:.0f} s.\n{self.log_tail()}")
            time.sleep(0.1)
        last: dict[str, Any] = list(self.get("/history").values())[-1]
        return last

    def run(self, prompt: dict[str, Any], timeout: float = 600) -> dict[str, Any]:
        return self.wait(self.queue(prompt), timeout)

    async def watch(self, prompt: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Run a graph and report ``progress(class_type, value, max)`` as its nodes advance."""
        client = uuid.uuid4().hex
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client}") as socket_,
        ):
            prompt_id = self.queue(prompt, client)
            async for message in socket_:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                data = event["data"]
                if event["type"] == "progress" and data.get("prompt_id") == prompt_id:
                    progress(prompt[data["node"]]["class_type"], data["value"], data["max"])
                elif event["type"] == "executing" and data.get("prompt_id") == prompt_id:
                    if data["node"] is None:
                        break
                    progress(prompt[data["node"]]["class_type"], 0, 0)
                elif event["type"] in ("execution_error", "execution_interrupted"):
                    break
        return self.wait(prompt_id)

    def outputs(self, entry: dict[str, Any]) -> list[Path]:
        """The files that a finished graph saved, in the order of its nodes."""
        folders = {"output": self.host.base / "output", "temp": self.host.base / "temp"}
        return [
            folders[item["type"]] / item["subfolder"] / item["filename"]
            for _, output in sorted(entry["outputs"].items(), key=lambda pair: int(pair[0].split(":")[0]))
            for items in output.values()
            for item in items
            if isinstance(item, dict) and item.get("type") in folders
        ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def taken(port: int) -> bool:
    """Whether a program listens on this port of the loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _end_with_parent() -> None:
    """Let Linux kill this process when the thread that started it ends."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _torch_has_device(python: str) -> bool:
    script = "import torch; raise SystemExit(not (torch.cuda.is_available() or torch.backends.mps.is_available()))"
    return subprocess.run([python, "-c", script], capture_output=True).returncode == 0
