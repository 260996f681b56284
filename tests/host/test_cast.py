"""VCD Cast: each person's text in their own place, inside the attention of the host's own UNet."""

import math
import re

import pytest
import torch

from dev import random_models, video_models
from vcd_core.tiny import world

FRAMES, SIDE = 3, 64
LEFT = torch.zeros(1, SIDE, SIDE)
LEFT[..., : SIDE // 2] = 1


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def sd(pack):
    pack("nodes.host.model")
    return random_models.tiny_sd15(0, [])


def text(clip, words):
    return clip.encode_from_tokens_scheduled(clip.tokenize(words))


def masks(*given):
    return {f"mask{i}": mask for i, mask in enumerate(given)}


def cast(
    pack, model, clip, people, places="", frames=FRAMES, everybody="nobody", apart=0.0, contrast=0.0, bind=True, **more
):
    """What the node gives for people with texts of their own."""
    texts = {f"person{i}": text(clip, one) for i, one in enumerate(people)}
    span = more.pop("span", (0.0, 1.0))
    return pack("nodes.cast").Cast.execute(
        model, "", places, frames, 0.0, *span, apart, contrast, bind, clip=clip, people=texts,
        everybody=text(clip, everybody), **more,
    ).args  # fmt: skip


def predicted(model, positive, negative, seed=3, cfg=2.0, steps=1, side=SIDE, frames=FRAMES):
    import comfy.sample

    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(frames, 4, side // 8, side // 8, generator=generator)
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "normal", positive, negative, torch.zeros_like(noise), seed=seed,
        disable_pbar=True,
    )  # fmt: skip


def test_people_of_one_text_are_that_text(pack, sd):
    """The same text everywhere gives what the host gives for it, whatever the places, also in self-attention off."""
    model, clip, _ = sd
    bound, positive, _ = cast(
        pack, model, clip, ["a man", "a man"], "left\n0.5 0 0.25 0.5", everybody="a man", contrast=0.5
    )
    whole = predicted(model, text(clip, "a man"), text(clip, ""))
    assert torch.allclose(predicted(bound, positive, text(clip, "")), whole, atol=1e-4)
    other = predicted(model, text(clip, "a dog"), text(clip, ""))
    assert not torch.allclose(other, whole, atol=1e-2)


def test_it_binds_on_sdxl_too(pack):
    pack("nodes.host.model")
    model, clip, _ = random_models.tiny_sdxl()
    bound, positive, _ = cast(pack, model, clip, ["a man", "a man"], everybody="a man", contrast=0.5)
    assert bound is not model
    whole = predicted(model, text(clip, "a man"), text(clip, ""))
    assert torch.allclose(predicted(bound, positive, text(clip, "")), whole, atol=1e-3)


def test_a_person_who_is_everywhere_is_their_text_alone(pack, sd):
    model, clip, _ = sd
    bound, positive, _ = cast(pack, model, clip, ["a man"], "everywhere", apart=3.0)
    whole = predicted(model, text(clip, "a man"), text(clip, ""))
    assert torch.allclose(predicted(bound, positive, text(clip, "")), whole, atol=1e-4)


@pytest.mark.parametrize("people", [["a man", "a dog"], ["a man", "a dog", "a man in red", "a cat"]])
def test_each_place_attends_to_its_own_text_alone(pack, sd, people):
    """Side by side, every query of every block meets its own person's keys, and what comes out is theirs."""
    model, clip, _ = sd
    bound, positive, _ = cast(pack, model, clip, people)
    replaced = bound.model_options["transformer_options"]["patches_replace"]["attn2"]
    checked = []

    class Spy(type(next(iter(replaced.values())))):
        def __call__(self, q, k, v, options):
            out = super().__call__(q, k, v, options)
            known, width = k.shape[1] // len(people), round(math.sqrt(q.shape[1]))
            column = torch.arange(q.shape[1]) % width
            for i in range(len(people)) if width >= len(people) else ():
                here = column * len(people) // width == i
                of_each = [
                    self._attend(q, k[:, known * j : known * (j + 1)], v[:, known * j : known * (j + 1)], options)[
                        :, here
                    ]
                    for j in range(len(people))
                ]
                near = [float((out[:, here] - one).abs().max()) for one in of_each]
                assert near[i] < 1e-5
                assert min(near[:i] + near[i + 1 :]) > 1e-3
                checked.append(i)
            return out

    for name in replaced:
        replaced[name] = Spy()
    predicted(bound, positive, text(clip, ""), cfg=1.0)
    assert set(checked) == set(range(len(people)))


def test_the_negative_prompt_is_as_it_is(pack, sd):
    """With the negative the same as the people's text the guidance cancels out, whatever its strength."""
    model, clip, _ = sd
    bound, positive, _ = cast(pack, model, clip, ["a man", "a man"], everybody="a man")
    one, other = (predicted(bound, positive, text(clip, "a man"), cfg=cfg) for cfg in (1.0, 7.0))
    assert torch.allclose(one, other, atol=1e-3)


def test_a_longer_negative_prompt_changes_nothing_of_the_people(pack, sd):
    """The host repeats texts until they are as long as each other."""
    model, clip, _ = sd
    bound, positive, _ = cast(pack, model, clip, ["a man", "a dog"])
    long = " ".join(["word"] * 100)
    weak = [predicted(bound, positive, text(clip, words), cfg=1.0 + 1e-6) for words in ("", long)]
    assert torch.allclose(*weak, atol=1e-3)


@pytest.mark.parametrize("places", ["0: left, 2: right\n0: right, 2: left", "left\n0: right, 1: away"])
def test_people_who_move_are_where_they_are_in_each_frame(pack, sd, places):
    """Each frame is that of people who stand there (the tiny model's frames know nothing of each other)."""
    model, clip, _ = sd
    bound, positive, _ = cast(pack, model, clip, ["a man", "a dog"], places)
    moving = predicted(bound, positive, text(clip, ""))
    core = pack("vcd_core.cast")
    boxes = core.read_places(places, ["a", "b"], FRAMES)
    for frame in range(FRAMES):
        still = masks(*core.masks_of(boxes[:, frame : frame + 1], 512, 512))
        again, positive_, _ = cast(pack, model, clip, ["a man", "a dog"], masks=still)
        assert torch.allclose(predicted(again, positive_, text(clip, ""))[frame], moving[frame], atol=1e-4)


def test_windows_and_tiles_see_their_own_part(pack, sd):
    """A context window over some frames and a tile over a part have the masks of these."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode as Windows

    model, clip, _ = sd
    bound, positive, _ = cast(pack, model, clip, ["a man", "a dog"], "0: left, 5: right\n0: right, 5: left", frames=6)
    whole = predicted(bound, positive, text(clip, ""), frames=6)
    windowed = Windows.execute(bound, 3, 0, "standard_static", 1, False, "flat", 0, False).args[0]
    assert torch.allclose(predicted(windowed, positive, text(clip, ""), frames=6), whole, atol=1e-4)
    tiled = pack("nodes.tiled").TiledPatch.execute(bound, tile_size=64, overlap=0, grid="fixed").args[0]
    big = predicted(tiled, positive, text(clip, ""), side=128, frames=6)
    first = pack("nodes.tiled").TiledPatch.execute(model, tile_size=64, overlap=0, grid="fixed").args[0]
    first = cast(pack, first, clip, ["a man", "a dog"], "0: left, 5: right\n0: right, 5: left", frames=6)[0]
    assert torch.equal(predicted(first, positive, text(clip, ""), side=128, frames=6), big)  # in whichever order
    # the left half of the first frame holds the left person alone: a tile of it is that person's
    alone = predicted(pack("nodes.tiled").TiledPatch.execute(model, tile_size=64, overlap=0, grid="fixed").args[0],
                      text(clip, "a man"), text(clip, ""), side=128, frames=6)  # fmt: skip
    assert torch.allclose(big[0, :, :, :8], alone[0, :, :, :8], atol=1e-4)
    assert not torch.allclose(big[0, :, :, 8:], alone[0, :, :, 8:], atol=1e-2)


def test_people_look_less_at_each_other(pack):
    """The channels give the scores that a mask of all places by all places would."""
    door, core = pack("nodes.host.attention"), pack("vcd_core.cast")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 16, 2 * 40, generator=generator) for _ in range(3))
    people = torch.rand(2, 3, 16, generator=generator)
    people = people / people.sum(1, keepdim=True).clamp(min=1) * 0.9
    found = door.Parted(3.0)._with_scores(q, k, v, core.parting(people, 3.0), {"n_heads": 2})
    score = torch.zeros(2, 16, 16)
    for i in range(3):
        for j in range(3):
            if i != j:
                score -= 3.0 * people[:, i, :, None] * people[:, j, None, :]
    split = [x.unflatten(2, (2, 40)).transpose(1, 2) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*split, attn_mask=score[:, None])
    assert torch.allclose(found, expected.transpose(1, 2).flatten(2), atol=1e-5)


def test_contrast_leads_away_from_the_others(pack):
    """The weights are those of A_i + contrast * (A_i - mean of the others), and nobody's part stays."""
    core, generator = pack("vcd_core.cast"), torch.Generator().manual_seed(1)
    weights = torch.rand(4, 1, 6, generator=generator)
    weights = weights / weights.sum(0)
    texts = torch.randn(4, 6, generator=generator)
    found = (core.contrasted(weights, 1, 0.4)[:, 0] * texts).sum(0)
    expected = weights[0, 0] * texts[0]
    for i in (1, 2, 3):
        others = sum(texts[j] for j in (1, 2, 3) if j != i) / 2
        expected = expected + weights[i, 0] * (texts[i] + 0.4 * (texts[i] - others))
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(core.contrasted(weights[:2], 1, 0.4), weights[:2])  # one person has no others


def test_apart_acts_between_people_and_not_on_one(pack, sd):
    model, clip, _ = sd
    made = {a: cast(pack, model, clip, ["a man", "a man"], everybody="a man", apart=a)[:2] for a in (0.0, 8.0)}
    near, apart = (predicted(*made[a], text(clip, "")) for a in (0.0, 8.0))
    assert not torch.allclose(near, apart, atol=1e-3)
    alone = cast(pack, model, clip, ["a man"], "0.25 0 0.5 1", everybody="a man", apart=8.0)[:2]
    assert torch.allclose(predicted(*alone, text(clip, "")), near, atol=1e-2)


def test_outside_its_span_the_prompt_holds_everywhere(pack, sd):
    model, clip, _ = sd
    bound, positive, _ = cast(pack, model, clip, ["a man", "a dog"], everybody="a bird", span=(0.999, 1.0))
    plain = predicted(model, text(clip, "a bird"), text(clip, ""))
    assert torch.allclose(predicted(bound, positive, text(clip, "")), plain, atol=1e-4)
    with pytest.raises(ValueError, match=r"start_percent is 0\.8 and end_percent 0\.2"):
        cast(pack, model, clip, ["a man"], span=(0.8, 0.2))


def test_without_binding_it_is_comfyuis_masks(pack, sd):
    model, clip, _ = sd
    same, positive, preview = cast(pack, model, clip, ["a man", "a dog"], bind=False)
    assert same is model
    by_hand = [
        [tensor, {**options, "mask": mask, "set_area_to_bounds": False}]
        for words, mask in (("a man", LEFT), ("a dog", 1 - LEFT))
        for tensor, options in text(clip, words)
    ]
    expected = predicted(model, by_hand, text(clip, ""))
    assert torch.allclose(predicted(same, positive, text(clip, "")), expected, atol=1e-4)
    assert preview.shape == (1, 512, 512, 3)
    assert float((preview[0, 256, 100] - preview[0, 256, 400]).abs().max()) > 0.1


def test_a_node_that_takes_the_attention_is_told_where_it_belongs(pack, sd):
    model, clip, _ = sd
    calls = []

    def theirs(q, k, v, options):
        import comfy.ldm.modules.attention as attention

        calls.append(k.shape[1])
        return attention.optimized_attention(q, k, v, options["n_heads"])

    before = model.clone()
    before.set_model_attn2_replace(theirs, "input", 1, 0)
    bound, positive, _ = cast(pack, before, clip, ["a man", "a dog"])
    done = predicted(bound, positive, text(clip, ""))
    plain, positive_, _ = cast(pack, model, clip, ["a man", "a dog"])
    assert torch.allclose(done, predicted(plain, positive_, text(clip, "")), atol=1e-5)
    assert set(calls) == {77}
    behind = bound.clone()
    behind.set_model_attn2_replace(theirs, "input", 1, 0)
    with pytest.raises(ValueError, match="Put that node before VCD Cast"):
        predicted(behind, positive, text(clip, ""))


def test_moving_places_are_those_of_a_video_models_latent_frames(pack):
    node, masks_ = pack("nodes.cast"), torch.rand(2, 9, 4, 4)
    found = node.per_latent_frame(video_models.model("wan21"), masks_)
    expected = torch.stack([masks_[:, 0], masks_[:, 1:5].mean(1), masks_[:, 5:9].mean(1)], 1)
    assert torch.allclose(found, expected)
    assert node.per_latent_frame(video_models.model("wan21"), masks_[:, :1]).shape[1] == 1
    assert node.per_latent_frame(random_models.tiny_sd15(0, [])[0], masks_) is masks_


@pytest.fixture(scope="module")
def phantom(pack):
    """A video model that is shown reference pictures: model, VAE, prompt, two people's conditionings with a picture
    each, and whose references a call holds."""
    from comfy_extras import nodes_wan

    kind, side = "wan21", 128
    pack("nodes.host.model")
    model, vae, words = video_models.model(kind), video_models.vae(kind), video_models.prompt(kind, 1)
    people, latents = [], []
    for i in range(2):
        picture = torch.full((1, side, side, 3), 0.2 + 0.6 * i)
        made = nodes_wan.WanPhantomSubjectToVideo.execute(
            words, words, vae, width=side, height=side, length=9, batch_size=1, images=picture
        ).args
        people.append(made[0])
        latents.append(model.model.process_latent_in(made[0][0][1]["time_dim_concat"]).mean((0, 2, 3, 4)))

    def whose(value):
        return int((torch.stack(latents) - value.mean((0, 2, 3, 4))).norm(dim=1).argmin())

    return model, vae, words, people, whose


def with_spy(model, whose):
    """A clone of a model, and whose references were in each of its calls."""
    seen, spied = [], model.clone()

    def spy(apply, call):
        if "time_dim_concat" in call["c"]:
            seen.append(whose(call["c"]["time_dim_concat"]))
        return apply(call["input"], call["timestep"], **call["c"])

    spied.set_model_unet_function_wrapper(spy)
    return spied, seen


def test_references_reach_the_tiles_of_their_person_alone(pack, phantom):
    """On a video model each person's reference pictures are in no call for a tile where that person is not."""
    import comfy.sample

    model, _, words, people, whose = phantom
    given = {f"person{i}": one for i, one in enumerate(people)}
    settings = ("", "left\nright", 9, 0.0, 0.0, 1.0, 3.0, 0.3, True)
    bound, positive, _ = pack("nodes.cast").Cast.execute(model, *settings, people=given, everybody=words).args
    assert bound is model  # no UNet: by masks
    spied, seen = with_spy(pack("nodes.tiled").TiledPatch.execute(bound, tile_size=64, overlap=0).args[0], whose)
    noise = torch.randn(1, 16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    comfy.sample.sample(
        spied, noise, 1, 1.0, "euler", "simple", positive, words, torch.zeros_like(noise), seed=0, disable_pbar=True
    )
    assert seen == [0, 1, 0, 1]  # the tiles from left to right, row by row


def test_a_face_is_shown_its_own_references_alone(pack, phantom):
    model, vae, words, people, whose = phantom
    take = world.Take(tuple(world.identities(2)), "city", "standing", "medium", seed=3, frames=9)
    images = torch.stack([torch.tensor(frame.image) for frame in world.render_take(take)]).float() / 255
    node, (spied, seen) = pack("nodes.face"), with_spy(model, whose)
    faces = node.FaceTrack.execute(images, "left to right", 0, 0.5, 8, 3, True).args[0]
    assert len(faces.tracks) == 2
    node.FaceRefine.execute(
        images, spied, vae, people[0], words, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=0.8,
        gamma=0.1, seed=0, refine_size=64, crop_factor=3.0, aspect=1.0, feather=4.0, paste_factor=1.6,
        match_colour=False, which="left to right", index=0, faces=faces, positive_2=people[1],
    )  # fmt: skip
    assert seen == sorted(seen)
    assert {0, 1} == set(seen)
    assert seen.count(0) == seen.count(1)


def test_it_runs_from_a_graph_with_sockets_that_grow(bench, tiny):
    """On the real server: faces of a draft say where two people are, and the clip is drawn and its faces refined."""
    graph, model, vae, positive, negative = tiny()
    images = graph.VCDTest_World(framing="medium", action="standing", people=2, seed=5, frames=16)
    faces = graph.VCD_FaceTrack(
        images=images, which="left to right", index=0, threshold=0.5, max_gap=8, min_length=3, small_faces=True
    )
    clip = [model[0], 1]
    made = graph.VCD_Cast(
        model=model, clip=clip, prompt="", places="", frames=16, softness=0.1, start_percent=0.0, end_percent=1.0,
        apart=3.0, contrast=0.3, bind=True, faces=faces, images=images, everybody=positive,
        **{f"people.person{i}": graph.CLIPTextEncode(clip=clip, text=words) for i, words in enumerate("ab")},
    )  # fmt: skip
    latent = graph.EmptyLatentImage(width=128, height=128, batch_size=16)
    drawn = graph.KSampler(
        model=made, positive=[made[0], 1], negative=negative, latent_image=latent, seed=1, steps=1, cfg=2.0,
        sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    refined = graph.VCD_FaceRefine(
        images=images, model=made, vae=vae, positive=[made[0], 1], negative=negative, faces=faces, steps=1, cfg=1.0,
        sampler_name="euler", scheduler="normal", denoise=0.5, gamma=0.1, seed=1, refine_size=64, crop_factor=2.0,
        aspect=1.0, feather=4.0, paste_factor=1.2, match_colour=False, which="all", index=0,
    )  # fmt: skip
    drawn, preview, refined = bench.tensors(graph, drawn, [made[0], 2], refined)
    assert drawn["samples"].shape == (16, 4, 16, 16)
    assert torch.isfinite(drawn["samples"]).all()
    assert preview.shape == refined.shape == (16, 128, 128, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"people": []}, "VCD Cast has nobody to place"),
        ({"places": "left"}, "2 people and 1 places, one a line: person 2 has none"),
        ({"places": "left\n0.6 0 0.5 1"}, "The place of person 2, '0.6 0 0.5 1', leaves the picture"),
        ({"masks": masks(LEFT)}, "2 people and 1 masks: person 2 has none"),
        ({"masks": masks(LEFT, LEFT[:, :32])}, "The masks differ in size"),
        ({"masks": masks(LEFT, LEFT), "places": "left\nright"}, "places and masks both say where people are"),
        ({"images": torch.zeros(2, 32, 32, 3), "masks": masks(LEFT, LEFT)}, "connect the clip that they are of"),
    ],
)
def test_what_makes_no_sense_is_refused(pack, sd, change, said):
    model, clip, _ = sd
    given = {"people": ["a man", "a dog"], **change}
    with pytest.raises(ValueError, match=re.escape(said)):
        cast(pack, model, clip, given.pop("people"), **given)


def test_a_persons_conditioning_is_one_and_has_no_place_yet(pack, sd):
    model, clip, _ = sd
    one = text(clip, "a man")
    placed = [[one[0][0], {**one[0][1], "mask": LEFT}]]
    for person, said in ((one + one, "person 1 has 2 conditionings in one"), (placed, "person 1 has a mask already")):
        with pytest.raises(ValueError, match=said):
            pack("nodes.cast").Cast.execute(
                model, "", "", 16, 0.0, 0.0, 1.0, 3.0, 0.3, True, people={"person0": person}, everybody=one
            )


def test_an_identity_that_the_prompt_does_not_name_is_refused(pack, sd):
    model, clip, _ = sd
    identity, core = pack("nodes.identity"), pack("vcd_core.identity")
    width = next(iter(pack("nodes.host.text").text_widths(clip).values()))
    ids = {
        f"id{i}": identity.Identity(core.IdTokens(name, torch.randn(2, width)), "man")
        for i, name in enumerate(("ada", "bob"))
    }
    node = pack("nodes.cast").Cast
    given = (0.0, 0.0, 1.0, 3.0, 0.3, True)
    with pytest.raises(ValueError, match="The prompt does not name <bob>"):
        node.execute(model, "a photo of <ada> and a man", "", 16, *given, clip=clip, ids=ids)
    with pytest.raises(ValueError, match="The prompt is a schedule"):
        node.execute(model, "0: <ada> and <bob> | 8: <ada>", "", 16, *given, clip=clip, ids=ids)
    with pytest.raises(ValueError, match="clip is missing"):
        node.execute(model, "a photo of <ada> and <bob>", "", 16, *given, ids=ids)
    words = pack("nodes.cast").without("V* and <bob>, laughing", {"ada": ids["id0"], "bob": ids["id1"]}, "bob")
    assert " ".join(words.split()) == "man and <bob>, laughing"
    _, positive, _ = node.execute(model, "a photo of <ada> and <bob>", "", 16, *given, clip=clip, ids=ids).args
    assert [options["vcd_cast"] for _, options in positive] == ["person", "person"]
