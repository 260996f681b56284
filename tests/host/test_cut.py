"""Conditionings cut to frames, tiles and windows, with the host's own objects in this process."""

import copy

import numpy as np
import pytest
import torch

TILE = (1, 2, 4, 4)  # top, left, height, width of an 8x12 latent
WHOLE = (8, 12)


@pytest.fixture(scope="module")
def cut(pack):
    return pack("nodes.host.cut")


@pytest.fixture(scope="module")
def conds(pack):
    import comfy.conds

    return comfy.conds


def tile(cut, pack):
    return cut.Cut(region=pack("vcd_core.tiled").Tile(*TILE), length=3, picture=WHOLE)


def numbered(*shape):
    return torch.arange(float(np.prod(shape))).reshape(shape)


def under(x, times=1):
    top, left, height, width = (side * times for side in TILE)
    return x[..., top : top + height, left : left + width]


@pytest.mark.parametrize("shape", [(3, 4, 8, 12), (1, 4, 8, 12), (1, 4, 5, 8, 12), (3, 1, 16, 24)])
@pytest.mark.parametrize("kind", ["CONDNoiseShape", "CONDRegular"])
def test_a_latent_of_the_picture_is_cut_whatever_object_holds_it(cut, pack, conds, shape, kind):
    value = getattr(conds, kind)(numbered(*shape))
    (entry,) = tile(cut, pack).entries([{"model_conds": {"c_concat": value}, "uuid": 1}])
    found = entry["model_conds"]["c_concat"]
    assert type(found) is type(value)
    assert torch.equal(found.cond, under(value.cond, shape[-1] // 12))


def test_a_latent_of_another_size_is_refused_by_name(cut, pack, conds):
    value = conds.CONDNoiseShape(numbered(1, 4, 8, 11))
    with pytest.raises(ValueError, match=r"'c_concat' .*\[8, 11\].*\[8, 12\]"):
        tile(cut, pack).entries([{"model_conds": {"c_concat": value}}])


@pytest.mark.parametrize("name", ["c_crossattn", "y", "ref_latents", "guidance", "clip_fea", "hooks"])
def test_texts_numbers_and_references_are_the_same_under_a_tile(cut, pack, conds, name):
    value = conds.CONDRegular(numbered(3, 7, 8))
    (entry,) = tile(cut, pack).entries([{"model_conds": {name: value}}])
    assert entry["model_conds"][name] is value


def test_what_no_rule_knows_is_refused_by_name(cut, pack, conds):
    entry = {"model_conds": {"of_another_pack": conds.CONDRegular(numbered(1, 8, 8, 12))}}
    with pytest.raises(ValueError, match="'of_another_pack'"):
        tile(cut, pack).entries([entry])
    frames = cut.Cut(frames=range(1, 3), length=3, picture=(64, 64))
    for value in (numbered(3, 5), [numbered(3)], {"a": [numbered(1)]}, object()):
        with pytest.raises(ValueError, match="'of_another_pack'"):
            frames.conditioning([[numbered(3, 7, 8), {"of_another_pack": value}]])


def test_numbers_and_texts_need_no_rule(cut, conds, pack):
    value = conds.CONDConstant({"rate": [24, "fps", None]})
    assert tile(cut, pack).entries([{"model_conds": {"new": value}}])[0]["model_conds"]["new"] is value


def test_rows_of_frames_are_taken_and_one_for_all_stays(cut):
    frames = cut.Cut(frames=[2, 0], length=3, picture=(64, 64))
    text, pooled, one = numbered(3, 7, 8), numbered(3, 5), numbered(1, 7)
    ((rows, options),) = frames.conditioning(
        [[text, {"pooled_output": pooled, "attention_mask": one, "strength": 0.5}]]
    )
    assert torch.equal(rows, text[[2, 0]])
    assert torch.equal(options["pooled_output"], pooled[[2, 0]])
    assert options["attention_mask"] is one
    assert options["strength"] == 0.5


def test_a_mask_that_does_not_reach_a_tile_leaves_its_entry_out(cut, pack):
    masks = {"here": torch.zeros(1, *WHOLE), "there": torch.zeros(1, *WHOLE)}
    masks["here"][:, 2, 3] = masks["there"][:, 7, 11] = 1
    entries = [{"mask": mask, "model_conds": {}, "name": name} for name, mask in masks.items()]
    (kept,) = tile(cut, pack).entries(entries)
    assert kept["name"] == "here"
    assert torch.equal(kept["mask"], under(masks["here"]))


@pytest.mark.parametrize(
    ("area", "inside"),
    [
        ((8, 12, 0, 0), (4, 4, 0, 0)),
        ((2, 3, 2, 1), (2, 2, 1, 0)),
        ((2, 2, 6, 8), None),
        ((9, 4, 4, 0, 2, 2), (9, 3, 4, 0, 1, 0)),
    ],
)
def test_areas_and_boxes_are_places_within_the_tile(cut, pack, area, inside):
    cut_entries = tile(cut, pack).entries([{"area": area, "model_conds": {}}])
    assert [entry["area"] for entry in cut_entries] == ([] if inside is None else [inside])
    if len(area) == 4:
        boxes = [("text", *area), ("text", 1, 1, 2, 3)]
        (entry,) = tile(cut, pack).entries([{"gligen": ("position", "net", boxes), "model_conds": {}}])
        assert [box[1:] for box in entry["gligen"][2]] == [box for box in (inside, (1, 1, 1, 1)) if box]


class Net:
    """A ControlNet's attributes, as far as hints go."""

    compression_ratio, vae, upscale_algorithm, previous_controlnet = 8, None, "bilinear", None

    def __init__(self, hint, before=None):
        self.cond_hint_original, self.previous_controlnet = hint, before
        self.cond_hint, self.extra_concat_orig, self.weights = "encoded before", [torch.ones(1, 1, 1, 1)], object()


def test_control_nets_share_weights_and_see_their_part_of_the_hint(cut, pack):
    first = Net(numbered(3, 3, 64, 96))
    chained = Net(numbered(3, 3, 64, 96) + 1, before=first)
    region = tile(cut, pack)
    entries = region.entries([{"control": chained, "model_conds": {}}, {"control": chained, "model_conds": {}}])
    found = entries[0]["control"]
    assert found is entries[1]["control"]
    assert found.weights is chained.weights
    assert found.cond_hint is None
    assert torch.equal(found.cond_hint_original, under(chained.cond_hint_original, 8))
    assert torch.equal(found.previous_controlnet.cond_hint_original, under(first.cond_hint_original, 8))
    assert chained.cond_hint == "encoded before"
    frames = cut.Cut(frames=[4, 1], length=5).control(first)
    assert torch.equal(frames.cond_hint_original, first.cond_hint_original[[1, 1]])  # three hints, repeated: 0 1 2 0 1


def test_windows_see_masks_and_areas_as_the_pictures(cut, pack):
    crops = pack("vcd_core.face.crop")
    centres = np.array([[20.0, 12.0], [24.0, 12.0]])
    place = crops.Windows(0, centres, (16.0, 16.0), np.zeros((2, 4)))
    window = cut.Cut(frames=range(1, 3), region=place, size=(16, 16), length=3, picture=(32, 48))
    left, below = torch.zeros(3, 32, 48), (16 // 8, 48 // 8, 16 // 8, 0)
    left[:, :, :22] = 1
    text = numbered(3, 7, 8)
    conditioning = [
        [text, {"mask": left, "concat_mask": numbered(1, 4, 6), "set_area_to_bounds": True}],
        [text + 1, {"area": below}],
        [text + 2, {"area": ("percentage", 0.25, 1.0, 0.75, 0.0)}],
    ]
    (first, second) = window.conditioning(copy.copy(conditioning))
    assert set(first[1]) == {"mask"}  # what is of the whole picture is left out
    assert torch.equal(first[0], text[1:])
    assert first[1]["mask"].shape == (2, 16, 16)
    assert first[1]["mask"][0, :, :9].min() > 0.99
    assert first[1]["mask"][1, :, 7:].max() < 0.01
    assert second[1]["mask"][:, :11].max() < 0.01
    assert second[1]["mask"][:, 13:].min() > 0.99
    (alone,) = window.conditioning([conditioning[2]])  # what reaches no window is better than nothing
    assert torch.equal(alone[0], (text + 2)[1:])
    assert "mask" not in alone[1]


@pytest.mark.parametrize(
    ("name", "shape", "times"),
    [
        ("vace_context", (1, 2, 96, 5, 8, 12), 1),
        ("camera_conditions", (1, 24, 5, 64, 96), 8),
        ("control_video", (1, 16, 5, 8, 12), 1),
        ("pose_latents", (1, 16, 5, 4, 6), 0.5),
        ("reference_motion", (1, 16, 3, 8, 12), 1),
        ("ref_latent", (1, 16, 1, 8, 12), 1),
        ("denoise_mask", (1, 1, 5, 8, 12), 1),
        ("condition", (1, 17, 5, 8, 12), 1),
    ],
)
def test_videos_that_control_the_clip_are_cut_as_it_is(cut, pack, conds, name, shape, times):
    value = conds.CONDRegular(numbered(*shape))
    region = cut.Cut(region=pack("vcd_core.tiled").Tile(2, 2, 4, 4), length=5, picture=WHOLE)
    (entry,) = region.entries([{"model_conds": {name: value}}])
    top, height = int(2 * times), int(4 * times)
    expected = value.cond[..., top : top + height, top : top + height]
    assert torch.equal(entry["model_conds"][name].cond, expected)


def test_pictures_beside_the_frames_are_whole_at_the_tiles_size(cut, pack, conds):
    flat = torch.arange(3.0).view(1, 3, 1, 1, 1).expand(1, 3, 2, 8, 12)
    values = {"time_dim_concat": conds.CONDRegular(flat), "reference_latent": conds.CONDRegular(flat[:, :, 0])}
    (entry,) = tile(cut, pack).entries([{"model_conds": values}])
    for name, value in entry["model_conds"].items():
        assert torch.allclose(value.cond, values[name].cond[..., :4, :4])


def test_latents_beside_the_clip_are_cut_where_they_are_of_its_size_and_length(cut, pack, conds):
    own, other, still = numbered(1, 16, 3, 8, 12), numbered(1, 16, 1, 6, 6), numbered(1, 16, 1, 8, 12)
    values = {"context_latents": conds.CONDList([own, other, still])}
    (entry,) = tile(cut, pack).entries([{"model_conds": values}])
    found = entry["model_conds"]["context_latents"].cond
    assert torch.equal(found[0], under(own))
    assert found[1] is other
    assert found[2] is still


def test_guides_have_the_coordinates_that_they_have_in_a_picture_of_the_tiles_size(cut, pack, conds):
    from comfy.ldm.lightricks.symmetric_patchifier import SymmetricPatchifier, latent_to_pixel_coords

    def coordinates(height, width):
        of_cells = SymmetricPatchifier(1, start_end=True).get_latent_coords(2, height, width, 1, torch.device("cpu"))
        return latent_to_pixel_coords(of_cells, (8, 32, 32), True)

    guides = [{"strength": 0.5, "pre_filter_count": 192, "latent_shape": [2, 8, 12], "pixel_mask": None}]
    values = {
        "keyframe_idxs": conds.CONDRegular(coordinates(*WHOLE)),
        "guide_attention_entries": conds.CONDConstant(guides),
    }
    (entry,) = tile(cut, pack).entries([{"model_conds": values}])
    found = entry["model_conds"]
    assert torch.equal(found["keyframe_idxs"].cond, coordinates(4, 4))
    assert found["guide_attention_entries"].cond == [{**guides[0], "pre_filter_count": 32, "latent_shape": [2, 4, 4]}]
    broken = {"keyframe_idxs": conds.CONDRegular(coordinates(*WHOLE)[:, :, 1:])}
    with pytest.raises(ValueError, match=r"'keyframe_idxs' .*8x12 cells of whole frames"):
        tile(cut, pack).entries([{"model_conds": broken}])


@pytest.fixture
def window(cut, pack):
    """Frames 2 to 10 of a clip of 13 in a moving window of half its size, on a VAE that loses nothing."""
    from dev import video_models

    vae = video_models.vae("wan21", lossless=True)
    path = np.stack([np.linspace(28, 36, 9), np.full(9, 32.0)], 1)
    region = pack("vcd_core.face.crop").Windows(0, path, (32.0, 32.0), np.zeros((9, 4)))
    return cut.Cut(frames=range(2, 11), region=region, length=13, picture=(64, 64), size=(48, 48), vae=vae, patch=2)


def seen(pack, window, images):
    """The window of the clip's pictures, as the stage cuts them."""
    picked = images[2:11]
    return pack("vcd_core.face.crop").crop(picked, window.region, window.size)


def test_a_window_of_a_video_is_that_of_its_pictures(pack, window):
    images = torch.rand(13, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    latents = torch.cat([window.vae.encode(images), window.vae.encode(1 - images)], 1)
    ((_, found),) = window.conditioning([[torch.zeros(1, 4, 8), {"vace_frames": [latents], "vace_strength": [1.0]}]])
    shown = seen(pack, window, images)
    expected = torch.cat([window.vae.encode(shown), window.vae.encode(1 - shown)], 1)
    assert torch.allclose(found["vace_frames"][0], expected, atol=1e-5)
    assert found["vace_strength"] == [1.0]


@pytest.mark.parametrize("channels", [1, 4, 64])
def test_a_window_of_masks_over_latents_is_that_of_the_masks_of_its_pictures(pack, window, channels):
    still = torch.zeros(64, 64)
    still[16:, 24:40] = 1
    of_frames = still.expand(4, 64, 64)
    if channels == 64:
        whole = still.view(8, 8, 8, 8).permute(1, 3, 0, 2).reshape(1, 64, 1, 8, 8).expand(1, 64, 4, 8, 8)
    else:
        whole = torch.nn.functional.avg_pool2d(of_frames[None], 8)[:, None].expand(1, channels, 4, 8, 8)
    name = "vace_mask" if channels == 64 else "concat_mask"
    found = window.value(name, whole)
    shown = seen(pack, window, still[None, :, :, None].expand(13, 64, 64, 3))[..., 0]
    first = shown[[0, 4, 8] if channels == 4 else [0, 1, 5]]  # the last, or the first, of each latent frame's pictures
    if channels == 64:
        expected = torch.nn.functional.pixel_unshuffle(first[:, None], 8).movedim(1, 0)[None]
        assert torch.allclose(found, expected, atol=1e-4)
    else:
        expected = torch.nn.functional.avg_pool2d(first[:, None], 8)[:, 0]
        assert found.shape == (1, channels, 3, 6, 6)
        assert torch.allclose(found[0, -1], expected, atol=1e-4)


def test_the_clips_first_picture_is_seen_by_the_faces_of_its_first_frames(pack, cut, window):
    images = torch.rand(13, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    first = window.vae.encode(images[:1])
    assert not window.value("concat_latent_image", first).any()
    begin = cut.Cut(
        frames=range(9), region=window.region, length=13, picture=(64, 64), size=(48, 48), vae=window.vae, patch=2
    )
    shown = pack("vcd_core.face.crop").crop(images[:9], window.region, window.size)[:1]
    assert torch.allclose(begin.value("concat_latent_image", first), window.vae.encode(shown), atol=1e-5)


def test_a_control_video_that_ends_within_a_latent_frame_of_the_clip_holds_its_last_picture(cut, window):
    """As the host's nodes make it of a clip whose length the VAE does not take."""
    images = torch.rand(13, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    latents = window.vae.encode(images)
    whole = cut.Cut(size=(64, 64), length=16, vae=window.vae)
    found = whole.value("vace_frames", latents)
    assert torch.allclose(found, window.vae.encode(torch.cat([images, images[-1:].expand(4, 64, 64, 3)])), atol=1e-5)
    masks = whole.value("vace_mask", torch.ones(1, 64, 4, 8, 8))
    assert torch.equal(masks, torch.ones(1, 64, 5, 8, 8))
    with pytest.raises(ValueError, match="'vace_frames' in the conditioning is of 17 frames, but the clip has 13"):
        cut.Cut(size=(64, 64), length=13, vae=window.vae).value(
            "vace_frames", window.vae.encode(torch.zeros(17, 64, 64, 3))
        )


def test_what_a_window_cannot_be_cut_out_of_is_refused_by_name(cut, window):
    for name, value in {
        "keyframe_idxs": torch.zeros(1, 3, 64, 2), "audio_embed": torch.zeros(1, 20, 8),
        "vace_frames": torch.zeros(1, window.vae.latent_channels, 9, 8, 8),
        "control_video": torch.zeros(1, 7, 4, 8, 8),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"'{name}'"):
            window.value(name, value)
