"""The training of identities on a backend small enough to know the right answer."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomllib
import torch
from PIL import Image
from torch.nn import functional as F

import vcd_core
from vcd_core.id_training import (
    GRADIENT_SCALE,
    Album,
    Picture,
    Settings,
    Training,
    augment,
    bucket,
    cells,
    generator,
    initial_vectors,
    masked_loss,
    open_pictures,
    prepare,
    train,
)

QUICK = Settings(size=64, steps=6, batch=3, learning_rate=0.01)


class Mean:
    """Estimates every pixel as the mean of the tokens; latents are the pictures, 8 times smaller."""

    sigmas = torch.linspace(0.1, 10, 100)
    norm = 2.0
    words_said = 2

    def __init__(self, prediction="eps", identity="mean"):
        self.prediction, self.identity, self.encoded, self.captions = prediction, identity, 0, []

    def words(self, text):
        return torch.arange(4.0).repeat(len(text.split()), 1) + torch.arange(len(text.split()))[:, None]

    def text(self, captions, vectors):
        self.captions += captions
        return vectors.mean(0).expand(len(captions), 1, 4)

    def encode(self, pictures):
        self.encoded += len(pictures)
        return F.avg_pool2d(pictures, 8)

    def denoise(self, noised, sigma, context):
        return context[:, 0, :3, None, None].expand_as(noised)


def two_colours(size=96):
    """Red inside the mask, blue outside."""
    picture, mask = torch.zeros(size, size, 3), torch.zeros(size, size)
    picture[..., 2] = 1
    middle = slice(size // 4, 3 * size // 4)
    mask[middle, middle] = 1
    picture[middle, middle] = torch.tensor([1.0, 0.0, 0.0])
    return picture, mask


def learned(masks, **changes):
    settings = replace(QUICK, steps=400, learning_rate=0.05, augment=False, noise_offset=0.0, **changes)
    return train(Mean(), [two_colours()[0]], masks, settings).vectors.mean(0)[:3]


def test_only_what_the_mask_covers_is_learned():
    red = torch.tensor([1.0, 0.0, 0.0])
    assert (learned([two_colours()[1]], unmasked=0.0) - red).abs().max() < 0.2  # cells at the edge are of both
    assert learned(None)[2] > 0.3
    assert learned([two_colours()[1]], unmasked=1.0)[2] > 0.3


def test_loss_is_the_error_of_noise_or_of_v():
    vectors = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    for prediction in ("eps", "v"):
        backend = Mean(prediction)
        batch = Album(prepare([two_colours()[0]], [two_colours()[1]], QUICK), backend, QUICK).draw(3)
        sigma = batch.sigmas.view(-1, 1, 1, 1)
        noised = batch.latents + sigma * batch.noise
        clean = backend.denoise(noised, batch.sigmas, backend.text(batch.captions, vectors))
        if prediction == "eps":
            error = (noised - clean) / sigma - batch.noise
        else:
            a, b = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
            v = (a * (a * noised) - clean) / b  # of the noised latents at unit variance
            error = v - (a * batch.noise - b * batch.latents)
        per = [(e.pow(2) * m).sum() / (m.sum() * 3) for e, m in zip(error, batch.masks, strict=True)]
        assert masked_loss(backend, vectors, batch).item() == pytest.approx(float(sum(per) / len(per)), rel=1e-4)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_training_ends_with_the_same_bits(tmp_path, stop):
    pictures, masks = zip(two_colours(), two_colours(80), strict=True)
    whole = train(Mean(), pictures, masks, QUICK)

    def interrupt(training):
        if training.step == stop:
            raise KeyboardInterrupt

    state = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(Mean(), pictures, masks, QUICK, state, on_step=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [state.name]
    again = train(Mean(), pictures, masks, QUICK, state)
    assert torch.equal(again.vectors, whole.vectors)
    assert again.losses == whole.losses


def test_more_steps_go_on_from_a_finished_training(tmp_path):
    pictures, masks = [two_colours()[0]], [two_colours()[1]]
    state = tmp_path / "state.safetensors"
    train(Mean(), pictures, masks, replace(QUICK, steps=3), state)
    longer = train(Mean(), pictures, masks, QUICK, state)
    assert torch.equal(longer.vectors, train(Mean(), pictures, masks, QUICK).vectors)
    with pytest.raises(ValueError, match="6 steps already, more than 2"):
        train(Mean(), pictures, masks, replace(QUICK, steps=2), state)
    other = train(Mean(), pictures, masks, replace(QUICK, tokens=2), state)  # finished, so it is begun anew
    assert other.vectors.shape == (2, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.safetensors", "state_001.safetensors"]


def test_a_gradient_that_overflows_keeps_tokens_and_state(tmp_path):
    backend, state = Mean(), tmp_path / "state.safetensors"

    def denoise(noised, sigma, context):
        clean = Mean.denoise(backend, noised, sigma, context)
        if len(seen) == 2:
            clean.register_hook(lambda grad: grad * torch.inf)
        return clean

    seen = []
    backend.denoise = denoise
    with pytest.raises(ValueError, match="gradient is not finite"):
        train(backend, [two_colours()[0]], None, QUICK, state, save_every=1, on_step=lambda training: seen.append(1))
    backend.denoise = lambda *arguments: Mean.denoise(backend, *arguments)
    again = train(backend, [two_colours()[0]], None, replace(QUICK, learning_rate=0.005), state)
    assert len(again.losses) == QUICK.steps
    assert torch.isfinite(again.vectors).all()


def test_a_gradient_too_large_for_half_precision_is_taken_at_a_lower_scale(tmp_path):
    class Half(Mean):
        """Its gradients pass through half precision, a thousand times too large on the way."""

        def denoise(self, noised, sigma, context):
            context = context.clone()
            context.register_hook(lambda grad: (grad * 1024).half().float() / 1024)
            return super().denoise(noised, sigma, context)

    pictures = [two_colours()[0]], [two_colours()[1]]
    training = Training(Half(), prepare(*pictures, QUICK), QUICK)
    for _ in range(QUICK.steps):
        training.advance()
    assert training.scale < GRADIENT_SCALE
    training.save(tmp_path / "half.safetensors")
    again = Training(Half(), prepare(*pictures, QUICK), QUICK)
    again.resume(tmp_path / "half.safetensors")
    assert again.scale == training.scale
    assert (training.vectors - train(Mean(), *pictures, QUICK).vectors).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("backend", "changes", "shown"),
    [
        (Mean(), {"tokens": 2}, "tokens \\(4 there, 2 here\\)"),
        (Mean(identity="other"), {}, "model"),
        (Mean(), {"seed": 5}, "seed"),
    ],
)
def test_an_unfinished_state_of_another_training_is_refused(tmp_path, backend, changes, shown):
    pictures, masks = [two_colours()[0]], [two_colours()[1]]
    state = tmp_path / "mine.safetensors"

    def interrupt(training):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Mean(), pictures, masks, QUICK, state, on_step=interrupt)
    before = state.read_bytes()
    with pytest.raises(ValueError, match=f"'mine' was begun otherwise.*{shown}.*turn resume off"):
        train(backend, pictures, masks, replace(QUICK, **changes), state)
    assert state.read_bytes() == before
    assert len(train(backend, pictures, masks, replace(QUICK, **changes), state, resume=False).losses) == QUICK.steps


def test_a_truncated_state_is_reported(tmp_path):
    state = tmp_path / "mine.safetensors"
    train(Mean(), [two_colours()[0]], None, QUICK, state)
    state.write_bytes(state.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"mine.safetensors cannot be read"):
        train(Mean(), [two_colours()[0]], None, QUICK, state)


def test_a_full_disk_does_not_cost_the_training(tmp_path, monkeypatch, caplog):
    def full(path, content):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    report = train(Mean(), [two_colours()[0]], None, QUICK, tmp_path / "mine.safetensors", save_every=2)
    assert len(report.losses) == QUICK.steps
    assert "No space left" in caplog.text
    assert not list(tmp_path.iterdir())


def test_global_random_state_is_not_touched():
    before = torch.get_rng_state()
    train(Mean(), [two_colours()[0]], None, QUICK)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_variant_is_encoded_once():
    backend = Mean()
    train(backend, [two_colours()[0]], None, replace(QUICK, steps=100, variants=5))
    assert backend.encoded == 5
    plain = Mean()
    train(plain, [two_colours()[0]], None, replace(QUICK, steps=20, augment=False))
    assert plain.encoded == 1


def test_captions_say_how_large_the_subject_is():
    settings = replace(QUICK, variants=60, size=320)
    album = Album(prepare([two_colours(320)[0]], None, settings), Mean(), settings)
    captions = [caption for step in range(200) for caption in album.draw(step).captions]
    beginnings = {caption.removesuffix("photo of a V*") for caption in captions}
    assert beginnings == {"", "a far away ", "very small ", "zoomed in ", "close up "}


def test_a_caption_that_is_too_long_is_refused_before_the_first_step():
    backend = Mean()
    most = len("a far away photo of a V*") - 1

    def text(captions, vectors):
        if any(len(caption) > most for caption in captions):
            raise ValueError("too long")
        return Mean.text(backend, captions, vectors)

    backend.text = text
    with pytest.raises(ValueError, match="too long"):
        Training(backend, prepare([two_colours()[0]], None, QUICK), QUICK)


def square(size):
    image, mask = two_colours(size)
    return Picture(image.movedim(-1, 0), mask)


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
        assert (changed.image[0][inside] > 0.9).all()  # the mask goes with the picture
        areas.append(math.sqrt(float(changed.mask.sum() / picture.mask.sum())))
        words.append(word)
    assert 0.28 < min(areas) < 0.4
    assert 1.3 < max(areas) < 1.45
    near = [area for area, word in zip(areas, words, strict=True) if word in ("zoomed in ", "close up ")]
    assert 0.25 < len(near) / 300 < 0.42
    assert min(near) > 1.1


def test_preparation_crops_around_the_mask_and_keeps_aspects():
    picture, mask = torch.zeros(100, 300, 3), torch.zeros(100, 300)
    picture[40:60, 250:270] = 1
    mask[40:60, 250:270] = 1
    around = prepare([picture], [mask], QUICK)[0]
    assert around.image.shape == (3, 64, 64)
    assert 0.35 < float(around.mask.mean()) < 0.55  # 20 of 30 pixels a side
    assert torch.allclose(around.image[0], around.mask, atol=1e-5)
    tall = torch.zeros(120, 40)
    tall[5:115, 10:30] = 1  # a standing person, higher than the picture is wide
    standing = prepare([tall[..., None].expand(-1, -1, 3)], [tall], QUICK)[0]
    assert standing.image.shape == (3, 64, 64)
    assert float(standing.mask.sum()) == pytest.approx(64 * 64 * 20 / 110, rel=0.05)  # all of it is there
    whole = prepare([picture], [mask], replace(QUICK, size=256, fit="whole picture"))[0]
    assert whole.image.shape[1:] == bucket(100, 300, 256) == (128, 448)
    assert float(whole.mask.sum()) > 0


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
    assert float(prepare([rgba], None, replace(QUICK, fit="whole picture"))[0].mask[:30].mean()) > 0.9
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


BLACK, DOT = torch.zeros(96, 96), torch.zeros(96, 96)
DOT[40, 40] = 1


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
        prepare(images, masks, QUICK)


def test_a_mask_below_one_cell_is_refused_where_it_stays_so():
    with pytest.raises(ValueError, match="picture 0 covers less than one latent cell"):
        prepare([two_colours()[0]], [DOT], replace(QUICK, fit="whole picture"))
    assert cells(prepare([two_colours()[0]], [DOT], QUICK)[0].mask).sum() > 1  # the crop enlarges it


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"tokens": 0}, "1 to 32"),
        ({"tokens": 33}, "1 to 32"),
        ({"template": "photo"}, "no V"),
        ({"size": 100}, "multiple"),
    ],
)
def test_settings_out_of_range_are_refused(changes, shown):
    with pytest.raises(ValueError, match=shown):
        train(Mean(), [two_colours()[0]], None, replace(QUICK, **changes))


def test_a_loss_that_is_no_number_keeps_the_tokens(tmp_path):
    backend = Mean()
    backend.denoise = lambda noised, sigma, context: (
        Mean.denoise(backend, noised, sigma, context) / (len(training.losses) != 2)
    )
    training = Training(backend, prepare([two_colours()[0]], None, QUICK), QUICK)
    training.advance(), training.advance()
    before = training.vectors.detach().clone()
    with pytest.raises(ValueError, match=r"step 3 is (nan|inf).*force-fp32"):
        training.advance()
    assert torch.equal(training.vectors, before)


def test_tokens_start_from_words_and_stay_within_the_norm():
    start = initial_vectors(Mean(), replace(QUICK, tokens=3, initial_words="red hair"))
    words = Mean().words("red hair")
    assert (start - words[[0, 1, 0]]).abs().max() < 1
    assert not torch.equal(start[0], start[2])
    with pytest.raises(ValueError, match="no initial words"):
        initial_vectors(Mean(), replace(QUICK, class_word=" "))
    clamped = train(Mean(), [two_colours()[0]], None, replace(QUICK, clamp_norm=True)).vectors
    assert clamped.norm(dim=1).max() < 2.001
    assert train(Mean(), [two_colours()[0]], None, QUICK).vectors.norm(dim=1).max() > 2.1


def test_the_version_is_the_package_s():
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == vcd_core.__version__
