"""Identities in graphs queued on the real server."""

import pytest
import torch
from graphs import ksampler, same, windows
from safetensors.torch import save_file

from dev.random_models import TINY_TEXT
from dev.server import QueueError
from vcd_core.identity import CONTEXT, IdTokens, save
from vcd_core.identity import load as load_file


@pytest.fixture(scope="module", autouse=True)
def files(bench):
    folder = bench.server.host.base / "models" / "embeddings" / "vcd_tests"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():  # of a run that was broken off
        path.unlink()
    g = torch.Generator().manual_seed(0)
    save_file({"emb_params": torch.randn(4, TINY_TEXT, generator=g) * 0.05}, folder / "anna.safetensors")
    save_file({"emb_params": torch.randn(2, TINY_TEXT, generator=g) * 0.05}, folder / "bert.safetensors")
    save_file({"emb_params": torch.randn(3, TINY_TEXT, generator=g) * 0.05}, folder / "angry.safetensors")
    save_file({"emb_params": torch.randn(4, 768, generator=g)}, folder / "wide.safetensors")
    for name, count, width in (("cara", 4, TINY_TEXT), ("dora", 70, TINY_TEXT), ("broad", 4, 768)):
        save(IdTokens(name, torch.randn(count, width, generator=g), {}, CONTEXT), folder, name)
    (folder / "cut.safetensors").write_bytes(b"half a file")
    yield
    for path in folder.iterdir():
        path.unlink()


def load(graph, name, class_word="man", strength=1.0):
    return graph.VCD_IdLoader(file=f"vcd_tests/{name}.safetensors", class_word=class_word, strength=strength)


def encode(graph, clip, prompt, *ids, frames=16, blend=1):
    more = {f"ids.id{i}": node for i, node in enumerate(ids)}
    return graph.VCD_IdTextEncode(clip=clip, prompt=prompt, frames=frames, blend=blend, **more)


def both(bench, tiny, ours, stock, *ids):
    """Our encoding of a prompt and the stock node's of another, as tensors."""
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    loaded = [load(graph, name, word) for name, word in ids]
    nodes = encode(graph, clip, ours, *loaded), graph.CLIPTextEncode(clip=clip, text=stock)
    return [value[0][0] for value in bench.tensors(graph, *nodes)]


LONG = ", ".join(["a very long prompt that goes on"] * 14)


@pytest.mark.parametrize("text", ["a photo of a man", "(a photo:1.3) of, a [man]", "", LONG])
def test_without_an_identity_it_is_clip_text_encode(bench, tiny, text):
    assert torch.equal(*both(bench, tiny, text, text))


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        ("photo of V* on the beach", "photo of embedding:vcd_tests/anna man on the beach"),
        ("photo of V* man, smiling", "photo of embedding:vcd_tests/anna man, smiling"),
        ("photo of (V*:1.2) man", "photo of (embedding:vcd_tests/anna:1.2) man"),
        ("V* with embedding:vcd_tests/angry face", "embedding:vcd_tests/anna man with embedding:vcd_tests/angry face"),
        (f"{LONG}, V*, end", f"{LONG}, embedding:vcd_tests/anna man, end"),
    ],
)
def test_an_identity_is_the_stock_embedding(bench, tiny, ours, stock):
    assert torch.equal(*both(bench, tiny, ours, stock, ("anna", "man")))


def test_several_identities_by_name(bench, tiny):
    stock = "embedding:vcd_tests/anna woman and embedding:vcd_tests/bert man"
    ids = ("anna", "woman"), ("bert", "man")
    assert torch.equal(*both(bench, tiny, "<anna> and <bert>", stock, *ids))
    assert not torch.equal(*both(bench, tiny, "<bert> and <anna>", stock, *ids))


def context(bench, name):
    return load_file(bench.server.host.base / "models" / "embeddings" / "vcd_tests" / f"{name}.safetensors").vectors


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        ("photo of V* on the beach", "photo of man on the beach"),
        ("V*, V* man in the rain", "man, man in the rain"),
        (f"{LONG}, V*", f"{LONG}, man"),
    ],
)
def test_context_vectors_stand_where_the_prompt_has_its_padding(bench, tiny, ours, stock):
    ours, stock = both(bench, tiny, ours, stock, ("cara", "man"))
    assert ours.shape == stock.shape
    assert torch.equal(ours[:, :-4], stock[:, :-4])
    assert torch.equal(ours[0, -4:], context(bench, "cara"))


def test_context_vectors_that_do_not_fit_get_a_part_of_their_own(bench, tiny):
    words = "one two three four five six seven"
    ours, stock = both(bench, tiny, f"V* {words}", f"man {words}", ("dora", "man"))
    assert torch.equal(ours[:, :77], stock)
    assert torch.equal(ours[0, -70:], context(bench, "dora"))


def test_tokens_and_context_vectors_share_a_prompt(bench, tiny):
    ids = ("anna", "woman"), ("cara", "man")
    ours, stock = both(bench, tiny, "<anna> and <cara>", "embedding:vcd_tests/anna woman and man", *ids)
    assert torch.equal(ours[:, :-4], stock[:, :-4])
    assert torch.equal(ours[0, -4:], context(bench, "cara"))


def test_the_weight_of_context_vectors_is_how_far_they_are_from_padding(bench, tiny):
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    ours = encode(graph, clip, "(V*:1.2) man", load(graph, "cara", "man", 0.5))
    ours, empty = (v[0][0] for v in bench.tensors(graph, ours, graph.CLIPTextEncode(clip=clip, text="")))
    assert same(ours[0, -4:], empty[0, -1] + 0.6 * (context(bench, "cara") - empty[0, -1]))


def test_context_vectors_stay_as_they_are_through_a_schedule(bench, tiny):
    graph, model, *_ = tiny()
    ids = load(graph, "cara"), load(graph, "anna")
    rows = encode(graph, [model[0], 1], "0: V* smiling | 8: V* beside <anna>", *ids, frames=12, blend=4)
    rows = bench.tensors(graph, rows)[0][0]
    assert same(rows[:, -4:], context(bench, "cara").expand(12, -1, -1))
    assert not same(rows[0], rows[11], 1e-3)


def test_stock_prompts_leave_context_vectors_out(bench, tiny):
    assert torch.equal(*both(bench, tiny, "photo of man", "photo of embedding:vcd_tests/cara man"))


def test_the_loader_tells_context_vectors_from_tokens(bench):
    graph = bench.graph()
    loaded = load(graph, "cara", "man", 0.8)
    graph.PreviewAny(source=[loaded[0], 0])
    told = graph.PreviewAny(source=[loaded[0], 1])
    shown = bench.server.run(graph.prompt)["outputs"]
    assert told[0] not in shown, "there is no prompt for stock nodes"
    assert shown[loaded[0]]["text"][0].startswith(f"4 context vectors; width {TINY_TEXT}")
    assert "there is no 'prompt'. Give the id to VCD ID Text Encode" in shown[loaded[0]]["text"][0]


def test_strength_is_the_tokens_weight(bench, tiny):
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    ours = encode(graph, clip, "V* here", load(graph, "anna", "man", 0.7))
    stock = graph.CLIPTextEncode(clip=clip, text="(embedding:vcd_tests/anna:0.7) man here")
    ours, stock = (value[0][0] for value in bench.tensors(graph, ours, stock))
    assert torch.equal(ours, stock)


def test_the_loaders_text_is_for_stock_nodes(bench, tiny):
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    loaded = load(graph, "anna", "woman", 0.8)
    stock = graph.CLIPTextEncode(clip=clip, text=[loaded[0], 1])
    ours = encode(graph, clip, "V*", loaded)
    stock, ours = (value[0][0] for value in bench.tensors(graph, stock, ours))
    assert torch.equal(stock, ours)


def test_an_identity_that_the_prompt_leaves_out_is_told(bench, tiny):
    graph, model, *_ = tiny()
    said = bench.listen()
    bench.tensors(graph, encode(graph, [model[0], 1], "a lone sentence", load(graph, "anna", strength=0.77)))
    assert "The prompt has no V*: the identity is connected and not used" in said()


def test_the_loader_says_what_it_has_read(bench):
    graph = bench.graph()
    loaded = load(graph, "bert", "man", 0.9)  # no other test's: a node that is answered from the cache says nothing
    graph.PreviewAny(source=[loaded[0], 1])
    shown = bench.server.run(graph.prompt)["outputs"]
    assert shown[loaded[0]]["text"] == [f"2 tokens; width {TINY_TEXT}, norm 0.40"]


def test_a_schedule_gives_every_frame_its_row(bench, tiny):
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    anna, long = load(graph, "anna"), f"V* angry, {LONG}"
    rows = encode(graph, clip, f"0: V* smiling | 8: {long}", anna, frames=12, blend=4)
    first, second = (encode(graph, clip, text, anna) for text in ("V* smiling", long))
    rows, first, second = (value[0][0] for value in bench.tensors(graph, rows, first, second))
    shorter = first.shape[1]
    assert rows.shape == (12, *second.shape[1:])
    assert shorter < second.shape[1]
    assert same(rows[:5, :shorter], first.expand(5, -1, -1))
    assert same(rows[6, :shorter], (first[0] + second[0, :shorter]) / 2)
    assert same(rows[8:], second.expand(4, -1, -1))


def test_a_schedule_holds_under_context_windows(bench, tiny):
    """Without motion each frame is drawn as with its own prompt alone."""
    graph, model, _, _positive, negative = tiny()
    clip = [model[0], 1]
    anna = load(graph, "anna")
    latent = graph.EmptyLatentImage(width=64, height=64, batch_size=12)
    texts = "0: V* smiling | 8: V* angry", "V* smiling", "V* angry"
    both, first, second = bench.samples(
        graph,
        *(
            ksampler(graph, windows(graph, model, length=8), prompt, negative, latent, steps=1)
            for prompt in (encode(graph, clip, text, anna, frames=12) for text in texts)
        ),
    )
    assert same(both, torch.cat([first[:8], second[8:]]))
    assert not same(first, second, 1e-3)


def test_saved_files_are_listed_at_once_and_read_by_stock_nodes(bench, tiny):
    def listed():
        return bench.server.get("/object_info/VCD_IdLoader")["VCD_IdLoader"]["input"]["required"]["file"][1]["options"]

    assert "vcd_tests/copy.safetensors" not in listed()
    graph = bench.graph()
    saved = graph.VCD_IdSave(id=load(graph, "anna", "woman"), name="vcd_tests/copy", overwrite=True)
    assert bench.tensors(graph, saved) == "vcd_tests/copy.safetensors"
    assert "vcd_tests/copy.safetensors" in listed()
    graph = bench.graph()
    second = graph.VCD_IdSave(id=load(graph, "anna", "woman"), name="vcd_tests/copy", overwrite=False)
    (text,) = bench.server.run(graph.prompt)["outputs"][second[0]]["text"]
    assert text.startswith("Saved as vcd_tests/copy_001.safetensors, since vcd_tests/copy.safetensors is there already")
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    texts = [graph.CLIPTextEncode(clip=clip, text=f"embedding:vcd_tests/{name}") for name in ("copy", "anna")]
    a, b = (value[0][0] for value in bench.tensors(graph, *texts))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("prompt", "ids", "message"),
    [
        ("photo of V*", [], "no identity is connected"),
        ("<carl>", ["anna"], "names <carl>, which is not connected; connected are <anna>"),
        ("V*", ["wide"], f"'wide' is 768 wide and this model's clip_l text encoder is {TINY_TEXT} wide"),
        ("V*", ["broad"], f"768 wide cannot stand beside a prompt {TINY_TEXT} wide"),
        ("V*", ["cut"], "cut.safetensors cannot be read"),
        ("3: V*", ["anna"], "begin at 0 and rise"),
        ("0: V* | 16: V* angry", ["anna"], "last prompt begins at frame 16, but frames is 16"),
    ],
)
def test_bad_input_is_refused(bench, tiny, prompt, ids, message):
    graph, model, *_ = tiny()
    with pytest.raises(QueueError, match=message):
        bench.tensors(graph, encode(graph, [model[0], 1], prompt, *(load(graph, name) for name in ids)))


def test_names_of_graphs_made_on_windows_are_read(bench, tiny):
    texts = []
    for mark in ("\\", "/"):
        graph = bench.graph()
        node = graph.VCD_IdLoader(file=f"vcd_tests{mark}anna.safetensors", class_word="man", strength=1.0)
        texts.append(bench.tensors(graph, [node[0], 1]))
    assert texts == ["embedding:vcd_tests/anna man"] * 2


def test_an_identity_that_is_gone_is_named_before_anything_runs(bench):
    graph = bench.graph()
    graph.VCD_IdSave(id=load(graph, "gone"), name="vcd_tests/copy", overwrite=True)
    with pytest.raises(QueueError, match=r"vcd_tests/gone\.safetensors is not there") as refused:
        bench.server.run(graph.prompt)
    assert refused.value.details["node_errors"]  # as the server answers to a graph that it does not begin


def test_names_that_leave_the_folder_are_refused(bench):
    graph = bench.graph()
    graph.VCD_IdSave(id=load(graph, "anna"), name="../../outside", overwrite=True)
    with pytest.raises(QueueError, match="not a file name inside"):
        bench.server.run(graph.prompt)
    assert not list(bench.server.host.base.rglob("outside*"))


def test_the_oldest_host_encodes_the_same(bench, oldest_bench, tiny):
    results = []
    for where in (bench, oldest_bench):
        graph, model, *_ = tiny()
        node = encode(graph, [model[0], 1], "photo of (V*:1.1) here", load(graph, "anna"))
        results.append(where.tensors(graph, node)[0][0])
    assert same(*results)


def test_an_identity_shows_the_picture_beside_its_file(pack, tmp_path, monkeypatch):
    node, picture = pack("nodes.identity"), torch.rand(16, 16, 3)
    for name, value in {
        "models_path": lambda kind: tmp_path, "model_file": lambda kind, name: tmp_path / name,
        "model_files": lambda kind: ["me.safetensors"], "forget_file_lists": lambda: None,
        "prompt_reads": lambda *_: True,
    }.items():  # fmt: skip
        monkeypatch.setattr(node, name, value)
    tokens = node.IdTokens("me", torch.rand(2, 768))
    node.IdSave.execute(node.Identity(tokens, "man", picture=picture), "me", False)
    loaded = node.IdLoader.PREPARE_CLASS_CLONE(None).execute("me.safetensors", "", 1.0)
    assert (loaded.args[0].picture - picture).abs().max() <= 0.5 / 255 + 1e-6
    assert len(loaded.ui["images"]) == 1
    before = node.IdLoader.fingerprint_inputs("me.safetensors")
    (tmp_path / "me.png").write_bytes(b"no picture")
    loaded = node.IdLoader.PREPARE_CLASS_CLONE(None).execute("me.safetensors", "", 1.0)
    assert loaded.args[0].picture is None
    assert "me.png cannot be read as a picture" in loaded.ui["text"][0]
    (tmp_path / "me.png").unlink()
    assert node.IdLoader.fingerprint_inputs("me.safetensors") != before
    node.IdSave.execute(node.Identity(tokens, "man", picture=picture), "me", True)
    node.IdSave.execute(node.Identity(tokens, "man"), "me", True)
    assert not (tmp_path / "me.png").exists()
