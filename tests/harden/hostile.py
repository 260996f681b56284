"""Files written part by part, whole ones and hostile ones: pickles opcode by opcode, safetensors headers."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Sequence
from random import Random

MARK = "vcd_code_was_run"  # a file that appears in the working folder where a hostile pickle was obeyed
RECORD = bytes(range(64)) * 4  # the numbers of a tensor


def text(value: str) -> bytes:
    """A string on the pickle's stack."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """A whole number on the stack."""
    if abs(value) < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def several(*parts: bytes) -> bytes:
    """A tuple on the stack."""
    return b"(" + b"".join(parts) + b"t"


def called(module: str, name: str, *arguments: bytes) -> bytes:
    """What a function gives for these arguments, on the stack."""
    return f"c{module}\n{name}\n".encode() + several(*arguments) + b"R"


def storage(size: int, kind: str = "FloatStorage", key: str = "0") -> bytes:
    """The numbers of a tensor, by their record."""
    return several(text("storage"), f"ctorch\n{kind}\n".encode(), text(key), text("cpu"), number(size)) + b"Q"


def tensor(shape: tuple[int, ...], strides: tuple[int, ...] | None = None, size: int = 64, offset: int = 0) -> bytes:
    """A tensor of the record ``0``, row by row unless ``strides`` say otherwise."""
    if strides is None:
        strides = tuple(_product(shape[i + 1 :]) for i in range(len(shape)))
    counts = several(*map(number, shape)), several(*map(number, strides))
    hooks = called("collections", "OrderedDict")
    return called("torch._utils", "_rebuild_tensor_v2", storage(size), number(offset), *counts, b"\x89", hooks)


def _product(values: tuple[int, ...]) -> int:
    return values[0] * _product(values[1:]) if values else 1


def mapping(values: dict[str, bytes]) -> bytes:
    """A dictionary on the stack."""
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def pickle(content: bytes) -> bytes:
    """A whole pickle of what is left on the stack."""
    return b"\x80\x02" + content + b"."


def torch_file(content: bytes, records: dict[str, bytes] | None = None) -> bytes:
    """A file as ``torch.save`` writes it, of a pickle and its records."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, part in {"data.pkl": content, "byteorder": b"little", "version": b"3\n"}.items():
            archive.writestr(f"archive/{name}", part)
        for name, part in ({"0": RECORD} if records is None else records).items():
            archive.writestr(f"archive/data/{name}", part)
    return out.getvalue()


def safetensors_file(header: object, body: bytes = RECORD, length: int | None = None) -> bytes:
    """A safetensors file of a header, right or wrong."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def entry(shape: list[int], dtype: str = "F32", begin: int = 0, size: int = 4) -> dict[str, object]:
    """A tensor in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size * _product(tuple(shape))]}


CODE = {
    "os.system": called("os", "system", text(f"echo > {MARK}")),
    "posix.system": called("posix", "system", text(f"echo > {MARK}")),
    "subprocess": called("subprocess", "Popen", text(f"echo > {MARK}")),
    "exec": called("builtins", "exec", text(f"open({MARK!r}, 'w')")),
    "eval": called("__builtin__", "eval", text(f"open({MARK!r}, 'w')")),
    "open": called("builtins", "open", text(MARK), text("w")),
    "os.mkdir": called("os", "mkdir", text(MARK)),
    "getattr": called("builtins", "getattr", called("builtins", "__import__", text("os")), text("system")),
    "torch.load": called("torch", "load", text(MARK)),
    "torch.save": called("torch", "save", number(1), text(MARK)),
    "runpy": called("runpy", "run_path", text(MARK)),
    "torch.hub": called("torch.hub", "load", text("a/b"), text("c")),
    "numpy": called("numpy", "save", text(MARK), number(1)),
    "instance": b"(" + text(f"echo > {MARK}") + b"ios\nsystem\n",
    "newobj": b"cos\nsystem\n" + several(text(f"echo > {MARK}")) + b"\x81",
    "build": called("torch", "Tensor") + mapping({"__setstate__": b"cos\nsystem\n"}) + b"b",
}
"""Pickles that would do something if they were obeyed, by what they call."""


def changed(data: bytes, others: Sequence[bytes], words: Sequence[str], random: Random) -> bytes:
    """Bytes with one to four changes: bits turned, parts left out, doubled or put in from others, words, numbers."""
    found = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, len(found))
        end = min(len(found), at + random.choice([1, 1, 2, 4, 8, 32]))
        way = random.randrange(7)
        if way == 0 and at < len(found):
            found[at] ^= 1 << random.randrange(8)
        elif way == 1:
            del found[at:end]
        elif way == 2:
            found[at:at] = found[at:end] * random.choice([1, 2, 50])
        elif way == 3:
            other = random.choice(others)
            begin = random.randint(0, len(other))
            found[at:end] = other[begin : begin + random.randint(0, 64)]
        elif way == 4 and words:
            found[at : random.choice([at, end])] = random.choice(words).encode()
        elif way == 5:
            found[at:end] = random.choice(_NUMBERS)
        else:
            found[at:end] = random.randbytes(end - at)
    return bytes(found)


_NUMBERS = (
    *(struct.pack("<q", n) for n in (-1, 0, 1 << 31, 1 << 62)), *(struct.pack(">i", n) for n in (-1, 0, 1 << 30)),
    b"-1", b"0", b"1e999", b"99999999999999999999", b"\x00", b"\xff", b"\xed\xa0\x80", " \u2028".encode(),
)  # fmt: skip
