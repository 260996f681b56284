"""Files of tensors: what is read, and what is said of files that are something else."""

import io
import json
import os
import zipfile

import pytest
import torch
from safetensors.torch import save

from vcd_core import files, identity, motion, recognise, segmentation

TENSORS = {"x": torch.ones(2, 8)}


def torch_file(content=TENSORS):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def packed(name="model.ckpt"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"weights")
    return buffer.getvalue()


PAGE = b"<!DOCTYPE html><html>404</html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 144\n"
OTHERS = {
    "a web page, not a model: download it again": PAGE,
    "a web page, not": b"\xef\xbb\xbf\n  <?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "a Git LFS pointer, not a model: download it again": POINTER,
    "a 7z archive, not a model: unpack it": b"7z\xbc\xaf\x27\x1c\x00\x04",
    "is empty": b"",
    r"a text \('\{\"error\": \"no access\"\}'\), not a model": json.dumps({"error": "no access"}).encode(),
    "a text": ("ein Töpfchen " * 100).encode(),  # 512 bytes end within a letter
}


@pytest.mark.parametrize("read", [identity.load, motion.read])
@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
@pytest.mark.parametrize("said", OTHERS)
def test_what_is_no_model_is_named_for_what_it_is(tmp_path, said, suffix, read):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(OTHERS[said])
    with pytest.raises(ValueError, match=rf"m\{suffix} .*{said}"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.ckpt", packed(), "a zip archive, not a model. Unpack it"),
        ("m.pt", save(TENSORS), "it is a safetensors file. Give it the ending .safetensors"),
        ("m.safetensors", torch_file(), "no safetensors file. Give it the ending .pt or .ckpt"),
        ("m.pt", torch_file()[:700], "damaged, was not downloaded whole"),
        ("m.safetensors", save(TENSORS)[:-3], "damaged, was not downloaded whole"),
    ],
)
def test_other_archives_and_endings_are_told(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read as a thing: .*{said}"):
        files.read(tmp_path / name, "a thing")


def test_nobody_is_told_to_run_what_is_in_a_file(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    for content in (torch_file({"x": Hostile()}), b"\x80\x02garbage", PAGE):
        (tmp_path / "m.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"m\.pt") as refused:
            files.read(tmp_path / "m.pt", "a thing")
        assert "weights_only" not in str(refused.value)
        assert "trust" not in str(refused.value)
    (tmp_path / "m.pt").write_bytes(torch_file({"x": Hostile()}))
    with pytest.raises(ValueError, match=r"more than tensors \(\w+\.mkdir\), which is not run"):
        files.read(tmp_path / "m.pt", "a thing")
    assert not (tmp_path / "owned").exists()


def test_what_a_pickle_may_hold_is_not_widened_for_others(tmp_path):
    torch.save(torch.nn.ParameterDict({"*": torch.ones(1, 8)}), tmp_path / "m.pt")
    assert next(iter(files.read(tmp_path / "m.pt", "a thing")[0].values())).shape == (1, 8)
    with pytest.raises(Exception, match="ParameterDict"):
        torch.load(tmp_path / "m.pt", weights_only=True)


@pytest.mark.parametrize(("content", "said"), [(PAGE, "a web page"), (POINTER, "a Git LFS pointer"), (b"", "is empty")])
def test_face_models_and_segmenters_are_looked_at_too(tmp_path, content, said):
    (tmp_path / "face.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=rf"face\.onnx .*{said}"):
        recognise.load(tmp_path / "face.onnx")
    pytest.importorskip("segment_anything", reason="segment-anything is not installed")
    (tmp_path / "sam_vit_b.pth").write_bytes(content)
    with pytest.raises(segmentation.BackEndMissing, match=rf"sam_vit_b\.pth .*{said}") as refused:
        segmentation.load_segmenter(tmp_path / "sam_vit_b.pth")
    assert "weights_only" not in str(refused.value)


def test_a_folder_of_pointers_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(segmentation.BackEndMissing, match=r"model\.safetensors is a Git LFS pointer"):
        segmentation.load_segmenter(tmp_path)


@pytest.mark.parametrize("content", [PAGE, POINTER, b"", b"[]"])
def test_a_folder_whose_description_is_none_is_told(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(
        segmentation.BackEndMissing, match=r"config\.json is no description of a model, download it again"
    ):
        segmentation.load_detector(tmp_path)
