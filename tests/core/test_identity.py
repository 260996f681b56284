"""ID files: every format in, safetensors out, refusals; placing identities and schedules in prompts."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vcd_core.identity import CONTEXT, ENCODERS, IdTokens, beside, check_width, insert, load, save

RELEASE = Path(__file__).resolve().parents[3] / "shared" / "data" / "embeddings"
VECTORS = torch.randn(4, 768, generator=torch.Generator().manual_seed(0))


def write(path, content):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a1111.pt", {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "x", "step": None}),
        ("magic.pt", {"string_to_param": {"*": torch.nn.Parameter(VECTORS)}}),
        ("diffusers.bin", {"<tok>": VECTORS}),
        ("diffusers.safetensors", {"<tok>": VECTORS}),
        ("kohya.safetensors", {"bundle_emb.me.string_to_param.*": VECTORS, "lora_unet.alpha": torch.ones(1)}),
        ("comfy.safetensors", {"clip_l": VECTORS}),
        ("emb.safetensors", {"emb_params": VECTORS, "extra": torch.ones(2)}),
        ("list.pt", [{"emb_params": VECTORS}]),
        (
            "inversion.pt",
            {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": VECTORS})},
        ),
        ("half.safetensors", {"emb_params": VECTORS.half()}),
    ],
)
def test_every_format_is_read(tmp_path, file, content):
    tokens = load(write(tmp_path / file, content))
    assert tokens.name == Path(file).stem
    assert set(tokens.by_encoder()) == {"clip_l"}
    assert torch.allclose(tokens.by_encoder()["clip_l"], VECTORS, atol=1e-3)
    assert tokens.by_encoder()["clip_l"].dtype == torch.float32
    assert tokens.count == 4


def test_the_first_layout_of_parameter_dictionaries_is_read(tmp_path):
    old = torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})
    del old.__dict__["_keys"]  # which torch 1.11 had not
    assert torch.equal(load(write(tmp_path / "old.pt", {"string_to_param": old})).vectors, VECTORS)


def test_of_several_identities_in_a_file_one_is_named(tmp_path):
    other = VECTORS + 1
    several = {
        "two.pt": ({"string_to_param": {"anna": VECTORS, "bert": other}}, "anna", "bert"),
        "params.pt": ({"string_to_param": torch.nn.ParameterDict({"anna": VECTORS, "bert": other})}, "anna", "bert"),
        "diffusers.bin": ({"<anna>": VECTORS, "<bert>": other}, "<anna>", "<bert>"),
        "list.pt": ([{"emb_params": VECTORS}, {"emb_params": other}], "emb_params", "emb_params 2"),
        "bundle.safetensors": (
            {f"bundle_emb.{n}.string_to_param.*": v for n, v in (("anna", VECTORS), ("bert", other))}
            | {"x": torch.ones(1)},
            "anna",
            "bert",
        ),
    }
    for file, (content, first, second) in several.items():
        path = write(tmp_path / file, content)
        with pytest.raises(ValueError, match=f"holds 2 tensors .{first}, {second}.*write the name .* as token"):
            load(path)
        assert torch.equal(load(path, first).vectors, VECTORS)
        assert torch.equal(load(path, f" {second} ").vectors, other)
        with pytest.raises(ValueError, match=f"no identity 'carl'; it has {first}, {second}"):
            load(path, "carl")
    with pytest.raises(ValueError, match=r"no identity 'carl'; it has one, without a name: leave token empty"):
        load(write(tmp_path / "one.safetensors", {"emb_params": VECTORS}), "carl")


def test_bundles_for_two_encoders_keep_their_encoders(tmp_path):
    large = torch.randn(4, 1280)
    bundle = {"bundle_emb.my.id.clip_g": large, "bundle_emb.my.id.clip_l": VECTORS, "lora_unet.alpha": torch.ones(1)}
    tokens = load(write(tmp_path / "xl.safetensors", bundle))
    assert torch.equal(tokens.vectors["clip_l"], VECTORS)
    assert torch.equal(tokens.vectors["clip_g"], large)
    alone = load(write(tmp_path / "g.safetensors", {"bundle_emb.me.clip_g": large}))
    assert set(alone.by_encoder()) == {"clip_g"}


def test_single_vectors_and_pairs(tmp_path):
    assert load(write(tmp_path / "one.bin", {"<tok>": VECTORS[0]})).vectors.shape == (1, 768)
    both = load(write(tmp_path / "xl.safetensors", {"clip_l": VECTORS, "clip_g": torch.randn(4, 1280)}))
    assert {key: v.shape for key, v in both.vectors.items()} == {"clip_l": (4, 768), "clip_g": (4, 1280)}
    with pytest.raises(ValueError, match=r"not as many tokens .* 4 for clip_l and 3 for clip_g"):
        load(write(tmp_path / "bad.safetensors", {"clip_l": VECTORS, "clip_g": torch.randn(3, 1280)}))


@pytest.mark.parametrize(
    ("file", "count"), [("mona.pt", 4), ("ironman.pt", 4), ("emotion-angry.pt", 12), ("emotion-happy.pt", 10)]
)
def test_files_of_the_release_are_read(file, count):
    if not RELEASE.is_dir():
        pytest.skip("the release's embeddings are not beside this checkout")
    tokens = load(RELEASE / file)
    assert tokens.vectors.shape == (count, 768)
    assert f"{count} tokens; width 768" in tokens.describe()


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "aborted.pt").touch()
    with pytest.raises(ValueError, match=r"aborted\.pt cannot be read"):
        load(tmp_path / "aborted.pt")


def test_vectors_for_the_second_encoder_alone_stay_its_own(tmp_path):
    tokens = load(write(tmp_path / "g.safetensors", {"clip_g": torch.randn(4, 1280)}))
    assert set(tokens.by_encoder()) == {"clip_g"}
    assert tokens.describe().startswith("4 tokens; clip_g width 1280")
    with pytest.raises(ValueError, match="no vectors for clip_l"):
        check_width(tokens, {"clip_l": 768})


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_file_names_its_text_encoder(tmp_path, encoder):
    tokens = load(write(tmp_path / "me.safetensors", {encoder: VECTORS}))
    assert set(tokens.by_encoder(["t5base"])) == {encoder}
    assert f"4 tokens; {encoder} width 768" in tokens.describe()
    assert set(load_file(save(tokens, tmp_path, "saved"))) == {encoder}
    bundle = load(write(tmp_path / "bundle.safetensors", {f"bundle_emb.me.{encoder}": VECTORS}))
    assert set(bundle.by_encoder()) == {encoder}
    check_width(tokens, {encoder: 768})
    with pytest.raises(ValueError, match=f"no vectors for other: it was made for {encoder} .768 wide.*other .768 wide"):
        check_width(tokens, {"other": 768})


def test_unnamed_vectors_are_for_the_only_encoder_of_their_width(tmp_path):
    tokens = load(write(tmp_path / "me.safetensors", {"emb_params": VECTORS}))
    assert set(tokens.by_encoder({"t5xxl": 4096})) == {"t5xxl"}
    assert set(tokens.by_encoder({"clip_l": 768, "llama": 4096})) == {"clip_l"}
    check_width(tokens, {"t5xxl": 768})
    with pytest.raises(ValueError, match="'me' is 768 wide and this model's umt5xxl text encoder is 4096 wide"):
        check_width(tokens, {"umt5xxl": 4096})
    with pytest.raises(ValueError, match=r"'me' .768 wide. cannot stand .* text encoder songs reads no embeddings"):
        check_width(tokens, {"songs": 0})
    assert set(load_file(save(tokens, tmp_path, "saved"))) == {"emb_params"}


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"string_to_param": {"*": VECTORS}, "x": Hostile()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt cannot be read"):
        load(tmp_path / "bad.pt")
    assert not (tmp_path / "owned").exists()


def test_what_is_no_embedding_is_named(tmp_path):
    path = write(tmp_path / "cut.safetensors", {"emb_params": VECTORS})
    path.write_bytes(path.read_bytes()[:-100])
    cases = {
        "cut.safetensors cannot be read": path,
        "nothing.pt is not there": tmp_path / "nothing.pt",
        "holds 2 tensors": write(tmp_path / "two.safetensors", {"a": VECTORS, "b": VECTORS.clone()}),
        r"holds a tensor \[3, 4, 5\]": write(tmp_path / "cube.bin", {"x": torch.ones(3, 4, 5)}),
        "with 1 to 75 tokens": write(tmp_path / "many.bin", {"x": torch.ones(80, 768)}),
        "NaN": write(tmp_path / "nan.bin", {"x": torch.full((2, 768), float("nan"))}),
        "holds a Tensor": write(tmp_path / "bare.pt", VECTORS),
    }
    for message, file in cases.items():
        with pytest.raises(ValueError, match=message):
            load(file)


def test_saved_files_come_back_with_their_provenance(tmp_path):
    tokens = IdTokens("me", VECTORS, {"class_word": "man", "steps": "200"})
    path = save(tokens, tmp_path, "people/me")
    assert path == tmp_path / "people" / "me.safetensors"
    assert set(load_file(path)) == {"emb_params"}
    again = load(path)
    assert torch.equal(again.vectors, VECTORS)
    assert again.provenance["class_word"] == "man"
    assert "steps 200" in again.describe()
    both = IdTokens("xl", {"clip_l": VECTORS, "clip_g": torch.randn(4, 1280)})
    assert set(load_file(save(both, tmp_path, "xl"))) == {"clip_l", "clip_g"}


def test_loaded_tokens_outlive_their_file(tmp_path):
    path = save(IdTokens("me", torch.ones(4, 768)), tmp_path, "me")
    tokens = load(path)
    with path.open("r+b") as file:
        file.truncate(16)  # in place, as a copy over it begins; a mapped file would end the process here
    assert tokens.vectors.sum() == 4 * 768


def test_files_are_as_readable_as_others_and_named_without_spaces(tmp_path):
    path = save(IdTokens("me", torch.ones(4, 768)), tmp_path, "our people/my id")
    (tmp_path / "plain").touch()
    assert path.relative_to(tmp_path).as_posix() == "our_people/my_id.safetensors"
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_saving_never_overwrites_unless_told(tmp_path):
    tokens = IdTokens("me", VECTORS)
    first, second = save(tokens, tmp_path, "me"), save(tokens, tmp_path, "me.safetensors")
    assert (first.name, second.name) == ("me.safetensors", "me_001.safetensors")
    assert save(tokens, tmp_path, "me", overwrite=True) == first
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["", "  ", "../me", "a/../../me", "/tmp/me", "folder/"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="not a file name inside"):
        save(IdTokens("me", VECTORS), tmp_path / "embeddings", name)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_saving_follows_linked_folders(tmp_path):
    """The embeddings, or one of their sub-folders, may lie on another disk; the name stays what the lists show."""
    (tmp_path / "disk" / "people").mkdir(parents=True)
    (tmp_path / "own").mkdir()
    (tmp_path / "embeddings").symlink_to(tmp_path / "own")
    (tmp_path / "own" / "linked").symlink_to(tmp_path / "disk" / "people")
    path = save(IdTokens("me", VECTORS), tmp_path / "embeddings", "linked/me")
    assert path == tmp_path / "embeddings" / "linked" / "me.safetensors"
    assert (tmp_path / "disk" / "people" / "me.safetensors").exists()


def full_disk(path, content):
    with path.open("wb") as file:
        file.write(content[:5])
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(IdTokens("me", VECTORS), tmp_path, "me")
    assert not list(tmp_path.iterdir())


def test_widths_are_checked():
    check_width(IdTokens("me", VECTORS), {"clip_l": 768})
    with pytest.raises(ValueError, match="'me' is 768 wide and this model's clip_l text encoder is 96 wide"):
        check_width(IdTokens("me", VECTORS), {"clip_l": 96})
    with pytest.raises(ValueError, match="no vectors for clip_g"):
        check_width(IdTokens("me", VECTORS), {"clip_l": 768, "clip_g": 1280})


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("V* smiling", "E man smiling"),
        ("V* man smiling", "E man smiling"),
        ("(V*:1.2) man", "(E:1.2) man"),
        ("(V* man:1.2)", "(E man:1.2)"),
        ("(V*:1.2) smiling", "(E man:1.2) smiling"),
        ("((V*))", "((E man))"),
        ("((V*:1.2), hat:1.1)", "((E man:1.2), hat:1.1)"),
        ("((V*:1.2):1.1) man", "((E:1.2):1.1) man"),
        ("(V* :1.2)", "(E man :1.2)"),
        ("(V* : 1.2 ) man", "(E : 1.2 ) man"),
        ("[V*] man", "[ E ] man"),
        ("V*, V*. V*'s (V*)", "E man, E man. E man's (E man)"),
        ("V* Man", "E Man"),
        ("V* mannequin", "E man mannequin"),
        ("photo of (V*", "photo of (E man"),
        ("<me> and <dog>", "E man and D dog"),
        ("a <lora:x> V*", "unknown"),
        ("no mark", "no mark"),
        ("portrait,V* smiling", "portrait, E man smiling"),
        ("[V*]", "[ E man]"),
        (r"photo \(V*\)", r"photo \( E man\)"),
        ("photo\tV*", "photo\t E man"),
        ("photo of\u3000V*.", "photo of\u3000 E man."),
        ("V* man.\nV*", "E man.\nE man"),
        ("<my dog> and <my_dog>", "M dog and M dog"),
    ],
)
def test_marks_become_tokens_and_class_words(prompt, expected):
    names, words = {"me": "E", "dog": "D", "my dog": "M"}, {"me": "man", "dog": "dog", "my dog": "dog"}
    if expected == "unknown":
        with pytest.raises(
            ValueError, match="names <lora:x>, which is not connected; connected are <me>, <dog>, <my dog>"
        ):
            insert(prompt, names, words)
    else:
        assert insert(prompt, names, words) == expected


def test_names_that_differ_by_a_space_stay_apart():
    assert insert("<a b>, <a_b>", {"a b": "E", "a_b": "F"}, {}) == "E, F"
    assert insert("<a b>, <a_b>", {"a_b": "F", "a b": "E"}, {}) == "E, F"


def test_names_are_the_same_with_letters_composed_or_not():
    composed, apart = "Jos\u00e9 \u00c5", "Jose\u0301 A\u030a"
    for name, typed in ((composed, apart), (apart, composed)):
        assert insert(f"<{typed}>, <{typed.replace(' ', '_')}>", {name: "E"}, {}) == "E, E"


def test_a_loaded_name_has_its_letters_composed(tmp_path):
    assert load(write(tmp_path / "Jose\u0301.bin", {"x": VECTORS})).name == "Jos\u00e9"


def test_marks_without_identities():
    assert insert("a <tag> here", {}, {}) == "a <tag> here"
    with pytest.raises(ValueError, match="no identity is connected"):
        insert("photo of V*", {}, {})


def test_files_of_context_vectors_are_no_tokens(tmp_path):
    saved = IdTokens("me", VECTORS, {"class_word": "man"}, CONTEXT)
    path = save(saved, tmp_path, "me")
    state = load_file(path)
    assert {key: tensor.shape[1] for key, tensor in state.items()} == {"vcd_context": VECTORS.shape[1] + 1}
    again = load(path)
    assert again.kind == CONTEXT
    assert torch.equal(again.vectors, VECTORS)
    assert {"kind": CONTEXT, "width": "768", "class_word": "man"}.items() <= again.provenance.items()
    assert f"; {len(VECTORS)} context vectors; width 768" in again.describe()
    check_width(again, {"clip_l": 512})  # of the encoder's input, which is not theirs
    check_width(again, {"t5": 0})  # they stand behind it
    named = IdTokens("me", VECTORS, {"text_encoders": "clip_l", "base_model": "SD15"}, CONTEXT)
    check_width(named, {"clip_l": 768})
    with pytest.raises(ValueError, match=r"text encoders clip_l give \(SD15\); this model's are t5xxl"):
        check_width(named, {"t5xxl": 768})


def test_the_first_identity_keeps_its_place_whoever_else_is_named():
    rows, empty = torch.zeros(1, 77, 4), torch.full((1, 77, 4), 3.0)
    anna, bert = torch.ones(2, 4), torch.full((3, 4), 2.0)
    alone, both = (beside(rows, who, [1.0] * len(who), 40, empty) for who in ([anna], [anna, bert]))
    assert alone.shape == both.shape == rows.shape
    assert torch.equal(alone[:, -2:], both[:, -2:])
    assert torch.equal(alone[0, -2:], anna)
    assert torch.equal(both[0, -5:-2], bert)
    assert not both[:, :-5].any()


def test_context_vectors_without_weight_are_padding():
    rows, empty = torch.zeros(1, 77, 4), torch.full((1, 77, 4), 3.0)
    assert beside(rows, [torch.ones(2, 4)], [0.0], 40, empty)[0, -2:].tolist() == [[3.0] * 4] * 2
    assert beside(rows, [torch.ones(2, 4)], [1.5], 40, empty)[0, -2:].tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize(("count", "parts"), [(75, 1), (76, 2)])
def test_a_prompt_without_room_gets_a_further_part(count, parts):
    rows, empty = torch.zeros(77, 4), torch.full((77, 4), 3.0)
    found = beside(rows, [torch.ones(count, 4)], [1.0], 10, empty)
    assert len(found) == 77 * (1 + parts)
    assert not found[:77].any()
    assert (found[-count:] == 1).all()


def test_context_vectors_of_another_width_are_refused():
    with pytest.raises(ValueError, match="768 wide cannot stand beside a prompt 1024 wide"):
        beside(torch.zeros(77, 1024), [torch.ones(2, 768)], [1.0], 40, torch.zeros(77, 1024))
