"""What the tiny model is made of: its sizes, its picture autoencoder, its vocabulary, and its files.

The UNet, the text encoder and the motion module are the host's and the pack's own classes at small sizes; they are put
together in ``nodes/host/tiny.py``. Here stands what does not need the host.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

CHANNELS = 32
MULTIPLIERS = (1, 2, 3, 3)
HEADS = 4
TEXT_WIDTH = 96
SCALE = 0.18215  # SD 1.5's latent scale; the autoencoder's latents are whitened to it
# red, green and blue in -1..1 of each latent channel, and of none: what live previews multiply with, by least squares
COLOURS = ((0.011, -0.006, -0.01), (0.006, 0.013, 0.02), (0.228, -0.083, -0.317), (-0.491, -0.501, -0.449))
NO_COLOUR = (0.058, 0.151, 0.134)
WEIGHTS = Path(__file__).parent / "weights"
MODEL_FILE = WEIGHTS / "vcd_tiny.safetensors"
MOTION_FILE = WEIGHTS / "motion" / "vcd_tiny_motion.safetensors"
IDENTITY_FILE = WEIGHTS / "identities" / "vcd_tiny_robin.safetensors"

Conv = type[nn.Conv2d]

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": CHANNELS, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": MULTIPLIERS, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 9 + [0] * 3, "use_spatial_transformer": True, "context_dim": TEXT_WIDTH,
    "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False,
    "use_checkpoint": False, "legacy": False,
}  # fmt: skip
TEXT = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "projection_dim": TEXT_WIDTH,
}


def load_weights(path: Path = MODEL_FILE) -> dict[str, torch.Tensor]:
    """A model file's weights in float32: ``unet.*``, ``text.*``, ``vae.*`` and ``table``, the vectors of ``words``.

    Raises:
        FileNotFoundError: the file is not there.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there. Reinstall the pack, or train the model with 'python run.py train-tiny'."
        )
    return {key: value if key == "words" else value.float() for key, value in load_file(path).items()}


def weights_of(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The weights under ``name.``."""
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


class _Residual(nn.Module):
    def __init__(self, width: int, conv: Conv) -> None:
        super().__init__()
        self.a = conv(width, width, 3, padding=1)
        self.b = conv(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.b(F.relu(self.a(x))))


class _Grow(nn.Module):
    def __init__(self, into: int, out: int, conv: Conv) -> None:
        super().__init__()
        self.conv = conv(into, out, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class PictureAutoencoder(nn.Module):
    """Pictures [N, 3, H, W] in -1..1 to latents [N, 4, H/8, W/8] and back, without normalisation layers.

    It has no attention and no statistics over the picture, so any size works and tiles meet without a seam.

    Args:
        conv: the class of its layers; one of the host's where the host is to hold a part of it elsewhere.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 48, 80), conv: Conv = nn.Conv2d) -> None:
        super().__init__()
        a, b, c = widths
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2), conv(12, a, 3, padding=1), nn.ReLU(), _Residual(a, conv),
            conv(a, b, 3, stride=2, padding=1), nn.ReLU(), _Residual(b, conv), _Residual(b, conv),
            conv(b, c, 3, stride=2, padding=1), nn.ReLU(), _Residual(c, conv), _Residual(c, conv),
        )  # fmt: skip
        self.to_latent = conv(c, 4, 1)
        self.from_latent = conv(4, c, 1)
        self.decoder = nn.Sequential(
            conv(c, c, 3, padding=1), nn.ReLU(), _Residual(c, conv), _Residual(c, conv), _Residual(c, conv),
            _Grow(c, b, conv), _Residual(b, conv), _Residual(b, conv),
            _Grow(b, a, conv), _Residual(a, conv), _Residual(a, conv),
            conv(a, 12, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.to_latent(self.encoder(pictures))

    def decode(self, latents: torch.Tensor, **_: object) -> torch.Tensor:
        return self.decoder(self.from_latent(latents))

    @torch.no_grad()
    def whiten(self, pictures: torch.Tensor) -> None:
        """Turn and scale the latent space: ``SCALE * latents`` of ``pictures`` get unit covariance and no mean."""
        latents = torch.cat([self.encode(part) for part in pictures.split(32)])
        flat = latents.permute(1, 0, 2, 3).reshape(4, -1)
        mean = flat.mean(1)
        values, vectors = torch.linalg.eigh(torch.cov(flat))
        forward = torch.diag(values.rsqrt()) @ vectors.T / SCALE
        back = torch.linalg.inv(forward)
        into, out = self.to_latent, self.from_latent
        assert into.bias is not None
        assert out.bias is not None
        into.weight.copy_((forward @ into.weight.flatten(1))[:, :, None, None])
        into.bias.copy_(forward @ (into.bias - mean))
        weight = out.weight.flatten(1).clone()
        out.bias.add_(weight @ mean)
        out.weight.copy_((weight @ back)[:, :, None, None])
