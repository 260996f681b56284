"""Identities learned on the host's models of many kinds, tiny and random, in this process."""

import contextlib
import hashlib
from dataclasses import replace

import pytest
import torch

from dev import random_models, video_models
from vcd_core import training as core
from vcd_core.identity import CONTEXT, TOKENS
from vcd_core.pictures import prepare

ENCODERS = {"ltxv": "t5xxl", "hunyuan": "llama"}  # of the others UMT5, also where their own is too large for a test
MODELS = ["sd15", "sdxl", "flux", *video_models.KINDS, *video_models.WITH_SOUND]
CASES = [(model, kind) for model in MODELS for kind in (TOKENS, CONTEXT) if (model, kind) != ("hunyuan", TOKENS)]
QUICK = core.Settings(size=64, steps=8, batch=2, tokens=2, augment=False, unmasked=0.0)


@pytest.fixture(scope="module")
def parts(pack):
    """``parts("wan21")``: MODEL, CLIP and VAE of a kind, made once, as a loader node makes them."""
    pack("nodes.host.files")
    known = {}

    def make(kind):
        if kind not in known:
            with torch.inference_mode():
                if kind in ("sd15", "sdxl", "flux"):
                    known[kind] = getattr(random_models, f"tiny_{kind}")()
                else:
                    text = video_models.text_encoder(ENCODERS.get(kind, "umt5xxl"), width=video_models.text_width(kind))
                    known[kind] = video_models.model(kind), text, video_models.vae(kind)
        return known[kind]

    return make


@pytest.fixture
def learner(pack, parts):
    """``learner("wan21", TOKENS)``: the backend; gradients are on as long as the test runs."""
    learned = pack("nodes.host.learned")
    with pack("nodes.host.gradients").gradients():
        yield lambda model, kind: learned.backend_of(kind)(*parts(model), "man")


def two_halves():
    picture = torch.full((96, 96, 3), 0.9)
    picture[:, 48:] = torch.tensor([0.1, 0.2, 0.6])
    mask = torch.zeros(96, 96)
    mask[8:88, 40:] = 1
    return [picture, picture.flip(1)], [mask, mask.flip(1)]


def training_of(backend, kind, **changes):
    settings = replace(QUICK, kind=kind, learning_rate=0.05 if kind == TOKENS else 0.2, **changes)
    pictures = prepare(*two_halves(), settings.size, settings.fit, backend.cell)
    return core.Training(backend, pictures, settings)


def loss_of(training, vectors, steps=range(1000, 1003)):
    """The loss on noise that no step of a training draws."""
    with torch.no_grad():
        batches = [training.album.draw(step) for step in steps]
        return sum(float(core.masked_loss(training.backend, vectors, batch)) for batch in batches) / len(batches)


def bits(backend):
    digest = hashlib.sha256()
    for part in (backend.model.model, backend.clip.cond_stage_model):
        for value in part.state_dict().values():
            digest.update(value.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_the_gradient_is_that_of_the_loss(learner, model, kind):
    """Against differences of the loss itself; the host's code writes over what it has computed."""
    backend = learner(model, kind)
    training = training_of(backend, kind)
    batch = training.album.draw(0)
    with backend.differentiating():
        core.masked_loss(backend, training.vectors, batch).backward()
    gradient = training.vectors.grad
    parts = zip(gradient.split(backend.widths, 1), training.vectors.detach().split(backend.widths, 1), strict=True)
    step = torch.cat([0.02 * along.sign() * own.std() for along, own in parts], 1)
    with torch.no_grad():
        high, low = (float(core.masked_loss(backend, training.vectors + s * step, batch)) for s in (1, -1))
    assert high - low == pytest.approx(2 * float((gradient * step).sum()), rel=0.1)
    assert all(weight.grad is None for weight in backend.model.model.parameters())


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_it_learns_and_the_model_stays(learner, model, kind):
    backend = learner(model, kind)
    training, before = training_of(backend, kind), bits(backend)
    start = training.vectors.detach().clone()
    first = loss_of(training, start)
    while training.step < QUICK.steps:
        training.advance()
    last = loss_of(training, training.vectors.detach())
    assert last < first
    assert bits(backend) == before


@pytest.mark.parametrize(("model", "kind"), [case for case in CASES if case[1] == CONTEXT])
def test_layers_computed_again_give_the_same_gradient(pack, learner, model, kind):
    backend = learner(model, kind)
    found = []
    for again in (False, True):
        training = training_of(backend, kind)
        batch = training.album.draw(0)
        recomputed = pack("nodes.host.gradients").recomputed(backend.model) if again else contextlib.nullcontext()
        with recomputed, backend.differentiating():
            core.masked_loss(backend, training.vectors, batch).backward()
        found.append(training.vectors.grad)
    torch.testing.assert_close(*found)
    assert pack("nodes.host.gradients").layers_of(backend.model.model.diffusion_model)


CLIPS = {"ltxv": 9, "ltx2": 9, "h3": 5}  # of the others 5 frames are two latents


def taken_up(count):
    """A clip of the two halves, its picture brighter from frame to frame."""
    pictures, masks = two_halves()
    light = torch.linspace(0.5, 1, count).view(-1, 1, 1, 1)
    return [pictures[0] * light, pictures[1]], [masks[0].expand(count, -1, -1), masks[1]]


@pytest.mark.parametrize("model", [*video_models.KINDS, *video_models.WITH_SOUND])
def test_clips_are_learned_beside_pictures(learner, model):
    backend, frames = learner(model, CONTEXT), CLIPS.get(model, 5)
    settings = replace(QUICK, kind=CONTEXT, learning_rate=0.2, frames=frames)
    pictures = prepare(*taken_up(frames + 2), settings.size, settings.fit, backend.cell)
    training = core.Training(backend, pictures, settings)
    kinds = {training.album.draw(step).masks.shape[1] for step in range(20)}
    assert kinds == {1, len(backend.covered(frames))}
    assert len(backend.covered(frames)) > 1
    first = loss_of(training, training.vectors.detach().clone())
    while training.step < QUICK.steps:
        training.advance()
    assert loss_of(training, training.vectors.detach()) < first


@pytest.mark.parametrize(("model", "frames"), [("ltx2", 9), ("h3", 22)])
def test_the_silence_beside_a_clip_is_as_long_as_the_clip(pack, learner, model, frames):
    backend = learner(model, CONTEXT)
    latent = backend.encode(torch.zeros(frames, 3, 64, 64))
    heard = pack("nodes.host.estimate")._with_silence(backend.model, latent)[1][1]
    silence = pack("nodes.host.nested").empty_sound
    assert heard == silence(backend.model, frames).shape != silence(backend.model, 1).shape


def test_of_weights_in_low_precision_no_copy_is_kept_for_the_backward_pass(pack, parts):
    """A model's float32 copy of its 8 or 16 bits would stand in memory whole."""
    with torch.inference_mode():
        low, clip, vae = random_models.tiny_sd15(dtype=torch.bfloat16, compute=torch.float32)
    found, kept = [], []
    for model in (low, parts("sd15")[0]):
        with pack("nodes.host.gradients").gradients():
            backend = pack("nodes.host.learned").ContextModel(model, clip, vae, "man")
            training = training_of(backend, CONTEXT)
            batch = training.album.draw(0)
            with backend.differentiating():
                keep = torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.shape), t)[1], lambda t: t)
                with keep:
                    loss = core.masked_loss(backend, training.vectors, batch)
                loss.backward()
        found.append(training.vectors.grad)
    layers = low.model.diffusion_model.modules()
    weights = {part.weight.shape for part in layers if isinstance(part, (torch.nn.Linear, torch.nn.Conv2d))}
    assert kept
    assert not weights & set(kept)
    assert (found[0] - found[1]).norm() < 0.1 * found[1].norm()  # the weights were rounded


def test_a_flow_goes_on_to_the_same_bits(learner, tmp_path):
    backend = learner("wan21", CONTEXT)
    whole, first, second = (training_of(backend, CONTEXT) for _ in range(3))
    for training, count in ((whole, 4), (first, 2)):
        while training.step < count:
            training.advance()
    first.save(tmp_path / "state.safetensors")
    second.resume(tmp_path / "state.safetensors")
    while second.step < 4:
        second.advance()
    assert torch.equal(second.vectors, whole.vectors)
    assert second.losses == whole.losses


FAST = {
    "name": "tests/anna", "class_word": "woman", "tokens": 2, "steps": 2, "batch": 1, "learning_rate": 0.02, "size": 64,
    "fit": "crop around the mask", "template": "photo of a V*", "sample_every": 0, "resume": False, "seed": 3,
}  # fmt: skip


@pytest.fixture
def trained(pack, parts, tmp_path):
    """``trained("wan21", kind=CONTEXT)``: the trainer's outputs, with two-coloured pictures."""
    import folder_paths

    trainer, before = pack("nodes.training").IdTrainer, folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))

    def train(model, pictures=None, **changes):
        pictures, masks = (
            [part.reshape(-1, *part.shape[-n:]) for part in found]
            for n, found in zip((3, 2), pictures or two_halves(), strict=True)
        )
        inputs = {name: [value] for name, value in {**FAST, **changes}.items()}
        with torch.inference_mode():  # as the host runs a node
            one, clip, vae = parts(model)
            return trainer.execute([one], [clip], [vae], pictures, masks=masks, **inputs)

    yield train
    folder_paths.set_output_directory(before)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("sdxl", TOKENS),
        ("flux", TOKENS),
        ("wan21", TOKENS),
        ("wan21", CONTEXT),
        ("hunyuan", CONTEXT),
        ("ltx2", CONTEXT),
    ],
)
def test_the_trainer_gives_an_identity_for_the_model_and_its_picture(pack, parts, trained, tmp_path, model, kind):
    learned, loss, images = trained(model, kind=kind).args
    assert images.shape == (1, 64, 64, 3)
    assert images.isfinite().all()
    assert len(loss["loss"]) == 2
    identity, clip = pack("nodes.identity"), parts(model)[1]
    encoders = pack("nodes.host.text").text_widths(clip)
    assert learned.tokens.provenance["text_encoders"] == ", ".join(encoders)
    path = pack("vcd_core.identity").save(learned.tokens, tmp_path, "anna")
    again = pack("vcd_core.identity").load(path)
    assert again.kind == kind
    if kind == TOKENS:
        assert {name: table.shape[1] for name, table in again.by_encoder(encoders).items()} == encoders
    with torch.inference_mode():
        found = identity.encode_prompt(clip, "photo of V*", {"anna": replace(learned, tokens=again)})
        bare = identity.encode_prompt(clip, "photo of woman", {})
    length = min(found[0][0].shape[1], bare[0][0].shape[1])
    assert not torch.equal(found[0][0][:, -length:], bare[0][0][:, -length:])


def test_the_trainer_tells_of_clips_and_refuses_lengths_that_the_model_does_not_take(trained):
    learned = trained("wan21", taken_up(7), kind=CONTEXT, clip_frames=5).args[0]
    assert learned.tokens.provenance["pictures"] == "1"
    assert learned.tokens.provenance["clips"] == "1, of 7 frames, 5 together"
    assert trained("sdxl", taken_up(3), kind=CONTEXT).args[0].tokens.provenance["pictures"] == "4"
    with pytest.raises(ValueError, match=r"clip_frames is 6; .*WAN21.* other lengths, the nearest are 5 and 9"):
        trained("wan21", taken_up(7), kind=CONTEXT, clip_frames=6)
    with pytest.raises(ValueError, match=r"clip_frames is 5, and this model \(SDXL\) draws pictures. Set it to 1"):
        trained("sdxl", taken_up(7), kind=CONTEXT, clip_frames=5)


def test_what_cannot_be_trained_is_refused_by_name(pack, parts, trained):
    with pytest.raises(ValueError, match=r"encoders .clip_l, llama. read no embeddings.*context vectors"):
        trained("hunyuan", kind=TOKENS)
    with pytest.raises(ValueError, match="size is 72; this model takes multiples of 32, the nearest are 64 and 96"):
        trained("wan22_5b", kind=CONTEXT, size=72)
    one, _, vae = parts("wan21")
    with pack("nodes.host.gradients").gradients():
        learned = pack("nodes.host.learned")
        with pytest.raises(ValueError, match=r"do not fit: .*WAN21.* CLIP \(clip_l, llama\) gives, 64 wide"):
            learned.ContextModel(one, parts("hunyuan")[1], vae, "man")
        with pytest.raises(ValueError, match=r"VAE and MODEL do not fit"):
            learned.ContextModel(one, parts("wan21")[1], parts("sdxl")[2], "man")
