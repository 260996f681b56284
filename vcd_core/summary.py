"""What values along a clip say: their mean, their worst tenth and their drift, with 95 % intervals, and how two clips
differ.

Frames are no independent draws: a clip of a hundred like frames tells little more than one.  So intervals count as many
values as the series is worth, n (1 - r) / (1 + r) of n for a correlation r above 0 from one value to the next
(Bartlett's effective size of a first-order process), and Student's t with as many degrees of freedom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

_LEAST = 2.0  # a series counts as so many values at least, or no interval would be told


@dataclass(frozen=True)
class Interval:
    """An estimate and the half width of its 95 % interval; NaN where it cannot be told."""

    value: float
    half: float

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half

    @property
    def decided(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "not computed"
        return f"{self.value:.3f}" + (f" ± {self.half:.3f}" if math.isfinite(self.half) else "")


def mean(values: torch.Tensor) -> Interval:
    """The mean of values [n] along a clip; those that are not finite are left out.

    Example:
        >>> print(mean(torch.tensor([1.0, 3.0] * 50)))
        2.000 ± 0.199
        >>> print(mean(torch.tensor([0.5])), mean(torch.tensor([])))
        0.500 not computed
    """
    found = _finite(values)
    if len(found) < 3:
        return Interval(float(found.mean()) if len(found) else math.nan, math.nan)
    count = worth(found - found.mean())
    return Interval(float(found.mean()), _quantile(count - 1) * float(found.std(ddof=1)) / math.sqrt(count))


def worst_tenth(values: torch.Tensor, least_is_worst: bool = True) -> tuple[float, list[int]]:
    """The mean of the worst tenth of the values, one at least, and which they are, the worst first.

    Example:
        >>> worst_tenth(torch.tensor([0.9, 0.2, 0.8, float("nan")]))
        (0.20000000298023224, [1])
    """
    numbers = values.isfinite().nonzero().flatten()
    if not len(numbers):
        return math.nan, []
    order = values[numbers].argsort(descending=not least_is_worst, stable=True)
    chosen = numbers[order[: max(1, len(numbers) // 10)]]
    return float(values[chosen].float().mean()), chosen.tolist()


def drift(values: torch.Tensor) -> Interval:
    """How much a figure changes from the clip's first value to its last: the slope of the line through them by least
    squares, over the clip's length.

    Example:
        >>> print(drift(torch.linspace(0.9, 0.7, 50)))
        -0.200 ± 0.000
    """
    kept = values.isfinite().cpu().numpy()
    x = np.linspace(-0.5, 0.5, len(values))[kept] if len(values) > 1 else np.zeros(int(kept.sum()))
    y = _finite(values)
    if len(y) < 4 or not (spread := float(((x - x.mean()) ** 2).sum())):
        return Interval(math.nan, math.nan)
    slope = float(((x - x.mean()) * y).sum()) / spread
    rest = y - y.mean() - slope * (x - x.mean())
    freedom = len(y) - 2
    error = math.sqrt(float((rest**2).sum()) / freedom / spread * len(y) / worth(rest))
    return Interval(slope, _quantile(max(1.0, freedom * worth(rest) / len(y))) * error)


def difference(before: torch.Tensor, after: torch.Tensor) -> Interval:
    """How much the values after are above those before, frame by frame, or of their means where the clips do not have
    the same frames.

    Example:
        >>> wave = torch.sin(torch.arange(40.0))
        >>> print(difference(wave, wave + 0.1))
        0.100 ± 0.000
    """
    if len(before) == len(after):
        return mean(after.double() - before.double())
    first, second = mean(before), mean(after)
    return Interval(second.value - first.value, math.hypot(first.half, second.half))


def worth(rest: np.ndarray) -> float:
    """How many independent values a series [n] around 0 is worth, 2 to n.

    Example:
        >>> worth(np.array([1.0, -1.0] * 10)), round(worth(np.sin(np.arange(1000) / 50)), 1)
        (20.0, 2.0)
    """
    n, power = len(rest), float((rest**2).sum())
    if power <= 1e-18 * n:
        return float(n)
    r = max(0.0, float((rest[1:] * rest[:-1]).sum()) / power)
    return min(float(n), max(_LEAST, n * (1 - r) / (1 + r)))


def _finite(values: torch.Tensor) -> np.ndarray:
    found = values.detach().cpu().double().numpy()
    return found[np.isfinite(found)]


def _quantile(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))
