"""What the tiny model's motion training counts, and what is written of frames that went on."""

import pytest
import torch

from dev.train_tiny import LIVELY, LOUDEST, STILL, clip_error, halfway


def clip(change, frames=16):
    """A clip [frames, 4, 8, 8] whose every value swings by ``change`` around zero from frame to frame."""
    signs = torch.tensor([1.0, -1.0]).repeat(frames // 2)
    return change * signs.view(-1, 1, 1, 1).expand(-1, 4, 8, 8)


ALIKE = torch.ones(16, 8, 8)


def test_what_changes_counts_more_than_what_stays():
    lively = clip(LIVELY**0.5)
    none = torch.zeros_like(lively)
    assert float(clip_error(clip(0.3), none, lively, ALIKE)) == pytest.approx(0.3**2)
    assert float(clip_error(none + 0.3, none, lively, ALIKE)) == pytest.approx(STILL * 0.3**2)


@pytest.mark.parametrize(
    ("liveliness", "counts"), [(4 * LIVELY, 1), (LIVELY, 1), (LIVELY / 2, 2), (LIVELY / 100, LOUDEST), (0, LOUDEST)]
)
def test_small_movements_count_more_up_to_a_limit(liveliness, counts):
    clean = clip(liveliness**0.5)
    none = torch.zeros_like(clean)
    assert float(clip_error(clip(0.3), none, clean, ALIKE)) == pytest.approx(counts * 0.3**2)
    assert float(clip_error(none + 0.3, none, clean, ALIKE)) == pytest.approx(STILL * 0.3**2)


def test_cells_count_as_their_weights_say():
    clean = clip(LIVELY**0.5)
    left = torch.zeros(16, 8, 8)
    left[..., :4] = 5
    wrong = torch.where(left[:, None] > 0, clip(0.3), clip(0.9))
    found = clip_error(wrong, torch.zeros_like(clean), clean, left)
    assert float(found) == pytest.approx(0.3**2)
    both = clip_error(wrong, torch.zeros_like(clean), clean, left + 1)
    assert float(both) == pytest.approx((6 * 0.3**2 + 0.9**2) / 7)


def test_frames_that_went_on_are_written_halfway_back():
    start, end = {"a": torch.tensor([1.0, 3.0]), "words": torch.tensor([1])}, {"a": torch.tensor([2.0, -3.0]).half()}
    found = halfway(start, end)
    assert list(found) == ["a"]
    assert found["a"].dtype == torch.half
    assert found["a"].tolist() == [1.5, 0.0]
