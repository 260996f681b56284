"""The training of identities on a backend small enough to know the right answer."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import tomllib
import torch
from colours import two_colours
from safetensors.torch import load_file
from torch.nn import functional as F

import vcd_core
from vcd_core import files
from vcd_core.identity import CONTEXT
from vcd_core.pictures import prepare
from vcd_core.plots import LOSS_COLOURS, SERIES, loss_curve
from vcd_core.training import (
    GRADIENT_SCALE,
    PREDICTIONS,
    Album,
    Settings,
    Training,
    drawn_levels,
    initial_vectors,
    masked_loss,
    noised,
    train,
)

QUICK = Settings(size=64, steps=6, batch=3, learning_rate=0.01)


class Clips:
    """A backend for clips of a frame and any number of threes more; the latent of three is their mean."""

    def __init__(self, prediction="flow"):
        self.mean = Mean(prediction)

    def __getattr__(self, name):
        return getattr(self.mean, name)

    def covered(self, frames):
        if frames % 3 != 1:
            raise ValueError(f"{frames} frames")
        return [1, *[3] * (frames // 3)]

    def encode(self, frames):
        small = self.mean.encode(frames).split(self.covered(len(frames)))
        return torch.stack([part.mean(0) for part in small], 1)[None]

    def denoise(self, noised, sigma, context):
        return torch.stack(list(context))[:, 0, :3, None, None, None].expand_as(noised)


class Mean:
    """Estimates every pixel as the mean of the tokens; latents are the pictures, 8 times smaller."""

    norm = 2.0
    cell = sides = 8
    widths, rates = [4], torch.ones(4)
    words_said = 2
    differentiating = contextlib.nullcontext

    def __init__(self, prediction="eps", identity="mean"):
        self.prediction, self.identity, self.encoded, self.denoised = prediction, identity, 0, 0
        self.sigmas = torch.linspace(0.01, 1, 100) if prediction == "flow" else torch.linspace(0.1, 10, 100)

    def words(self, text):
        return torch.arange(4.0).repeat(len(text.split()), 1) + torch.arange(len(text.split()))[:, None]

    def text(self, captions, vectors):
        return vectors.mean(0).expand(len(captions), 1, 4)

    def encode(self, frames):
        self.encoded += 1
        return F.avg_pool2d(frames, 8)

    def covered(self, frames):
        return [1]

    def denoise(self, noised, sigma, context):
        self.denoised += 1
        return torch.stack(list(context))[:, 0, :3, None, None].expand_as(noised)


def ready(images, masks, settings):
    return prepare(images, masks, settings.size, settings.fit)


def learned(masks, **changes):
    settings = replace(QUICK, steps=400, learning_rate=0.05, augment=False, noise_offset=0.0, **changes)
    return train(Mean(), [two_colours()[0]], masks, settings).vectors.mean(0)[:3]


def test_only_what_the_mask_covers_is_learned():
    red = torch.tensor([1.0, 0.0, 0.0])
    assert (learned([two_colours()[1]], unmasked=0.0) - red).abs().max() < 0.2  # cells at the edge are of both
    assert learned(None)[2] > 0.3
    assert learned([two_colours()[1]], unmasked=1.0)[2] > 0.3


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_the_error_of_what_the_model_predicts(prediction):
    vectors = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    backend = Mean(prediction)
    batch = Album(ready([two_colours()[0]], [two_colours()[1]], QUICK), backend, QUICK).draw(3)
    sigma = batch.sigmas.view(-1, 1, 1, 1)
    shown = noised(batch.latents, batch.noise, batch.sigmas, prediction)
    clean = backend.denoise(shown, batch.sigmas, backend.text(batch.captions, vectors))
    if prediction == "eps":
        assert torch.equal(shown, batch.latents + sigma * batch.noise)
        error = (shown - clean) / sigma - batch.noise
    elif prediction == "v":
        a, b = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
        v = (a * (a * shown) - clean) / b  # of the noised latents at unit variance
        error = v - (a * batch.noise - b * batch.latents)
    else:
        velocity = (shown - clean) / sigma  # of the straight line from the latents to the noise
        error = velocity - (batch.noise - batch.latents)
    per = [(e.pow(2) * m).sum() / (m.sum() * 3) for e, m in zip(error, batch.masks, strict=True)]
    assert masked_loss(backend, vectors, batch).item() == pytest.approx(float(sum(per) / len(per)), rel=1e-4)


def test_levels_are_drawn_as_that_kind_of_model_is_trained():
    sigmas, g = torch.linspace(0.001, 1, 1000), torch.Generator().manual_seed(0)
    uniform = drawn_levels(sigmas, 100_000, "eps", g)
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(uniform.std()) == pytest.approx(1 / 12**0.5, abs=0.005)
    normal = torch.logit(drawn_levels(sigmas, 100_000, "flow", g).clamp(0.001, 0.999))
    assert float(normal.mean()) == pytest.approx(0, abs=0.02)
    assert float(normal.std()) == pytest.approx(1, abs=0.02)


def test_a_model_that_knows_some_noise_levels_learns_at_those_alone():
    even = torch.linspace(0.001, 1, 1000)

    def drawn(kind, *part, table=even):
        return drawn_levels(table, 5000, kind, torch.Generator().manual_seed(0), *part)

    for kind in ("eps", "flow"):
        torch.testing.assert_close(drawn(kind, (0.0, 1.0)), drawn(kind), rtol=0, atol=0)
        for low, high in ((0.875, 1.0), (0.0, 0.875), (0.4, 0.6)):
            levels = drawn(kind, (low, high))
            assert low <= levels.min() < low + 0.05
            assert high - 0.05 < levels.max() <= high
        assert len(drawn(kind, (0.5, 0.50001)).unique()) == 1
        assert drawn(kind, (0.50001, 0.50002)).unique().tolist() == pytest.approx([0.501])  # none is so; the next one
    steps = torch.linspace(0.03, 14.6, 1000)  # what has no level of 1 counts its steps
    assert drawn("eps", (0.5, 1.0), table=steps).min() == steps[499]
    shifted = 8 * steps / (steps[-1] + 7 * steps)  # as the host shifts a flow: its levels are meant, not its steps
    assert drawn("flow", (0.0, 0.875), table=shifted).max() == pytest.approx(0.875, abs=0.01)
    batch = Album(ready(*([x] for x in two_colours()), QUICK), Mean("flow"), replace(QUICK, noise_from=0.9)).draw(0)
    assert batch.sigmas.min() >= 0.9
    with pytest.raises(ValueError, match=r"noise_from is 0.9 and noise_to 0.5; expected 0 \(clean\) to 1 \(noise\)"):
        replace(QUICK, noise_from=0.9, noise_to=0.5).check()


def test_a_state_of_before_there_were_such_settings_goes_on(tmp_path):
    path = tmp_path / "old.safetensors"
    training = Training(Mean(), ready(*([x] for x in two_colours()), QUICK), QUICK)
    training.advance()
    training.save(path)
    tensors, about = files.read_state(path)
    new = ("frames", "kind", "noise_from", "noise_to")
    old = {name: value for name, value in json.loads(about["settings"]).items() if name not in new}
    files.write_whole(path, tensors, about | {"settings": json.dumps(old)})
    training.resume(path)
    with pytest.raises(ValueError, match=r"noise_from \(0.0 there, 0.5 here\)"):
        Training(Mean(), training.album.pictures, replace(QUICK, noise_from=0.5)).resume(path)


def test_frames_of_a_clip_count_alike_and_pictures_are_clips_of_one():
    """A latent with an axis of time has the loss of its frames' mean, under one mask."""
    vectors = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    backend = Mean("flow")
    batch = Album(ready([two_colours()[0]], [two_colours()[1]], QUICK), backend, QUICK).draw(3)
    flat = masked_loss(backend, vectors, batch)
    backend.denoise = lambda shown, sigma, told: Mean.denoise(backend, shown[:, :, 0], sigma, told)[:, :, None].expand(
        shown.shape
    )
    one = replace(batch, latents=batch.latents[:, :, None], noise=batch.noise[:, :, None])
    torch.testing.assert_close(masked_loss(backend, vectors, one), flat)
    three = replace(one, latents=one.latents.expand(-1, -1, 3, -1, -1), noise=one.noise.expand(-1, -1, 3, -1, -1))
    torch.testing.assert_close(masked_loss(backend, vectors, three), flat)


def clip_of_colours(count=9):
    """A clip whose masked half is red in its first frame and one step bluer in each that follows."""
    picture, mask = two_colours()
    clip = picture.expand(count, -1, -1, -1).clone()
    for i in range(count):
        clip[i][mask > 0.5] = torch.tensor([1 - i / (count - 1), 0, i / (count - 1)])
    return clip, mask.expand(count, -1, -1)


def test_a_clip_is_seen_in_parts_that_begin_anywhere_with_masks_of_their_own_frames():
    settings = replace(QUICK, frames=4, augment=False, variants=40, unmasked=0.0)
    clip, masks = clip_of_colours()
    masks = masks.clone()
    masks[5:] = 0  # gone: no part begins there, and in what shows it yet the mask is of fewer frames
    picture, mask = two_colours()
    album = Album(ready([clip, picture], [masks, mask], settings), Clips(), settings)
    assert album.starts[0] == [0, 1, 2, 3, 4]
    begins, kinds = set(), set()
    for step in range(100):
        batch = album.draw(step)
        assert batch.masks.shape[1] == batch.latents.shape[2]
        kinds.add(batch.latents.shape[2])
        if batch.latents.shape[2] == 1:
            continue
        for latents, cells in zip(batch.latents, batch.masks, strict=True):
            covered = cells > 0.9 * cells[:1].max()
            first = round(float(latents[2, 0][covered[0]].mean()) * 8)
            begins.add(first)
            left = max(0, min(3, 4 - first)) / 3  # of the three frames behind the first, those with the subject
            assert float(cells[1].max() / cells[0].max()) == pytest.approx(left, abs=0.01)
    assert begins == {0, 1, 2, 3, 4}
    assert kinds == {1, 2}


def test_where_a_clip_ends_tells_trainings_apart_and_a_picture_beside_it_is_encoded_once():
    clip, masks = clip_of_colours()
    settings = replace(QUICK, frames=4, augment=False)
    whole, cut = ([clip], [masks]), ([clip[:5], clip[5:]], [masks[:5], masks[5:]])
    one, two = (Album(ready(*parts, settings), Clips(), settings) for parts in (whole, cut))
    assert one.fingerprint() != two.fingerprint()
    picture, mask = two_colours()
    album = Album(ready([clip, picture], [masks, mask], settings), Clips(), settings)
    for step in range(60):
        album.draw(step)
    assert [which for number, which in album.kept if number == 1] == [0]
    assert len([which for number, which in album.kept if number == 0]) > 8


def test_the_subject_of_a_clip_is_learned_from_its_masked_frames():
    clip, masks = clip_of_colours()
    settings = replace(QUICK, steps=400, learning_rate=0.05, augment=False, noise_offset=0.0, frames=7, unmasked=0.0)
    found = train(Clips("eps"), [clip], [masks], settings).vectors.mean(0)[:3]
    assert (found - torch.tensor([0.5, 0.0, 0.5])).abs().max() < 0.2


def test_a_number_of_frames_that_the_model_does_not_take_is_refused():
    with pytest.raises(ValueError, match="5 frames"):
        train(Clips(), *[[part] for part in clip_of_colours()], replace(QUICK, frames=5))


def test_each_encoders_part_moves_at_its_own_rate():
    """Adam moves every number about the learning rate in its first step; a part of a wider spread moves further."""
    backend = Mean()
    backend.widths, backend.rates = [2, 2], torch.tensor([1.0, 1.0, 50.0, 50.0])
    words = torch.tensor([[0.0, 0.1, 0.0, 30.0], [0.1, 0.0, 30.0, 0.0]])
    backend.words = lambda text: words
    start = initial_vectors(backend, QUICK)
    assert (start[:, :2].abs() < 0.2).all()
    assert (start - words.repeat(2, 1))[:, 2:].std() > 50 * (start - words.repeat(2, 1))[:, :2].std()
    training = Training(backend, ready([two_colours()[0]], None, QUICK), QUICK)
    training.advance()
    moved = (training.vectors.detach() - start).abs()
    assert moved[:, 0] == pytest.approx(QUICK.learning_rate, rel=0.01)
    assert moved[:, 2] == pytest.approx(50 * QUICK.learning_rate, rel=0.01)


def test_a_size_that_the_model_does_not_take_is_refused_with_the_nearest():
    backend = Mean("flow")
    backend.sides = 32
    with pytest.raises(ValueError, match="size is 72; this model takes multiples of 32, the nearest are 64 and 96"):
        train(backend, [two_colours()[0]], None, replace(QUICK, size=72))


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
    backend = Mean()
    again = train(backend, pictures, masks, QUICK, state)
    assert backend.denoised == QUICK.steps - stop  # the others are not done again
    assert torch.equal(again.vectors, whole.vectors)
    assert again.losses == whole.losses


def test_more_steps_go_on_from_a_finished_training(tmp_path):
    pictures, masks = [two_colours()[0]], [two_colours()[1]]
    state = tmp_path / "state.safetensors"
    train(Mean(), pictures, masks, replace(QUICK, steps=3), state)
    backend = Mean()
    longer = train(backend, pictures, masks, QUICK, state)
    assert backend.denoised == QUICK.steps - 3
    assert torch.equal(longer.vectors, train(Mean(), pictures, masks, QUICK).vectors)
    with pytest.raises(ValueError, match="6 steps already, more than 2"):
        train(Mean(), pictures, masks, replace(QUICK, steps=2), state)
    backend = Mean()
    other = train(backend, pictures, masks, replace(QUICK, tokens=2), state)  # finished, so it is begun anew
    assert backend.denoised == QUICK.steps
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
    kept = load_file(state)
    assert len(kept["losses"]) == 2
    assert torch.equal(kept["vectors"], train(Mean(), [two_colours()[0]], None, replace(QUICK, steps=2)).vectors)
    backend = Mean()
    again = train(backend, [two_colours()[0]], None, replace(QUICK, learning_rate=0.005), state)
    assert backend.denoised == len(again.losses) - 2 == QUICK.steps - 2
    assert torch.isfinite(again.vectors).all()


def test_a_gradient_too_large_for_half_precision_is_taken_at_a_lower_scale(tmp_path):
    class Half(Mean):
        """Its gradients pass through half precision, a thousand times too large on the way."""

        def denoise(self, noised, sigma, context):
            context = torch.stack(list(context)).clone()
            context.register_hook(lambda grad: (grad * 1024).half().float() / 1024)
            return super().denoise(noised, sigma, context)

    pictures = [two_colours()[0]], [two_colours()[1]]
    training = Training(Half(), ready(*pictures, QUICK), QUICK)
    for _ in range(QUICK.steps):
        training.advance()
    assert training.scale < GRADIENT_SCALE
    training.save(tmp_path / "half.safetensors")
    again = Training(Half(), ready(*pictures, QUICK), QUICK)
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


def test_a_state_from_before_there_were_kinds_goes_on(tmp_path):
    state, image = tmp_path / "me.safetensors", two_colours()[0]
    training = Training(Mean(), ready([image], None, QUICK), QUICK)
    training.advance()
    training.save(state)
    tensors, about = files.read_state(state)
    before = {key: value for key, value in json.loads(about["settings"]).items() if key != "kind"}
    files.write_whole(state, tensors, {**about, "settings": json.dumps(before)})
    assert len(train(Mean(), [image], None, QUICK, state).losses) == QUICK.steps
    training.save(state)
    with pytest.raises(ValueError, match=r"kind \(tokens there, context vectors here\)"):
        Training(Mean(), ready([image], None, QUICK), replace(QUICK, kind=CONTEXT)).resume(state)


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
    album = Album(ready([two_colours(320)[0]], None, settings), Mean(), settings)
    captions = [caption for step in range(200) for caption in album.draw(step).captions]
    beginnings = {caption.removesuffix("photo of a V*") for caption in captions}
    assert beginnings == {"", "a far away ", "very small ", "zoomed in ", "close up "}


def test_the_curve_shows_the_trend_of_what_was_done_and_room_for_the_rest():
    """Dark pixels fall from left to right over the first half, and there are none in the second."""
    losses = [0.3 - 0.002 * i + 0.02 * (-1) ** i for i in range(100)]
    page = loss_curve(losses, 200, width=512)[0]
    dark = (page - torch.tensor(SERIES[LOSS_COLOURS[1]]) / 255).abs().amax(-1) < 0.02
    columns = [dark[30:84, x].nonzero().float().mean() for x in (80, 130, 200, 250)]
    assert sorted(columns) == columns
    assert not dark[30:84, 300:500].any()
    with_sample = loss_curve(losses, 200, width=512, sample=torch.zeros(1, 64, 128, 3))[0]
    assert with_sample.shape[0] == page.shape[0] + 256
    assert with_sample[:256].max() == 0


def test_a_caption_that_is_too_long_is_refused_before_the_first_step():
    backend = Mean()
    most = len("a far away photo of a V*") - 1

    def text(captions, vectors):
        if any(len(caption) > most for caption in captions):
            raise ValueError("too long")
        return Mean.text(backend, captions, vectors)

    backend.text = text
    with pytest.raises(ValueError, match="too long"):
        Training(backend, ready([two_colours()[0]], None, QUICK), QUICK)


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
    training = Training(backend, ready([two_colours()[0]], None, QUICK), QUICK)
    training.advance(), training.advance()
    before = training.vectors.detach().clone()
    with pytest.raises(ValueError, match=r"step 3 is (nan|inf).*force-fp32"):
        training.advance()
    assert torch.equal(training.vectors, before)


def test_tokens_start_from_words_and_stay_within_the_norm():
    start = initial_vectors(Mean(), replace(QUICK, tokens=3, initial_words="red hair"))
    words = Mean().words("red hair")
    assert (start - words[[0, 1, 0]]).abs().max() < 0.5  # the two words' vectors are 1 apart in each place
    assert not torch.equal(start[0], start[2])
    with pytest.raises(ValueError, match="no initial words"):
        initial_vectors(Mean(), replace(QUICK, class_word=" "))
    clamped = train(Mean(), [two_colours()[0]], None, replace(QUICK, clamp_norm=True)).vectors
    assert clamped.norm(dim=1).max() < 2.001
    assert train(Mean(), [two_colours()[0]], None, QUICK).vectors.norm(dim=1).max() > 2.1


def test_the_version_is_the_package_s():
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == vcd_core.__version__
