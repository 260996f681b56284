"""What a pickle would make is looked at before torch makes it."""

import io
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vcd_core import files, pickles, unpacking

sys.path.insert(0, str(Path(__file__).parents[1] / "harden"))
import hostile


def module():
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Embedding(4, 3, sparse=True))


WRITTEN = {
    "a dictionary": lambda: {"a": torch.ones(2, 3), "b": torch.zeros(()), "none": torch.zeros(0, 4)},
    "a state with its metadata": lambda: module().state_dict(),
    "parameters": lambda: {"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(2), requires_grad=False)},
    "a ParameterDict": lambda: {"string_to_param": nn.ParameterDict({"a": torch.ones(2, 8)}), "step": 200},
    "every type": lambda: {
        str(kind): torch.ones(2).to(kind)
        for kind in (torch.half, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.cfloat)
    },
    "newer types": lambda: {"a": torch.ones(2).to(torch.float8_e4m3fn)},
    "views of one tensor": lambda: dict(enumerate(torch.ones(4, 6).t().split(2))),
    "words and numbers": lambda: {"epoch": 3, "loss": 0.5, "size": torch.Size([2]), "name": "é", "of": {1}, "x": None},
    "an optimizer": lambda: torch.optim.AdamW([torch.ones(2)]).state_dict(),
    "a list of itself": lambda: (lambda found: found.append(found) or found)([torch.ones(1)]),
}  # fmt: skip


@pytest.mark.parametrize("old", [False, True], ids=["a zip", "as torch once wrote"])
@pytest.mark.parametrize("name", WRITTEN)
def test_what_torch_writes_is_read(tmp_path, name, old):
    if old and name in ("a ParameterDict", "newer types"):
        pytest.skip("torch reads none of its own old files that hold a module's program or a type of today")
    path = tmp_path / "me.pt"
    torch.save(WRITTEN[name](), path, _use_new_zipfile_serialization=not old)
    pickles.check(path)
    files.read(path, "a thing")


ROWS = hostile.tensor((1 << 22, 2), (0, 0))  # as many rows as a file of any size may have
DICTIONARY = hostile.called("collections", "OrderedDict")
PARAMETERS = hostile.called("torch.nn.modules.container", "ParameterDict")
SLOW = {
    "a dictionary's state": DICTIONARY + ROWS + b"b",
    "a ParameterDict's state": PARAMETERS + ROWS + b"b",
    "a tensor's state": hostile.tensor((2, 8)) + ROWS + b"b",
    "a dictionary made of it": hostile.called("collections", "OrderedDict", ROWS),
    "a set": hostile.called("builtins", "set", ROWS),
    "a size": hostile.called("torch", "Size", ROWS),
    "a call's arguments": b"ccollections\nOrderedDict\n" + ROWS + b"R",
    "a function of its own": hostile.called(
        "torch._tensor", "_rebuild_from_type_v2", b"cbuiltins\nset\n", b"ctorch\nTensor\n", hostile.several(ROWS), b"}"
    ),
    "a parameter's hooks": hostile.called("torch._utils", "_rebuild_parameter", hostile.tensor((2, 8)), b"\x88", ROWS),
    "a tensor's hooks": hostile.called(
        "torch._utils", "_rebuild_tensor_v2", hostile.storage(64), *map(hostile.number, (0,)),
        hostile.several(hostile.number(2)), hostile.several(hostile.number(1)), b"\x89", ROWS,
    ),
    "bytes": hostile.called("builtins", "bytearray", hostile.number(1 << 40)),
    "rows of nothing": hostile.tensor((1 << 40, 0), (0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("old", [False, True], ids=["a zip", "as torch once wrote"])
@pytest.mark.parametrize("name", SLOW)
def test_torch_is_not_given_what_would_go_through_a_tensor_row_by_row(tmp_path, monkeypatch, name, old):
    content = hostile.pickle(hostile.mapping({"me": SLOW[name]}))
    path = tmp_path / "me.pt"
    path.write_bytes(as_torch_once_wrote(content) if old else hostile.torch_file(content))
    given = []
    monkeypatch.setattr(torch, "load", lambda *_, **__: given.append(path))
    with pytest.raises(ValueError, match=r"me.pt cannot be read as a thing: (it|a tensor)"):
        files.read(path, "a thing")
    assert given == []


@pytest.mark.parametrize("made", [torch.ones(2).to_sparse, lambda: torch.empty(2, device="meta")])
def test_what_is_no_plain_tensor_is_refused_however_it_came(tmp_path, made):
    with pytest.raises(unpacking.Unpackable, match="not plain"):
        unpacking.check_content({"x": made()}, tmp_path)


def as_torch_once_wrote(content):
    out = io.BytesIO()
    torch.save(torch.ones(1), out, _use_new_zipfile_serialization=False)
    out.seek(0)
    for _ in range(3):
        pickle.load(out)  # noqa: S301
    return out.getvalue()[: out.tell()] + content + pickle.dumps([])


@pytest.mark.parametrize("call", hostile.CODE)
def test_nothing_is_made(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "me.pt"
    path.write_bytes(hostile.torch_file(hostile.pickle(hostile.mapping({"x": hostile.CODE[call]}))))
    with pytest.raises(ValueError, match=r"more than tensors|damaged pickle"):
        pickles.check(path)
    assert [found.name for found in tmp_path.iterdir()] == ["me.pt"]


def test_a_damaged_end_of_an_archive_and_a_long_name_are_told_in_short(tmp_path):
    path = tmp_path / "me.pt"
    path.write_bytes(b"PK\x06\x07" + bytes([1, *[0] * 11, 2, 0, 0, 0]) + b"PK\x05\x06" + bytes(18))  # on two disks
    with pytest.raises(ValueError, match="damaged"):
        files.read(path, "a thing")
    path.write_bytes(hostile.torch_file(hostile.pickle(hostile.called("os", "x" * 5000))))
    with pytest.raises(ValueError, match="more than tensors") as caught:
        files.read(path, "a thing")
    assert len(str(caught.value)) < 600
