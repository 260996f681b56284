"""Imaging quality: VBench's way to MUSIQ's score, and which files it takes."""

import pytest
import torch

from vcd_core import musiq


def test_frames_are_scored_one_by_one_at_a_longer_side_of_512():
    seen = []

    def network(picture):
        seen.append(tuple(picture.shape))
        return picture.mean()[None, None] * 100

    images = torch.linspace(0, 1, 3).view(3, 1, 1, 1).expand(-1, 600, 800, 4)
    assert musiq.imaging_quality(images, network).tolist() == pytest.approx([0, 0.5, 1])
    assert seen == [(1, 3, 384, 512)] * 3
    musiq.imaging_quality(images[:1, :300, :200], network)
    assert seen[-1] == (1, 3, 300, 200)


def test_weights_for_other_scores_are_refused(tmp_path):
    torch.save({"head.0.weight": torch.ones(10, 384)}, tmp_path / "ava.pth")
    with pytest.raises(ValueError, match=r"ava\.pth is a MUSIQ for AVA's scores from 1 to 10"):
        musiq.load(tmp_path / "ava.pth")


def test_a_score_is_vbenchs(tmp_path):
    """By its own lines: torchvision's Resize without antialiasing, pyiqa's network, over 100."""
    pytest.importorskip("pyiqa", reason="pyiqa is not installed: it is for imaging quality alone")
    from pyiqa.archs.musiq_arch import MUSIQ
    from torchvision import transforms

    reference = MUSIQ(pretrained=False).eval()
    torch.save(reference.state_dict(), tmp_path / "musiq.pth")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    images = torch.rand(2, 540, 720, 3, generator=torch.Generator().manual_seed(0))
    pictures = transforms.Resize((384, 512), antialias=False)(images.movedim(-1, 1))
    with torch.no_grad():
        expected = [float(reference(picture[None])) / 100 for picture in pictures]
    found = musiq.imaging_quality(images, musiq.load(tmp_path / "musiq.pth"))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match=r"other\.pth holds no weights of MUSIQ"):
        musiq.load(tmp_path / "other.pth")
