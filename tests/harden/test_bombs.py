"""Files that take more than they show: refused at once, within little memory, by what is wrong with them."""

import collections
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from strange import put
from tally import INPUTS, WHOLE, count

from vcd_core.tiny.model import MOTION_FILE

LIMITED = """
import json, resource, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from PIL import Image
from vcd_core import evaluate, files, identity, motion, pictures, recognise
torch.load, torch.zeros(8).float()
READ = {"tensors": lambda p: files.read(p, "a thing"), "picture": pictures.read, "identity": identity.load,
        "motion": lambda p: motion.build(motion.read(p)), "face": recognise.load,
        "pictures": lambda p: pictures.open_pictures(p, 1 << 30)}
for path in sorted(Path(sys.argv[1]).glob("warm*.png")):
    pictures.read(path)
if len(sys.argv) > 2:
    motion.build(motion.read(sys.argv[2]))
memory = lambda: int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (memory() + (1 << 29),) * 2)
for line in sys.stdin:
    kind, path = json.loads(line)
    if kind == "unlimited Pillow":
        Image.MAX_IMAGE_PIXELS, kind = None, "picture"
    begun = time.monotonic()
    try:
        READ[kind](Path(path))
        said = ""
    except ValueError as error:
        said = str(error)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps([said, time.monotonic() - begun]), flush=True)
"""


def safetensors(header, body=b"", length=None):
    head = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return (len(head) if length is None else length).to_bytes(8, "little") + head + body


def entry(shape, begin, end, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


class Storage:
    """Numbers that an old file of torch says it holds."""


class _OldPickler(pickle.Pickler):
    def __init__(self, out, size):
        super().__init__(out, 2)
        self.size = size

    def persistent_id(self, one):
        return ("storage", torch.FloatStorage, "0", "cpu", self.size, None) if isinstance(one, Storage) else None


class _Tensor:
    def __init__(self, shape, stride):
        self.shape, self.stride = shape, stride

    def __reduce__(self):
        hooks = collections.OrderedDict()
        return torch._utils._rebuild_tensor_v2, (Storage(), 0, self.shape, self.stride, False, hooks)


def old_file(size, shape, stride):
    """A file as torch wrote it before 1.6, that says it holds ``size`` numbers and holds 16."""
    out = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(part, out, 2)
    _OldPickler(out, size).dump({"x": _Tensor(shape, stride)})
    pickle.dump(["0"], out, 2)
    return out.getvalue() + size.to_bytes(8, "little") + bytes(64)


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def packed(content, more=()):
    """A file of torch with its parts packed, and empty ones beside them."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
        for name in more:
            new.writestr(name, b"")
    return out.getvalue()


def lying(content, size=0xFFFFFF00):
    """An archive that says of its largest part that it unpacks to ``size`` bytes."""
    made, at = bytearray(content), content.rfind(b"PK\1\2")
    made[at + 24 : at + 28] = size.to_bytes(4, "little")
    return bytes(made)


def png(width, height, *chunks):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = b"".join(chunk(*one) for one in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + parts + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def animated(kind, frames):
    out = io.BytesIO()
    pictures = [Image.new("RGB", (4, 4), (i % 256, i // 256, 0)) for i in range(frames)]
    pictures[0].save(out, kind, save_all=True, append_images=pictures[1:])
    return out.getvalue()


def exif_bomb():
    """A JPEG whose EXIF says that it has 65535 entries, each of 4 GiB."""
    entries = b"".join(b"\x12\x01\x07\x00\xff\xff\xff\xff\x08\x00\x00\x00" for _ in range(5000))
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + entries
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG", exif=exif)
    return out.getvalue()


def wide_face():
    """The weights of a face network whose layers would be of 64 GiB."""
    wide = {f"body.{i}.res_layer.1.weight": torch.zeros(45_000, 1) for i in range(4)}
    return saved({"input_layer.0.weight": torch.zeros(1), "output_layer.3.weight": torch.zeros(512, 1), **wide})


def wide_motion():
    part = "motion_modules.0.temporal_transformer.proj_in.weight"
    return saved({f"down_blocks.{i}.{part}": torch.zeros(320_000, 1) for i in range(4)})


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n/x { } def showpage\n%%EOF\n"
HUGE = "more than 178 megapixels"
DAMAGED = "damaged, was not downloaded whole"


def bombs():
    """name -> (what reads it, its content, what is said of it; None where it is read)."""
    one, large = {"x": torch.zeros(2, 8)}, torch.zeros(1 << 20)
    many = ",".join(f'"{i:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(70_000))
    sparse = torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (4, 1 << 40))
    text, profile = ((kind, b"x\0\0" + zlib.compress(bytes(80_000_000), 1)) for kind in (b"zTXt", b"iCCP"))
    tensors = {
        "length": (safetensors({}, length=1 << 60), DAMAGED),
        "negative": (safetensors({}, length=(1 << 64) - 1), DAMAGED),
        "header": (safetensors(b'{"__metadata__":{"a":"' + b"x" * 99_000_000 + b'"}}'), "its header has 99,"),
        "many": (safetensors(b"{" + many.encode() + b"}"), "more than 65536 tensors"),
        "deep": (safetensors(b'{"a":' * 200_000), DAMAGED),
        "overlap": (safetensors({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24)), DAMAGED),
        "beyond": (safetensors({"a": entry([1 << 30], 0, 1 << 32)}, bytes(16)), DAMAGED),
        "product": (safetensors({"a": entry([1 << 40, 1 << 40], 0, 16)}, bytes(16)), DAMAGED),
    }
    pickled = {
        "packed": (packed(saved({"x": torch.zeros(1 << 25)})), "it would unpack to 134,"),
        "lying": (lying(packed(saved(one))), "it would unpack to 4,294,"),
        "parts": (packed(saved(one), more=[f"{i:x}" for i in range(70_000)]), "parts; a model has fewer"),
        "repeated": (
            saved({"x": torch.zeros(1, 1).expand(1 << 20, 1 << 20)}),
            "claims to have at least 1,099,511,627,776 numbers",
        ),
        "half": (
            saved({"x": torch.zeros(1, dtype=torch.float16).expand(1 << 40)}),
            "claims to have at least 1,099,511,627,776 numbers",
        ),
        "shared": (saved({str(i): large.view(-1) for i in range(60)}), "it would unpack to 251,"),
        "old": (old_file(1 << 36, (4,), (1,)), "claims to have at least 68,719,476,736 numbers"),
        "older": (old_file(16, (1 << 40,), (0,)), "claims to have at least 1,099,511,627,776 numbers"),
        "meta": (saved({"x": torch.empty(4, 1 << 40, device="meta")}), "_rebuild_meta_tensor"),
        "sparse": (saved({"x": sparse}), "_get_layout"),
    }
    return {
        **{f"{name}.safetensors": ("tensors", *one) for name, one in tensors.items()},
        **{f"{name}.pt": ("tensors", *one) for name, one in pickled.items()},
        "nothing.safetensors": ("identity", safetensors({"a": entry([1 << 60, 0], 0, 0)}), "expected"),
        "face.pt": ("face", wide_face(), r"an IR backbone: Error\(s\) in loading"),
        **({"motion.pt": ("motion", wide_motion(), "not whole")} if WHOLE else {}),  # torch is slow to get ready for it
        "large.png": ("picture", png(100_000, 100_000), HUGE),
        "unlimited.png": ("unlimited Pillow", png(100_000, 100_000), HUGE),
        "long.png": ("unlimited Pillow", png(1, 2_000_000_000), HUGE),
        "text.png": ("picture", png(8, 8, text), "cannot be read as a picture"),
        "profile.png": ("picture", png(8, 8, profile), "cannot be read as a picture"),
        "frames.png": ("picture", animated("GIF", 3000), None),
        "frames.webp": ("picture", animated("WEBP", 300), None),
        "exif.jpg": ("picture", exif_bomb(), None),
        "program.png": ("picture", EPS, "cannot identify"),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited with RLIMIT_AS and read from /proc")
def test_what_takes_more_than_it_shows_is_refused_at_once(tmp_path):
    """Each within five seconds and half a GiB of address space; nothing kills the process."""
    made = bombs()
    put(tmp_path / "warm.png", animated("PNG", 1))
    for number in range(40):
        put(tmp_path / "album" / f"{number}.png", png(13_000, 13_000))
    lines = [[kind, str(put(tmp_path / name, content))] for name, (kind, content, _) in made.items()]
    lines.append(["pictures", str(tmp_path / "album")])
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", LIMITED, str(tmp_path), *([str(MOTION_FILE)] if WHOLE else [])]
    done = subprocess.run(
        command, input="\n".join(map(json.dumps, lines)), text=True, cwd=root, capture_output=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(lines), done.stderr[-2000:]
    expected = {**{name: said for name, (_, _, said) in made.items()}, "album": r"need 108\.\d GB and 1\.1 GB are free"}
    for (name, wanted), (said, seconds) in zip(expected.items(), answers, strict=True):
        assert re.search(wanted or "^$", said), f"{name}: {said}"
        assert not re.match(r"\w+(Error|Interrupt):", said), f"{name}: {said}"
        assert seconds < 5, name
        count(INPUTS)
