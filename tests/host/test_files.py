"""What may be chosen by name, and where it lies: nodes/host/files.py with ComfyUI's own folder_paths, on real
folders."""

import os

import pytest


@pytest.fixture
def files(monkeypatch, tmp_path, pack):
    """The door to the folders, with models and inputs in folders of the test's own."""
    module = pack("nodes.host.files")
    import folder_paths

    for name in ("input", "models"):
        (tmp_path / name).mkdir()
    # other tests of this process use the same module
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return module


def put(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def settle(folder):
    """Let a folder and all in it have changed long ago."""
    for path, _, _ in os.walk(folder):
        os.utime(path, (1_000_000_000, 1_000_000_000))


@pytest.fixture
def scanned(files, monkeypatch):
    """Which folders are read."""
    seen, scandir = [], os.scandir
    monkeypatch.setattr(files.os, "scandir", lambda path: seen.append(os.path.basename(path)) or scandir(path))
    return seen


def test_only_folders_that_changed_are_read_again(files, tmp_path, scanned):
    top = tmp_path / "input"
    for name in ("a/b", "a/c", "d"):
        put(top / name / "picture.png")
    settle(top)
    scanned.clear()
    assert files.input_subfolders() == ["a", "a/b", "a/c", "d"]
    assert sorted(scanned) == ["", "a", "b", "c", "d"]
    scanned.clear()
    assert files.input_subfolders() == ["a", "a/b", "a/c", "d"]
    assert scanned == []
    (top / "a" / "b" / "new").mkdir()
    assert files.input_subfolders() == ["a", "a/b", "a/b/new", "a/c", "d"]
    assert sorted(scanned) == ["b", "new"]


def test_a_new_folder_is_seen_at_once_also_within_one_tick_of_the_clock(files, tmp_path):
    """Times of files are coarse on some systems: two changes may bear the same one."""
    top = tmp_path / "input"
    (top / "first").mkdir()
    now = top.stat().st_mtime_ns
    assert files.input_subfolders() == ["first"]
    (top / "second").mkdir()
    os.utime(top, ns=(now, now))
    assert files.input_subfolders() == ["first", "second"]
    (top / "first").rmdir()
    os.utime(top, ns=(now, now))
    assert files.input_subfolders() == ["second"]


def test_linked_folders_are_listed_and_not_entered(files, tmp_path):
    top, drive = tmp_path / "input", tmp_path / "drive"
    put(drive / "inside" / "picture.png")
    (top / "linked").symlink_to(drive)
    (top / "round").symlink_to(top)
    (top / "picture.png").symlink_to(drive / "inside" / "picture.png")
    settle(top)
    assert files.input_subfolders() == ["linked", "round"]
    drive.rename(tmp_path / "unplugged")
    assert files.input_subfolders() == ["round"]
    (tmp_path / "unplugged").rename(drive)
    assert files.input_subfolders() == ["linked", "round"]


def test_the_page_sees_a_new_folder_at_once(bench):
    def listed():
        return bench.server.get("/object_info/VCD_Pictures")["VCD_Pictures"]["input"]["required"]["folder"][1][
            "options"
        ]

    folder = bench.server.host.base / "input" / "vcd_tests_new" / "inside"
    assert "vcd_tests_new" not in listed()
    folder.mkdir(parents=True)
    try:
        assert {"vcd_tests_new", "vcd_tests_new/inside"} <= set(listed())
    finally:
        folder.rmdir()
        folder.parent.rmdir()
    assert "vcd_tests_new" not in listed()


def test_a_folder_that_is_open_for_any_file_stays_so(files, tmp_path):
    import folder_paths

    put(tmp_path / "theirs" / "model.gguf")
    folder_paths.folder_names_and_paths["vcd_shared"] = ([str(tmp_path / "theirs")], set())
    files.add_model_folder("vcd_shared", "ours", {".pth"})
    put(tmp_path / "models" / "ours" / "model.pth")
    assert files.model_files("vcd_shared") == ["model.gguf", "model.pth"]


def test_our_kinds_join_those_of_another_pack(files, tmp_path):
    import folder_paths

    theirs = {".gguf"}
    put(tmp_path / "theirs" / "model.gguf")
    folder_paths.folder_names_and_paths["vcd_shared"] = ([str(tmp_path / "theirs")], theirs)
    for _ in range(2):
        files.add_model_folder("vcd_shared", "ours", {".pth"})
    put(tmp_path / "models" / "ours" / "model.pth")
    put(tmp_path / "models" / "ours" / "notes.txt")
    assert files.model_files("vcd_shared") == ["model.gguf", "model.pth"]
    assert len(folder_paths.get_folder_paths("vcd_shared")) == 2
    assert theirs == {".gguf"}


def test_a_folder_of_ours_alone_holds_our_kinds(files, tmp_path):
    files.add_model_folder("vcd_own", "own", {".pth"})
    for name in ("model.pth", "notes.txt"):
        put(tmp_path / "models" / "own" / name)
    assert files.model_files("vcd_own") == ["model.pth"]


@pytest.fixture
def linked(files, tmp_path):
    """A model folder that is a link and holds a linked sub-folder and a linked file."""
    put(tmp_path / "disk" / "plain" / "config.json")
    put(tmp_path / "other disk" / "sub" / "config.json")
    put(tmp_path / "other disk" / "model.pth")
    put(tmp_path / "secret.pth")
    (tmp_path / "models" / "own").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "linked").symlink_to(tmp_path / "other disk" / "sub")
    (tmp_path / "disk" / "model.pth").symlink_to(tmp_path / "other disk" / "model.pth")
    files.add_model_folder("vcd_own", "own", {".pth"})
    return tmp_path / "models" / "own"


def test_links_in_model_folders_are_followed(files, linked):
    assert files.model_folders("vcd_own") == ["linked", "plain"]
    assert files.model_files("vcd_own") == ["model.pth"]
    for name in ("plain", "linked", "linked/config.json", "model.pth", "plain/../model.pth"):
        assert files.model_path("vcd_own", name).samefile(linked / name)
        assert files.model_path("vcd_own", name).is_relative_to(linked)


@pytest.mark.parametrize("name", ["../../secret.pth", "linked/../../../secret.pth", "..", "/{0}", "{0}", "gone.pth"])
def test_names_that_leave_their_folder_are_refused(files, linked, tmp_path, name):
    """Also an absolute path that leads into it: names are what the list shows."""
    with pytest.raises(ValueError, match=r"is not in .*own"):
        files.model_path("vcd_own", name.format(linked / "model.pth"))
    (tmp_path / "input" / "linked").symlink_to(tmp_path / "disk")
    with pytest.raises(ValueError, match=r"is not a folder in .*input"):
        files.input_subfolder(name.format(tmp_path / "input" / "linked"))
    assert files.input_subfolder("linked").samefile(tmp_path / "disk")
