"""Identities in graphs queued on the real server."""

import pytest
import torch
from graphs import ksampler, motion, windows
from safetensors.torch import save_file

from dev.random_models import TINY_TEXT
from dev.server import QueueError


@pytest.fixture(scope="module", autouse=True)
def files(bench):
    folder = bench.server.host.base / "models" / "embeddings" / "vcd_tests"
    folder.mkdir(parents=True, exist_ok=True)
    g = torch.Generator().manual_seed(0)
    save_file({"emb_params": torch.randn(4, TINY_TEXT, generator=g) * 0.05}, folder / "anna.safetensors")
    save_file({"emb_params": torch.randn(2, TINY_TEXT, generator=g) * 0.05}, folder / "bert.safetensors")
    save_file({"emb_params": torch.randn(3, TINY_TEXT, generator=g) * 0.05}, folder / "angry.safetensors")
    save_file({"emb_params": torch.randn(4, 768, generator=g)}, folder / "wide.safetensors")
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
    entry = list(bench.server.get("/history?max_items=1").values())[-1]
    texts = [text for output in entry["outputs"].values() for text in output.get("text", [])]
    assert any(f"4 tokens; clip_l width {TINY_TEXT}" in text for text in texts)


def test_a_schedule_gives_every_frame_its_row_and_holds_under_context_windows(bench, tiny):
    graph, model, _, _positive, negative = tiny()
    clip = [model[0], 1]
    anna = load(graph, "anna")
    text = f"0: V* smiling | 8: V* angry, {LONG}"
    rows = encode(graph, clip, text, anna, frames=12, blend=4)
    first = encode(graph, clip, "V* smiling", anna)
    latent = graph.EmptyLatentImage(width=64, height=64, batch_size=12)
    moved = windows(graph, motion(graph, model), length=8)
    long = ksampler(graph, moved, rows, negative, latent, steps=1)
    rows, first, long = bench.tensors(graph, rows, first, long)
    rows, first = rows[0][0], first[0][0]
    assert rows.shape[0] == 12
    assert torch.allclose(rows[:5, : first.shape[1]], first.expand(5, -1, -1), atol=1e-6)
    assert torch.allclose(rows[6], (rows[0] + rows[8]) / 2, atol=1e-5)
    assert torch.equal(rows[8], rows[11])
    assert long["samples"].isfinite().all()


def test_saved_files_are_listed_at_once_and_read_by_stock_nodes(bench, tiny):
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    saved = graph.VCD_IdSave(id=load(graph, "anna", "woman"), name="vcd_tests/copy", overwrite=True)
    bench.server.run(graph.prompt)
    assert saved
    listed = bench.server.get("/object_info/VCD_IdLoader")["VCD_IdLoader"]["input"]["required"]["file"][1]["options"]
    assert "vcd_tests/copy.safetensors" in listed
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
    assert "node_errors" in str(refused.value.details)


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
    assert torch.allclose(*results, atol=1e-5)
