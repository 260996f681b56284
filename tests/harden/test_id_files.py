"""ID files of any count, width, dtype and name: what is written is read, and so is every format that others write."""

import contextlib
import shutil

import pytest
import rig
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tally import INPUTS, count, hard

from vcd_core.identity import CONTEXT, ENCODERS, MOST_TOKENS, TOKENS, IdTokens, load, save

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
counts, widths, dtypes = st.integers(1, MOST_TOKENS), st.integers(8, 80), st.sampled_from(DTYPES)
letters = st.characters(exclude_categories=["Cs"])


def drawn(count, width, dtype=torch.float32, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(found, expected):
    """Whether vectors are those of another dtype, in float32."""
    if not isinstance(expected, dict):
        return found.dtype == torch.float32 and torch.equal(found, expected.float())
    return found.keys() == expected.keys() and all(same(found[name], value) for name, value in expected.items())


@st.composite
def identities(draw):
    """An identity of any of the kinds that can be written."""
    number, dtype = draw(counts), draw(dtypes)
    about = draw(st.dictionaries(st.sampled_from(["class_word", "steps", "date", "base_model"]), st.text(letters)))
    kind = draw(st.sampled_from(["unnamed", "named", CONTEXT]))
    if kind != "named":
        vectors = drawn(number, draw(widths), dtype)
        return IdTokens("me", vectors, about, CONTEXT if kind == CONTEXT else TOKENS)
    encoders = draw(st.lists(st.sampled_from(ENCODERS), min_size=1, max_size=3, unique=True))
    shared = drawn(number, 80, dtype)  # encoders may share the numbers that they were given
    return IdTokens("me", {name: shared[:, : draw(widths)] for name in encoders}, about)


TABLE = drawn(3, 16)


@given(identities())
@example(IdTokens("me", {"clip_l": TABLE, "clip_g": TABLE}))
@hard(30, 2_500)
def test_what_is_written_is_read(tmp_path, tokens):
    count(INPUTS)
    path = save(tokens, tmp_path, "me", overwrite=True)
    again = load(path)
    assert (again.name, again.kind, again.count) == ("me", tokens.kind, tokens.count)
    assert same(again.vectors, tokens.vectors)
    assert tokens.provenance.items() <= again.provenance.items()
    assert [file.name for file in tmp_path.iterdir()] == ["me.safetensors"]
    third = load(save(again, tmp_path, "me", overwrite=True))
    assert third.provenance == again.provenance
    assert same(third.vectors, again.vectors)


@given(tokens=identities(), word=st.text(letters, max_size=20), strength=st.floats(0, 2))
@hard(15, 500)
def test_what_the_node_saves_the_loader_gives(pack, tmp_path, tokens, word, strength):
    count(INPUTS)
    node = pack("nodes.identity")
    with rig.folders(tmp_path):
        file = node.IdSave.execute(node.Identity(tokens, word), "people/my id", True).args[0]
        loaded, prompt = node.IdLoader.PREPARE_CLASS_CLONE(None).execute(file, "", strength).args
    assert file == "people/my_id.safetensors"
    assert (loaded.tokens.kind, loaded.strength) == (tokens.kind, strength)
    assert same(loaded.tokens.vectors, tokens.vectors)
    assert loaded.class_word == " ".join((word or tokens.provenance.get("class_word", "")).split())  # on one line
    if isinstance(prompt, str):  # else it is blocked: the host's prompts read no such identity
        assert tokens.kind == TOKENS
        assert prompt.startswith("embedding:people/my_id" if strength == 1 else "(embedding:people/my_id")


@given(
    st.text(letters, max_size=40)
    | st.lists(st.sampled_from(["a", "b c", "..", ".", "", "é", "e\u0301", "x.pt"])).map("/".join)
)
@example("a/../b")
@example("me.safetensors")
@example("my face")
@example("é")
@hard(40, 4_000)
def test_under_any_name_it_is_found_again_inside_its_folder_or_refused(tmp_path, name):
    count(INPUTS)
    tokens, folder = IdTokens("me", drawn(2, 8)), tmp_path / "embeddings"
    written = []
    with contextlib.suppress(ValueError):
        written = [save(tokens, folder, name)]
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == written
    for path in written:
        assert path.is_relative_to(folder)
        assert " " not in path.name
        assert same(load(path).vectors, tokens.vectors)
    assert written or name not in ("a/../b", "me.safetensors", "my face", "é")
    shutil.rmtree(folder, ignore_errors=True)


FORMATS = {  # of others: a file's ending, and what it holds of vectors under a name
    "a1111": (".pt", lambda name, v: {"string_to_token": {"*": 265}, "string_to_param": {name: v}, "name": name}),
    "inversion": (".pt", lambda name, v: {"string_to_param": torch.nn.ParameterDict({name: v})}),
    "magic-me": (".pt", lambda name, v: {"string_to_param": {name: torch.nn.Parameter(v)}, "step": None}),
    "diffusers": (".bin", lambda name, v: {f"<{name}>": v}),
    "diffusers, safe": (".safetensors", lambda name, v: {f"<{name}>": v}),
    "kohya": (".safetensors", lambda name, v: {f"bundle_emb.{name}.string_to_param.*": v, "alpha": torch.ones(1)}),
    "kohya, named": (".safetensors", lambda name, v: {f"bundle_emb.{name}.clip_g": v, "lora_unet": torch.ones(2, 9)}),
    "comfy": (".safetensors", lambda name, v: {"emb_params": v, name: torch.ones(1)}),
    "comfy, named": (".safetensors", lambda name, v: {"clip_g": v}),
    "list": (".pt", lambda name, v: [{"emb_params": v}]),
}  # fmt: skip
NAMES = st.text(st.characters(categories=["Lu", "Ll", "Lo", "Nd"], include_characters="_-. "), min_size=1, max_size=12)


def write(path, content):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", FORMATS)
@given(number=counts, width=widths, dtype=dtypes, name=NAMES, alone=st.booleans())
@hard(6, 300)
def test_every_format_is_read_at_any_size(tmp_path, kind, number, width, dtype, name, alone):
    count(INPUTS)
    assume(name not in (*ENCODERS, "emb_params"))
    assume("." not in name or kind != "inversion")  # torch writes no such name there
    ending, content = FORMATS[kind]
    vectors = drawn(number, width, dtype)
    given_ = vectors[0] if alone and not kind.startswith("inversion") else vectors
    tokens = load(write(tmp_path / f"me{ending}", content(name, given_)))
    expected = given_.reshape(-1, width)
    assert same(tokens.vectors, {"clip_g": expected} if kind.endswith("named") else expected)
    assert tokens.kind == TOKENS


@pytest.mark.parametrize("kind", FORMATS)
@given(shape=st.sampled_from([(0, 16), (MOST_TOKENS + 1, 16), (3, 7), (2, 3, 16), (3, 0)]), dtype=dtypes)
@hard(5, 50)
def test_what_can_be_no_tokens_is_refused_in_every_format(tmp_path, kind, shape, dtype):
    count(INPUTS)
    ending, content = FORMATS[kind]
    path = write(tmp_path / f"me{ending}", content("name", torch.zeros(shape, dtype=dtype)))
    with pytest.raises(ValueError, match=rf"me{ending} holds a tensor .{', '.join(map(str, shape))}.; expected"):
        load(path)
