"""What reads files and texts from outside, as functions of bytes that return for a right answer or a clear error.

Anything else raises ``Broken`` or what it was: another exception than the documented one, an error that does not say
what it is about or that advises to run what is in a file, code that was run, a second lost, a wrong answer.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hostile
import numpy as np
import torch
import yaml
from hostile import MARK, entry, mapping, pickle, safetensors_file, tensor, text, torch_file
from PIL import Image
from safetensors.torch import save

from dev.farm import study
from dev.graph import to_api
from vcd_core import (
    cast,
    evaluate,
    files,
    identity,
    motion,
    musiq,
    noise,
    parts,
    pictures,
    recognise,
    segmentation,
    training,
    training_state,
)
from vcd_core.face import given
from vcd_core.face.pointing import chosen
from vcd_core.face.track import Faces, Track

T = TypeVar("T")
LIMIT = 5.0  # seconds of computing that no input may take
LONGEST = 1000  # characters of an error
ADVICE = ("weights_only", "trust", "arbitrary code")
_ACTS = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork", "os.forkpty", "pty.spawn",
    "subprocess.Popen", "socket.connect", "socket.bind", "socket.getaddrinfo", "os.mkdir", "os.remove", "os.rename",
    "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.chown", "os.truncate", "shutil.", "ctypes.dlopen", "cpython.",
)  # fmt: skip
_done: list[str] | None = None  # what was done while someone looks


class Broken(AssertionError):
    """What was promised was not kept."""


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if _done is None:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event.startswith(_ACTS):
        _done.append(f"{event} {arguments[:1]}")
        raise PermissionError(f"not in a test: {event}")


@functools.cache
def _watch() -> None:
    sys.dont_write_bytecode = True
    sys.addaudithook(_look)


@functools.cache
def folder() -> Path:
    """Where the targets put their files; the working folder of what they call."""
    made = tempfile.TemporaryDirectory(prefix="vcd-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    _kept.append(made)
    return Path(made.name)


_kept: list[Any] = []


def answer(
    call: Callable[[], T], about: Iterable[str], errors: tuple[type[Exception], ...] = (ValueError,)
) -> T | None:
    """What ``call`` gives, or None where it refuses with an error that is clear.

    Args:
        about: one of these stands in the error: the file's name, a part of the text.
        errors: the documented ones, not those derived from them.
    """
    global _done
    _watch()
    began, _done, found = time.process_time(), [], None
    try:
        with warnings.catch_warnings(), _no_longer():
            warnings.simplefilter("ignore")
            found = call()
    except errors as error:
        if type(error) not in errors:
            raise
        _check_clear(str(error), about)
    finally:
        done, _done = _done, None
    if done or os.path.exists(MARK) or os.path.exists(folder() / MARK):
        raise Broken(f"code was run: {done}")
    if time.process_time() - began > LIMIT:
        raise Broken(f"it took {time.process_time() - began:.1f} s")
    return found


@contextlib.contextmanager
def _no_longer() -> Iterator[None]:
    """Let what takes longer than it may be stopped, where the system can."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise Broken(f"it took more than {LIMIT} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _check_clear(said: str, about: Iterable[str]) -> None:
    faults = {
        "names nothing": not any(part and part in said for part in about),
        "advises to run what is in a file": any(word in said for word in ADVICE),
        "is too long": len(said) > LONGEST,
        "cannot be shown": not all(c.isprintable() or c in "\n" for c in said),
        "is empty": len(said) < 12,
    }
    for fault, there in faults.items():
        if there:
            raise Broken(f"the error {fault}: {said[:300]!r}")


def _is(true: object, what: str) -> None:
    if not true:
        raise Broken(what)


# files of tensors


def _put(name: str, content: bytes) -> Path:
    path = folder() / name
    path.write_bytes(content)
    return path


def _suffix(data: bytes) -> str:
    return (".pt", ".bin", ".ckpt")[len(data) % 3]


def _identity(path: Path) -> None:
    found = answer(lambda: identity.load(path, "me" if path.stat().st_size % 2 else ""), [path.name])
    if found is None:
        return
    tables = found.by_encoder().values()
    _is(all(torch.isfinite(t).all() and t.ndim == 2 for t in tables), "vectors that are none")
    _is(1 <= found.count <= identity.MOST_TOKENS, f"{found.count} tokens")
    _is(found.describe(), "nothing to say")
    answer(lambda: identity.check_width(found, {"clip_l": 768}), [found.name])


def _motion(path: Path) -> None:
    state = answer(lambda: motion.read(path), [path.name])
    if state is None:
        return
    model = answer(lambda: motion.build(state, path.name), [path.name])
    if model is not None:
        _is(not any(p.is_meta for p in model.parameters()), "modules without weights")
    merged = answer(lambda: motion.merge_lora(_small_motion(), state, 0.5, path.name), [path.name])
    if merged is not None:
        _is(all(merged[k].shape == v.shape for k, v in _small_motion().items()), "a tensor of another shape")
        motion.spatial_part(state)


@functools.cache
def _small_motion() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = motion.MotionModel(motion.MotionInfo("v2", (32,) * 4, 4))
    return {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}


def _others(path: Path) -> None:
    embeddings = torch.ones(2, 8)
    scores = answer(lambda: evaluate.aesthetic_score(embeddings, path), [path.name])
    _is(scores is None or scores.shape == (2,), "not a score for each frame")
    answer(lambda: recognise.load(path), [path.name])
    answer(lambda: musiq.load(path), [path.name, "pyiqa"], (ValueError, parts.BackEndMissing))
    if path.suffix == ".safetensors":
        answer(lambda: files.read_state(path), [path.name])


class _Mean:
    """A model that is no model: it estimates a picture to be the mean of the tokens."""

    sigmas, prediction, identity, norm = torch.linspace(0.1, 10, 100), "eps", "mean", 1.0
    cell, sides, widths, rates, differentiating = 8, 8, [4], torch.ones(4), contextlib.nullcontext
    words = staticmethod(lambda text: torch.zeros(1, 4))
    text = staticmethod(lambda captions, vectors: vectors.mean(0).expand(len(captions), 1, 4))
    encode = staticmethod(lambda frames: torch.nn.functional.avg_pool2d(frames, 8))
    covered = staticmethod(lambda frames: [1])
    denoise = staticmethod(lambda x, _, told: torch.stack(list(told))[:, 0, :3, None, None].expand_as(x))


def _training() -> training.Training:
    settings = training.Settings(size=64, batch=1, augment=False)
    shown = pictures.prepare([torch.full((64, 64, 3), 0.5)], None, 64)
    return training.Training(_Mean(), shown, settings)  # type: ignore[arg-type]


_begun = functools.cache(_training)


def tensor_files(data: bytes) -> None:
    """Any bytes under every ending."""
    for suffix in (".safetensors", ".pt", ".bin", ".ckpt"):
        _identity(_put(f"me{suffix}", data))


def ids_safetensors(data: bytes) -> None:
    """ID files, ComfyUI's and diffusers' and kohya's: safetensors."""
    _identity(_put("me.safetensors", data))


def ids_pickled(data: bytes) -> None:
    """ID files that torch wrote: the pickle in them."""
    _identity(_put(f"me{_suffix(data)}", torch_file(data)))


def motion_safetensors(data: bytes) -> None:
    """Motion files and motion LoRAs: safetensors."""
    _motion(_put("walk.safetensors", data))


def motion_pickled(data: bytes) -> None:
    """Motion files and motion LoRAs that torch wrote: the pickle in them."""
    _motion(_put(f"walk{_suffix(data)}", torch_file(data)))


def others_safetensors(data: bytes) -> None:
    """Weights for figures: safetensors."""
    _others(_put("other.safetensors", data))


def training_states(data: bytes) -> None:
    """States of trainings: one that can be read goes on."""
    path = _put("ada.safetensors", data)
    answer(lambda: training.is_done(path), [path.name])

    begun = _begun()

    def go_on() -> bool:
        begun.resume(path)
        begun.advance()
        return True

    step = begun.step if answer(go_on, [path.stem, "loss"]) else None
    begun.save(path)
    _is(training_state.read(path).losses == begun.losses and step in (None, begun.step), "steps are lost")


def others_pickled(data: bytes) -> None:
    """Weights for figures that torch wrote: the pickle in them."""
    _others(_put("other.pth", torch_file(data)))


def onnx_files(data: bytes) -> None:
    """Face models that OpenCV reads."""
    path = _put("face.onnx", data)
    answer(lambda: recognise.load(path), [path.name])


def model_folders(data: bytes) -> None:
    """The description in a folder of a model of transformers."""
    path = _put("config.json", data)
    answer(
        lambda: segmentation._check_folder(path.parent, ("sam",), "SAM"), [str(path.parent)], (parts.BackEndMissing,)
    )


def picture_files(data: bytes) -> None:
    """Pictures of a training set, by whatever their bytes say that they are."""
    path = _put("ada.png", data)
    found = answer(lambda: pictures.read(path), [path.name])
    if found is not None:
        _is(found.ndim == 3 and found.shape[2] == 4 and found.dtype == torch.float32, f"a picture {found.shape}")
        _is(float(found.min()) >= 0 and float(found.max()) <= 1, "colours outside of 0..1")
    answer(lambda: pictures._ours(path), [path.name])


# texts


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def prompt_schedules(data: bytes) -> None:
    """Prompts, with keys or without."""
    written = _text(data)
    found = answer(lambda: identity.parse_schedule(written), ["schedule"])
    if found:
        frames = [frame for frame, _ in found]
        _is(frames[0] == 0 and frames == sorted(set(frames)), f"frames {frames}")
        weights = identity.schedule_weights(frames[:8], 9, 4)
        _is(torch.allclose(weights.sum(1), torch.ones(9)), "weights that are not whole")


def gamma_schedules(data: bytes) -> None:
    """Gamma schedules, for a clip and for a video latent."""
    written = _text(data)
    said = ["gamma", "schedule"]
    answer(lambda: noise.check_schedule(written), said)
    for frames, covers in ((3, None), (3, [1, 4, 4])):
        steps = answer(lambda f=frames, c=covers: noise.parse_schedule(written, f, covers=c), said)  # type: ignore[misc]
        _is(steps is None or (len(steps) == frames - 1 and all(0 <= g <= 1 for g in steps)), f"gammas {steps}")


def places(data: bytes) -> None:
    """VCD Cast's places of one to three people."""
    names, frames = ["ada", "bob", "eve"][: 1 + len(data) % 3], 1 + len(data) % 5
    written = _text(data)
    boxes = answer(lambda: cast.read_places(written, names, frames), ["place", "schedule"])
    if boxes is None:
        return
    _is(boxes.shape in {(len(names), n, 4) for n in (1, frames)}, f"boxes {boxes.shape}")
    _is(not np.isnan(boxes).any() or cast.AWAY in written.lower(), "nowhere without being away")
    kept = boxes[~np.isnan(boxes).any(2)]
    _is((kept >= 0).all() and (kept[:, :2] + kept[:, 2:] <= 1.001).all(), "a place outside of the picture")


def marks(data: bytes) -> None:
    """Prompts with marks for identities."""
    written = _text(data)
    for known in ({}, {"me": "embedding:vcd_0"}, {"me": "embedding:vcd_0", "her name": "embedding:vcd_1"}):
        words = dict.fromkeys(known, "man")
        found = answer(lambda k=known, w=words: identity.insert(written, k, w), ["The prompt"])  # type: ignore[misc]
        _is(found is None or not known or "V*" not in found or "V*" in written.replace("V*", ""), "a mark is left")


def segmentation_prompts(data: bytes) -> None:
    """What to find in a picture."""
    found = answer(lambda: segmentation.clean_prompt(_text(data)), ["prompt"])
    _is(found is None or (found.endswith(".") and found == segmentation.clean_prompt(found)), f"{found!r}")


@functools.cache
def _faces() -> Faces:
    def track(start: int, x: float) -> Track:
        return Track(start, np.array([[x, 20.0, 20.0, 20.0]] * 4), np.ones(4, bool))

    return Faces(6, 100, 200, [track(0, 30), track(0, 130), track(2, 132)])


def boxes(data: bytes) -> None:
    """Bounding boxes that were drawn, and those of a detector."""
    try:
        drawn = json.loads(data)
    except (ValueError, RecursionError):
        return
    said = ["bounding box", "pick", "exclude", "Bounding Box"]
    for frame in (0, 5):
        tracks = answer(lambda f=frame: chosen(_faces(), drawn, None, f), said)  # type: ignore[misc]
        _is(tracks is None or all(any(t is known for known in _faces().tracks) for t in tracks), "nobody's track")
        answer(lambda f=frame: chosen(_faces(), None, drawn, f), said)  # type: ignore[misc]
    found = answer(lambda: given.from_boxes(drawn, 2, 100, 200), said)
    for face in (face for frame in found or [] for face in frame):
        _is(all(map(math.isfinite, (*face.box, face.score))) and min(face.box[2:]) > 0, f"a face at {face.box}")


# graphs and studies

INFO: dict[str, Any] = {
    "Load": {"display_name": "Load a Model", "input": {"required": {"file": [["a.pt", "b.pt"]]}},
             "input_order": {"required": ["file"]}},
    "Draw": {"display_name": "Draw It",
             "input": {"required": {"model": ["MODEL"], "seed": ["INT", {"min": 0, "max": 99}], "text": ["STRING", {}],
                                    "cfg": ["FLOAT", {}],
                                    "way": ["COMFY_DYNAMICCOMBO_V3", {"options": [
                                        {"key": "fast", "inputs": {}},
                                        {"key": "fine", "inputs": {"required": {"steps": ["INT", {}]}}}]}]},
                       "optional": {"tiled": ["BOOLEAN", {}], "kind": ["COMBO", {"options": ["x", "y"]}]}},
             "input_order": {"required": ["model", "seed", "text", "cfg", "way"], "optional": ["tiled", "kind"]}},
}  # fmt: skip
SAVED = {
    "nodes": [{"id": 1, "type": "Load", "widgets_values": ["a.pt"], "inputs": []},
              {"id": 2, "type": "Draw", "widgets_values": [7, "fixed", "a man", 1.5, "fine", 4, True, "x"],
               "inputs": [{"name": "model", "link": 1}]}, {"id": 3, "type": "Note"}],
    "links": [[1, 1, 0, 2, 0, "MODEL"]],
}  # fmt: skip
PROMPT = {
    "1": {"class_type": "Load", "inputs": {"file": "a.pt"}},
    "2": {"class_type": "Draw", "inputs": {"model": ["1", 0], "seed": 1, "text": ""}, "_meta": {"title": "A"}},
}
STUDY = """graph: graph.json
vary:
  model: {set: Load a Model.file, to: [a.pt, b.pt]}
  seed: {set: [A.seed, "2.seed"], to: [1, 2]}
rows:
  set: {words: A.text, kind: A.kind}
  to:
    - {words: "V* on the beach", kind: x}
    - {words: in the snow, kind: y}
"""


def graphs(data: bytes) -> None:
    """Saved graphs, in either of ComfyUI's two forms."""
    path = _put("graph.json", data)
    prompt = answer(lambda: study.read_graph(path, to_api, INFO), [path.name])
    if prompt is not None:
        _usable(study.Job(0, {}, prompt))


def studies(data: bytes) -> None:
    """Studies over a graph."""
    _put("graph.json", json.dumps(PROMPT).encode())
    path = _put("study.yaml", data)
    jobs = answer(lambda: study.read(path, to_api, INFO), [path.name], (study.StudyError,))
    for job in (jobs or [])[:3]:
        _usable(job)


def _usable(job: study.Job) -> None:
    json.dumps(job.prompt)
    _is(job.key and isinstance(job.models, str), "a job without a name")


# whole ones, to begin from


def _saved(content: object, old: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not old)
    return out.getvalue()


def _whole_files() -> list[bytes]:
    state = {"me": torch.ones(2, 8)}
    return [save(state), _saved(state), _saved(state, old=True), b"", b"<html>", b"PK\x05\x06" + bytes(18)]


def _id_headers() -> list[bytes]:
    two = entry([2, 8])
    named = {"clip_l": two, "clip_g": entry([2, 16], begin=64)}
    bundle = {"bundle_emb.me.string_to_param.*": two, "lora_unet_x.alpha": entry([1], begin=64)}
    states = [{"emb_params": two}, {"<me>": two}, {"vcd_context": two}, {**named}, bundle, {"a": two, "me": two}]
    odd = [{"x": entry([2, 8], kind, size=size)} for kind, size in (("F16", 2), ("I64", 8), ("F8_E4M3", 1), ("C64", 8))]
    ends = [max(e["data_offsets"][1] for e in state.values()) for state in [*states, *odd]]  # type: ignore[index]
    whole = [safetensors_file(s, (hostile.RECORD * 2)[:end]) for s, end in zip([*states, *odd], ends, strict=True)]
    about = {"__metadata__": {"class_word": "man", "steps": "9"}, "emb_params": two}
    return [*whole, safetensors_file(about, hostile.RECORD[:64])]


def _pickles(names: Iterable[str]) -> list[bytes]:
    ok, flat = tensor((2, 8)), tensor((64,))
    names = list(names)
    found = [mapping({name: ok}) for name in names] + [mapping({names[0]: value}) for value in [flat, *_odd_tensors()]]
    found += [ok, b"]" + mapping({"a": ok}) + b"a", mapping({"string_to_param": mapping({"*": ok})})]
    found += [mapping({names[0]: code}) for code in hostile.CODE.values()]
    return [pickle(content) for content in found]


def _odd_tensors() -> list[bytes]:
    """Tensors that are none, and what stands in their place."""
    return [
        tensor((75, 10**7), (0, 0)), tensor((2, 8), offset=-1), tensor((2, 8), (8, -1)), tensor((10**9, 9)),
        hostile.called("torch", "Tensor", hostile.number(3), hostile.number(8)),
        hostile.called("torch._utils", "_rebuild_meta_tensor_no_storage", b"ctorch\nfloat32\n",
                       hostile.several(hostile.number(2), hostile.number(8)),
                       hostile.several(hostile.number(8), hostile.number(1)), b"\x89"),
        hostile.called("torch.nn.modules.container", "ParameterDict"), b"N", b"]", b"}", text("x"), hostile.number(3),
    ]  # fmt: skip


_DOWN = [f"down_blocks.{i}.motion_modules.0.temporal_transformer.proj_in.weight" for i in range(4)]
_ENCODING = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"
_BLOCK = "temporal_transformer.transformer_blocks.0.attention_blocks.0"
_LORA = f"mid_block.motion_modules.0.{_BLOCK}.processor.to_q_lora.{{}}.weight"


_MOTION = (_DOWN[0], _ENCODING, _LORA.format("up"), _LORA.format("down"))


def _motion_headers() -> list[bytes]:
    empty = {key: entry([32, 0]) for key in _DOWN}
    lora = {_LORA.format("down"): entry([1, 32]), _LORA.format("up"): entry([32, 1], begin=128)}
    found = [
        empty, {**empty, _ENCODING: entry([1, 4, 0])}, {**empty, _ENCODING: entry([0])}, lora, {_DOWN[0]: entry([])},
        {_DOWN[0].replace("0", "x", 1): entry([0])}, {_LORA.format("down"): entry([0])}, {"temporal": entry([1])},
    ]  # fmt: skip
    ends = [max(e["data_offsets"][1] for e in state.values()) for state in found]  # type: ignore[index]
    return [safetensors_file(s, (hostile.RECORD * 2)[:end]) for s, end in zip(found, ends, strict=True)]


def _other_states() -> list[dict[str, torch.Tensor]]:
    ir = {"input_layer.0.weight": torch.ones(1), "body.0.res_layer.1.weight": torch.ones(8, 0)}
    ir["output_layer.3.weight"] = torch.ones(4, 0)
    return [{"weight": torch.ones(1, 8), "bias": torch.ones(1)}, {"head.0.weight": torch.ones(1)}, ir]


def _training_states() -> list[bytes]:
    path, found = _put("whole.safetensors", b""), []
    for steps in (0, 2):
        begun = _training()
        for _ in range(steps):
            begun.advance()
        begun.save(path)
        found.append(path.read_bytes())
    return found


def _image(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((7, 5)).convert(mode).save(out, kind, **options)
    return out.getvalue()


def _images() -> list[bytes]:
    turned = Image.Exif()
    turned[0x0112] = 6
    plain = [("PNG", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    plain += [("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("WEBP", "RGBA"), ("BMP", "RGB")]
    plain += [
        ("BMP", "P"),
        ("GIF", "P"),
        ("TIFF", "F"),
        ("TIFF", "I;16"),
        ("TIFF", "RGBA"),
        ("TIFF", "CMYK"),
        ("DIB", "L"),
    ]
    found = [_image(kind, mode) for kind, mode in plain]
    found += [_image(kind, exif=turned.tobytes()) for kind in ("PNG", "JPEG", "WEBP")]
    found += [
        _image("JPEG", icc_profile=b"\0" * 128),
        _image("PNG", icc_profile=b"acsp" * 40),
        _image("TIFF", compression="tiff_lzw"),
    ]
    found += [_image("JPEG", progressive=True), _image("WEBP", lossless=True), _image("GIF", "P", save_all=True)]
    return [*found, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"P6 2 2 255\n" + bytes(12)]


_SCHEDULES = (
    "0: a man | 8: a woman", '"0": "a man",\n"8": "a woman"', "{'0': 'a man\\'s', '8': 'b'}", "0 : a, 8 :b",
    "# x\n0: a", "a photo of V* at 8:30, 16:9", "0: (V*:1.2)\n\n8: <her name>", "0：a｜8：b", "-4: a | 8.5: b",
    "0: 'a" + "\n" * 40 + "b",
)  # fmt: skip
_GAMMAS = ("0.1, 0.1", "0: 0, 4: 0.5", "0:0.1\n8:.3", "0.1|0.2", "1e-3, nan", "0: inf", '{"0": 0.5, "9": "1"}')
_PLACES = (
    "left\nright",
    "0: left, 15: right\naway",
    "0.1 0 0.4 1",
    "10% 0 40% 100%\n# x\nmiddle third",
    "0: away | 3: top",
)
_MARKS = ("photo of V* man", "(<me>:1.2) man, <her_name>", "<me", "\\(V*", "V*V*<nobody>", "[V*]((V*)) a")
_BOX = '{"x": 25, "y": 15, "width": 30, "height": 30}'
_BOXES = (
    _BOX,
    f"[{_BOX}]",
    f"[[{_BOX}], []]",
    '[[{"x": "1", "y": NaN, "width": 1e999, "height": null, "score": 2}], [3]]',
)
_CONFIGS = ('{"model_type": "sam"}', '{"model_type": ["sam"]}', "[" * 2000, '{"a": ' * 500, "<html>", "1" * 5000)


def _encoded(texts: Iterable[str]) -> list[bytes]:
    return [one.encode() for one in texts]


def yaml_of(written: str) -> Any:
    """What a YAML text holds."""
    return yaml.safe_load(written)


def _graphs() -> list[bytes]:
    odd = [
        {"nodes": [{"type": "Draw", "id": 1, "widgets_values": [1]}], "links": []},
        {"1": {"class_type": []}},
        "nodes",
    ]
    return [json.dumps(one).encode() for one in (SAVED, PROMPT, *odd)] + [b"[" * 2000, b"9" * 5000]


def _studies() -> list[bytes]:
    odd = [
        "graph: &a [*a]",
        "graph: graph.json\nvary: {a: {set: A.cfg, to: [.nan, 2020-01-01]}}",
        "a: 2020-99-99",
        "[" * 60,
    ]
    bomb = "a: &a [1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    return _encoded([STUDY, *odd, bomb])


@functools.cache
def _once(call: Callable[[], object]) -> None:
    call()


def _first_boxes() -> None:
    chosen(_faces(), json.loads(_BOX))


@dataclass(frozen=True)
class Target:
    """A function of bytes; inputs to begin from; words that its inputs are made of; its part of the time.

    ``first`` brings up the libraries that it uses: what they open for themselves is not looked at.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    words: tuple[str, ...] = ()
    share: float = 1.0
    first: Callable[[], object] = bytes

    def __call__(self, data: bytes) -> None:
        here = os.getcwd()
        _once(self.first)
        os.chdir(folder())  # where a hostile pickle would leave its mark
        try:
            self.run(data)
        finally:
            os.chdir(here)


_KEYS = ("0:", "8:", " | ", ",", "\n", '"', "'", "\\", ": ", "：", "｜", "，", "#", "frame ", "=")
_JSON = ("{", "}", "[", "]", ":", ",", '"', "null", "true", "-1", "1e999", "NaN")
_HEADER = (
    '"dtype":"F32"',
    '"shape":[2,8]',
    '"data_offsets":[0,64]',
    '"__metadata__"',
    "F16",
    "BF16",
    "F4",
    "F8_E8M0",
    "C64",
)
_OPS = (
    "ctorch._utils\n_rebuild_tensor_v2\n", "ctorch\nFloatStorage\n", "ccollections\nOrderedDict\n", "ctorch\nTensor\n",
    "cos\nsystem\n", "ctorch\nSize\n", "ctorch.nn.modules.container\nParameterDict\n", "_parameters", "storage", "cpu",
)  # fmt: skip
_NODES = (
    '"nodes"',
    '"links"',
    '"type"',
    '"class_type"',
    '"inputs"',
    '"widgets_values"',
    '"link"',
    '"_meta"',
    '"title"',
)
_YAML = (
    "graph: ",
    "vary:",
    "rows:",
    "set:",
    "to:",
    "- ",
    "&a ",
    "*a",
    "!!",
    "<<: ",
    "? ",
    "|",
    ".nan",
    "2020-01-01",
    "\n  ",
)
_STATE = ("losses", "vectors", "optimizer.step", "exp_avg_sq", "goal", "scale", "settings", "nan", "1e-300")
_CAST = ("left", "middle", "third", "away", "everywhere", "%", "0.5", "nan", "inf")

TARGETS = {
    target.run.__name__: target
    for target in (
        Target(tensor_files, _whole_files, ("PK\x03\x04", "PK\x05\x06", "data.pkl"), 1),
        Target(ids_safetensors, _id_headers, (*_HEADER, *_JSON, "emb_params", "clip_l", "vcd_context"), 2),
        Target(ids_pickled, lambda: _pickles(["*", "me", "emb_params"]), _OPS, 2),
        Target(motion_safetensors, _motion_headers, (*_HEADER, *_JSON, *_MOTION), 1.5, _small_motion),
        Target(motion_pickled, lambda: _pickles([*_MOTION, "state_dict"]), (*_OPS, "state_dict"), 1, _small_motion),
        Target(others_safetensors, lambda: [save(s) for s in _other_states()], (*_HEADER, *_JSON), 1),
        Target(training_states, _training_states, (*_HEADER, *_JSON, *_STATE), 2),
        Target(others_pickled, lambda: _pickles(["weight", "input_layer.0.weight", "head.0.weight"]), _OPS, 1),
        Target(onnx_files, lambda: [b"\x08\x07\x12\x04test:\x10\x12\x01gZ\x05\x0a\x01x\x12\x00", b""], (), 0.5),
        Target(model_folders, lambda: _encoded(_CONFIGS), (*_JSON, '"model_type"', '"sam"'), 0.5),
        Target(picture_files, _images, ("IHDR", "IDAT", "eXIf", "iCCP", "RIFF", "VP8L", "GIF89a", "Exif", "II*"), 3),
        Target(prompt_schedules, lambda: _encoded(_SCHEDULES), _KEYS, 4),
        Target(gamma_schedules, lambda: _encoded(_GAMMAS), (*_KEYS, "0.5", "nan", "1e-9"), 3),
        Target(places, lambda: _encoded(_PLACES), (*_KEYS, *_CAST), 4),
        Target(marks, lambda: _encoded(_MARKS), ("V*", "<me>", "<her name>", "(", ":1.2)", "\\("), 3),
        Target(segmentation_prompts, lambda: _encoded(["a man . his dog", "."]), (".",), 0.5),
        Target(boxes, lambda: _encoded(_BOXES), (*_JSON, '"x":', '"y":', '"width":', '"height":'), 2, _first_boxes),
        Target(graphs, _graphs, (*_JSON, *_NODES), 3),
        Target(studies, _studies, (*_YAML, *_JSON), 2),
    )
}  # fmt: skip
