"""The embedded default: a small cartoon world, a small video model trained on it, and its weights.

It is Stable Diffusion 1.5 in miniature, so that every node can be tried, tested and measured without a download.
"""
