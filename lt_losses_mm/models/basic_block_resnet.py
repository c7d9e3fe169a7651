# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""ResNets of basic blocks with any number of stages and blocks.

MMPretrain's ResNet knows the depths 18 to 152 with four stages alone. The
long-tail papers use ResNet-32 on CIFAR-LT and ResNet-10 on ImageNet-LT.
"""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..registry import MODELS


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al., 2016, figure 2).

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        project: Whether a shortcut between different shapes is a 1 x 1
            convolution with batch norm (option B of section 4.1), or the
            input at the stride, its channels padded by zeros on both sides
            (option A).
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, project: bool
    ) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = outputs - inputs
        self.downsample: nn.Module | None = None
        if project and (stride > 1 or inputs != outputs):
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def shortcut(self, x: Tensor) -> Tensor:
        """The input in the shape of the output."""
        if self.downsample is not None:
            return self.downsample(x)
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            before = self.padding // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.padding - before))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


@MODELS.register_module()
class BasicBlockResNet(BaseModule):
    """ResNet of basic blocks, for small images or for images of any size.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
    https://arxiv.org/abs/1512.03385. Stage k has ``base_channels * 2**k``
    channels; each but the first halves the resolution.

    Args:
        stage_blocks: Number of blocks of each stage. ``(5, 5, 5)`` is
            ResNet-32, ``(1, 1, 1, 1)`` is ResNet-10.
        base_channels: Channels of the stem and of the first stage.
        small_images: Section 4.2 of the paper, for CIFAR: a 3 x 3 stem of
            stride 1 without pooling, and shortcuts without parameters
            (option A). Otherwise the stem of ImageNet, 7 x 7 of stride 2
            with pooling, and projections (option B).
        channels_last: Compute with channels as the innermost dimension in
            memory, which is faster in bfloat16. The values are the same up to
            rounding.
        init_cfg: By default He initialisation of the convolutions (fan-in).

    Examples:
        >>> import torch
        >>> resnet32 = BasicBlockResNet((5, 5, 5), 16, small_images=True)
        >>> (features,) = resnet32(torch.rand(2, 3, 32, 32))
        >>> features.shape
        torch.Size([2, 64, 8, 8])
        >>> sum(p.numel() for p in resnet32.parameters())
        463504
    """

    def __init__(
        self,
        stage_blocks: Sequence[int],
        base_channels: int = 64,
        small_images: bool = False,
        channels_last: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(
            init_cfg or dict(type='Kaiming', layer='Conv2d', mode='fan_in')
        )
        channels = base_channels
        kernel, stride, padding = (3, 1, 1) if small_images else (7, 2, 3)
        stem: list[nn.Module] = [
            nn.Conv2d(3, channels, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        if not small_images:
            stem.append(nn.MaxPool2d(3, 2, padding=1))
        self.stem = nn.Sequential(*stem)
        blocks: list[nn.Module] = []
        for stage, count in enumerate(stage_blocks):
            for block in range(count):
                outputs = base_channels * 2**stage
                stride = 2 if stage and not block else 1
                blocks.append(
                    BasicBlock(channels, outputs, stride, not small_images)
                )
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.memory_format = (
            torch.channels_last if channels_last else torch.contiguous_format
        )
        self.to(memory_format=self.memory_format)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Features of the last stage, as a tuple of one.

        Args:
            x: Images, shape (N, 3, H, W).

        Returns:
            Features of shape (N, base_channels * 2**(stages - 1), h, w).
        """
        x = x.contiguous(memory_format=self.memory_format)
        return (self.blocks(self.stem(x)),)
