# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Imports between the rooms of the package point down, never up.

The order is that of the drawing in docs/architecture.md.
"""

from __future__ import annotations

import ast
from pathlib import Path

import lt_losses_mm

PACKAGE = Path(lt_losses_mm.__file__).parent
FLOORS = (
    {'messages', 'compat', 'version'},
    {'cache'},
    {'kernels', 'hosts'},
    {'functional', 'priors'},
    {'statistics'},
    {'losses'},
    {'examples'},
    {'testing'},
    {'registry'},
    {'datasets', 'metrics', 'models', 'optim'},
    {'hooks'},
    {'integration'},
    {'recipes'},
    {'sweeps'},
)
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}


def imported(path: Path) -> set[str]:
    """Rooms that a file imports from, also inside of functions."""
    inside = path.relative_to(PACKAGE).parts[:-1]
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level:
            kept = list(inside[: len(inside) - node.level + 1])
            kept += (node.module or '').split('.') if node.module else []
            rooms |= {kept[0]} if kept else {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            top, _, rest = node.module.partition('.')
            if top == PACKAGE.name and rest:
                rooms.add(rest.split('.')[0])
    return rooms


def test_imports_point_down() -> None:
    wrong, arrows = [], set()
    for path in PACKAGE.rglob('*.py'):
        room = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
        if room == '__init__':
            continue
        assert room in FLOOR, f'{room} is on no floor of the drawing'
        for other in imported(path) & FLOOR.keys() - {room}:
            arrows.add((room, other))
            if FLOOR[other] >= FLOOR[room]:
                wrong.append(f'{path.relative_to(PACKAGE)} imports {other}')
    assert not wrong
    assert {('losses', 'kernels'), ('hooks', 'losses')} <= arrows


def test_the_drawing_has_every_room() -> None:
    page = (PACKAGE.parent / 'docs' / 'architecture.md').read_text('utf-8')
    drawing = page.split('```text\n')[1].split('```')[0]
    floors = [
        {
            room
            for room in FLOOR
            if f' {room}/' in line or f' {room}.py' in line
        }
        for line in reversed(drawing.splitlines())
        if not line.startswith('---')
    ]
    assert floors == [rooms - {'version'} for rooms in FLOORS]
