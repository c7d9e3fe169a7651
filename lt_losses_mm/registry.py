# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Child registries of MMEngine's roots, under the scope ``lt_losses_mm``.

``type='lt_losses_mm.X'`` makes MMEngine import this module and, on the first
look-up, the package in ``locations``: no ``custom_imports`` is needed.

Everything registered here is put into MMEngine's root registry as well. The
registries of the hosts (mmdet, mmpretrain, mmseg) fall back to that root, so
that the bare name resolves in each of them once ``lt_losses_mm`` is imported.
"""

from __future__ import annotations

from typing import Any

from mmengine import registry as _root

from .losses import LOSSES

SCOPE = 'lt_losses_mm'


class _Registry(_root.Registry):
    """A child registry whose entries are visible from the root, too."""

    def register_module(
        self,
        name: str | list[str] | None = None,
        force: bool = False,
        module: Any = None,
    ) -> Any:
        register = super().register_module

        def both(obj: Any) -> Any:
            self.parent.register_module(name, force, obj)
            return register(name, force, obj)

        return both if module is None else both(module)


def _child(root: _root.Registry, *rooms: str) -> _Registry:
    return _Registry(
        root.name,
        scope=SCOPE,
        parent=root,
        locations=[f'{SCOPE}.{room}' for room in rooms],
    )


MODELS = _child(_root.MODELS, 'models')
HOOKS = _child(_root.HOOKS, 'hooks')
METRICS = _child(_root.METRICS, 'metrics')
DATASETS = _child(_root.DATASETS, 'datasets')
OPTIM_WRAPPERS = _child(_root.OPTIM_WRAPPERS, 'optim')

# The losses know no registry: they work without MMEngine.
for _loss in LOSSES:
    MODELS.register_module(module=_loss)

__all__ = [
    'DATASETS',
    'HOOKS',
    'METRICS',
    'MODELS',
    'OPTIM_WRAPPERS',
    'SCOPE',
]
