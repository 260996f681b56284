"""What is published, looked at as it will be: the archive of the registry, unpacked."""

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tally import WHOLE

from dev import archive, no_network
from dev.host import PACK
from dev.server import host_from_environment

MODULES = {  # of Python, that reach out, start programs, load libraries or run what is in a file
    "subprocess", "socket", "socketserver", "ssl", "urllib", "http", "ftplib", "smtplib", "requests", "httpx",
    "aiohttp", "urllib3", "websocket", "websockets", "ctypes", "cffi", "pickle", "cPickle", "dill", "cloudpickle",
    "joblib", "marshal", "shelve", "pip", "ensurepip", "venv", "multiprocessing", "pty", "code", "codeop", "runpy",
    "webbrowser", "xmlrpc", "telnetlib", "asyncio.subprocess", "huggingface_hub", "torch.hub",
    "torch.utils.cpp_extension",
}  # fmt: skip
BUILT_IN = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system", "os.popen", "os.startfile", "os.fork", "os.forkpty",
    "os.posix_spawn", "os.posix_spawnp", "torch.hub.load", "torch.jit.load", "torch.ops.load_library",
    "torch.package.PackageImporter", "hf_hub_download", "snapshot_download", "load_state_dict_from_url",
}  # fmt: skip
IMPORTED_BY_NAME = {"vcd_core/parts.py", "nodes/host/latents.py"}  # from a table of their own
SCRIPT = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|\bfetch\(|XMLHttp"
)


def called(node):
    """What a call calls, as it is written."""
    return ast.unparse(node.func)


def faults(path, tree):
    """What in a file of ours may not be published."""
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [f"imports {name}" for name in names if {name, name.split(".")[0]} & MODULES]
        if isinstance(node, ast.Call):
            found += _faults_of_call(path, node)
    return [f"{path}: {one}" for one in found]


def _faults_of_call(path, node):
    name, given = called(node), {word.arg: word.value for word in node.keywords}
    last = name.rsplit(".", 1)[-1]

    def says(word, value):
        return isinstance(given.get(word), ast.Constant) and given[word].value is value

    if (
        name.removeprefix("builtins.") in BUILT_IN
        or name in CALLS
        or last in CALLS
        or re.match(r"os\.(exec|spawn)\w+", name)
    ):
        return [f"calls {name}"]
    if name in ("torch.load", "torch.serialization.load") and not says("weights_only", True):
        return ["calls torch.load without weights_only=True"]
    if name in ("np.load", "numpy.load") and "allow_pickle" in given:
        return ["lets numpy unpickle"]
    if last == "from_pretrained" and not says("local_files_only", True):
        return ["may download: from_pretrained without local_files_only=True"]
    if "trust_remote_code" in given and not says("trust_remote_code", False):
        return ["trusts code from elsewhere"]
    if last == "import_module" and path not in IMPORTED_BY_NAME:
        return ["imports a module by name"]
    return []


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The archive, unpacked as the registry's clients do."""
    folder = tmp_path_factory.mktemp("published")
    with zipfile.ZipFile(archive.build(folder / "node.zip")) as zipped:
        assert zipped.testzip() is None
        zipped.extractall(folder / PACK)
    return folder / PACK


def test_nothing_published_reaches_out_or_runs_what_it_reads(unpacked):
    files = sorted(unpacked.rglob("*.py"))
    assert len(files) > 60
    found = [
        fault
        for path in files
        for fault in faults(path.relative_to(unpacked).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "planted",
    [
        "import subprocess", "from urllib import request", "import torch.hub", "from torch import hub", "import ctypes",
        "import pickle as p", "def f():\n    import socket", "eval('1')", "exec(text)", "os.system('x')",
        "os.execvp('x', [])", "__import__('x')", "torch.load(path)", "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=sure)", "np.load(path, allow_pickle=True)", "Model.from_pretrained(folder)",
        "Model.from_pretrained(folder, local_files_only=True, trust_remote_code=True)", "builtins.exec(text)",
        "importlib.import_module(name)", "pip.main()\nimport pip", "torch.jit.load(path)",
    ],
)  # fmt: skip
def test_what_may_not_be_published_is_found(planted):
    assert faults("nodes/x.py", ast.parse(planted))


def test_the_page_is_given_no_html_to_read(unpacked):
    scripts = sorted((unpacked / "web").rglob("*.js"))
    assert scripts
    assert [path.name for path in scripts if SCRIPT.search(path.read_text(encoding="utf-8"))] == []


def test_the_archive_holds_the_pack_and_nothing_else(unpacked):
    tops = {path.name for path in unpacked.iterdir()}
    assert tops == {
        "CHANGELOG.md", "LICENSE", "README.md", "__init__.py", "locales", "nodes", "pyproject.toml",
        "requirements-grounded.txt", "requirements.txt", "subgraphs", "vcd_core", "web", "workflows",
    }  # fmt: skip
    kinds = {path.suffix for path in unpacked.rglob("*") if path.is_file()}
    assert kinds <= {".py", ".md", ".txt", ".toml", ".json", ".js", ".png", ".jpg", ".webp", ".safetensors", ""}
    assert not [path for path in unpacked.rglob("*") if path.is_symlink() or path.name.startswith(".")]
    helped = {path.stem for path in (unpacked / "web" / "docs").glob("*.md")}
    translated = json.loads((unpacked / "locales" / "ko" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(translated) <= helped
    assert len(list((unpacked / "workflows").glob("*.json"))) >= 10
    assert (unpacked.parent / "node.zip").stat().st_size < 25 * 2**20


SERVED = f"""
import json, os, sys
from pathlib import Path
from dev.host import Host
from dev.server import Server
comfy, base, front_end, graph = sys.argv[1:]
host = Host(Path(sys.executable), Path(comfy), Path(base), Path(front_end) if front_end else None)
with Server(host, arguments=("--disable-api-nodes",)) as server:
    info = server.get("/object_info").items()
    kinds = [name for name, node in info if node["python_module"] == "custom_nodes.{PACK}"]
    entry = server.run(json.loads(graph))
    made = [str(path) for path in server.outputs(entry) if path.stat().st_size > 100]
    print("MADE", json.dumps([sorted(kinds), made, server.log.read_text(errors="replace")]))
"""
LISTENS = """
import os, sys
def look(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in ("127.0.0.1", "localhost", "::1", None, b"127.0.0.1"):
        with open(os.environ["VCD_REACHED"], "a") as file:
            file.write(f"{event} {host}\\n")
sys.addaudithook(look)
"""
TINY_GRAPH = {
    "1": {"class_type": "VCD_TinyModel", "inputs": {}},
    "2": {"class_type": "VCD_MotionModule", "inputs": {
        "model": ["1", 0], "motion_module": "vcd_tiny_motion.safetensors", "strength": 1.0,
        "beta_schedule": "linear (AnimateDiff)"}},
    "3": {"class_type": "VCD_IdLoader", "inputs": {
        "file": "vcd_tiny_robin.safetensors", "class_word": "man", "strength": 1.0}},
    "4": {"class_type": "VCD_IdTextEncode", "inputs": {
        "clip": ["1", 1], "prompt": "a photo of V*", "frames": 8, "blend": 1, "ids.id0": ["3", 0]}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
    "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 8}},
    "7": {"class_type": "KSampler", "inputs": {
        "model": ["2", 0], "positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0], "seed": 1, "steps": 2,
        "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "no_network"}},
}  # fmt: skip


@pytest.mark.skipif(not WHOLE, reason="takes a server of its own: with run.py harden")
def test_the_archive_serves_all_its_nodes_where_there_is_no_network(unpacked, tmp_path, pack):
    """The clip is made, and neither the server nor the pack in it tries to reach anything."""
    if why := no_network.missing():
        pytest.skip(why)
    host = host_from_environment()
    base = tmp_path / "base"
    for folder in ("models", "input", "output", "user", "custom_nodes", "looks"):
        (base / folder).mkdir(parents=True)
    unpacked.rename(base / "custom_nodes" / PACK)
    (base / "looks" / "sitecustomize.py").write_text(LISTENS)
    root = Path(__file__).resolve().parents[2]
    reached = tmp_path / "reached"
    arguments = [str(host.comfy), str(base), str(host.front_end or ""), json.dumps(TINY_GRAPH)]
    command = [sys.executable, "-c", SERVED, *arguments]
    done = subprocess.run(
        no_network.inside(command), capture_output=True, text=True, cwd=root, timeout=400,
        env={**os.environ, "PYTHONPATH": str(base / "looks"), "VCD_REACHED": str(reached), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    base.joinpath("custom_nodes", PACK).rename(unpacked)
    line = next((line for line in done.stdout.splitlines() if line.startswith("MADE ")), None)
    assert line, f"{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    kinds, made, log = json.loads(line.removeprefix("MADE "))
    assert kinds == sorted(node.GET_SCHEMA().node_id for node in pack("nodes").NODES)
    assert len(made) == 8
    assert not reached.exists(), reached.read_text()
    assert "Traceback" not in log


@pytest.mark.skipif(bool(no_network.missing()), reason="this system makes no network namespace")
def test_a_command_without_a_network_reaches_itself_alone():
    script = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname()).close()
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    print(error)
"""
    done = subprocess.run(no_network.inside([sys.executable, "-c", script]), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unreachable" in done.stdout
