"""What goes wrong while a node works (memory, the disk, a NaN, the user) costs neither files nor later prompts."""

import contextlib
import errno
import functools
import itertools
import os
import subprocess
import time
from pathlib import Path
from unittest import mock

import pytest
import rig as rigs
import torch
from PIL import Image
from rig import Fault, points
from safetensors.torch import load_file
from tally import FAULTS, WHOLE, count

HEAVY = ("refine", "tiles", "train", "encode")
ASK = "throw_exception_if_processing_interrupted"
CALLS = ("load", "model", "encoder", "decoder", "text")


@pytest.fixture(scope="module")
def rig(pack, tmp_path_factory):
    with rigs.folders(tmp_path_factory.mktemp("host")) as base, rigs.short(pack):
        made = rigs.Rig(pack)
        made.base, made.fresh = base, made.state()
        yield made


@pytest.fixture(autouse=True)
def nothing_left(rig):
    """Each test finds the folders empty and the models as they were made, and leaves them so."""
    yield
    for path in sorted(rig.base.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else None
    assert rig.state() == rig.fresh


@pytest.fixture(scope="module")
def right(rig):
    """What each node gives undisturbed."""
    found = {name: getattr(rig, name)() for name in (*HEAVY, "evaluate", "compare")}
    forget(rig)
    return found


def forget(rig):
    for path in (rig.base / "output").rglob("*.*"):
        path.unlink()


@pytest.fixture(scope="module")
def calls(rig, right):
    """How often each node undisturbed comes by each point."""
    found = {}
    for name in right:
        with rigs.counted(rig) as faults:
            getattr(rig, name)()
        found[name] = {point: fault.times for point, fault in faults.items()}
        forget(rig)
    return found


def each(times, few):
    """All of 1 to ``times``, or where not all is run a few of them, the last among them."""
    if WHOLE or times <= few:
        return list(range(1, times + 1))
    return sorted({round((i + 1) * times / few) for i in range(few)})


def raises(error):
    def happen(*_):
        raise error

    return happen


def same(a, b):
    return a == b if isinstance(a, str) else torch.allclose(a, b, atol=1e-4)


def accelerator_lacks():
    return getattr(torch, "AcceleratorError", torch.OutOfMemoryError)("CUDA error: out of memory")


@pytest.mark.parametrize("point", CALLS)
@pytest.mark.parametrize("node", HEAVY)
def test_where_memory_runs_out_the_models_stay_as_they_are_and_the_next_prompt_is_right(rig, right, node, point, calls):
    times = calls[node][point]
    for n in each(times, 1 if node == "train" else 2):
        for lack in (torch.OutOfMemoryError("the test's"), accelerator_lacks())[
            : 2 if WHOLE and node != "train" else 1
        ]:
            with Fault(raises(lack), n).on(*points(rig)[point]), contextlib.suppress(RuntimeError):
                getattr(rig, node)()
                forget(rig)  # the VAE went on in tiles, whose pictures are a little others
            assert rig.state() == rig.fresh
            count(FAULTS)
        assert torch.equal(getattr(rig, node)(), right[node])  # a training goes on from where it was
        forget(rig)


@pytest.mark.parametrize("point", ["encoder", "decoder"])
@pytest.mark.parametrize("node", ["refine", "tiles", "train"])
def test_the_vae_falls_back_to_the_hosts_tiles(rig, right, node, point, calls):
    for n in each(calls[node][point], 1):
        with Fault(raises(torch.OutOfMemoryError("the test's")), n).on(*points(rig)[point]):
            assert same(getattr(rig, node)(), right[node])
        forget(rig)
        count(FAULTS)


@pytest.mark.parametrize("point", ["load", "model"])
def test_memory_that_runs_out_at_a_later_face_costs_that_face_alone(rig, right, point, calls):
    one = calls["refine"][point] // 2
    first = broken_from(rig, calls["refine"]["model"] // 2 + 1)
    assert not torch.equal(first, right["refine"])
    assert "1 of 2 faces refined (see the log)" in rig.said
    for n in range(1, 2 * one + 1):
        found, may = None, () if n > one else torch.OutOfMemoryError
        with contextlib.suppress(may), Fault(raises(torch.OutOfMemoryError("the test's")), n).on(*points(rig)[point]):
            found = rig.refine()
        if n > one or found is not None:  # else nothing was refined yet
            assert any(same(found, wanted) for wanted in (first, right["refine"]))
        count(FAULTS)


def broken_from(rig, call, last=1000, node="refine"):
    """What a node gives where the model gives NaN from one of its calls to another."""
    numbers = iter(range(1, 1000))

    def spoilt(found, *_):
        return found * float("nan") if call <= next(numbers) <= last else found

    with changed(points(rig)["model"], spoilt):
        return getattr(rig, node)()


@contextlib.contextmanager
def changed(point, change):
    """While this lasts, what a function gives is ``change`` of it."""
    owner, name = point
    usual = getattr(owner, name)
    with mock.patch.object(owner, name, lambda *given, **named: change(usual(*given, **named), *given)):
        yield


def test_a_comparison_without_memory_costs_no_face(rig, right):
    for error in (torch.OutOfMemoryError("the test's"), RuntimeError("the test's")):
        judge = rig.pack("nodes.face_pass"), "measure"
        for n in (1, 2, 3, 4) if type(error) is not RuntimeError else (3, 4):
            with Fault(raises(error), n).on(*judge):
                assert torch.equal(rig.refine(), right["refine"])
            assert "2 of 2 faces refined" in rig.said
            assert f"face {(n - 1) // 2}: not compared, see the log." in rig.said
            count(FAULTS)
    with Fault(raises(RuntimeError("the test's")), 1).on(*judge), pytest.raises(RuntimeError, match="the test's"):
        rig.refine()


def test_a_figure_without_memory_costs_no_other(rig, right):
    looks = rig.looks
    fault = Fault(raises(torch.OutOfMemoryError("the test's")))
    with fault.on(looks, "encode_image"):
        rig.evaluate()
        times, fault.times = fault.times, 0
        for fault.at in range(1, times + 1):
            fault.times = 0
            text = rig.evaluate()
            assert "memory ran out" in text
            assert "| sharpness | 1" in text
            count(FAULTS)
    assert rig.evaluate() == right["evaluate"]


@pytest.mark.parametrize("node", [*HEAVY, "evaluate", "compare"])
def test_the_user_stops_a_node_anywhere_and_the_next_prompt_is_right(rig, right, node, calls):
    times = calls[node]["ask"]
    stop = rig.memory.InterruptProcessingException
    ns = each(times, 2 if node == "train" else 4)
    for n in ns[:: max(1, len(ns) // (10 if node == "train" else 40))]:
        with Fault(raises(stop()), n).on(*points(rig)["ask"]), pytest.raises(stop):
            getattr(rig, node)()
        assert rig.state() == rig.fresh
        if node == "train":
            assert torch.equal(rig.train(), right["train"])
            forget(rig)
        count(FAULTS)
    assert same(getattr(rig, node)(), right[node])


def test_where_every_face_is_nan_the_clip_is_as_it_was(rig):
    assert torch.equal(broken_from(rig, 1), rig.images)
    assert "0 of 2 faces refined (see the log)" in rig.said
    count(FAULTS)


def test_a_face_that_is_nan_costs_no_other(rig, right, caplog, calls):
    half = calls["refine"]["model"] // 2
    for number, (call, last) in enumerate([(1, half), (half + 1, 2 * half)]):
        found = broken_from(rig, call, last)
        assert "1 of 2 faces refined (see the log)" in rig.said
        assert f"face {number} was left as it is. The sampler returned NaN" in caplog.text
        assert not torch.equal(found, rig.images)
        assert not torch.equal(found, right["refine"])
        count(FAULTS)
    one, other = (broken_from(rig, *span) - rig.images for span in [(1, half), (half + 1, 2 * half)])
    apart = (one != 0) ^ (other != 0)
    assert torch.equal((rig.images + one + other)[apart], right["refine"][apart]) or same(
        (rig.images + one + other)[apart], right["refine"][apart]
    )


def test_a_frame_that_is_nan_costs_no_other(rig, right, caplog):
    def spoilt(found, *_):
        found = found.clone()
        found[2] = float("nan")
        return found

    with changed(points(rig)["decoder"], spoilt):
        faces = rig.refine()
        assert "face 1 was left as it is. The VAE decoded frame 2 to NaN" in caplog.text
        assert torch.equal(faces[2], rig.images[2])
        others = [0, 1, 3]
        assert torch.equal(faces[others], right["refine"][others])
        count(FAULTS)


def test_a_tile_that_is_nan_is_told(rig, calls):
    for n in each(calls["tiles"]["model"], 3):
        with pytest.raises(ValueError, match=r"The sampler returned NaN\. Try another sampler"):
            broken_from(rig, n, n, "tiles")
        count(FAULTS)


def test_a_frame_of_tiles_that_is_nan_is_only_enlarged(rig, right, caplog):
    def spoilt(found, *_):
        found = found.clone()
        found[1] = float("nan")
        return found

    with changed(points(rig)["decoder"], spoilt):
        found = rig.tiles()
    assert torch.equal(found[0], right["tiles"][0])
    assert torch.equal(found[1], rig.tiles(denoise=0.0)[1])
    assert "Some frames are only enlarged. The VAE decoded frame 1 to NaN" in caplog.text
    count(FAULTS)


def test_a_training_that_becomes_nan_keeps_the_steps_before(rig, right):
    for n in (1, 2, 3):
        with pytest.raises(ValueError, match=rf"The loss of step {n} is nan"):
            broken_from(rig, n + 1, n + 1, "train")  # the first call tries the model out
        state = rig.base / "output" / "vcd_training" / "anna.safetensors"
        assert state.is_file() == (n > 1)
        if n > 1:
            assert len(load_file(state)["losses"]) == n - 1
        assert torch.equal(rig.train(), right["train"])
        forget(rig)
        count(FAULTS)


def noted(function, seen, what):
    def call(*given, **named):
        seen.append(what)
        return function(*given, **named)

    return call


def work(rig, tmp_path):
    """Nodes whose work is many pieces: how to run each, and the function that does a piece."""
    import folder_paths

    for i in range(3):
        (tmp_path / "input" / "p").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "input" / "p" / f"{i}.png")

    def pictures():
        with mock.patch.object(folder_paths, "input_directory", str(tmp_path / "input")):
            rig.run("pictures.Pictures", {"folder": "p"})

    def segment():
        core, node = rig.pack("vcd_core.segmentation"), rig.pack("nodes.segmentation")
        box = core.Found(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.ones(1), ["man"])
        fill = lambda picture, boxes: torch.ones(1, picture.height, picture.width, dtype=torch.bool)  # noqa: E731
        inputs = {
            "images": rig.images, "prompt": "man", "detector": "", "segmenter": "", "threshold": 0.3,
            "text_threshold": 0.3, "which": "all", "index": 0, "dilate": 1, "fill_holes": True, "if_none": "empty mask",
        }  # fmt: skip
        with mock.patch.object(node, "load", return_value=(lambda *_: box, fill)):
            rig.run("segmentation.PromptToSegmentation", {name: [value] for name, value in inputs.items()})

    def track():
        found = {"which": "all", "index": 0, "threshold": 0.6, "max_gap": 8, "min_length": 3, "small_faces": True}
        rig.run("face.FaceTrack", {"images": rig.images, **found})

    noise = functools.partial(rig.run, "noise.NoisePriorPreview", {"frames": 4, "gamma": 0.3, "seed": 1})
    plots, face = rig.pack("vcd_core.plots"), rig.pack("vcd_core.face.crop")
    return {
        "the network that finds faces": (track, rig.pack("vcd_core.face.detect"), "_rows_of"),
        "pictures with boxes": (track, plots, "to_pil"),
        "crops of a face": (rig.refine, face, "_view"),
        "faces before and after": (rig.refine, rig.pack("vcd_core.face.detect"), "_rows_of"),
        "the model on a face": (rig.refine, *points(rig)["model"]),
        "the model on a tile": (rig.tiles, *points(rig)["model"]),
        "frames enlarged": (rig.tiles, rig.pack("nodes.host.pictures").comfy.utils, "common_upscale"),
        "steps of a training": (rig.train, *points(rig)["step"]),
        "pictures of a folder": (pictures, rig.pack("vcd_core.pictures"), "read"),
        "what a detector finds": (segment, rig.pack("vcd_core.segmentation"), "choose"),
        "masks with filled holes": (segment, rig.pack("vcd_core.segmentation"), "_adjust"),
        "noise as pictures": (noise, plots, "noise_frames"),
        "noise and its covariance": (noise, plots, "noise_prior_figure"),
        "pictures that are looked at": (rig.evaluate, rig.looks, "encode_image"),
        "pictures of a report": (lambda: rig.compare(report=["r"]), rig.pack("vcd_core.report").base64, "b64encode"),
    }


def test_between_two_pieces_of_work_the_user_is_heard(rig, tmp_path):
    unheard = []
    for what, (run, owner, name) in work(rig, tmp_path).items():
        seen = []
        with (
            mock.patch.object(rig.memory, ASK, noted(getattr(rig.memory, ASK), seen, "asked")),
            mock.patch.object(owner, name, noted(getattr(owner, name), seen, "worked")),
        ):
            run()
        assert "worked" in seen, what
        before = ["asked"] if seen.count("worked") > 1 else ["worked"]  # the host asks before each node
        if ("worked", "worked") in itertools.pairwise(before + seen):
            unheard.append(what)
        forget(rig)
        count(FAULTS)
    assert not unheard


FILES = {
    "save": "embeddings/people/anna.safetensors",
    "train": "output/vcd_training/anna.safetensors",
    "report": "output/r_00001_.html",
}


def write(rig, what):
    """One of the nodes that write files."""
    return {"save": rig.save, "train": rig.train, "report": functools.partial(rig.evaluate, report="r")}[what]()


def partial_files(folder):
    return [path for path in folder.rglob("*") if path.name.endswith(".partial")]


def disk_fails(number, half=False):
    """A disk that takes no file, or the half of one."""

    def happen(path, content=b"", *_):
        if half:
            with Path(path).open("wb") as file:
                file.write(content[: len(content) // 2])
        raise OSError(number, os.strerror(number), str(path))

    return happen


@pytest.mark.parametrize(
    ("what", "number"),
    [
        (what, number)
        for what in FILES
        for number in (errno.ENOSPC, errno.EIO, errno.EACCES)
        if WHOLE or what != "train" or number == errno.ENOSPC
    ],
)
def test_a_disk_that_takes_no_file_leaves_no_half_one_and_the_older_one(rig, right, caplog, what, number):
    own = rig.pack("vcd_core.files")
    path = rig.base / FILES[what]
    for owner, name in ((own.Path, "mkdir"), (own.Path, "write_bytes"), (own.os, "replace")):
        for n in (1, 2, 3) if WHOLE else (1,) if what == "train" else (1, 2):
            rig.save(id=rig.identity(0.5))
            older = {file: file.read_bytes() for file in rig.base.rglob("*") if file.is_file()}
            with Fault(disk_fails(number, name == "write_bytes"), n).on(owner, name) as fault:
                failed = outcome(rig, what)
            if fault.times < n:
                break
            told = f"{failed or ''} {rig.said} {caplog.text}"
            assert rf"cannot be written: {os.strerror(number)}" in told
            assert "Free space on its disk, or let ComfyUI write into its folder" in told
            assert str(path.parent) in told
            assert not partial_files(rig.base)
            assert what == "save" or all(file.read_bytes() == content for file, content in older.items())
            if path.is_file():
                read_whole(path)
            if what == "train":
                assert torch.equal(rig.train(), right["train"])
            forget(rig)
            caplog.clear()
            count(FAULTS)


def outcome(rig, what):
    """The error of a node that writes files; None where it went on without."""
    try:
        value = write(rig, what)
    except OSError as error:
        assert what == "save"
        return error
    assert what != "train" or value.shape == (2, 64)
    return None


def read_whole(path):
    """What a file holds; raises for a half one."""
    return load_file(path) if path.suffix == ".safetensors" else path.read_text(encoding="utf-8")


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        refused = subprocess.run(command, capture_output=True, text=True).stderr
    except OSError as error:
        refused = str(error)
    if refused:
        pytest.skip(f"No small disk can be mounted here: {refused.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder, leave=0):
    """Fill the disk under a folder, but for some bytes."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(folder / "filler", (folder / "filler").stat().st_size - leave)


def test_on_a_full_disk_nothing_that_was_computed_is_lost(rig, right, small_disk, caplog):
    with rigs.folders(small_disk):
        rig.save(id=rig.identity(0.5))
        older = (small_disk / FILES["save"]).read_bytes()
        fill(small_disk)
        for overwrite in (True, False):
            with pytest.raises(OSError, match=r"anna.*\.safetensors cannot be written: No space left on device\. "):
                rig.save(overwrite=overwrite)
        assert (small_disk / FILES["save"]).read_bytes() == older
        assert torch.equal(rig.train(), right["train"])
        assert "anna.safetensors cannot be written: No space left" in caplog.text
        assert "The report is missing" in rig.evaluate(report="r")
        assert "r_00001_.html cannot be written: No space left" in rig.said
        for node in ("refine", "tiles", "compare"):
            caplog.clear()
            assert same(getattr(rig, node)(), right[node])
            assert "The node's pictures cannot be shown: [Errno 28] No space left" in caplog.text
        assert not partial_files(small_disk)
        assert (small_disk / "output").is_dir()
        assert not list((small_disk / "output").rglob("*.*"))
        count(FAULTS, 7)


def test_an_identity_whose_picture_finds_no_room_is_saved_and_that_is_said(rig, small_disk):
    with rigs.folders(small_disk):
        grain = torch.rand(128, 128, 3, generator=torch.Generator().manual_seed(0))
        fill(small_disk, leave=16384)
        assert rig.save(id=rig.identity(picture=grain), name="other") == "other.safetensors"
        assert "Saved as other.safetensors" in rig.said
        assert "Its picture is missing: " in rig.said
        assert "other.png cannot be written: No space left on device" in rig.said
        assert len(load_file(small_disk / "embeddings" / "other.safetensors")["emb_params"]) == 2
        assert not partial_files(small_disk)
        count(FAULTS)


def test_what_a_killed_program_left_is_not_listed_and_goes_after_an_hour(rig):
    own = rig.pack("vcd_core.files")
    folder = rig.base / "embeddings"
    left, fresh = (folder / f".{digit * 32}.partial" for digit in "ab")
    others = [folder / name for name in (".hidden.partial", f"{'a' * 32}.partial", f".{'a' * 31}.partial")]
    for path in (left, fresh, *others):
        path.write_bytes(b"half")
    for path in (left, *others):
        os.utime(path, (time.time() - own._ABANDONED - 60,) * 2)
    rig.save(name="anna", id=rig.identity())
    listed = rig.pack("nodes.host.files").model_files("embeddings")
    assert "anna.safetensors" in listed
    assert not [name for name in listed if "partial" in name]
    assert not left.exists()
    assert all(path.exists() for path in (fresh, *others))
    count(FAULTS)
