"""Preparing pictures for training: crops, masks, augmentations and what is refused."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from colours import two_colours
from PIL import Image

from vcd_core.pictures import Picture, augment, beside, bucket, cells, open_pictures, prepare, read, save_beside
from vcd_core.training import Settings, generator

QUICK = Settings(size=64)
BLACK, DOT = torch.zeros(96, 96), torch.zeros(96, 96)
DOT[40, 40] = 1


def square(size):
    image, mask = two_colours(size)
    return Picture(image.movedim(-1, 0)[None], mask[None])


def ready(images, masks, settings=QUICK):
    return prepare(images, masks, settings.size, settings.fit)


def test_small_pictures_are_not_shrunk_until_nothing_is_left():
    picture = square(128)
    sides = []
    for i in range(100):
        changed, word = augment(picture, generator(0, i))
        sides.append(math.sqrt(float(changed.mask.sum() / picture.mask.sum())))
        assert word not in ("a far away ", "very small ")
    assert 0.72 < min(sides) < 0.8  # 96 of 128 pixels


def test_variants_are_those_of_the_paper():
    picture = square(288)
    areas, words = [], []
    for i in range(300):
        changed, word = augment(picture, generator(0, i))
        assert changed.image.shape == picture.image.shape
        inside = changed.mask > 0.99
        assert (changed.image[:, 0][inside] > 0.9).all()  # the mask goes with the picture
        areas.append(math.sqrt(float(changed.mask.sum() / picture.mask.sum())))
        words.append(word)
    assert 0.28 < min(areas) < 0.4
    assert 1.3 < max(areas) < 1.45
    near = [area for area, word in zip(areas, words, strict=True) if word in ("zoomed in ", "close up ")]
    assert 0.25 < len(near) / 300 < 0.42
    assert min(near) > 1.1


def moving_square():
    """A clip in which a red square goes across, and is gone in the last frame."""
    clip, masks = torch.zeros(6, 200, 200, 3), torch.zeros(6, 200, 200)
    for i in range(5):
        masks[i, 80:110, 20 + 24 * i : 50 + 24 * i] = 1
    clip[..., 0] = masks
    return clip, masks


def test_all_frames_of_a_clip_are_cropped_and_changed_alike():
    clip, masks = moving_square()
    prepared = ready([clip], [masks])[0]
    assert prepared.image.shape == (6, 3, 64, 64)
    assert torch.allclose(prepared.image[:, 0], prepared.mask, atol=1e-5)
    side = 30 * 64 / 189  # the crop's is 1.5 times what the square covers on its way
    assert prepared.mask.sum((1, 2)).tolist() == pytest.approx([side**2] * 5 + [0], abs=3)
    for i in range(20):
        changed, _ = augment(prepared, generator(0, i))
        assert (changed.image[:, 0] - changed.mask)[changed.mask > 0.99].abs().max() < 0.1
        large = changed.mask.sum((1, 2))
        uncut = large[[int(f) for f in large[:5].argsort()[2:]]]  # the middle ones, which enlarging does not cut
        assert float(uncut.max() - uncut.min()) < 0.1 * float(uncut.max())


def test_preparation_crops_around_the_mask_and_keeps_aspects():
    picture, mask = torch.zeros(100, 300, 3), torch.zeros(100, 300)
    picture[40:60, 250:270] = 1
    mask[40:60, 250:270] = 1
    around = ready([picture], [mask], QUICK)[0]
    assert around.image.shape == (1, 3, 64, 64)
    assert 0.35 < float(around.mask.mean()) < 0.55  # 20 of 30 pixels a side
    assert torch.allclose(around.image[:, 0], around.mask, atol=1e-5)
    tall = torch.zeros(120, 40)
    tall[5:115, 10:30] = 1  # a standing person, higher than the picture is wide
    standing = ready([tall[..., None].expand(-1, -1, 3)], [tall], QUICK)[0]
    assert standing.image.shape == (1, 3, 64, 64)
    assert float(standing.mask.sum()) == pytest.approx(64 * 64 * 20 / 110, rel=0.05)  # all of it is there
    whole = ready([picture], [mask], replace(QUICK, size=256, fit="whole picture"))[0]
    assert whole.image.shape[2:] == bucket(100, 300, 256) == (128, 448)
    assert float(whole.mask.sum()) == pytest.approx((20 * 448 / 300) ** 2, rel=0.05)


def test_alpha_is_the_mask_and_pictures_are_turned_upright(tmp_path):
    upright = np.zeros((40, 80, 4), np.uint8)
    upright[:20, :, :] = 255
    plain = Image.fromarray(upright)
    turned = plain.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    turned.save(tmp_path / "b.jpg", exif=exif, quality=100)
    plain.save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves beside a file")
    (png, alpha), (jpg, full) = open_pictures(tmp_path)
    assert png.shape == jpg.shape == (40, 80, 3)
    assert alpha[:20].min() == 1
    assert alpha[20:].max() == 0
    assert full.min() == 1
    assert jpg[:18].min() > 0.9
    assert jpg[22:].max() < 0.1
    rgba = torch.cat([png, alpha[..., None]], -1)
    assert float(ready([rgba], None, replace(QUICK, fit="whole picture"))[0].mask[0, :30].mean()) > 0.9
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture in empty"):
        open_pictures(tmp_path / "empty")
    (tmp_path / "c.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"c\.png cannot be read"):
        open_pictures(tmp_path)


def test_grey_pictures_of_16_bits_keep_their_greys(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "scan.png")
    (picture, _), *_ = open_pictures(tmp_path)
    assert (picture[..., 0] - torch.from_numpy(ramp / 65535)).abs().max() < 0.01


def png(picture, **more):
    file = io.BytesIO()
    picture.save(file, "PNG", **more)
    return file.getvalue()


def tiff(picture):
    file = io.BytesIO()
    picture.save(file, "TIFF")
    return file.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: png(Image.new("1", (14000, 13000))), "more than 178 megapixels"),
        (lambda: png(NOISE)[:4000], ""),
        (lambda: png(NOISE)[:60] + b"????" + png(NOISE)[64:], ""),
        (lambda: tiff(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))), "decimal numbers"),
        (lambda: tiff(Image.fromarray(np.full((8, 8), 70000, np.int32))), "32 bits a pixel"),
        (lambda: b"", ""),
    ],
)
def test_a_picture_that_cannot_be_read_is_named(tmp_path, content, said):
    NOISE.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(content())
    with pytest.raises(ValueError, match=rf"b\.png cannot be read as a picture: .*{said}"):
        open_pictures(tmp_path)


def test_pictures_of_odd_modes_keep_their_colours_and_masks(tmp_path):
    grey = Image.fromarray(np.repeat(np.arange(0, 256, 4, dtype=np.uint8), 64).reshape(64, 64))
    opaque = Image.fromarray(np.where(np.arange(64)[:, None] < 32, 255, 0).repeat(64, 1).astype(np.uint8))
    alpha = Image.merge("LA", (grey, opaque))
    palette = grey.convert("P")
    (tmp_path / "a.png").write_bytes(png(grey))
    (tmp_path / "b.png").write_bytes(png(alpha))
    (tmp_path / "c.png").write_bytes(png(palette, transparency=0))
    (tmp_path / "d.jpg").write_bytes(b"")
    grey.convert("CMYK").save(tmp_path / "d.jpg", quality=100, subsampling=0)
    (tmp_path / "e.png").write_bytes(png(grey.point(lambda v: 255 * (v > 127), "1")))
    (plain, _), (la, mask), (p, holes), (cmyk, _), (bits, _) = open_pictures(tmp_path)
    for picture in (la, p, cmyk):
        assert (picture - plain).abs().max() < 0.02
    assert mask[:32].min() == 1
    assert mask[32:].max() == 0
    assert holes[0].max() == 0
    assert holes[1:].min() == 1
    assert set(bits.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("images", "masks", "shown"),
    [
        ([], None, "no picture"),
        ([two_colours()[0]] * 2, [two_colours()[1]], "2 pictures and 1 masks"),
        ([two_colours()[0]], [torch.ones(50, 96)], "mask of picture 0 is 96x50 and the picture 96x96"),
        ([two_colours()[0]] * 2, [two_colours()[1], BLACK], "mask of picture 1 is black"),
        ([torch.full((96, 96, 3), math.nan)], None, "Picture 0 holds NaN"),
    ],
)
def test_bad_pictures_are_refused(images, masks, shown):
    with pytest.raises(ValueError, match=shown):
        ready(images, masks, QUICK)


def test_a_mask_below_one_cell_is_refused_where_it_stays_so():
    with pytest.raises(ValueError, match="picture 0 covers less than one latent cell"):
        ready([two_colours()[0]], [DOT], replace(QUICK, fit="whole picture"))
    assert cells(ready([two_colours()[0]], [DOT], QUICK)[0].mask).sum() > 1  # the crop enlarges it


def test_a_model_files_picture_is_written_beside_it_and_never_over_the_users_own(tmp_path):
    file, image = tmp_path / "me.v2.safetensors", torch.rand(5, 7, 3)
    save_beside(file, image)
    assert [path.name for path in tmp_path.iterdir()] == ["me.v2.png"]
    assert (read(beside(file))[..., :3] - image).abs().max() <= 0.5 / 255 + 1e-6
    save_beside(file, 1 - image)
    assert (read(beside(file))[..., :3] - (1 - image)).abs().max() <= 0.5 / 255 + 1e-6
    save_beside(file, None)  # the picture of an identity that was overwritten
    assert not beside(file).exists()
    Image.new("RGB", (4, 4), "red").save(beside(file))
    kept = beside(file).read_bytes()
    save_beside(file, image)
    save_beside(file, None)
    assert beside(file).read_bytes() == kept
