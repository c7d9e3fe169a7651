# placeholder until the priors branch is merged
from pathlib import Path


def folder():
    p = Path.home() / '.cache' / 'lt_losses_mm'
    p.mkdir(parents=True, exist_ok=True)
    return p
