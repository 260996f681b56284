"""Face VCD in graphs queued on the real server."""

import functools
import json
import random
import re

import numpy as np
import pytest
import torch
from graphs import motion, same

from dev.server import QueueError
from vcd_core.tiny import world as drawn

TRACK = {
    "which": "all", "index": 0, "threshold": 0.6, "max_gap": 8, "min_length": 3, "small_faces": False,
}  # fmt: skip
REFINE = {
    "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.8, "gamma": 0.1, "seed": 1,
    "refine_size": 64, "crop_factor": 3.0, "aspect": 1.0, "feather": 4.0, "paste_factor": 1.6, "match_colour": False,
    "which": "all", "index": 0,
}  # fmt: skip


def world(graph, framing="medium", action="walking", people=1, seed=2, frames=16):
    return graph.VCDTest_World(framing=framing, action=action, people=people, seed=seed, frames=frames)


def track(graph, images, **changes):
    return graph.VCD_FaceTrack(images=images, **{**TRACK, **changes})


def refine(graph, images, model, vae, positive, negative, **changes):
    inputs = {**REFINE, **changes}
    return graph.VCD_FaceRefine(images=images, model=model, vae=vae, positive=positive, negative=negative, **inputs)


def faces_of(framing="medium", action="walking", seed=2, frames=16):
    """Where the face of ``world`` is drawn in each frame: x, y, width, height."""
    person = drawn.random_person(random.Random(seed))
    return [frame.faces[0] for frame in drawn.render_take(drawn.Take((person,), "snow", action, framing, seed, frames))]


def out(node, slot):
    return [node[0], slot]


def test_track_crop_paste_without_refinement_is_the_identity(bench):
    graph = bench.graph()
    images = world(graph)
    faces = track(graph, images)
    crops = graph.VCD_FaceCrop(images=images, faces=faces, index=0, refine_size=256, crop_factor=3.0, aspect=1.0)
    pasted = graph.VCD_FacePaste(
        images=images, crop=out(crops, 1), refined=crops, feather=5.0, paste_factor=1.6, match_colour=False
    )
    images, crops, pasted, preview = bench.tensors(graph, images, crops, pasted, out(faces, 1))
    assert crops.shape == (16, 256, 256, 3)
    assert (pasted - images).abs().max() < 1 / 255
    assert preview.shape == images.shape
    assert not torch.equal(preview, images)


def test_by_change_nothing_is_lost_where_the_window_is_larger_than_its_crop(bench, tiny):
    graph, _, vae, *_ = tiny()
    images = graph.ImageScale(image=world(graph), upscale_method="lanczos", width=512, height=512, crop="disabled")
    faces = track(graph, images)
    crops = graph.VCD_FaceCrop(images=images, faces=faces, index=0, refine_size=64, crop_factor=3.0, aspect=1.0)
    coded = graph.VAEDecode(samples=graph.VAEEncode(pixels=crops, vae=vae), vae=vae)
    by_picture, as_cut, through_vae = (
        graph.VCD_FacePaste(
            images=images, crop=out(crops, 1), refined=refined, feather=5.0, paste_factor=1.6, match_colour=False,
            **more,
        )
        for refined, more in (
            (crops, {}),
            (crops, {"paste_by": "change"}),
            (coded, {"paste_by": "change", "unsampled": coded, "feather_share": 0.2}),
        )
    )  # fmt: skip
    images, by_picture, as_cut, through_vae = bench.tensors(graph, images, by_picture, as_cut, through_vae)
    assert (by_picture - images).abs().max() > 0.1
    assert torch.equal(as_cut, images)
    assert torch.equal(through_vae, images)
    graph = bench.graph()
    images = world(graph)
    crops = graph.VCD_FaceCrop(
        images=images, faces=track(graph, images), index=0, refine_size=64, crop_factor=3.0, aspect=1.0
    )
    doubled = graph.VCD_FacePaste(
        images=images, crop=out(crops, 1), refined=crops, feather=5.0, paste_factor=1.6, match_colour=False,
        unsampled=crops,
    )  # fmt: skip
    with pytest.raises(QueueError, match="unsampled is connected, but paste_by is 'picture'"):
        bench.tensors(graph, doubled)


def test_boxes_of_another_detector_are_taken_and_given(bench):
    graph = bench.graph()
    images = world(graph)
    first = track(graph, images)
    second = track(graph, images, bboxes=out(first, 2), min_length=1)
    given, taken = (
        torch.tensor([[box[name] for name in ("x", "y", "width", "height")] for frame in boxes for box in frame])
        for boxes in bench.tensors(graph, out(first, 2), out(second, 2))
    )
    assert given.shape == (16, 4)
    assert (given - taken).abs().max() < 0.5  # pixels; the second track is smoothed once more
    graph = bench.graph()
    short = track(graph, world(graph, frames=8), bboxes=out(track(graph, world(graph)), 2))
    with pytest.raises(QueueError, match="for 16 frames and the clip has 8"):
        bench.tensors(graph, out(short, 1))


def test_a_face_that_was_found_is_followed_where_it_is_hard_to_see(bench):
    """In the fourth frame of this walk its score lies between two thirds of the threshold and the threshold."""
    graph = bench.graph()
    images = world(graph, "far away", "walking", seed=3)
    mask = bench.tensors(graph, out(track(graph, images), 3))
    assert mask.amax((1, 2)).tolist() == [1.0] * 16
    graph = bench.graph()
    fourth = graph.ImageFromBatch(image=world(graph, "far away", "walking", seed=3), batch_index=3, length=1)
    mask = bench.tensors(graph, out(track(graph, fourth, min_length=1), 3))
    assert not mask.any()


def test_what_was_not_refined_is_not_counted(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = world(graph, "medium", "standing")
    node = refine(graph, images, model, vae, positive, negative, denoise=0.0)
    graph.PreviewImage(images=node)
    shown = bench.server.run(graph.prompt, 300)["outputs"]
    assert "0 of 1 faces refined (denoise is 0)" in shown[node[0]]["text"][0]


def test_refine_draws_the_face_anew_and_nothing_else(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = world(graph, "medium", "standing")
    refined = refine(graph, images, motion(graph, model), vae, positive, negative)
    images, refined, pairs = bench.tensors(graph, images, refined, out(refined, 1))
    assert pairs.shape == (16, 64, 128, 3)
    assert refined.isfinite().all()
    y, x = torch.arange(128)[:, None] + 0.5, torch.arange(128)[None] + 0.5
    for changed, (left, top, w, h) in zip((refined != images).any(-1), faces_of(action="standing"), strict=True):
        far = torch.maximum((x - left - w / 2).abs() / w, (y - top - h / 2).abs() / h)  # in faces from the middle
        assert changed[far < 0.5].all()
        assert far[changed].max() < 1.1  # the pasted box is 1.6 faces wide, and its edge is soft


def test_a_mask_of_the_face_leaves_the_hand_before_it(bench, tiny):
    """The mask as a face mesh or SAM 3 gives it, of each frame's face and without what is before it."""
    graph, model, vae, positive, negative = tiny()
    images = world(graph, "close-up", "standing")
    left, top, w, h = (round(float(v)) for v in faces_of("close-up", "standing")[8])
    hand = left + w // 2
    outline = graph.SolidMask(value=0.0, width=128, height=128)
    for width, height, x, y, operation in ((w, h, left, top, "add"), (4, 128, hand, 0, "subtract")):
        shape = graph.SolidMask(value=1.0, width=width, height=height)
        outline = graph.MaskComposite(destination=outline, source=shape, x=x, y=y, operation=operation)
    drawn = refine(graph, images, model, vae, positive, negative, mask=outline, feather=1.0)
    before, after, given = bench.tensors(graph, images, drawn, outline)
    changed = (before != after).any(-1)
    assert changed[:, given[0] > 0].float().mean() > 0.8  # the soft edge reaches into it
    beside = torch.nn.functional.max_pool2d(given[:1], 3, 1, 1)[0] == 0
    assert beside[:, hand + 1 : hand + 3].all()
    assert not changed[:, beside].any()


def test_what_got_worse_is_put_back_and_said(bench, tiny):
    """A model of random weights draws no face: what it drew is not kept, where it is asked about."""
    graph, model, vae, positive, negative = tiny()
    images = world(graph, "close-up", "standing")
    faces = track(graph, images)
    inputs = {"faces": faces, "refine_size": 128, "crop_factor": 1.5}
    kept, shown, off = (
        refine(graph, images, model, vae, positive, negative, judge=judge, **inputs)
        for judge in ("put back what got worse", "show", "off")
    )
    entry = bench.server.run(graph.prompt)
    text = {node[0]: entry["outputs"][node[0]]["text"][0] for node in (kept, shown, off)}
    assert "face 0: face found 100% to 0%" in text[shown[0]]
    assert "sharpness" in text[shown[0]]
    assert "put back" not in text[shown[0]]
    assert "0 of 1 faces refined (see below)" in text[kept[0]]
    assert text[kept[0]].endswith("; put back. " + text[off[0]].split(". ")[-1])
    assert "face 0" not in text[off[0]]
    assert [len(entry["outputs"][node[0]]["images"]) for node in (kept, shown, off)] == [1, 1, 1]
    before, kept, shown, off = bench.tensors(graph, images, kept, shown, off)
    assert torch.equal(kept, before)
    assert not torch.equal(shown, before)
    assert torch.equal(shown, off)


def test_frames_that_lost_their_face_are_put_back_alone(pack):
    module, stage = pack("nodes.face_pass"), pack("nodes.stage")
    core, sampling = pack("vcd_core.face"), pack("nodes.host.sampling").Sampling(2, 4.0, "euler", "normal", 0.8, 1)
    take = drawn.Take((drawn.random_person(random.Random(2)),), "snow", "standing", "close-up", 2, 16)
    images = torch.stack([torch.from_numpy(frame.image.copy()) / 255 for frame in drawn.render_take(take)])
    track = core.track.Track(0, np.array(faces_of("close-up", "standing"), float), np.ones(16, bool))
    (turn,) = core.plan.plan(core.track.Faces(16, 128, 128, [track]), "all", 0, 1.5, 1.0)
    crops = core.crop.crop(images, turn.windows, (128, 128))
    refined = (crops * 0.98).clone()
    refined[[3, 9]] = 0.5
    care = module.Care("picture", "window", 32, 0, 0.3, module.Jury(module.PUT_BACK, 1000.0))
    paste = functools.partial(core.crop.paste, images, feather=2.0, paste_factor=1.6)
    done = module.FacePass(images, stage.Stage(None, None, sampling, 0.1), (128, 128), care, paste)
    done._put_back(0, turn, crops, refined, [])
    assert (done.out != images).flatten(1).any(1).tolist() == [frame not in (3, 9) for frame in range(16)]
    assert done.told[0].endswith("put back in 2 frames.")
    assert done.said([turn], 0).startswith("1 of 1 faces refined; 0 of 16")


def test_it_is_what_is_pasted_that_is_judged(bench):
    """By change the loss of the VAE is not pasted, so it is not held against the face."""
    graph = bench.graph()
    model = graph.VCD_TinyModel()
    text = graph.CLIPTextEncode(clip=out(model, 1), text="a close-up of a man")
    images = world(graph, "close-up", "standing")
    inputs = {"refine_size": 128, "crop_factor": 1.5, "steps": 1, "denoise": 0.01, "cfg": 1.0}
    nodes = [
        refine(graph, images, model, out(model, 2), text, text, paste_by=by, **inputs) for by in ("picture", "change")
    ]
    outputs = bench.server.run(graph.prompt)["outputs"]
    told = [re.search("sharpness ([^ ]+) to ([^ ,]+)", outputs[node[0]]["text"][0]).groups() for node in nodes]
    by_picture, by_change = (float(now) / float(was) for was, now in told)
    assert by_picture < 0.9 < by_change < 1.1  # margin is a tenth: by picture this face would be put back


def test_the_pictures_to_compare_with_need_a_model(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = world(graph)
    with pytest.raises(QueueError, match="connect clip_vision too"):
        bench.tensors(graph, refine(graph, images, model, vae, positive, negative, reference=images))


def test_the_head_alone_is_drawn_anew(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = world(graph, "medium", "standing")
    head = {"redraw": "head", "paste_by": "change", "feather_share": 0.15}
    refined = refine(graph, images, motion(graph, model), vae, positive, negative, refine_size=128, **head)
    images, refined, pairs = bench.tensors(graph, images, refined, out(refined, 1))
    y, x = torch.arange(128)[:, None] + 0.5, torch.arange(128)[None] + 0.5
    for changed, (left, top, w, h) in zip((refined != images).any(-1), faces_of(action="standing"), strict=True):
        far = (((x - left - w / 2) / w) ** 2 + ((y - top - 0.42 * h) / h) ** 2) ** 0.5  # in faces from the middle
        assert changed[far < 0.4].float().mean() > 0.95
        assert far[changed].max() < 0.85
    before, after = pairs[:, :, :128], pairs[:, :, 128:]
    corner = (before - after).abs()[:, :24, :24]
    assert corner.max() < (before - after).abs()[:, 48:80, 48:80].max()


def test_large_faces_are_drawn_less_than_small_ones(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = world(graph, "medium", "standing")
    plain = refine(graph, images, model, vae, positive, negative, denoise=0.5, steps=4)
    small, large, none = (
        refine(
            graph, images, model, vae, positive, negative, **{"denoise": 1.0, "steps": 4, "paste_by": "change"} | sizes
        )
        for sizes in (
            {"denoise": 0.5, "small_face": 60, "large_face": 70, "denoise_large": 0.0, "paste_by": "picture"},
            {"small_face": 5, "large_face": 10, "denoise_large": 0.5, "paste_by": "picture"},
            {"small_face": 5, "large_face": 10, "denoise_large": 0.0},
        )
    )
    images, plain, small, large, none = bench.tensors(graph, images, plain, small, large, none)
    assert torch.equal(plain, small)
    assert torch.equal(plain, large)
    assert torch.equal(none, images)
    graph, model, vae, positive, negative = tiny()
    wrong = refine(graph, world(graph), model, vae, positive, negative, small_face=50, large_face=40)
    with pytest.raises(QueueError, match="small_face is 50 pixels and large_face 40"):
        bench.tensors(graph, wrong)


def test_hints_of_another_number_of_frames_are_repeated_or_cut(bench, tiny):
    """As ComfyUI's own samplers do it."""
    graph, model, vae, positive, negative = tiny()
    images, net = world(graph, "medium", "standing"), graph.VCDTest_ControlNet()

    def refined(hints):
        applied = graph.ControlNetApplyAdvanced(
            positive=positive, negative=negative, control_net=net, image=hints, strength=1.0, start_percent=0.0,
            end_percent=1.0,
        )  # fmt: skip
        return refine(graph, images, model, vae, applied, out(applied, 1))

    hints = world(graph, "close-up", "walking", frames=12)
    first, last = (graph.ImageFromBatch(image=hints, batch_index=at, length=4) for at in (0, 8))
    twelve, sixteen, otherwise = bench.tensors(
        graph, refined(hints), *(refined(graph.ImageBatch(image1=hints, image2=more)) for more in (first, last))
    )
    assert torch.equal(twelve, sixteen)
    assert torch.equal(twelve[:12], otherwise[:12])
    assert not torch.equal(twelve[12:], otherwise[12:])


def test_hints_of_another_shape_are_fitted_by_their_middle(bench, tiny):
    """As ComfyUI's own samplers do it: what lies above and below the clip's shape does not count."""
    graph, model, vae, positive, negative = tiny()
    images, net = world(graph, "medium", "standing"), graph.VCDTest_ControlNet()

    def refined(hint):
        applied = graph.ControlNetApplyAdvanced(
            positive=positive, negative=negative, control_net=net, image=hint, strength=1.0, start_percent=0.0,
            end_percent=1.0,
        )  # fmt: skip
        return refine(graph, images, model, vae, applied, out(applied, 1))

    hint = graph.ImageFromBatch(image=world(graph, "close-up", "walking"), batch_index=0, length=1)
    tall = graph.ImagePadForOutpaint(image=hint, left=0, top=64, right=0, bottom=64, feathering=0)
    wide = graph.ImagePadForOutpaint(image=hint, left=0, top=128, right=0, bottom=0, feathering=0)
    square, padded, moved = bench.tensors(graph, refined(hint), refined(tall), refined(wide))
    assert same(square, padded, 1e-4)
    assert not same(square, moved, 1e-3)


def test_two_people_keep_two_prompts(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    clip = out(model, 1)
    other = graph.CLIPTextEncode(clip=clip, text="somebody else")
    images = world(graph, "medium", "standing", people=2, seed=5)
    one = refine(graph, images, model, vae, positive, negative)
    two = refine(graph, images, model, vae, positive, negative, positive_2=other)
    images, one, two, pairs = bench.tensors(graph, images, one, two, out(two, 1))
    assert pairs.shape[0] == 32
    assert torch.equal(one[:, :, :64], two[:, :, :64])
    assert not torch.equal(one[:, :, 64:], two[:, :, 64:])


def test_a_chosen_face_keeps_its_prompt(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    other = graph.CLIPTextEncode(clip=out(model, 1), text="somebody else")
    images = world(graph, "medium", "standing", people=2, seed=5)
    both = refine(graph, images, model, vae, positive, negative, positive_2=other)
    right = refine(graph, images, model, vae, positive, negative, positive_2=other, which="by index", index=1)
    images, both, right = bench.tensors(graph, images, both, right)
    assert torch.equal(right[:, :, :64], images[:, :, :64])
    assert torch.equal(right[:, :, 64:], both[:, :, 64:])


def pointer(graph, x, y, width, height, clip=256):
    """A box as the artist's canvas gives it: its regions are shares of the picture."""
    region = {"x": x, "y": y, "width": width, "height": height, "metadata": {"type": "obj"}}
    return out(graph.CreateBoundingBoxes(width=clip, height=clip, editor_state={"__value__": [region]}), 1)


def test_the_face_that_is_pointed_at_is_refined(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = world(graph, people=2)
    faces = track(graph, images)
    boxes, before = bench.tensors(graph, out(faces, 2), images)
    left, right = sorted(boxes[5], key=lambda b: b["x"])
    found = {}
    for way, more in {"pick": {"pick": right}, "exclude": {"exclude": left}}.items():
        drawn = {
            name: pointer(graph, *(round(b[k]) for k in ("x", "y", "width", "height"))) for name, b in more.items()
        }
        done = refine(graph, images, model, vae, positive, negative, faces=faces, pick_frame=5, **drawn)
        found[way] = done
    alone = track(
        graph, images, pick_frame=5, pick=pointer(graph, *(round(right[k]) for k in ("x", "y", "width", "height")))
    )
    picked, excluded, others = bench.tensors(graph, found["pick"], found["exclude"], out(alone, 2))
    assert torch.equal(picked, excluded)
    changed = (picked - before).abs().amax(-1)
    x, y = round(left["x"] + left["width"] / 2), round(left["y"] + left["height"] / 2)
    assert changed[5, y, x] == 0
    x, y = round(right["x"] + right["width"] / 2), round(right["y"] + right["height"] / 2)
    assert changed[5, y - 8 : y + 8, x - 8 : x + 8].max() > 0.02
    assert [len(frame) for frame in others] == [1] * 16
    graph, model, vae, positive, negative = tiny()
    nobody = refine(graph, world(graph, people=2), model, vae, positive, negative, pick=pointer(graph, 2, 2, 4, 4))
    with pytest.raises(QueueError, match=r"pick: nobody is at 2, 2 \(4x4\) in frame 0. There are face 0 at"):
        bench.tensors(graph, nobody)


def test_a_prompt_for_an_area_holds_there_alone(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = world(graph, "medium", "standing", people=2, seed=5)
    other = graph.CLIPTextEncode(clip=out(model, 1), text="somebody else")
    right = graph.ConditioningSetArea(conditioning=other, width=64, height=128, x=64, y=0, strength=1.0)
    share = graph.ConditioningSetAreaPercentage(conditioning=other, width=0.5, height=1.0, x=0.5, y=0.0, strength=1.0)
    shape = {"which": "all", "crop_factor": 2.0}
    one, two, percent = (
        refine(graph, images, model, vae, prompt, negative, **shape)
        for prompt in (
            positive,
            graph.ConditioningCombine(conditioning_1=positive, conditioning_2=right),
            graph.ConditioningCombine(conditioning_1=positive, conditioning_2=share),
        )
    )
    elsewhere = graph.ConditioningSetArea(conditioning=positive, width=64, height=128, x=64, y=0, strength=1.0)
    alone = refine(graph, images, model, vae, elsewhere, negative, **shape)
    one, two, percent, alone = bench.tensors(graph, one, two, percent, alone)
    assert torch.equal(one[:, :, :60], alone[:, :, :60])  # a face that no prompt reaches is drawn by what there is
    assert torch.equal(one[:, :, :60], two[:, :, :60])
    assert not torch.equal(one[:, :, 64:], two[:, :, 64:])
    assert torch.equal(two, percent)


def test_a_face_that_comes_late_sees_the_hints_of_its_frames(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    nobody = graph.EmptyImage(width=128, height=128, batch_size=6, color=0x808080)
    person = graph.ImageFromBatch(image=world(graph, "medium", "standing"), batch_index=0, length=10)
    images, net = graph.ImageBatch(image1=nobody, image2=person), graph.VCDTest_ControlNet()
    grey = graph.EmptyImage(width=128, height=128, batch_size=10, color=0x808080)

    def refined(first, last):
        hints = graph.ImageBatch(image1=first, image2=last)
        applied = graph.ControlNetApplyAdvanced(
            positive=positive, negative=negative, control_net=net, image=hints, strength=1.0, start_percent=0.0,
            end_percent=1.0,
        )  # fmt: skip
        return refine(graph, images, model, vae, applied, out(applied, 1))

    white = graph.EmptyImage(width=128, height=128, batch_size=6, color=0xFFFFFF)
    usual, before, there = bench.tensors(
        graph, refined(nobody, grey), refined(white, grey), refined(nobody, world(graph, "close-up", frames=10))
    )
    assert torch.equal(usual, before)
    assert not torch.equal(usual, there)


def test_no_face_passes_through_or_stops(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = graph.EmptyImage(width=64, height=64, batch_size=4, color=0x808080)
    passed = refine(graph, images, model, vae, positive, negative)
    said = bench.listen()
    images, passed = bench.tensors(graph, images, passed)
    assert torch.equal(images, passed)
    assert "No face was found" in said()
    graph, model, vae, positive, negative = tiny()
    images = graph.EmptyImage(width=64, height=64, batch_size=4, color=0x808080)
    stopped = refine(graph, images, model, vae, positive, negative, if_none="stop with an error")
    with pytest.raises(QueueError, match="No face was found in the clip"):
        bench.tensors(graph, stopped)


def test_one_frame_is_a_clip(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = world(graph, "close-up", frames=1)
    refined = refine(graph, images, model, vae, positive, negative)
    images, refined = bench.tensors(graph, images, refined)
    assert refined.shape == images.shape
    assert not torch.equal(images, refined)


def test_a_broken_sampler_keeps_the_original(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = world(graph)
    broken = graph.VCDTest_Broken(model=model)
    refined = refine(graph, images, broken, vae, positive, negative)
    said = bench.listen()
    images, refined = bench.tensors(graph, images, refined)
    assert torch.equal(images, refined)
    assert "face 0 was left as it is. The sampler returned NaN" in said()


def test_same_seed_same_bits(bench, tiny):
    def once(**changes):
        graph, model, vae, positive, negative = tiny()
        return bench.tensors(graph, refine(graph, world(graph), model, vae, positive, negative, **changes))

    first = once()
    assert torch.equal(first, once(cfg=4.0 + 1e-9))  # the same number to a model, and not answered from the cache
    assert not torch.equal(first, once(seed=2))


def test_another_clip_and_a_changed_frame_count_are_refused(bench):
    graph = bench.graph()
    faces = track(graph, world(graph))
    crops = graph.VCD_FaceCrop(
        images=world(graph, frames=8), faces=faces, index=0, refine_size=64, crop_factor=3.0, aspect=1.0
    )
    with pytest.raises(QueueError, match=r"clip of 16 frames.*8 frames"):
        bench.tensors(graph, crops)
    graph = bench.graph()
    images = world(graph)
    crops = graph.VCD_FaceCrop(
        images=images, faces=track(graph, images), index=0, refine_size=64, crop_factor=3.0, aspect=1.0
    )
    fewer = graph.ImageFromBatch(image=crops, batch_index=0, length=5)
    pasted = graph.VCD_FacePaste(
        images=images, crop=out(crops, 1), refined=fewer, feather=5.0, paste_factor=1.6, match_colour=False
    )
    with pytest.raises(QueueError, match="5 refined frames came back for 16"):
        bench.tensors(graph, pasted)
    graph = bench.graph()
    images = world(graph)
    with pytest.raises(QueueError, match="no track 3: 1 faces"):
        bench.tensors(
            graph,
            graph.VCD_FaceCrop(
                images=images, faces=track(graph, images), index=3, refine_size=64, crop_factor=3.0, aspect=1.0
            ),
        )
    graph = bench.graph()
    with pytest.raises(QueueError, match="needs a reference picture"):
        bench.tensors(graph, out(track(graph, world(graph), which="like the reference"), 1))


def test_the_face_most_like_a_reference_is_chosen(bench):
    graph = bench.graph()
    images = world(graph, "medium", "standing", people=2, seed=5)
    both = track(graph, images, which="left to right")
    crops = [
        graph.VCD_FaceCrop(images=images, faces=both, index=i, refine_size=64, crop_factor=1.5, aspect=1.0)
        for i in (0, 1)
    ]
    vision = graph.VCDTest_Looks()
    chosen = [
        graph.VCD_FaceCrop(
            images=images, faces=track(graph, images, which="like the reference", reference=c, clip_vision=vision),
            index=0, refine_size=64, crop_factor=1.5, aspect=1.0,
        )
        for c in crops
    ]  # fmt: skip
    left, right, first, second = bench.tensors(graph, *crops, *chosen)
    assert torch.equal(first, left)
    assert torch.equal(second, right)
    assert not torch.equal(left, right)


def passing(graph, images):
    """A face that is not seen in frames 6 to 9, where another one passes before it; the other is track 0."""
    behind = [[] if 6 <= i < 10 else [[54.0, 44.0, 20.0, 20.0]] for i in range(16)]
    boxes = [[*faces, [-16.0 + 10.0 * i, 66.0, 20.0, 20.0]] for i, faces in enumerate(behind) if i < 14]
    return track(graph, images, bboxes=graph.VCDTest_Boxes(boxes=json.dumps([*boxes, *behind[14:]])), min_length=1)


def test_a_face_behind_another_one_is_left_as_it_is(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = world(graph, "medium", "standing")
    faces = passing(graph, images)
    crops = graph.VCD_FaceCrop(images=images, faces=faces, index=0, refine_size=64, crop_factor=2.0, aspect=1.0)
    other = graph.VCD_FaceCrop(images=images, faces=faces, index=1, refine_size=64, crop_factor=2.0, aspect=1.0)
    red, blue = (graph.EmptyImage(width=64, height=64, batch_size=n, color=c) for n, c in ((14, 0xFF0000), (16, 255)))
    first, second = (
        graph.VCD_FacePaste(
            images=images, crop=out(crop, 1), refined=colour, feather=5.0, paste_factor=1.6, match_colour=False
        )
        for crop, colour in ((crops, red), (other, blue))
    )
    refined = refine(graph, images, model, vae, positive, negative, faces=faces, crop_factor=2.0)
    images, first, second, pairs = bench.tensors(graph, images, first, second, out(refined, 1))
    changed = (second != images).flatten(1).any(1)
    assert changed.tolist() == [not 6 <= i < 10 for i in range(16)]
    assert (first != images).flatten(1).any(1).tolist() == [True] * 14 + [False] * 2
    same_as_before = (pairs[14:, :, :64] == pairs[14:, :, 64:]).flatten(1).all(1)
    assert same_as_before.tolist() == [6 <= i < 10 for i in range(16)]


def test_the_stage_says_how_often_a_face_is_hidden(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    images = world(graph, "medium", "standing")
    node = refine(graph, images, model, vae, positive, negative, faces=passing(graph, images), denoise=0.0)
    graph.PreviewImage(images=node)
    shown = bench.server.run(graph.prompt, 300)["outputs"]
    assert "4 times a face is behind another one" in shown[node[0]]["text"][0]


def test_frames_that_nobody_sees_are_not_decoded(pack):
    module = pack("nodes.stage")
    given, decoded = torch.zeros(5, 8, 8, 3), []
    wanted = torch.tensor([True, False, True, False, False])

    class Codec:
        def decode(self, latent, progress):
            decoded.append(len(latent))
            return latent.movedim(1, -1).repeat_interleave(8, 1).repeat_interleave(8, 2)

    progress = pack("nodes.host.ui").Unseen()
    latent = torch.arange(5.0)[:, None, None, None].expand(5, 3, 1, 1) + 1
    seen = module._decoded(Codec(), latent, given, wanted, progress)
    nobody = module._decoded(Codec(), latent, given, ~torch.ones(5, dtype=torch.bool), progress)
    everybody = module._decoded(Codec(), latent, given, None, progress)
    assert decoded == [2, 5]
    assert seen[:, 0, 0, 0].tolist() == [1, 0, 3, 0, 0]
    assert torch.equal(nobody, given)
    assert everybody[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5]


def test_frames_that_repeat_are_drawn_once(bench, tiny):
    """A clip on twos: the model sees each drawing once, with the part of the prompt that holds in its frame."""
    graph, model, vae, positive, negative = tiny()
    moving = world(graph, frames=4)
    each = [graph.ImageFromBatch(image=moving, batch_index=i, length=1) for i in range(4)]
    twos = functools.reduce(
        lambda a, b: graph.ImageBatch(image1=a, image2=b),
        [graph.RepeatImageBatch(image=image, amount=2) for image in each],
    )
    faces = track(graph, twos, min_length=1)
    told, before = graph.VCDTest_Told(model=model), len(bench.server.log.read_text())
    once, drawn_each, by_change = (
        refine(graph, twos, told, vae, positive, negative, faces=faces, **more)
        for more in (
            {"repeats": "drawn once"},
            {"repeats": "drawn each"},
            {"repeats": "drawn once", "paste_by": "change"},
        )
    )
    twos, once, pairs, drawn_each, by_change = bench.tensors(graph, twos, once, out(once, 1), drawn_each, by_change)
    prepared = re.findall(r"prepares \[(\d+)", bench.server.log.read_text()[before:])
    assert sorted(prepared) == ["4", "4", "8"]
    assert (once != twos).flatten(1).any(1).all()
    for result in (once, by_change, pairs):
        assert torch.equal(result[::2], result[1::2])
    assert not torch.equal(drawn_each[::2], drawn_each[1::2])
    assert (by_change != twos).flatten(1).any(1).all()


def test_it_is_told_how_many_frames_repeat(bench, tiny):
    graph, model, vae, positive, negative = tiny()
    still = graph.RepeatImageBatch(image=graph.ImageFromBatch(image=world(graph), batch_index=0, length=1), amount=5)
    nodes = [
        refine(graph, still, model, vae, positive, negative, repeats=repeats, **more)
        for repeats, more in (("drawn once", {}), ("drawn each", {}), ("drawn once", {"denoise": 0.0}))
    ]
    texts = [bench.server.run(graph.prompt, 300)["outputs"][node[0]]["text"][0] for node in nodes]
    assert "4 times a face repeats" in texts[0]
    assert "repeats" not in texts[1]
    assert texts[2].startswith("0 of 1 faces refined (denoise is 0)")


def test_masks_give_the_boxes(bench):
    graph = bench.graph()
    grey = graph.EmptyImage(width=96, height=64, batch_size=4, color=0x808080)
    white = graph.EmptyImage(width=20, height=20, batch_size=1, color=0xFFFFFF)
    images = graph.ImageCompositeMasked(destination=grey, source=white, x=40, y=10, resize_source=False)
    none = graph.SolidMask(value=0.0, width=96, height=64)
    part = graph.SolidMask(value=1.0, width=20, height=20)
    mask = graph.MaskComposite(destination=none, source=part, x=40, y=10, operation="add")
    crops = graph.VCD_FaceCrop(
        images=images, faces=track(graph, images, mask=mask), index=0, refine_size=64, crop_factor=1.5, aspect=1.0
    )
    crops = bench.tensors(graph, crops)
    assert crops.shape == (4, 64, 64, 3)
    assert crops[:, 13:51, 13:51].min() > 0.95  # the window is half as large again as the mask's box, 20 of 30 pixels
    ring = torch.ones(64, 64, dtype=torch.bool)
    ring[8:56, 8:56] = False
    assert (crops[:, ring] - 0.5).abs().max() < 0.05


def test_windows_may_be_wide_and_tracks_give_masks(bench):
    graph = bench.graph()
    images = world(graph)
    faces = track(graph, images)
    wide = graph.VCD_FaceCrop(images=images, faces=faces, index=0, refine_size=128, crop_factor=2.0, aspect=1.5)
    pasted = graph.VCD_FacePaste(
        images=images, crop=out(wide, 1), refined=wide, feather=5.0, paste_factor=1.6, match_colour=False
    )
    images, wide, pasted, mask = bench.tensors(graph, images, wide, pasted, out(faces, 3))
    assert wide.shape == (16, 104, 160, 3)
    assert (pasted - images).abs().max() < 1 / 255
    assert mask.shape == (16, 128, 128)
    for found, (x, y, w, h) in zip(mask, faces_of(), strict=True):
        true = torch.zeros(128, 128)
        true[round(y - 0.3 * h) : round(y + 1.3 * h), round(x - 0.3 * w) : round(x + 1.3 * w)] = 1
        assert (found * true).sum() > 0.7 * (found + true).clamp(max=1).sum()
