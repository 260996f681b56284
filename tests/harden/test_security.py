"""Files and names from strangers, in every widget that takes one: nothing in them runs or leads out of its folder."""

import io
import json
import ntpath
import os
import pickle
import posixpath
import tarfile
import zipfile
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strange import put
from tally import INPUTS, count, hard

from vcd_core import evaluate, files, identity, pictures, training
from vcd_core.tiny.model import MOTION_FILE

HERE = "vcd_sentinel"  # in the name of whatever a test puts into a folder
PATHS = {("VCD_IdSave", "name"), ("VCD_IdTrainer", "name"), ("VCD_Evaluate", "report"), ("VCD_Compare", "report")}
TEXTS = {  # nothing is opened under what these hold; the host looks up embeddings in its own folders
    ("VCD_ApplyNoisePrior", "gamma_schedule"), ("VCD_Cast", "places"), ("VCD_Cast", "prompt"),
    ("VCD_Compare", "names"), ("VCD_Compare", "prompt"), ("VCD_Evaluate", "prompt"), ("VCD_IdLoader", "class_word"),
    ("VCD_IdLoader", "token"), ("VCD_IdTextEncode", "prompt"), ("VCD_IdTrainer", "class_word"),
    ("VCD_IdTrainer", "initial_words"), ("VCD_IdTrainer", "template"), ("VCD_NoisePrior", "gamma_schedule"),
    ("VCD_NoisePriorLatent", "gamma_schedule"), ("VCD_NoisePriorPreview", "gamma_schedule"),
    ("VCD_PromptToSegmentation", "prompt"),
}  # fmt: skip


@pytest.fixture
def house(monkeypatch, tmp_path, pack):
    """The pack's nodes over folders of the test's own, each with a file and a folder that are named ``HERE``."""
    nodes = pack("nodes").NODES
    import folder_paths

    kinds = {name: known[1] for name, known in folder_paths.folder_names_and_paths.items()}
    places = {name: ([str(tmp_path / "models" / name)], set(kind)) for name, kind in kinds.items()}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", places)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for name in ("input", "output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    for folder in [*(tmp_path / "models" / name for name in kinds), tmp_path / "input"]:
        put(folder / f"{HERE}_folder" / "config.json", b"{}")
        for ending in (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".onnx", ".png"):
            put(folder / f"{HERE}{ending}", b"")
    return SimpleNamespace(nodes={node.GET_SCHEMA().node_id: node for node in nodes}, base=tmp_path, pack=pack)


def widgets(node):
    """A node's inputs, those that grow among them."""
    for one in node.define_schema().inputs:
        template = getattr(one, "template", None)
        yield from [one, template.input] if hasattr(template, "input") else [one]


def of_files(house):
    """The widgets whose choices are what lies in a folder."""
    found = ((kind, one) for kind, node in house.nodes.items() for one in widgets(node))
    return {(kind, one.id) for kind, one in found if any(HERE in str(o) for o in getattr(one, "options", None) or [])}


# what a node does with a chosen file, up to where it has read it
def _motion(house, file, lora):
    module = house.pack("nodes.motion")
    model = SimpleNamespace()
    known = {"kind_of": lambda model: "SD15", "of_video": lambda model: False}
    before = {name: getattr(module, name) for name in known}
    vars(module).update(known)
    try:
        return module.load(model, file, lora)
    finally:
        vars(module).update(before)


def _lora(house, file):
    tiny = house.base / "models" / "animatediff_models" / "tiny.safetensors"
    tiny.write_bytes(MOTION_FILE.read_bytes())
    return _motion(house, tiny.name, file)


def _given(house, **chosen):
    return house.pack("nodes.measures").Given(torch.zeros(1, 8, 8, 3), [], **chosen)


def _aesthetic(house, file):
    return evaluate.aesthetic_score(torch.zeros(1, 768), _given(house, aesthetic_model=file).aesthetic_file)


def _detector(house, file):
    module = house.pack("nodes.segmentation")
    return module.segmentation.load_detector(module.path_of(module.DETECTORS, file, "model"))


def _segmenter(house, file):
    module = house.pack("nodes.segmentation")
    return module.segmentation.load_segmenter(module.path_of(module.SEGMENTERS, file, "model"))


def _face(house, file):
    return _given(house, face_model=file).recogniser


def _quality(house, file):
    return _given(house, quality_model=file).quality_network


OPENED = {
    ("VCD_IdLoader", "file"): ("embeddings", lambda house, file: house.nodes["VCD_IdLoader"].execute(file, "man", 1.0)),
    ("VCD_MotionModule", "motion_module"): ("animatediff_models", lambda house, file: _motion(house, file, "none")),
    ("VCD_MotionModule", "motion_lora"): ("animatediff_motion_lora", _lora),
    ("VCD_PromptToSegmentation", "detector"): ("grounding-dino", _detector),
    ("VCD_PromptToSegmentation", "segmenter"): ("sams", _segmenter),
    ("VCD_Evaluate", "face_model"): ("face_embedding", _face),
    ("VCD_Evaluate", "aesthetic_model"): ("aesthetic", _aesthetic),
    ("VCD_Evaluate", "quality_model"): ("musiq", _quality),
    ("VCD_Compare", "face_model"): ("face_embedding", _face),
    ("VCD_Compare", "aesthetic_model"): ("aesthetic", _aesthetic),
    ("VCD_Compare", "quality_model"): ("musiq", _quality),
    ("VCD_Pictures", "folder"): (None, lambda house, file: house.nodes["VCD_Pictures"].execute(file)),
}  # fmt: skip


def test_every_widget_of_files_is_tried_here(house):
    """A new one is to be written into ``OPENED``, so that the tests below open hostile files with it."""
    assert of_files(house) == set(OPENED)


def test_every_text_is_known_to_become_a_path_or_not(house):
    """A new text is to be written into ``PATHS`` or ``TEXTS``."""
    from comfy_api.latest import io

    found = {
        (kind, one.id)
        for kind, node in house.nodes.items()
        for one in widgets(node)
        if isinstance(one, io.String.Input)
    }
    assert found == PATHS | TEXTS


class Evil:
    """What makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def hostile(mark):
    """Files that would run code, by what they are."""
    evil, made = Evil(mark), {}
    for name, content in {
        "alone": evil,
        "in a state": {"state_dict": {"x": evil}},
        "a key": {"x": [torch.ones(8), evil]},
    }.items():
        for kind, zipped in (("zip", True), ("old", False)):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
            made[f"{name}, {kind}"] = buffer.getvalue()
    made["a bare pickle"] = pickle.dumps(evil)
    made["text pickle"] = pickle.dumps(evil, protocol=0)
    made["a tar"] = in_tar({"pickle": pickle.dumps(evil), "storages": pickle.dumps(evil), "tensors": b""})
    made["a tar that begins as a pickle"] = in_tar({"\x80\x02x": pickle.dumps(evil), "storages": pickle.dumps(evil)})
    made["a tar before a zip"] = made["a tar"] + made["alone, zip"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("constants.pkl", "data.pkl"):
            archive.writestr(f"archive/{name}", pickle.dumps(evil))
        archive.writestr("archive/version", b"3\n")
    made["TorchScript"] = buffer.getvalue()
    return made


def in_tar(parts):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding="latin-1") as archive:
        for name, content in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


OURS = ("ValueError", "BackEndMissing")  # by name: the pack is loaded under its own and as vcd_core


def refused(call):
    """What a call says that must raise one of our errors, which must not advise to run what was refused."""
    with pytest.raises(Exception, match=r"\w") as error:
        call()
    said = str(error.value)
    assert error.type.__name__ in OURS, said
    assert len(said) < 1200
    assert not any(word in said.lower() for word in ("weights_only", "trust", "arbitrary"))
    return said


@pytest.mark.parametrize("widget", OPENED, ids=".".join)
def test_a_hostile_pickle_runs_in_no_widget(house, widget):
    folder, open_ = OPENED[widget]
    mark = house.base / "owned"
    for number, (name, content) in enumerate(hostile(mark).items()):
        if folder is None:
            put(house.base / "input" / f"of{number}" / "x.png", content)
            refused(lambda number=number: open_(house, f"of{number}"))
        else:
            for ending in (".pt", ".pth", ".safetensors", ".bin", ".onnx"):
                put(house.base / "models" / folder / f"of{number}{ending}", content)
                said = refused(lambda number=number, ending=ending: open_(house, f"of{number}{ending}"))
                assert f"of{number}{ending}" in said or "is not installed" in said, said
                count(INPUTS)
        assert not mark.exists(), name


@pytest.mark.parametrize("which", ["sam", "grounding-dino"])
def test_a_hostile_folder_of_transformers_runs_nothing(tmp_path, which):
    from vcd_core import segmentation

    mark = tmp_path / "owned"
    load = {"sam": segmentation.load_segmenter, "grounding-dino": segmentation.load_detector}[which]
    auto = {"AutoTokenizer": ["evil.Words", None], "AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    remote = {"AutoTokenizer": ["somebody/evil--evil.Words", None]}
    for number, (name, content) in enumerate(hostile(mark).items()):
        folder = tmp_path / str(number)
        put(folder / "config.json", json.dumps({"model_type": which, "auto_map": auto}).encode())
        words = {"tokenizer_class": "Evil", "auto_map": remote if number % 2 else auto}
        put(folder / "tokenizer_config.json", json.dumps(words).encode())
        put(folder / "preprocessor_config.json", json.dumps({"auto_map": auto}).encode())
        put(folder / "evil.py", f"import os; os.mkdir({str(mark)!r})".encode())
        put(folder / "pytorch_model.bin", content)
        refused(lambda folder=folder: load(folder))
        assert not mark.exists(), name
        count(INPUTS)


def test_a_hostile_state_of_a_training_runs_nothing(tmp_path):
    mark = tmp_path / "owned"
    for name, content in hostile(mark).items():
        path = put(tmp_path / "state.safetensors", content)
        refused(lambda path=path: training.is_done(path))
        refused(lambda path=path: files.read_state(path))
        assert not mark.exists(), name
        count(INPUTS)


def test_torch_is_not_given_what_went_past_it_once(tmp_path, monkeypatch):
    """CVE-2025-32434: before torch 2.6 a tar was read without ``weights_only``."""
    given_to_torch = []
    monkeypatch.setattr(torch, "load", lambda path, **options: given_to_torch.append(options) or {})
    for name, content in hostile(tmp_path / "owned").items():
        path = put(tmp_path / "m.pt", content)
        if "tar" in name or name == "TorchScript":
            refused(lambda path=path: files.read(path, "a thing"))
    assert given_to_torch == []
    torch.save({"me": torch.ones(1)}, tmp_path / "m.pt")
    files.read(tmp_path / "m.pt", "a thing")
    assert [options["weights_only"] for options in given_to_torch] == [True]


OUTSIDE = (
    "../{0}", "a/../../{0}", "../../input/{0}", "/{1}/{0}", "{1}/{0}", "..\\{0}", "a\\..\\..\\{0}", "a/..\\../{0}",
    "C:\\{0}", "C:{0}", "c:/{0}", "\\\\server\\share\\{0}", "//server/share/{0}", "\\\\?\\C:\\{0}", "\\\\.\\pipe\\x",
    "\\{0}", "/dev/stdin", "/dev/zero", "/proc/self/mem", "/proc/self/environ", "../../../../../../etc/passwd",
    ".. /{0}", ".../{0}", ".. ./{0}", "{0}\0.safetensors", "\0", "a\0/../{0}", "~/../../{0}", "./../{0}",
    "a" * 300, "a/" + "b" * 5000, "\ud800", "{0}\udfff",
)  # fmt: skip
NOT_THERE = (
    "~", "~root", "$HOME", "%TEMP%", "CON", "nul", "aux.safetensors", "COM1", "LPT9.txt", "-rf", "--help", "a\nb",
    "a\r\nb", "\x1b[31m", "", " ", ".", "..", "x.", "x ", "x:stream", "file:///etc/passwd", "https://x/y.pt", "*", "?",
    "<img src=x onerror=alert(1)>", "'; drop", "%2e%2e/%2e%2e/x", "..%2fx", "\u202egnp.exe", "a" * 10000,
)  # fmt: skip


@pytest.mark.parametrize("widget", sorted(OPENED), ids=".".join)
def test_a_name_that_leads_elsewhere_opens_nothing(house, widget):
    """Where it would lead there is a file, so that one that followed it would find something."""
    (kind, name), (_, open_) = widget, OPENED[widget]
    node = house.nodes[kind]
    for place in (house.base, house.base / "models", house.base / "input"):
        for ending in (".safetensors", ".pth", ".onnx"):
            put(place / f"secret{ending}", b"secret")
        put(place / "secret" / "picture.png", b"secret")
        put(place / "secret" / "config.json", b"{}")
    for secret in ("secret.safetensors", "secret.pth", "secret"):
        for one in (*OUTSIDE, *NOT_THERE):
            chosen = one.format(secret, str(house.base))
            verdict = node.validate_inputs(**{name: [chosen] if node.GET_SCHEMA().is_input_list else chosen})
            if chosen not in ("", ".") or kind not in ("VCD_Pictures", "VCD_PromptToSegmentation"):  # the folder itself
                assert isinstance(verdict, str), chosen
            if one in OUTSIDE:
                refused(lambda chosen=chosen: open_(house, chosen))
            count(INPUTS)


WINDOWS_KEEPS = (
    "CON", "nul", "Aux", "PRN.v2", "COM1", "lpt9", "com²", "CONIN$", "aux.safetensors", "a/nul", "nul/a", "NUL .x",
    "a/COM3.backup/b", "x./y", "x /y", "a:b", "a<b", "a>b", 'a"b', "a|b", "a?b", "a*b", "a\nb", "\x1b[31m", "x\x7f",
    "a" * 250, "é" * 130,
)  # fmt: skip


@pytest.mark.parametrize("widget", sorted(PATHS), ids=".".join)
def test_a_text_that_becomes_a_path_is_refused_before_anything_runs(house, widget):
    (kind, name), folder = widget, house.base / "output"
    node = house.nodes[kind]
    many = node.GET_SCHEMA().is_input_list
    for one in (*OUTSIDE, *WINDOWS_KEEPS):
        chosen = one.format("secret", str(house.base))
        if kind == "VCD_IdSave" and "_".join(chosen.split()) != chosen:  # its spaces become _
            continue
        verdict = node.validate_inputs(**{name: [chosen] if many else chosen})
        assert isinstance(verdict, str), chosen
        assert "is not a file name inside" in verdict
        assert len(verdict) < 700
        count(INPUTS)
    for one in (
        "me",
        "people/me",
        "-rf",
        "~",
        "$HOME",
        "my id",
        "v1.5",
        "이름",
        "a..b",
        ".hidden",
        "constant",
        "com10",
    ):
        assert node.validate_inputs(**{name: [one] if many else one}) is True, one
    assert list(folder.iterdir()) == []  # a name that is looked at makes no folder


@pytest.mark.parametrize("name", OUTSIDE, ids=range(len(OUTSIDE)))
def test_a_name_that_leads_elsewhere_has_no_path(name):
    """Whatever lies there: a file that is not there is refused too."""
    assert files.inside("/top/folder", name.format("secret", "/top")) is None
    with pytest.raises(ValueError, match="it leads out of the folder"):
        files.new_path("/top/folder", name.format("secret", "/top"))


PARTS = st.one_of(
    st.sampled_from(
        ["..", ".", "", "a", "C:", "con", "NUL.x", "x ", "x.", "... ", "~", "-r", "\\", "a\\..", "é", "\0"]
    ),
    st.text(max_size=6),
)
NAMES = st.builds("/".join, st.lists(PARTS, min_size=1, max_size=6))


@hard(500, 50_000)
@given(NAMES)
def test_a_name_is_inside_its_folder_as_every_system_reads_it(name):
    count(INPUTS)
    found = files.inside("/top/folder", name)
    if found is None:
        return
    for system, top in ((posixpath, "/top/folder"), (ntpath, "D:\\top\\folder")):
        path = system.normpath(system.join(top, name))
        assert path == top or path.startswith(top + system.sep), name
    assert "\0" not in name


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


@hard(200, 5_000)
@given(name=NAMES)
def test_what_is_written_lies_in_its_folder_and_windows_has_it_too(written, name):
    count(INPUTS)
    folder = written / "folder"
    try:
        path = files.free_path(folder, name, overwrite=True)
    except ValueError:
        return
    files.write_bytes(path, b"x")
    there = [Path(at, file) for at, _, found in os.walk(folder.parent) for file in found]
    path.unlink()
    assert there == [path]
    for part in path.relative_to(folder).parts:
        plain = PureWindowsPath(part)
        assert not plain.is_reserved()
        assert plain.name == part == part.rstrip(" .")
        assert not set(part) & set('<>:"|?*')


def test_what_is_written_over_a_link_leaves_what_it_leads_to(tmp_path):
    victim = put(tmp_path / "elsewhere" / "victim.safetensors", b"victim")
    picture = put(tmp_path / "elsewhere" / "victim.png", b"victim")
    folder = tmp_path / "embeddings"
    folder.mkdir()
    (folder / "me.safetensors").symlink_to(victim)
    (folder / "me.png").symlink_to(picture)
    (folder / "gone.safetensors").symlink_to(tmp_path / "elsewhere" / "new.safetensors")
    tokens = identity.IdTokens("me", torch.ones(4, 16))
    for name in ("me", "gone"):
        path = identity.save(tokens, folder, name, overwrite=True)
        pictures.save_beside(path, torch.zeros(8, 8, 3))
        assert identity.load(path).count == 4
        assert not path.is_symlink()
    assert victim.read_bytes() == picture.read_bytes() == b"victim"
    assert not (tmp_path / "elsewhere" / "new.safetensors").exists()
    assert sorted(p.name for p in folder.iterdir()) == ["gone.png", "gone.safetensors", "me.png", "me.safetensors"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_is_not_waited_for(house, tmp_path):
    os.mkfifo(house.base / "models" / "sams" / "pipe.pth")
    assert isinstance(house.nodes["VCD_PromptToSegmentation"].validate_inputs(segmenter=["pipe.pth"]), str)
    (tmp_path / "pictures").mkdir()
    os.mkfifo(tmp_path / "pictures" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture: it is no file"):
        pictures.open_pictures(tmp_path / "pictures")
