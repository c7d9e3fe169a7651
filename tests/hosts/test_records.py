"""What the records name is there in the hosts, and found by the look-ups."""

import importlib
import inspect
import re
import sys

import pytest
from torch import nn

from lt_losses_mm import hosts
from lt_losses_mm.hosts import HOSTS, MMDET, MMPRETRAIN, MMSEG

SETS = (
    'refused',
    'listed_losses',
    'passes_probabilities',
    'keeps_quality',
    'focal',
    'sigmoid_only',
    'softmax_only',
    'own_bias',
    'no_logits',
    'even_samplers',
    'class_samplers',
    'mixing_wrappers',
    'fold_wrappers',
)
NAMED = sorted(
    (host.name, name)
    for host in HOSTS
    for key in SETS
    for name in getattr(host, key)
)


def classes_of(package):
    for part in ('models', 'datasets'):
        importlib.import_module(f'{package}.{part}')
    return {
        cls.__name__
        for name, module in list(sys.modules.items())
        if name.startswith(f'{package}.')
        for _, cls in inspect.getmembers(module, inspect.isclass)
    }


@pytest.mark.parametrize('host, name', NAMED)
def test_the_host_has_what_its_record_names(host, name):
    """A class that a host renames would no longer be refused."""
    pytest.importorskip(host)
    assert name in classes_of(host)


@pytest.mark.parametrize(
    'host, name',
    [(host.name, name) for host in HOSTS for name in host.other_losses],
)
def test_a_head_of_the_host_has_such_a_loss(host, name):
    pytest.importorskip(host)
    classes_of(host)
    sources = (
        inspect.getsource(module)
        for key, module in list(sys.modules.items())
        if key.startswith(f'{host}.models.')
    )
    built = re.compile(rf'self\.{name}\b.* = (MODELS\.build|build_loss)\(')
    assert any(map(built.search, sources))


def test_heads_that_learn_a_quality_are_there():
    pytest.importorskip('mmdet')
    assert hosts.mmdet._QUALITY_HEADS <= classes_of('mmdet')
    assert MMDET.passes_probabilities <= hosts.mmdet._QUALITY_HEADS


@pytest.mark.parametrize('host', HOSTS, ids=lambda host: host.name)
def test_the_mask_loader_is_there(host):
    if host.mask_loader is not None:
        pytest.importorskip(host.name)
        module, name = host.mask_loader
        assert hasattr(importlib.import_module(module), name)


class Module(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


@pytest.mark.parametrize('host', HOSTS, ids=lambda host: host.name)
def test_a_head_is_known_by_where_its_loss_hangs(host):
    head = Module(**{host.loss: nn.Identity()})
    assert hosts.host_of(head) is host
    assert list(hosts.heads(nn.Sequential(head))) == [('0', head, host)]
    rpn = nn.ModuleDict(dict(rpn_head=head))
    assert not list(hosts.heads(rpn))
    assert not list(hosts.classifiers(rpn))


def test_other_modules():
    """Their rows may be background; they are no head of any host."""
    head = Module(loss=nn.Identity())
    assert hosts.host_of(head) is MMDET
    assert MMDET.has_background
    assert not MMPRETRAIN.has_background and not MMSEG.has_background
    model = nn.Sequential(head, Module(loss_cls='a name'))
    assert not list(hosts.heads(model))
    assert not list(hosts.classifiers(model))


def test_logits_of_a_segmentor_leave_at_its_end():
    head = Module(loss_decode=nn.Identity())
    segmentor = Module(
        encode_decode=nn.Identity(), decode_head=nn.ModuleList([head, head])
    )
    ((name, module, host),) = hosts.classifiers(segmentor)
    assert (name, module, host) == ('Module', segmentor, MMSEG)
