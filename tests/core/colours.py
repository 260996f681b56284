"""A picture with a known right answer, for the tests of pictures and training."""

import torch


def two_colours(size=96):
    """Red inside the mask, blue outside."""
    picture, mask = torch.zeros(size, size, 3), torch.zeros(size, size)
    picture[..., 2] = 1
    middle = slice(size // 4, 3 * size // 4)
    mask[middle, middle] = 1
    picture[middle, middle] = torch.tensor([1.0, 0.0, 0.0])
    return picture, mask
