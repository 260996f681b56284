"""The state of a training as a file: what was written, or an error that says what is wrong with it."""

import json

import pytest
import torch
from colours import two_colours
from test_training import QUICK, Mean, ready

from vcd_core import files, training_state
from vcd_core.training import GRADIENT_SCALE, Training


def begun(steps):
    training = Training(Mean(), ready([two_colours()[0]], None, QUICK), QUICK)
    for _ in range(steps):
        training.advance()
    return training


@pytest.fixture
def written(tmp_path):
    """A state of two steps, its tensors and its header."""
    path = tmp_path / "me.safetensors"
    begun(2).save(path)
    return path, *files.read_state(path)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_state_is_read_as_it_was_written(tmp_path, steps):
    training, path = begun(steps), tmp_path / "me.safetensors"
    training.save(path)
    state = training_state.read(path)
    assert torch.equal(state.vectors, training.vectors)
    assert state.losses == training.losses
    assert set(state.optimizer) == ({"step", "exp_avg", "exp_avg_sq"} if steps else set())
    assert (state.goal, state.scale, state.about) == (QUICK.steps, GRADIENT_SCALE, training.about())


def test_a_scale_below_one_ten_thousandth_is_read_as_it_was(tmp_path):
    state = training_state.State(torch.ones(1, 4), [], {}, begun(0).about(), scale=2.0**-30 / 3)
    state.write(tmp_path / "me.safetensors")
    assert training_state.read(tmp_path / "me.safetensors").scale == 2.0**-30 / 3


@pytest.mark.parametrize("lost", ["vectors", "losses", "model", "pictures", "settings"])
def test_another_file_is_not_the_state_of_a_training(written, lost):
    path, tensors, about = written
    for held in (tensors, about):
        held.pop(lost, None)
    files.write_whole(path, tensors, about)
    with pytest.raises(ValueError, match=r"me.safetensors is not the state of a training"):
        training_state.read(path)


def changed(**tensors):
    return lambda held, about: held.update({key.replace("_of_", "."): value for key, value in tensors.items()})


def told(**texts):
    return lambda held, about: about.update(texts)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (told(settings="[]"), "settings"),
        (told(settings="{"), "settings"),
        (told(settings="[" * 100000), "settings"),
        (told(goal="many"), "number of steps"),
        (told(goal="9" * 5000), "number of steps"),
        (told(goal="\u0663"), "number of steps"),
        (told(scale="large"), "scale"),
        (told(scale="nan"), "scale"),
        (told(scale="0"), "scale"),
        (changed(losses=torch.ones(2, 2, dtype=torch.float64)), "losses"),
        (changed(losses=torch.ones(2, dtype=torch.int64)), "losses"),
        (changed(losses=torch.tensor([1, torch.nan], dtype=torch.float64)), "losses"),
        (changed(losses=torch.ones(3, dtype=torch.float64)), "optimizer"),
        (changed(vectors=torch.ones(4)), "tokens"),
        (changed(vectors=torch.full((4, 4), torch.inf)), "tokens"),
        (changed(vectors=torch.ones(4, 4).half()), "tokens"),
        (changed(optimizer_of_step=torch.tensor(-1e30)), "optimizer"),
        (changed(optimizer_of_exp_avg_sq=-torch.ones(4, 4)), "optimizer"),
        (changed(optimizer_of_exp_avg=torch.ones(3, 4)), "optimizer"),
        (changed(optimizer_of_more=torch.ones(1)), "optimizer"),
        (lambda held, about: held.pop("optimizer.exp_avg"), "optimizer"),
    ],
)
def test_a_state_that_was_changed_is_refused_with_what_is_wrong(written, change, part):
    path, tensors, about = written
    change(tensors, about)
    files.write_whole(path, tensors, about)
    with pytest.raises(ValueError, match=f"me.safetensors.*wrong are[^.]*{part}.*Remove it"):
        training_state.read(path)


def test_tokens_of_another_shape_do_not_go_on(written):
    path, tensors, about = written
    small = {key: value[:2] if value.ndim == 2 else value for key, value in tensors.items()}
    files.write_whole(path, small, about)
    with pytest.raises(ValueError, match=r"'me' has tokens of \[2, 4\]; expected \[4, 4\]"):
        begun(0).resume(path)


def test_a_long_setting_of_another_training_is_told_in_short(written):
    path, tensors, about = written
    about["settings"] = json.dumps(json.loads(about["settings"]) | {"template": "V*" * 5000})
    files.write_whole(path, tensors, about)
    with pytest.raises(ValueError, match="was begun otherwise") as caught:
        begun(0).resume(path)
    assert len(str(caught.value)) < 600


def test_a_step_that_leads_to_no_number_is_not_done(written):
    """Averages of gradients that float32 holds, and what AdamW makes of them does not."""
    path, tensors, about = written
    tensors["optimizer.exp_avg"][:] = 1e38
    tensors["optimizer.exp_avg_sq"][:] = 0
    files.write_whole(path, tensors, about)
    training = begun(0)
    training.resume(path)
    before = training.vectors.detach().clone()
    with pytest.raises(ValueError, match=r"loss of step 3 .* where it leads is not finite"):
        training.advance()
    assert torch.equal(training.vectors, before)
    training.save(path)
    again = training_state.read(path)
    assert torch.equal(again.optimizer["exp_avg"], tensors["optimizer.exp_avg"])
