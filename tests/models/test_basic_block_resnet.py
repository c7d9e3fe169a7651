# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The backbone against MMPretrain's, and against the published ResNet-32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from lt_losses_mm.models import BasicBlockResNet


def test_with_the_blocks_of_resnet18_it_is_mmpretrains_resnet18():
    resnet = pytest.importorskip('mmpretrain.models.backbones').ResNet
    torch.manual_seed(0)
    theirs = resnet(18, zero_init_residual=False)
    ours = BasicBlockResNet((2, 2, 2, 2))
    mine, other = ours.state_dict(), theirs.state_dict()
    assert [v.shape for v in mine.values()] == [
        v.shape for v in other.values()
    ]
    ours.load_state_dict(dict(zip(mine, other.values())))
    images = torch.randn(2, 3, 64, 64)
    assert_close(ours(images)[0], theirs(images)[0])


def test_resnet32_has_the_published_size():
    """0.46 million parameters: He et al., 2016, table 6."""
    model = BasicBlockResNet((5, 5, 5), 16, small_images=True)
    classifier = nn.Linear(64, 10)
    size = sum(p.numel() for m in (model, classifier) for p in m.parameters())
    assert round(size / 1e6, 2) == 0.46
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) + 1 == 32


def test_small_images_have_shortcuts_without_parameters():
    model = BasicBlockResNet((1, 1), 4, small_images=True)
    block = model.blocks[1]
    x = torch.randn(2, 4, 6, 6)
    shortcut = block.shortcut(x)
    assert_close(shortcut[:, 2:6], x[:, :, ::2, ::2])
    assert shortcut[:, :2].eq(0).all() and shortcut[:, 6:].eq(0).all()
    expected = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    assert_close(block(x), F.relu(expected + shortcut))


def test_convolutions_start_as_he_et_al_say():
    torch.manual_seed(0)
    model = BasicBlockResNet((5, 5, 5), 16, small_images=True)
    model.init_weights()
    conv = model.blocks[-1].conv2.weight
    assert_close(
        conv.std(), torch.tensor((2 / (64 * 9)) ** 0.5), rtol=0.02, atol=0
    )


@pytest.mark.parametrize(
    ('blocks', 'small', 'size', 'shape'),
    [
        ((1, 1, 1, 1), False, 64, (2, 512, 2, 2)),
        ((5, 5, 5), True, 32, (2, 256, 8, 8)),
    ],
)
def test_shapes(blocks, small, size, shape):
    (features,) = BasicBlockResNet(blocks, 64, small_images=small)(
        torch.randn(2, 3, size, size)
    )
    assert features.shape == shape


def test_channels_last_changes_the_memory_alone():
    torch.manual_seed(0)
    plain = BasicBlockResNet((2, 2), 8, small_images=True)
    last = BasicBlockResNet((2, 2), 8, small_images=True, channels_last=True)
    last.load_state_dict(plain.state_dict())
    images = torch.rand(3, 3, 12, 12)
    (expected,), (features,) = plain(images), last(images)
    assert plain.blocks[0].conv1.weight.is_contiguous()
    for tensor in (last.blocks[0].conv1.weight, features):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(features, expected, atol=1e-5)
