"""Paths without jitter and without lag."""

from __future__ import annotations

import numpy as np


def smooth(path: np.ndarray, strength: float = 0.85) -> np.ndarray:
    """A path [n, d] filtered forward and backward (Butterworth, 2nd order), so that it does not lag.

    ``strength`` 0 keeps the path; towards 1 the slowest motion alone is left.  What is filtered is the path's distance
    from its line of best fit, so a steady motion is followed exactly at any length.

    Example:
        >>> steady = np.arange(5.0)[:, None] * 16
        >>> float(np.abs(smooth(steady) - steady).max()) < 1e-9
        True
    """
    if strength <= 0 or len(path) < 4:
        return path.copy()
    from scipy.signal import butter, filtfilt

    b, a = butter(2, max(0.02, 0.6 * (1 - strength) + 0.02))
    padding = min(len(path) - 1, 24)
    line = _line(path)
    return line + filtfilt(b, a, path - line, axis=0, padtype="odd", padlen=padding)


def _line(path: np.ndarray) -> np.ndarray:
    """The straight line [n, d] of least squares through a path."""
    at = np.arange(len(path)) - (len(path) - 1) / 2
    slope = at @ path / (at @ at)
    return path.mean(0) + at[:, None] * slope


def smooth_boxes(boxes: np.ndarray, strength: float = 0.85) -> np.ndarray:
    """Boxes [n, 4] (x, y, width, height) whose centres are smoothed by ``strength`` and sizes by at least 0.5."""
    sides = smooth(boxes[:, 2:], max(strength, 0.5))
    return np.concatenate([smooth(boxes[:, :2] + boxes[:, 2:] / 2, strength) - sides / 2, sides], 1)
