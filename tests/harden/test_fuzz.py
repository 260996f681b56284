"""Files and texts from outside, whole but for something: each is read, or refused with an error that is clear."""

import json
import os
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path
from random import Random

import hostile
import pytest
import targets
import torch
from hypothesis import given
from hypothesis import strategies as st
from tally import INPUTS, count, hard, tries
from targets import TARGETS, Broken, answer

from vcd_core import identity, motion

CORPUS = sorted(path for path in (Path(__file__).parent / "corpus").glob("*/*") if path.is_file())


@pytest.fixture(autouse=True, scope="module")
def inputs():
    """How many inputs each target had."""
    had = Counter()
    yield had
    count(INPUTS, had.total())


def give(inputs, name, data):
    inputs[name] += 1
    TARGETS[name](data)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_broke_something_breaks_nothing(path, inputs):
    give(inputs, path.parent.name, path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_whole_ones_and_whole_ones_changed(name, inputs):
    target, chance = TARGETS[name], Random(name)
    seeds = target.seeds()
    for seed in seeds:
        give(inputs, name, seed)
    for _ in range(tries(80, 1000)):
        give(inputs, name, hostile.changed(chance.choice(seeds), seeds, target.words, chance))


def test_whole_ones_are_read():
    """What is refused throughout would tell nothing."""
    read = {
        "me.safetensors": (targets._id_headers()[0], identity.load),
        "me.pt": (hostile.torch_file(targets._pickles(["me"])[0]), identity.load),
        "walk.pt": (hostile.torch_file(targets._pickles(["temporal"])[0]), motion.read),
    }
    for name, (content, how) in read.items():
        path = targets._put(name, content)
        assert answer(lambda path=path, how=how: how(path), [name]) is not None
    for saved in (targets.SAVED, targets.PROMPT):
        path = targets._put("graph.json", json.dumps(saved).encode())
        assert len(targets.study.read_graph(path, targets.to_api, targets.INFO)) == 2
    assert len(targets.study.read(targets._put("s.yaml", targets.STUDY.encode()), None, targets.INFO)) == 8
    whole = {key: value.clone() for key, value in targets._small_motion().items()}
    assert motion.build(whole).info.channels == (32,) * 4


# safetensors: headers with wrong numbers

NAMES = st.sampled_from(
    ["emb_params", "clip_l", "clip_g", "me", "vcd_context", "bundle_emb.me.clip_g", "weight", "bias", "losses",
     "vectors", "input_layer.0.weight", "body.0.res_layer.1.weight", "body.99999999.x", "output_layer.3.weight",
     "head.0.weight", "a\x1b[2J", "a" * 3000, "\u2028", "", *targets._DOWN, *targets._MOTION]
)  # fmt: skip
SIDES = st.sampled_from([0, 1, 2, 4, 8, 8, 8, 32, 32, 64, 76]) | st.sampled_from(
    [0, 2, 8, 8, -1, 1280, 1 << 31, 1 << 40]
)
KINDS = st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "C64", "F8_E4M3", "F8_E8M0", "F4", "X", 7])
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "C64": 8}


@st.composite
def safetensors(draw):
    header, end = {}, 0
    for name in draw(st.lists(NAMES, max_size=6)):
        kind, shape = draw(KINDS), draw(st.lists(SIDES, max_size=4))
        held = hostile.entry(shape, kind, end, SIZES.get(kind, 1))
        end = held["data_offsets"][1]
        if draw(st.integers(0, 9)) == 0:
            held[draw(st.sampled_from(list(held)))] = draw(
                st.sampled_from([None, "F32", [0, 8], [8, 0], [-1, 1 << 62]])
            )
        header[name] = held
    if draw(st.booleans()):
        header["__metadata__"] = draw(
            st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.integers(), max_size=3)
        )
    body = bytes(max(0, min(end, 1 << 16) + draw(st.sampled_from([0, 0, 0, 0, -1, 1]))))
    length = draw(st.sampled_from([None] * 9 + [0, 7, 1 << 30, (1 << 64) - 1]))
    return hostile.safetensors_file(header, body, length)


@pytest.mark.parametrize("name", ["ids_safetensors", "motion_safetensors", "others_safetensors", "training_states"])
def test_safetensors_headers_with_wrong_numbers(name, inputs):
    @hard(80, 1500)
    @given(safetensors())
    def check(data):
        give(inputs, name, data)

    check()


# pickles: tensors that claim too much, other objects, and calls

COUNTS = st.sampled_from([0, 1, 2, 8, 64, 75, 10**6, 10**9, 1 << 40, -1])
SHAPES = st.lists(COUNTS, max_size=4).map(tuple)
PLAIN = st.sampled_from(
    [b"N", b"\x88", b"]", b"}", b")", hostile.number(7), hostile.number(1 << 40), hostile.text("\ud800")]
)
TENSORS = st.one_of(
    st.just(hostile.tensor((2, 8))),
    st.builds(hostile.tensor, SHAPES),
    st.builds(hostile.tensor, SHAPES, SHAPES, COUNTS, COUNTS),
    st.sampled_from(targets._odd_tensors()),
)
KEYS = st.sampled_from(
    ["*", "me", "string_to_param", "emb_params", "state_dict", "weight", "bias", "model", "body.0.res_layer.1.weight",
     "input_layer.0.weight", "output_layer.3.weight", "\ud800", "a\x1b[2J", *targets._DOWN, *targets._MOTION]
)  # fmt: skip
OBJECTS = st.recursive(
    TENSORS | PLAIN | st.sampled_from(list(hostile.CODE.values())),
    lambda inner: (
        st.dictionaries(KEYS, inner, max_size=5).map(hostile.mapping)
        | st.lists(inner, max_size=3).map(lambda parts: b"](" + b"".join(parts) + b"e")
        | inner.map(lambda part: hostile.called("collections", "OrderedDict") + b"(" + hostile.text("x") + part + b"u")
        | inner.map(lambda part: hostile.called("torch.nn.modules.container", "ParameterDict") + part + b"b")
        | st.dictionaries(KEYS, TENSORS, min_size=1, max_size=5).map(hostile.mapping)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("name", ["ids_pickled", "motion_pickled", "others_pickled"])
def test_pickles_that_claim_too_much_or_call(name, inputs):
    @hard(80, 1500)
    @given(OBJECTS, st.sampled_from([None] * 9 + [1, 9, 40]))
    def check(content, kept):
        whole = hostile.pickle(content)
        give(inputs, name, whole if kept is None else whole[:-kept])

    check()


@pytest.mark.parametrize("old", [False, True], ids=["a zip", "as torch once wrote"])
@pytest.mark.parametrize("call", hostile.CODE)
def test_no_code_in_a_file_is_run(call, old, inputs):
    content = hostile.pickle(hostile.mapping({"me": hostile.tensor((2, 8)), "x": hostile.CODE[call]}))
    data = content if old else hostile.torch_file(content)
    for reader, name in ((identity.load, "me.pt"), (motion.read, "me.ckpt"), (motion.read, "me.pth")):
        path = targets._put(name, data)
        inputs["code"] += 1
        assert answer(lambda path=path, reader=reader: reader(path), [name]) is None
        assert not Path(hostile.MARK).exists()


# motion files: whole but for one thing

CHANGES = st.sampled_from(["drop", "rename", "turn", "grow", "flat", "scalar", "whole", "half", "complex", "nan"])


def altered(value, change):
    ways = {
        "turn": lambda: value.mT if value.ndim > 1 else value, "flat": value.flatten,
        "grow": lambda: torch.cat([value, value]) if value.ndim else value + 1,
        "scalar": lambda: value.sum(), "whole": value.long, "half": value.half,
        "complex": lambda: value.to(torch.complex64), "nan": lambda: value * torch.nan,
    }  # fmt: skip
    return ways[change]()


def changed_state(state, changes):
    state = dict(state)
    for share, change in changes:
        key = sorted(state)[int(share * (len(state) - 1))]
        if change == "drop":
            del state[key]
        elif change == "rename":
            state[key.replace("0", "9", 1).replace("mid", "up")] = state.pop(key)
        else:
            state[key] = altered(state[key], change)
        if not state:
            break
    return state


ALTERED = st.lists(st.tuples(st.floats(0, 1), CHANGES), min_size=1, max_size=3)


@hard(12, 200)
@given(ALTERED)
def test_a_motion_file_with_one_thing_wrong(inputs, changes):
    inputs["motion states"] += 1
    state = changed_state(targets._small_motion(), changes)
    if state:
        answer(lambda: motion.build(state, "walk.ckpt"), ["walk.ckpt"])


@hard(80, 1500)
@given(ALTERED, st.integers(1, 40))
def test_a_motion_lora_with_one_thing_wrong(inputs, changes, rank):
    inputs["motion states"] += 1
    keys = [
        targets._LORA.format(part).replace("mid_block", f"{place}_blocks.0")
        for part in ("up", "down")
        for place in "ab"
    ]
    lora = {key: torch.ones((32, rank) if ".up." in key else (rank, 32)) for key in keys}
    lora |= {targets._LORA.format("up"): torch.ones(32, rank), targets._LORA.format("down"): torch.ones(rank, 32)}
    lora = changed_state(lora, changes)
    answer(lambda: motion.merge_lora(targets._small_motion(), lora, 1.0, "zoom.ckpt"), ["zoom.ckpt"])


# texts

LETTERS = st.sampled_from(
    ["a man", "0", "8", "16:9", " ", "\t", "é", "\ud800", "\x00", "٣", "99999999999", "½", "man's"]
)
TEXTS = ["prompt_schedules", "gamma_schedules", "places", "marks", "segmentation_prompts"]


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_the_words_that_they_are_made_of(name, inputs):
    @hard(150, 5000)
    @given(st.lists(st.sampled_from(TARGETS[name].words) | LETTERS, max_size=30))
    def check(words):
        give(inputs, name, "".join(words).encode("utf-8", "surrogatepass"))

    check()


LONG = {
    "in a value": "0: 'a'{}x", "between keys": "0: a{}8: b", "before a colon": "0: a\n1{}x",
    "behind a comma": "0: a,{}x", "behind a quotation mark": '0: "a"{}x', "before the first": "{}0: a",
}  # fmt: skip


@pytest.mark.parametrize(
    "between", [" ", "\n", "\t", "1", "'", '"', ",", "|", "a'", ", 1", "\\", "V*", "<me>", "(", ":", "0:'"]
)
@pytest.mark.parametrize("where", LONG)
def test_a_long_text_takes_a_moment(where, between, inputs):
    """Patterns that try a text's parts in every way would take years."""
    written = LONG[where].format(between * 10000).encode()
    for name in TEXTS:
        give(inputs, name, written)


# boxes, graphs, studies: trees with a value that should not be there

NUMBERS = st.sampled_from(
    [0, 1, -1, 30, 130, 0.5, 1e308, float("nan"), float("inf"), 10**400, "1", "x", None, True, [], {}]
)
BOXES = st.fixed_dictionaries({}, optional={k: NUMBERS for k in ("x", "y", "width", "height", "score")})
DRAWN = st.recursive(BOXES | NUMBERS, lambda inner: st.lists(inner, max_size=6), max_leaves=8)


@hard(150, 5000)
@given(DRAWN)
def test_boxes_of_any_form(inputs, drawn):
    give(inputs, "boxes", json.dumps(drawn).encode())


ODD = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1e308,
        10**400,
        "",
        "x",
        "a\x1b[2J",
        "b" * 5000,
        [],
        {},
        [[]],
        {"a": {}},
        ["1", 0],
        {"nodes": []},
    ]
)


def places_in(tree, at=()):
    """Where the values of a tree are."""
    yield at
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield from places_in(tree[key], (*at, key))


def replaced(tree, at, value):
    if not at:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[at[0]] = replaced(tree[at[0]], at[1:], value)
    return copy


TREES = {"graphs": (targets.SAVED, targets.PROMPT), "studies": (targets.yaml_of(targets.STUDY),)}


@pytest.mark.parametrize("name", TREES)
def test_graphs_and_studies_with_another_value_somewhere(name, inputs):
    @hard(150, 3000)
    @given(st.sampled_from(TREES[name]), st.lists(st.tuples(st.floats(0, 1), ODD), min_size=1, max_size=2))
    def check(tree, changes):
        for share, value in changes:
            spots = list(places_in(tree))
            tree = replaced(tree, spots[int(share * (len(spots) - 1))], value)
        give(inputs, name, json.dumps(tree).encode())  # which is YAML too

    check()


# who watches


@pytest.mark.parametrize(
    "act",
    [
        lambda: os.system("true"),
        lambda: os.mkdir(hostile.MARK),
        lambda: Path(hostile.MARK).write_text("x"),
        lambda: subprocess.run(["true"]),
        lambda: os.remove(targets.folder() / "nothing"),
    ],
)
def test_what_a_file_makes_the_pack_do_is_seen(act):
    def hidden():
        try:
            act()
        except Exception:
            return None

    with pytest.raises(Broken, match="code was run"):
        answer(hidden, [""])
    assert not Path(hostile.MARK).exists()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system stops nothing that computes")
def test_what_takes_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr(targets, "LIMIT", 0.2)
    with pytest.raises(Broken, match="it took more"):
        answer(lambda: re.match("(a*)*b", "a" * 60), [""])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("something is wrong with it"), "names nothing"),
        (ValueError("me.pt: set weights_only to False"), "advises to run"),
        (ValueError("me.pt" * 300), "too long"),
        (ValueError("me.pt holds a\x1b[2J"), "cannot be shown"),
        (ValueError("me.pt"), "is empty"),
    ],
)
def test_an_error_that_is_not_clear_is_told(error, said):
    def fails():
        raise error

    with pytest.raises(Broken, match=said):
        answer(fails, ["me.pt"])


@pytest.mark.parametrize("error", [KeyError("me.pt"), UnicodeError("me.pt is wrong"), RecursionError("me.pt is deep")])
def test_another_error_than_the_documented_one_is_told(error):
    def fails():
        raise error

    with pytest.raises(type(error)):
        answer(fails, ["me.pt"])
