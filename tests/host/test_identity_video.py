"""Identities with the text encoders of the host's video models, tiny and random, in this process; and the nodes that
are for SD 1.5 alone."""

import re

import pytest
import torch
from safetensors.torch import save_file

from dev import video_models

WIDTHS = {"t5xxl": {"t5xxl": 32}, "umt5xxl": {"umt5xxl": 32}, "llama": {"clip_l": 64, "llama": 64}}
KINDS = ["t5xxl", "umt5xxl"]
FOLDER = "vcd_video"
BY_NAME = {"t5xxl": True, "umt5xxl": False}  # whether the host's own prompts read embeddings


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def vectors(width, count=3, seed=5):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture(scope="module")
def folder(pack, tmp_path_factory):
    """A folder of embeddings that the host knows for as long as these tests run."""
    pack("nodes.host.files")
    import folder_paths

    root = tmp_path_factory.mktemp("embeddings")
    places, kinds = folder_paths.folder_names_and_paths["embeddings"]
    folder_paths.folder_names_and_paths["embeddings"] = ([*places, str(root)], kinds)
    (root / FOLDER).mkdir()
    yield root / FOLDER
    folder_paths.folder_names_and_paths["embeddings"] = (places, kinds)
    pack("nodes.host.files").forget_file_lists()


@pytest.fixture(scope="module")
def clips(folder):
    """``clips("t5xxl")``: a CLIP of a kind, made once; its host knows the folder."""
    known = {}

    def make(kind):
        if kind not in known:
            known[kind] = video_models.text_encoder(kind)
        return known[kind]

    return make


def written(pack, folder, name, tensors):
    save_file(tensors, folder / f"{name}.safetensors")
    pack("nodes.host.files").forget_file_lists()
    return f"{FOLDER}/{name}.safetensors"


def loaded(pack, file, strength=1.0, word="man"):
    return pack("nodes.identity").IdLoader.execute(file, word, strength)


def encoded(pack, clip, prompt, *ids):
    node = pack("nodes.identity").IdTextEncode
    return node.execute(clip, prompt, 16, 1, {f"id{i}": one for i, one in enumerate(ids)}).args[0]


def stock(clip, text):
    """CLIP Text Encode; where its tokenizer is shown no folder of embeddings, it is shown the host's here."""
    import folder_paths

    parts = [part for part in vars(clip.tokenizer).values() if hasattr(part, "embedding_key")]
    shown = [part.embedding_directory for part in parts]
    for part in parts:
        part.embedding_directory = folder_paths.get_folder_paths("embeddings")
    try:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))
    finally:
        for part, before in zip(parts, shown, strict=True):
            part.embedding_directory = before


def equal(one, other):
    assert len(one) == len(other) == 1
    (rows, options), (others, more) = one[0], other[0]
    assert options.keys() == more.keys()
    assert torch.equal(rows, others)
    for name, value in options.items():
        assert torch.equal(value, more[name]) if torch.is_tensor(value) else value == more[name]
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "theirs"),
    [
        ("photo of V* on the beach", "photo of {} man on the beach"),
        ("V*", "{} man"),
        ("a fox, (V*:1.3), (a dog:0.7)", "a fox, ({} man:1.3), (a dog:0.7)"),
        ("V* and a dog " * 20, "{} man and a dog " * 20),
    ],
)
def test_a_file_that_names_the_encoder_is_read_as_the_host_reads_it(pack, folder, clips, kind, prompt, theirs):
    clip = clips(kind)
    file = written(pack, folder, f"named_{kind}", {key: vectors(width) for key, width in WIDTHS[kind].items()})
    identity = loaded(pack, file).args[0]
    assert set(identity.tokens.by_encoder()) == set(WIDTHS[kind])
    text = theirs.format(*[f"embedding:{FOLDER}/named_{kind}"] * theirs.count("{}"))
    ours = encoded(pack, clip, prompt, identity)
    assert equal(ours, stock(clip, text))
    assert not torch.equal(ours[0][0], stock(clip, theirs.replace("{}", "a"))[0][0][:, : ours[0][0].shape[1]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loaders_strength_is_the_tokens_weight(pack, folder, clips, kind):
    clip = clips(kind)
    file = written(pack, folder, f"strong_{kind}", {key: vectors(width) for key, width in WIDTHS[kind].items()})
    identity = loaded(pack, file, 0.6).args[0]
    name = f"embedding:{FOLDER}/strong_{kind}"
    assert equal(encoded(pack, clip, "photo of V*", identity), stock(clip, f"photo of ({name}:0.6) man"))
    assert equal(encoded(pack, clip, "a (V*:1.5) man", identity), stock(clip, f"a ({name}:{1.5 * 0.6}) man"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_for_stock_nodes_is_there_where_they_read_it(pack, folder, clips, kind):
    clip = clips(kind)
    file = written(pack, folder, f"prompt_{kind}", {key: vectors(width) for key, width in WIDTHS[kind].items()})
    output = loaded(pack, file)
    identity, text = output.args
    if BY_NAME[kind]:
        assert text == f"embedding:{FOLDER}/prompt_{kind} man"
        assert equal(encoded(pack, clip, "V*", identity), clip.encode_from_tokens_scheduled(clip.tokenize(text)))
    else:
        assert not isinstance(text, str)
        assert f"read no embeddings for the text encoder {kind}" in text.message
        assert text.message.split(": ", 1)[1] in output.ui["text"][0]


def test_the_host_shows_embeddings_to_those_encoders_that_the_pack_says(pack):
    """Read off the host's source: the keys of its tokenizers, and which of them pass the folders on."""
    from pathlib import Path

    import comfy.sd1_clip

    places = Path(comfy.sd1_clip.__file__).parent
    source = "\n".join(path.read_text() for path in [*places.glob("*.py"), *(places / "text_encoders").glob("*.py")])
    core = pack("vcd_core.identity")
    calls = [line for line in source.splitlines() if "__init__(" in line and "embedding_key='" in line]
    shown = {re.search(r"embedding_key='(\w+)'", line)[1]: "embedding_directory=" in line for line in calls}
    assert shown["t5xxl"]
    assert not shown["umt5xxl"]
    for encoder in core.ENCODERS:
        assert encoder in source
        assert shown.get(encoder, True) == (encoder not in core.NOT_BY_NAME)


@pytest.mark.parametrize("kind", KINDS)
def test_unnamed_vectors_go_to_the_only_encoder_if_they_fit(pack, folder, clips, kind):
    clip = clips(kind)
    file = written(pack, folder, "plain", {"emb_params": vectors(32)})
    identity = loaded(pack, file).args[0]
    assert equal(
        encoded(pack, clip, "V* on the beach", identity), stock(clip, f"embedding:{FOLDER}/plain man on the beach")
    )
    wide = loaded(pack, written(pack, folder, "wide", {"emb_params": vectors(768)})).args[0]
    with pytest.raises(ValueError, match=f"'wide' is 768 wide and this model's {kind} text encoder is 32 wide"):
        encoded(pack, clip, "V*", wide)


@pytest.mark.parametrize("kind", WIDTHS)
def test_vectors_of_another_encoder_or_width_are_refused_by_name(pack, folder, clips, kind):
    clip = clips(kind)
    other = {"t5xxl": "umt5xxl", "umt5xxl": "t5xxl", "llama": "t5xxl"}[kind]
    strange = loaded(pack, written(pack, folder, "strange", {other: vectors(32)})).args[0]
    missing = next(iter(WIDTHS[kind]))
    with pytest.raises(
        ValueError, match=f"no vectors for {missing}: it was made for {other} .32 wide.*{kind} ..* wide"
    ):
        encoded(pack, clip, "V*", strange)
    wide = {key: vectors(width * 2) for key, width in WIDTHS[kind].items()}
    wide = loaded(pack, written(pack, folder, "twice", wide)).args[0]
    with pytest.raises(ValueError, match=f"'twice' is .* wide and this model's {missing} text encoder is .* wide"):
        encoded(pack, clip, "V*", wide)


@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize("prompt", ["photo of V* on the beach", "a fox, (V*:1.5)", "a fox, (V*:1.5) man", "V*"])
def test_context_vectors_stand_beside_any_encoders_prompt(pack, folder, clips, kind, prompt):
    """In the place of padding where it is not masked, or behind the prompt, and seen there."""
    clip = clips(kind)
    bare = stock(clip, prompt.replace("(V*:1.5) man", "man").replace("V*", "man"))[0]
    learned = vectors(bare[0].shape[-1])
    rows = torch.cat([learned, torch.zeros(3, 1)], 1)
    file = written(pack, folder, "beside", {"vcd_context": rows})
    ((found, options),) = encoded(pack, clip, prompt, loaded(pack, file).args[0])
    blank = stock(clip, "")[0][0][:, -1:]
    weight = 1.5 if "1.5" in prompt else 1.0
    torch.testing.assert_close(found[0, -3:], blank[0] + weight * (learned - blank[0]))
    behind = kind != "umt5xxl"  # which alone pads its prompts, and masks nothing
    assert found.shape[1] == bare[0].shape[1] + 3 * behind
    before = found.shape[1] - 3
    torch.testing.assert_close(found[:, :before], bare[0][:, :before])
    assert ("attention_mask" in options) == ("attention_mask" in bare[1]) == (kind == "t5xxl")
    if kind == "t5xxl":
        mask = options["attention_mask"]
        assert (mask[..., -3:] == 1).all()
        assert torch.equal(mask[..., :-3], bare[1]["attention_mask"])


def test_context_vectors_of_other_encoders_are_refused_by_both_names(pack, clips):
    core, identity = pack("vcd_core.identity"), pack("nodes.identity").Identity
    about = {"text_encoders": "umt5xxl", "base_model": "WAN21 0123"}
    one = identity(core.IdTokens("anna", vectors(32), about, core.CONTEXT), "woman")
    assert encoded(pack, clips("umt5xxl"), "V*", one)
    with pytest.raises(ValueError, match=r"'anna' .* umt5xxl give \(WAN21 0123\); this model's are t5xxl"):
        encoded(pack, clips("t5xxl"), "V*", one)


def test_hunyuans_tokenizer_stops_at_embeddings_and_is_named(pack, folder, clips):
    clip = clips("llama")
    file = written(pack, folder, "hunyuan", {key: vectors(width) for key, width in WIDTHS["llama"].items()})
    with pytest.raises(RuntimeError, match="Boolean value of Tensor"):  # the host's own; once it reads them, drop this
        stock(clip, f"embedding:{FOLDER}/hunyuan")
    with pytest.raises(ValueError, match=r"encoders .clip_l, llama. read no embeddings.*HunyuanVideoTokenizer"):
        encoded(pack, clip, "V*", loaded(pack, file).args[0])
    assert equal(encoded(pack, clip, "a man"), stock(clip, "a man"))


def test_an_encoder_that_reads_no_embeddings_is_named(pack, folder):
    import types

    class Songs:
        def tokenize_with_weights(self, text, **_):
            return [[(1, 1.0)]]

    clip = types.SimpleNamespace(
        tokenizer=types.SimpleNamespace(songs=Songs()), cond_stage_model=torch.nn.Identity()
    )  # no part of its tokenizer is one of the host's that read embeddings
    identity = loaded(pack, written(pack, folder, "plain", {"emb_params": vectors(32)})).args[0]
    with pytest.raises(ValueError, match=r"'plain' .32 wide. cannot stand .* text encoder songs reads no embeddings"):
        encoded(pack, clip, "V*", identity)


def test_the_motion_module_says_what_video_models_have_in_its_place(pack):
    model = video_models.model("wan21")
    with pytest.raises(ValueError, match=r"makes SD 1\.5.* draw moving clips; this model .WAN21. .* moves by itself"):
        pack("nodes.motion").MotionModuleNode.execute(model, "none.ckpt", 1.0, "linear (AnimateDiff)")
    assert "SD 1.5" in pack("nodes.motion").MotionModuleNode.define_schema().description
