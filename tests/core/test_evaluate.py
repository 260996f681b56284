"""The figures of the evaluation: their definitions, and what they say of clips whose answer is known."""

import numpy as np
import pytest
import torch

from vcd_core import evaluate as core
from vcd_core import plots
from vcd_core.evaluate import Figure
from vcd_core.summary import Interval


def moving(step, frames=8):
    """A textured square that moves ``step`` pixels a frame."""
    g = torch.Generator().manual_seed(0)
    texture = torch.rand(40, 40, 3, generator=g)
    images = torch.full((frames, 128, 128, 3), 0.5)
    for i in range(frames):
        images[i, 40:80, 10 + step * i : 50 + step * i] = texture
    return images


def test_likeness_is_the_mean_over_all_pairs():
    g = torch.Generator().manual_seed(0)
    frames, references = torch.randn(5, 7, generator=g), torch.randn(3, 7, generator=g)
    pairs = [torch.cosine_similarity(f, r, dim=0) for f in frames for r in references]
    assert float(core.to_references(frames, references).mean()) == pytest.approx(float(sum(pairs) / 15), abs=1e-6)
    assert torch.allclose(core.to_references(frames * 9, references), core.to_references(frames, references), atol=1e-6)


def test_subject_consistency_and_smoothness_are_vbenchs():
    """Both as VBench's own code goes about them: frame by frame, on pictures of 0..255."""
    g = torch.Generator().manual_seed(4)
    frames = torch.randn(6, 9, generator=g)
    cosine = lambda a, b: max(0.0, float(torch.cosine_similarity(a, b, dim=0)))  # noqa: E731
    expected = [(cosine(frames[i - 1], frames[i]) + cosine(frames[0], frames[i])) / 2 for i in range(1, 6)]
    assert core.subject_consistency(frames).tolist() == pytest.approx(expected, abs=1e-6)
    for count in (7, 8):
        images, between = torch.rand(count, 5, 4, 3, generator=g), torch.rand(3, 5, 4, 3, generator=g)
        scores = [float((images[2 * i + 1] * 255 - between[i] * 255).abs().mean()) for i in range(3)]
        found = core.motion_smoothness(images, between)
        assert found.tolist() == pytest.approx([(255 - score) / 255 for score in scores], abs=1e-6)


def test_the_aesthetic_predictor_is_linear_over_unit_embeddings(tmp_path):
    head = torch.nn.Linear(12, 1)
    torch.save(head.state_dict(), tmp_path / "linear.pth")
    frames = torch.randn(4, 12) * 7
    expected = head(frames / frames.norm(dim=1, keepdim=True))[:, 0] / 10
    assert torch.allclose(core.aesthetic_score(frames, tmp_path / "linear.pth"), expected, atol=1e-6)
    with pytest.raises(ValueError, match="12 wide and clip_vision gives 8"):
        core.aesthetic_score(torch.ones(1, 8), tmp_path / "linear.pth")
    torch.save({"layers.0.weight": torch.ones(1, 2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is no linear aesthetic predictor"):
        core.aesthetic_score(frames, tmp_path / "other.pth")


def test_consistency_and_dynamics_tell_still_from_moving():
    still, slow, fast = (float(core.dynamics(moving(step)).mean()) for step in (0, 1, 3))
    assert still < 0.01
    assert 2 < fast / slow < 4
    assert core.temporal_consistency(torch.ones(4, 3)).tolist() == pytest.approx([1] * 3)
    turning = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    assert core.temporal_consistency(turning).tolist() == pytest.approx([0, 0.8])


def test_dynamics_do_not_depend_on_the_size():
    images = moving(2)
    large = torch.nn.functional.interpolate(images.movedim(-1, 1), scale_factor=2.0, mode="bilinear").movedim(1, -1)
    a, b = (float(core.dynamics(part).mean()) for part in (images, large))
    assert a == pytest.approx(b, rel=0.15)


def test_flicker_sees_change_that_comes_back_and_not_a_ramp():
    ramp = torch.linspace(0, 1, 9).view(9, 1, 1, 1).expand(9, 4, 4, 3)
    assert float(core.flicker(ramp).max()) < 1e-3
    blinking = torch.tensor([0.4, 0.6] * 4).view(8, 1, 1, 1).expand(8, 4, 4, 3)
    assert torch.allclose(core.flicker(blinking), torch.tensor(0.2 * 255), atol=1e-3)
    mask = torch.zeros(8, 4, 4)
    mask[:, :2] = 1
    half = blinking.clone()
    half[:, 2:] = 0.5
    assert torch.allclose(core.flicker(half, mask), core.flicker(blinking), atol=1e-3)


def test_sharpness_falls_when_a_region_is_blurred():
    images = moving(0)
    blurred = torch.nn.functional.avg_pool2d(images.movedim(-1, 1), 3, 1, 1).movedim(1, -1)
    assert float(core.sharpness(blurred).mean()) < 0.3 * float(core.sharpness(images).mean())
    empty = torch.zeros(1, 128, 128)
    empty[:, :20, :20] = 1
    assert float(core.sharpness(images, empty).mean()) < 1e-3


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (lambda: core.temporal_consistency(torch.ones(1, 4)), "at least 2 frames; the clip has 1"),
        (lambda: core.dynamics(torch.ones(1, 32, 32, 3)), "at least 2 frames"),
        (lambda: core.flicker(torch.ones(2, 32, 32, 3)), "at least 3 frames"),
        (lambda: core.to_references(torch.ones(2, 4), torch.ones(0, 4)), "no reference"),
        (
            lambda: core.to_text(torch.ones(2, 4), torch.ones(8)),
            "4 wide and the others 8: they come from models of diff",
        ),
    ],
)
def test_bad_input_is_refused(call, shown):
    with pytest.raises(ValueError, match=shown):
        call()


def test_the_chart_shows_every_clip():
    figures = {
        name: [
            Figure("CLIP-I", torch.full((6,), value)),
            Figure("dynamics", torch.rand(5), "% of the diagonal a frame"),
        ]
        for name, value in (("a", 0.2), ("b", 0.9))
    }
    chart = plots.figures_chart(figures, core.PAPER)
    assert chart.ndim == 4
    bars = [painted(chart, colour, BARS) for colour in plots.SERIES[:2]]
    assert 3.5 < bars[1] / bars[0] < 5.5


def test_the_chart_of_changes_says_where_they_lie_and_what_is_decided():
    changes = {
        "CLIP-I": {"b": Interval(0.2, 0.05), "c": Interval(-0.1, 0.2)},
        "DINO": {"b": Interval(NAN, NAN)},
        "flicker": {},
    }
    chart = plots.changes_chart(changes, "a", ["a", "b", "c"])
    assert chart.shape[2] == 960

    def columns(colour):
        return ((chart[0] - torch.tensor(colour) / 255).abs().sum(-1) < 0.02).any(0).nonzero().flatten()

    middle = (28 + 220 + 960 - 28 - 230) / 2
    decided = columns(plots.SERIES[1])
    assert decided.min() > middle
    assert float(decided.float().mean()) > middle + 0.5 * (960 - 28 - 230 - middle) * 0.6
    assert len(columns(plots.SERIES[2])) == 0  # pale, as it is not decided
    pale = columns([(c + 2 * p) // 3 for c, p in zip(plots.SERIES[2], plots.PAPER, strict=True)])
    assert pale.min() < middle < pale.max()
    assert plots.changes_chart({}, "a", ["a"]).shape[0] == 1


BARS, CURVES = slice(198, 500), slice(560, 930)


def painted(chart, colour, columns):
    """How many pixels of the first figure's row have this colour."""
    return int(((chart[0, 60:170, columns] - torch.tensor(colour) / 255).abs().sum(-1) < 0.02).sum())


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("values", [[], [NAN, NAN], [0.2, NAN, 0.4, 0.3], [0.2, INF, 0.4], [-INF, 0.1]])
def test_a_figure_that_could_not_be_computed_leaves_a_gap(values):
    """Beside a clip that has it; what is finite is still drawn as a curve."""
    whole = [Figure("CLIP-I", torch.tensor([0.5, 0.6, 0.7]))]
    chart = plots.figures_chart({"whole": whole, "broken": [Figure("CLIP-I", torch.tensor(values))]}, core.PAPER)
    assert torch.isfinite(chart).all()
    first, second = plots.SERIES[:2]
    assert painted(chart, first, BARS) > 1000
    assert painted(chart, second, BARS) == 0
    finite = any(abs(value) < INF for value in values)
    assert (painted(chart, second, CURVES) > 0) == finite


def test_a_curve_has_a_gap_and_no_line_over_it():
    """Of five values the middle one is missing: nothing is drawn in the middle fifth."""
    values = torch.tensor([0.2, 0.8, NAN, 0.3, 0.9])
    chart = plots.figures_chart({"one": [Figure("CLIP-I", values)]}, {})
    middle = (532 + 932) // 2
    near = [painted(chart, plots.SERIES[0], slice(middle + at - 30, middle + at + 30)) for at in (-80, 0, 80)]
    assert near[0] > 20
    assert near[1] == 0
    assert near[2] > 20


def test_nothing_but_missing_values_is_still_a_chart():
    figures = [Figure("CLIP-I", torch.tensor([NAN])), Figure("dynamics", torch.tensor([]), "%")]
    assert torch.isfinite(plots.figures_chart({"one": figures}, {})).all()


def test_a_matrix_without_numbers_is_left_blank():
    picture = np.asarray(plots.heat_map(torch.tensor([[NAN, 1.0], [0.0, INF]]), 2))
    assert picture[0, 0].tolist() == list(plots.PAPER)
    assert picture[1, 1].tolist() == picture[0, 1].tolist() != list(plots.PAPER)
