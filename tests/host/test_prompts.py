"""Prompts on the real server: the tokens of marks, long prompts, schedules of any length, and what stock nodes read."""

import os

import pytest
import torch
from graphs import ksampler, motion, same, windows
from safetensors.torch import save_file

from dev.random_models import TINY_TEXT
from dev.server import QueueError

FOLDER = "vcd_prompts"


def vectors(count, seed):
    return torch.randn(count, TINY_TEXT, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.fixture(scope="module", autouse=True)
def folder(bench):
    folder = bench.server.host.base / "models" / "embeddings" / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("anna", 4), ("bert", 2), ("angry", 12)):
        save_file({"emb_params": vectors(count, count)}, folder / f"{name}.safetensors")
    yield folder
    for path in folder.iterdir():
        path.unlink()


def load(graph, name, class_word="man", strength=1.0, **more):
    file = f"{FOLDER}/{name}" if "." in name else f"{FOLDER}/{name}.safetensors"
    return graph.VCD_IdLoader(file=file, class_word=class_word, strength=strength, **more)


def encode(graph, clip, prompt, *ids, frames=16, blend=1):
    more = {f"ids.id{i}": node for i, node in enumerate(ids)}
    return graph.VCD_IdTextEncode(clip=clip, prompt=prompt, frames=frames, blend=blend, **more)


def both(bench, tiny, ours, stock, *ids, strength=1.0):
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    loaded = [load(graph, name, word, strength) for name, word in ids]
    nodes = encode(graph, clip, ours, *loaded), graph.CLIPTextEncode(clip=clip, text=stock)
    return [value[0][0] for value in bench.tensors(graph, *nodes)]


ANNA, BERT = f"embedding:{FOLDER}/anna", f"embedding:{FOLDER}/bert"


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        ("(V*:1.3)", f"({ANNA} man:1.3)"),
        ("a photo of (V*:1.3), smiling", f"a photo of ({ANNA} man:1.3), smiling"),
        ("((V*))", f"(({ANNA} man))"),
        ("(a hat, (V*:0.8):1.3)", f"(a hat, ({ANNA} man:0.8):1.3)"),
        ("[V*]", f"[ {ANNA} man]"),
        ("V*, V*.", f"{ANNA} man, {ANNA} man."),
        ("a photo of V*", f"a photo of {ANNA} man"),
    ],
)
def test_a_mark_has_its_class_word_wherever_it_stands(bench, tiny, ours, stock):
    assert torch.equal(*both(bench, tiny, ours, stock, ("anna", "man")))


def test_a_weight_in_the_prompt_and_the_loaders_strength_multiply(bench, tiny):
    stock = f"(({ANNA}:0.6) man:1.2)"
    assert torch.allclose(*both(bench, tiny, "(V*:1.2)", stock, ("anna", "man"), strength=0.5), atol=1e-6)


WORDS = "one two three four five six seven eight nine ten "


@pytest.mark.parametrize("words", [60, 69, 70, 71, 72, 73, 74, 75])
def test_long_prompts_hold_all_tokens_of_two_identities(bench, tiny, words):
    filler = " ".join((WORDS * 8).split()[:words])
    ids = ("anna", "man"), ("bert", "dog")
    assert torch.equal(*both(bench, tiny, f"{filler} <anna> <bert>", f"{filler} {ANNA} man {BERT} dog", *ids))


def test_an_identity_of_many_tokens_is_not_torn_by_the_border_of_a_long_prompt(bench, tiny):
    filler = " ".join((WORDS * 8).split()[:70])
    ours, alone = both(bench, tiny, f"{filler} V*", f"embedding:{FOLDER}/angry man", ("angry", "man"))
    assert torch.allclose(ours[:, 77:], alone, atol=1e-6)
    torn, _ = both(bench, tiny, f"{filler} embedding:{FOLDER}/angry man", "", ("angry", "man"))
    assert not torch.allclose(torn[:, 77:], alone, atol=1e-3)  # so the host has it


def test_tokens_that_do_not_reach_the_text_encoder_stop_the_graph(bench, tiny):
    graph, model, *_ = tiny()
    clip = graph.VCDTest_UnweightedClip(clip=[model[0], 1])
    with pytest.raises(QueueError, match=r"Of the 4 tokens of an identity in the prompt 0 reach the text encoder"):
        bench.tensors(graph, encode(graph, clip, "(V*:1.2)", load(graph, "anna")))


def test_all_entries_of_a_clip_with_scheduled_hooks_are_kept(bench, tiny):
    loras = bench.server.host.base / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    layer = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    g = torch.Generator().manual_seed(3)
    parts = {"lora_down": torch.randn(4, TINY_TEXT, generator=g), "lora_up": torch.randn(TINY_TEXT, 4, generator=g)}
    save_file({f"{layer}.{part}.weight": value for part, value in parts.items()}, loras / "vcd_test_text.safetensors")
    graph, model, *_ = tiny()
    hooks = graph.CreateHookLora(lora_name="vcd_test_text.safetensors", strength_model=0.0, strength_clip=1.0)
    frames = graph.CreateHookKeyframe(strength_mult=1.0, start_percent=0.0)
    frames = graph.CreateHookKeyframe(strength_mult=0.0, start_percent=0.5, prev_hook_kf=frames)
    hooks = graph.SetHookKeyframes(hooks=hooks, hook_kf=frames)
    clip = graph.SetClipHooks(clip=[model[0], 1], apply_to_conds=False, schedule_clip=True, hooks=hooks)
    anna = load(graph, "anna")
    prompts = [encode(graph, clip, text, anna) for text in ("V* a", "V* b", "0: V* a | 2: V* b")]
    a, b, rows = bench.tensors(graph, *prompts)
    assert len(a) == len(rows) == 2
    assert not torch.allclose(a[0][0], a[1][0], atol=1e-4)  # the hook does something
    for of_a, of_b, entry in zip(a, b, rows, strict=True):
        assert torch.allclose(entry[0][:2], of_a[0].expand(2, -1, -1), atol=1e-6)
        assert torch.allclose(entry[0][2:], of_b[0].expand(14, -1, -1), atol=1e-6)
        ends = ("clip_start_percent", "clip_end_percent")
        assert [entry[1][name] for name in ends] == [of_a[1][name] for name in ends]


def test_masks_of_tokens_go_with_their_rows(bench):
    graph = bench.graph()
    rows = encode(graph, graph.VCDTest_MaskedText(), "0: one | 4: one two three | 8: four", frames=12, blend=2)
    [[tensor, options]] = bench.tensors(graph, rows)
    assert tensor.shape[:2] == (12, 4)
    mask = options["attention_mask"]
    assert mask.dtype == torch.int64
    assert mask.sum(1).tolist() == [2] * 3 + [4] * 5 + [2] * 4  # a token that comes in is seen
    assert (tensor[0, 2:] == 0).all()  # and where there is none, none is seen
    assert tensor[4, :, 0].tolist() == [4] * 4


def test_what_cannot_be_given_to_each_frame_is_refused(bench):
    graph = bench.graph()
    rows = encode(graph, graph.VCDTest_MaskedText(extra="length"), "0: one | 4: one two three", frames=12)
    with pytest.raises(QueueError, match="gives 'length' with each prompt, which a schedule cannot give to each frame"):
        bench.tensors(graph, rows)


WAYS = {
    "motion": lambda graph, model: motion(graph, model, strength=0.0),
    "prior": lambda graph, model: graph.VCD_ApplyNoisePrior(model=model, gamma=0.1),
    "tiles": lambda graph, model: graph.VCD_TiledPatch(model=model, tile_size=64, overlap=16),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clip_length", [8, 32])
def test_a_clip_of_another_length_than_the_schedule_does_not_begin_anew(bench, tiny, clip_length, way):
    graph, model, _, _, negative = tiny()
    clip = [model[0], 1]
    moved = windows(graph, WAYS[way](graph, model), length=16, causal_window_fix=False)
    latent = graph.EmptyLatentImage(width=64, height=64, batch_size=clip_length)
    prompts = [encode(graph, clip, text, frames=16) for text in ("0: a man | 6: a woman", "a man", "a woman")]
    drawn = [ksampler(graph, moved, prompt, negative, latent, steps=2) for prompt in prompts]
    both, man, woman = (value["samples"] for value in bench.tensors(graph, *drawn))
    assert not same(man, woman, 1e-3)
    for frame in range(clip_length):
        assert same(both[frame], (man if frame < 6 else woman)[frame], 1e-4), frame


def test_schedules_of_two_lengths_meet_in_one_clip(bench, tiny):
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    moved = motion(graph, model, strength=0.0)
    latent = graph.EmptyLatentImage(width=64, height=64, batch_size=12)
    long = " ".join((WORDS * 10).split()[:90])  # two parts of 77 tokens
    positive = encode(graph, clip, f"0: a man | 4: a woman, {long}", frames=16)
    negative = encode(graph, clip, "0: a dog | 2: a cat", frames=5)
    alone = encode(graph, clip, f"a woman, {long}"), encode(graph, clip, "a cat")
    drawn, last = bench.tensors(
        graph, *(ksampler(graph, moved, p, n, latent, steps=2) for p, n in ((positive, negative), alone))
    )
    assert same(drawn["samples"][4:], last["samples"][4:], 1e-4)
    assert not same(drawn["samples"][:2], last["samples"][:2], 1e-3)


READ = ["a (b)", "(c)", "d)", "e:f", "v1.5", "g,h", "i,", "José", "Jose\u0301", "{j}", "k;l", "m'n", "50%", "o=p&q"]


@pytest.mark.parametrize("name", [name for name in READ if " " not in name])
@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_the_loaders_prompt_reads_its_file_in_stock_nodes(bench, tiny, folder, name, strength):
    save_file({"emb_params": vectors(3, len(name))}, folder / f"{name}.safetensors")
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    loaded = load(graph, f"{name}.safetensors", "woman", strength)
    stock = graph.CLIPTextEncode(clip=clip, text=[loaded[0], 1])
    ours, nothing = encode(graph, clip, "V*", loaded), graph.CLIPTextEncode(clip=clip, text="woman")
    stock, ours, nothing = (value[0][0] for value in bench.tensors(graph, stock, ours, nothing))
    assert torch.equal(stock, ours)
    assert not torch.allclose(stock, nothing, atol=1e-4)


def test_files_that_share_a_name_are_told_apart_in_stock_nodes(bench, tiny, folder):
    save_file({"emb_params": vectors(3, 1)}, folder / "twin.safetensors")
    torch.save({"emb_params": vectors(3, 2)}, folder / "twin.pt")
    for ending in ("safetensors", "pt"):
        graph, model, *_ = tiny()
        clip = [model[0], 1]
        loaded = load(graph, f"twin.{ending}")
        stock, ours = graph.CLIPTextEncode(clip=clip, text=[loaded[0], 1]), encode(graph, clip, "V*", loaded)
        stock, ours = (value[0][0] for value in bench.tensors(graph, stock, ours))
        assert torch.equal(stock, ours)


@pytest.mark.parametrize("name", ["a b", "a\u3000b", "a[1]", "a<1>"])
def test_a_name_that_stock_nodes_cannot_write_stops_those_that_take_the_prompt(bench, tiny, folder, name):
    save_file({"emb_params": vectors(3, 7)}, folder / f"{name}.safetensors")
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    ours, plain = bench.tensors(
        graph, encode(graph, clip, "V*", load(graph, f"{name}.safetensors")), encode(graph, clip, "man")
    )
    assert not torch.allclose(ours[0][0], plain[0][0], atol=1e-4)
    graph, model, *_ = tiny()
    loaded = load(graph, f"{name}.safetensors", "woman")
    graph.VCDTest_Save(name="blocked", value=graph.CLIPTextEncode(clip=[model[0], 1], text=[loaded[0], 1]))
    outputs = bench.server.run(graph.prompt)["outputs"]
    assert "do not read this identity by its file's name" in outputs[loaded[0]]["text"][0]
    assert list(outputs) == [loaded[0]]  # the nodes that take the prompt did not run


def test_the_files_class_word_stands_until_another_is_typed(bench, folder):
    save_file({"emb_params": vectors(3, 5)}, folder / "rex.safetensors", {"class_word": "dog"})
    info = bench.server.get("/object_info/VCD_IdLoader")["VCD_IdLoader"]["input"]["required"]["class_word"][1]
    graph = bench.graph()
    words = [load(graph, *given) for given in (("rex", info["default"]), ("rex", "cat"), ("anna", info["default"]))]
    texts = bench.tensors(graph, *([node[0], 1] for node in words))
    assert texts == [f"embedding:{FOLDER}/rex dog", f"embedding:{FOLDER}/rex cat", ANNA]
    graph = bench.graph()  # a node that is answered from the cache says nothing: with another strength
    words = [
        load(graph, *given, 0.9) for given in (("rex", info["default"]), ("rex", "cat"), ("anna", info["default"]))
    ]
    for node in words:
        graph.PreviewAny(source=[node[0], 1])
    shown = bench.server.run(graph.prompt)["outputs"]
    own, typed, none = (shown[node[0]]["text"][0] for node in words)
    assert "class word dog" in own
    assert "Used as" not in own
    assert "class word dog" in typed
    assert typed.endswith(". Used as cat")
    assert "tells no class word: type what it is" in none


def test_the_typed_class_word_is_saved(bench, folder):
    save_file({"emb_params": vectors(3, 5)}, folder / "rex.safetensors", {"class_word": "dog"})
    graph = bench.graph()
    graph.VCD_IdSave(id=load(graph, "rex", "cat"), name=f"{FOLDER}/saved", overwrite=True)
    bench.server.run(graph.prompt)
    graph = bench.graph()
    assert bench.tensors(graph, [load(graph, "saved", "")[0], 1]) == f"embedding:{FOLDER}/saved cat"


def test_one_of_several_identities_in_a_file_is_chosen(bench, tiny, folder):
    torch.save({"<anna>": vectors(4, 4), "<bert>": vectors(2, 2)}, folder / "both.bin")
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    chosen, alone = (
        encode(graph, clip, "V*", load(graph, "both.bin", token="<bert>")),
        encode(graph, clip, "V*", load(graph, "bert")),
    )
    chosen, alone = (value[0][0] for value in bench.tensors(graph, chosen, alone))
    assert torch.equal(chosen, alone)
    graph = bench.graph()
    with pytest.raises(QueueError, match=r"holds 2 tensors \(<anna>, <bert>\)"):
        bench.tensors(graph, load(graph, "both.bin"))


def test_the_first_textual_inversion_files_are_the_stock_embedding(bench, tiny, folder):
    content = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": torch.nn.ParameterDict({"*": torch.ones(1, 768)}),
    }
    torch.save(content, folder / "old.pt")
    graph = bench.graph()
    loaded = load(graph, "old.pt", "")
    found, text = bench.tensors(graph, loaded, [loaded[0], 1])
    assert torch.equal(found, torch.ones(1, 768))
    assert text == f"embedding:{FOLDER}/old"


def test_names_are_found_however_their_letters_are_composed(bench, tiny, folder):
    composed, apart = "Ren\u00e9", "Rene\u0301"
    save_file({"emb_params": vectors(3, 9)}, folder / f"{apart}.safetensors")
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    loaded = load(graph, f"{composed}.safetensors")
    marked, first = encode(graph, clip, f"<{composed}>", loaded), encode(graph, clip, "V*", loaded)
    stock = graph.CLIPTextEncode(clip=clip, text=[loaded[0], 1])
    marked, first, stock = (value[0][0] for value in bench.tensors(graph, marked, first, stock))
    assert torch.equal(marked, first)
    assert torch.equal(stock, first)


def test_two_files_whose_names_differ_in_composition_alone_get_numbers(bench, tiny, folder):
    for seed, name in enumerate(("Ana\u00ef", "Anai\u0308")):
        save_file({"emb_params": vectors(3, seed)}, folder / f"{name}.safetensors")
    graph, model, *_ = tiny()
    clip = [model[0], 1]
    ids = [load(graph, f"{name}.safetensors") for name in ("Ana\u00ef", "Anai\u0308")]
    pair = encode(graph, clip, "<Ana\u00ef_2>", *ids), encode(graph, clip, "V*", ids[1])
    second, alone = (value[0][0] for value in bench.tensors(graph, *pair))
    assert torch.equal(second, alone)


def test_a_file_that_is_a_web_page_is_named(bench, folder):
    (folder / "page.pt").write_text("<!DOCTYPE html><html>404</html>")
    graph = bench.graph()
    with pytest.raises(QueueError, match=r"page\.pt is a web page, not a model: download it again"):
        bench.tensors(graph, load(graph, "page.pt"))


@pytest.fixture(scope="module")
def subfolders(bench):
    """Files of every kind in subfolders, as graphs made on Windows name them, and with accents apart."""
    models = bench.server.host.base / "models"
    made = []
    for kind, file in (
        ("animatediff_models", "test_tiny_v2.safetensors"),
        ("animatediff_motion_lora", "test_tiny_lora.safetensors"),
    ):
        target = models / kind / "vcd_sub" / f"e\u0301_{file}"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((models / kind / file).read_bytes())
        made.append(target)
    for kind, file in (("face_embedding", "e\u0301.onnx"), ("sams", "e\u0301.pth"), ("grounding-dino", "e\u0301.pth")):
        target = models / kind / "vcd_sub" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"<html>")
        made.append(target)
    pictures = bench.server.host.base / "input" / "vcd_sub" / "e\u0301"
    pictures.mkdir(parents=True, exist_ok=True)
    yield
    for path in made:
        path.unlink()
        path.parent.rmdir()
    pictures.rmdir()
    pictures.parent.rmdir()


@pytest.mark.parametrize("written", ["vcd_sub\\e\u0301{}", "vcd_sub/\u00e9{}", "vcd_sub\\\u00e9{}"])
def test_files_are_found_as_windows_and_macos_write_their_names(bench, tiny, subfolders, written):
    graph, model, _, positive, negative = tiny()
    module = written.format("_test_tiny_v2.safetensors")
    moved = motion(graph, model, module, motion_lora=written.format("_test_tiny_lora.safetensors"))
    plain = motion(graph, model, motion_lora="test_tiny_lora.safetensors")
    latent = graph.EmptyLatentImage(width=64, height=64, batch_size=8)
    a, b = bench.samples(graph, *(ksampler(graph, m, positive, negative, latent, steps=1) for m in (moved, plain)))
    assert torch.equal(a, b)
    graph = bench.graph()
    images = graph.EmptyImage(width=64, height=64, batch_size=1, color=0)
    more = {
        "text_threshold": 0.2,
        "which": "all",
        "index": 0,
        "dilate": 0,
        "fill_holes": False,
        "if_none": "empty mask",
    }
    found = graph.VCD_PromptToSegmentation(
        images=images,
        prompt="a man",
        detector=written.format(".pth"),
        segmenter=written.format(".pth"),
        threshold=0.3,
        **more,
    )
    with pytest.raises(
        QueueError, match=r"groundingdino|transformers below 5"
    ):  # found, and read as the original's file
        bench.tensors(graph, found)
    graph = bench.graph()
    images = graph.EmptyImage(width=64, height=64, batch_size=2, color=0)
    figures = graph.VCD_Evaluate(images=images, references=images, face_model=written.format(".onnx"))
    with pytest.raises(QueueError, match="onnx is a web page"):
        bench.tensors(graph, figures)
    graph = bench.graph()
    with pytest.raises(QueueError, match="There is no picture in e"):
        bench.tensors(graph, graph.VCD_Pictures(folder=written.format("")))


def test_a_chosen_file_that_is_gone_is_named_before_anything_runs(bench, tiny):
    graph, model, *_ = tiny()
    nodes = [motion(graph, model, motion_lora="gone.ckpt")]
    images = graph.EmptyImage(width=64, height=64, batch_size=2, color=0)
    nodes.append(
        graph.VCD_Compare(names="a, b", face_model="..\\gone.onnx", **{"clips.clip0": images, "clips.clip1": images})
    )
    for node, name in zip(nodes, ("gone.ckpt", r"\.\.\\gone\.onnx"), strict=True):
        with pytest.raises(QueueError, match=f"{name} is not there. It is not in") as refused:
            bench.server.queue(
                {key: value for key, value in graph.prompt.items() if int(key) <= int(node[0])} | save(node)
            )
        assert refused.value.details["node_errors"]  # as the server answers to a graph that it does not begin


def save(node):
    return {"99": {"class_type": "VCDTest_Save", "inputs": {"name": f"gone-{os.getpid()}", "value": node}}}


def test_a_lora_for_the_spatial_layers_works_where_the_message_sends_it(bench, tiny):
    models = bench.server.host.base / "models"
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
    g = torch.Generator().manual_seed(5)
    parts = {"down": torch.randn(4, 32, generator=g), "up": torch.randn(32, 4, generator=g)}
    adapter = {f"{layer}.{part}.weight": value for part, value in parts.items()}
    for folder in ("animatediff_motion_lora", "animatediff_models", "loras"):
        (models / folder).mkdir(exist_ok=True)
        torch.save(adapter, models / folder / "vcd_adapter.ckpt")
    graph, model, _, positive, negative = tiny()
    latent = graph.EmptyLatentImage(width=64, height=64, batch_size=8)
    with_it = graph.LoraLoaderModelOnly(model=model, lora_name="vcd_adapter.ckpt", strength_model=1.0)
    drawn = [ksampler(graph, motion(graph, m), positive, negative, latent, steps=1) for m in (with_it, model)]
    a, b = bench.samples(graph, *drawn)
    assert not same(a, b, 1e-3)
    for choice in ({"motion_lora": "vcd_adapter.ckpt"}, {"file": "vcd_adapter.ckpt"}):
        graph, model, _, positive, negative = tiny()
        moved = motion(graph, model, **choice)
        with pytest.raises(QueueError, match=r"vcd_adapter\.ckpt is no AnimateDiff .*load it with 'Load LoRA'"):
            bench.samples(graph, ksampler(graph, moved, positive, negative, empty(graph), steps=1))


def empty(graph):
    return graph.EmptyLatentImage(width=64, height=64, batch_size=8)


def test_the_oldest_host_reads_the_same(bench, oldest_bench, tiny, folder):
    results = []
    for where in (bench, oldest_bench):
        graph, model, *_ = tiny()
        clip = [model[0], 1]
        loaded = load(graph, "anna", "woman", 0.8)
        stock = graph.CLIPTextEncode(clip=clip, text=[loaded[0], 1])
        rows = encode(graph, clip, "0: (V*:1.3), hat | 4: [V*]", loaded, frames=8, blend=3)
        results.append([value[0][0] for value in where.tensors(graph, stock, rows)])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
