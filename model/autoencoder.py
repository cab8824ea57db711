"""The 8x image autoencoder of FLUX.1: latents to pixels and back.

Parameter names are those of the original `ae.safetensors`. Convolutions, norms and attention come from
PyTorch; scaling between model space and autoencoder space is done here and nowhere else.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.ops import Ops, reference_ops
from model.config import AutoencoderConfig

NORM_EPS = 1e-6


class Autoencoder(nn.Module):
    def __init__(self, config: AutoencoderConfig, ops: Ops | None = None) -> None:
        """Build it on `ops`, by default the reference."""
        super().__init__()
        ops = ops or reference_ops()
        self.config = config
        self.encoder = Encoder(config, ops)
        self.decoder = Decoder(config, ops)

    def to_channels_last(self) -> None:
        """Store the convolutions' weights as devices want pictures: channels last.

        On two cores of an AMD EPYC the embedded model decodes 512x512 in 0.20 s instead of 0.37 s.
        """
        for parameter in self.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def decode(self, latents: Tensor) -> Tensor:
        """Turn model-space latents [n, 16, h, w] into images [n, 3, 8h, 8w] in about [-1, 1].

        The scaling is done in float32 and rounded once to the weights' dtype.
        """
        z = latents.float() / self.config.scaling_factor + self.config.shift_factor
        weight = self.decoder.conv_in.weight
        image: Tensor = self.decoder(z.to(weight.dtype, memory_format=memory_format(weight)))
        return image

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Turn images [n, 3, 8h, 8w] in [-1, 1] into model-space latents [n, 16, h, w], float32.

        `noise` [n, 16, h, w] samples the posterior, `mean + exp(logvar / 2) * noise` with logvar clamped to
        [-30, 20]; without it the mean is taken.
        """
        weight = self.encoder.conv_in.weight
        encoded = self.encoder(image.to(weight.dtype, memory_format=memory_format(weight)))
        mean, logvar = encoded.float().chunk(2, dim=1)
        if noise is not None:
            mean = mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * noise
        scaled: Tensor = (mean - self.config.shift_factor) * self.config.scaling_factor
        return scaled


def memory_format(weight: Tensor) -> torch.memory_format:
    """Return the order in memory of a convolution's weight: its input should have the same."""
    channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not weight.is_contiguous() else torch.contiguous_format


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig, ops: Ops) -> None:
        super().__init__()
        channels, deepest = config.channels, config.channels[-1]
        inputs = (channels[0], *channels[:-1])
        self.conv_in = _conv3(3, channels[0])
        self.down = nn.ModuleList(
            Level(config, ops, inputs[i], channels[i], config.blocks_per_level, down=i < len(channels) - 1)
            for i in range(len(channels))
        )
        self.mid = Middle(config, ops, deepest)
        self.norm_out = GroupNorm(config, ops, deepest)
        self.conv_out = _conv3(deepest, 2 * config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, 3, 8h, 8w] to mean and log variance side by side, [n, 32, h, w]."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(self.norm_out(self.mid(x), silu=True))
        return out


class Decoder(nn.Module):
    """`up` is indexed as the checkpoint does: 0 is full resolution, so it is run from its end."""

    def __init__(self, config: AutoencoderConfig, ops: Ops) -> None:
        super().__init__()
        channels, deepest = config.channels, config.channels[-1]
        inputs = (*channels[1:], deepest)
        self.conv_in = _conv3(config.latent_channels, deepest)
        self.mid = Middle(config, ops, deepest)
        self.up = nn.ModuleList(
            Level(config, ops, inputs[i], channels[i], config.blocks_per_level + 1, up=i > 0)
            for i in range(len(channels))
        )
        self.norm_out = GroupNorm(config, ops, channels[0])
        self.conv_out = _conv3(channels[0], 3)

    def forward(self, z: Tensor) -> Tensor:
        """Map [n, 16, h, w] to [n, 3, 8h, 8w]."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        out: Tensor = self.conv_out(self.norm_out(x, silu=True))
        return out


class Level(nn.Module):
    """The residual blocks of one resolution, and the way to the next one if there is one."""

    def __init__(
        self,
        config: AutoencoderConfig,
        ops: Ops,
        in_channels: int,
        channels: int,
        blocks: int,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(config, ops, in_channels if i == 0 else channels, channels) for i in range(blocks)
        )
        if down:
            self.downsample = Downsample(channels)
        if up:
            self.upsample = Upsample(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, in_channels, h, w] to [n, channels, h', w'] of half, equal or double size."""
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Middle(nn.Module):
    def __init__(self, config: AutoencoderConfig, ops: Ops, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(config, ops, channels, channels)
        self.attn_1 = SpatialAttention(config, ops, channels)
        self.block_2 = ResnetBlock(config, ops, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape [n, channels, h, w]."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class ResnetBlock(nn.Module):
    """`shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))`."""

    def __init__(self, config: AutoencoderConfig, ops: Ops, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(config, ops, in_channels)
        self.conv1 = _conv3(in_channels, channels)
        self.norm2 = GroupNorm(config, ops, channels)
        self.conv2 = _conv3(channels, channels)
        if in_channels != channels:
            self.nin_shortcut = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, in_channels, h, w] to [n, channels, h, w]."""
        h = self.conv1(self.norm1(x, silu=True))
        h = self.conv2(self.norm2(h, silu=True))
        out: Tensor = (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h
        return out


class SpatialAttention(nn.Module):
    """Single-head attention over all positions; its linears are stored as 1x1 convolutions."""

    def __init__(self, config: AutoencoderConfig, ops: Ops, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(config, ops, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape [n, channels, h, w]."""
        h = self.norm(x)
        # [n, 1, h * w, channels]: the fused attention never holds the (h * w)^2 scores
        q, k, v = (conv(h).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        out: Tensor = x + self.proj_out(attended)
        return out


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve [n, channels, h, w]; the padding is on the right and at the bottom only."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Double [n, channels, h, w] by nearest neighbour and smooth it."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class GroupNorm(nn.GroupNorm):
    """GroupNorm and, if asked for, the SiLU behind it, by the operations it was built with."""

    def __init__(self, config: AutoencoderConfig, ops: Ops, channels: int) -> None:
        super().__init__(config.norm_groups, channels, eps=NORM_EPS)
        self.ops = ops

    def forward(self, x: Tensor, *, silu: bool = False) -> Tensor:
        """Keep the shape [n, channels, h, w]."""
        return self.ops.group_norm_silu(x, self.num_groups, self.weight, self.bias, self.eps, silu=silu)


def _conv3(in_channels: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, padding=1)
