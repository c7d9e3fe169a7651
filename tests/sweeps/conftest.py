"""A sweep whose trainings take a second and need no torch."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lt_losses_mm.sweeps import ledger

ROOT = Path(__file__).resolve().parents[2]

# Stands in for tools/train.py: three epochs of a number that follows from
# the config alone, logs and checkpoints as MMEngine writes them, resumable.
TRAIN = r"""
import argparse, hashlib, json, os, re, sys, time, zipfile
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument('config')
parser.add_argument('--work-dir')
parser.add_argument('--resume')
args = parser.parse_args()
text = Path(args.config).read_text()
options = dict(re.findall(r'^(\w+) = (.+)$', text, re.M))
here = Path(args.work_dir)
with open(os.environ['LT_TEST_TRAININGS'], 'a') as file:
    file.write(here.name + '\n')
behaviour = options.get('behaviour', "'good'").strip("'\"")
first = int(re.search(r'(\d+)\.pth', args.resume)[1]) if args.resume else 0
run = here / f'run{time.time():.6f}'
(run / 'vis_data').mkdir(parents=True)
log = open(run / 'vis_data' / 'scalars.json', 'a')
def say(**values):
    log.write(json.dumps(values) + '\n')
    log.flush()
pause = float(options.get('pause', '0.1'))
# Of the config that a trial is, wherever it lies.
kept = re.sub(r'^(work_dir|load_from) = .*$', '', text, flags=re.M)
base = int(hashlib.sha256(kept.encode()).hexdigest(), 16) % 50
for epoch in range(first + 1, 4):
    time.sleep(pause)
    loss = float('nan') if behaviour == 'nan' else 1 / epoch
    say(loss=loss, iter=10 * epoch, step=10 * epoch, memory=7)
    print(f'Epoch(train) [{epoch}][10/10] eta: 0:00:0{3 - epoch} loss: {loss}',
          flush=True)
    if behaviour == 'crash' and epoch == 2:
        sys.exit('RuntimeError: out of luck')
    for old in here.glob('epoch_*.pth'):
        old.unlink()
    with zipfile.ZipFile(here / f'epoch_{epoch}.pth', 'w') as file:
        file.writestr('data', str(epoch) * 100_000)
    time.sleep(pause)
    if behaviour != 'silent':
        few = base / 2
        values = {'accuracy/all': base + epoch, 'accuracy/few': few}
        say(**values, step=epoch)
print('ended')
"""
# Stands in for tools/test.py: what the training of the checkpoint has, and one
# more if that is of another trial.
TEST = r"""
import argparse, hashlib, json, os, re, time
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument('config')
parser.add_argument('checkpoint')
parser.add_argument('--work-dir')
args = parser.parse_args()
here = Path(args.work_dir)
with open(os.environ['LT_TEST_TRAININGS'], 'a') as file:
    file.write(here.parent.name + '\n')
trained = Path(args.checkpoint).parent
own = trained / 'config.py'
text = (own if own.exists() else Path(args.config)).read_text()
kept = re.sub(r'^(work_dir|load_from) = .*$', '', text, flags=re.M)
base = int(hashlib.sha256(kept.encode()).hexdigest(), 16) % 50
epoch = int(re.search(r'(\d+)\.pth', args.checkpoint)[1])
more = 0 if trained == here.parent else 1
seen = {'accuracy/all': base + epoch + more, 'accuracy/few': base / 2}
if "'silent'" in text:
    seen = {'accuracy/others': 1}
run = here / f'run{time.time():.6f}'
run.mkdir(parents=True)
(run / 'test.json').write_text(json.dumps(seen))
"""
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tools!r})
import lt_losses_mm.sweeps.sweep as core
from lt_losses_mm.sweeps import progress, trial
# The checkpoints of the stubs hold no model.
core.classes_of = lambda checkpoint: ([], [])
trial.TOOLS = Path({stubs!r})
progress.PERIOD = 0.5
import sweep
sys.exit(sweep.main())
"""
CONFIG = """
behaviour = 'good'
pause = 0.05
lr = 0.1
model = dict()
"""
PLAN = """
name: toy
seeds: [0, 1]
methods: [plain, higher, later]
tasks:
  first: &task
    config: config.py
    metrics: {overall: accuracy/all, tail: accuracy/few}
    baseline: plain
  second: *task
define:
  plain: {}
  higher: {options: {lr: 0.2}}
  later: {needs: {load_from: plain}, test: true}
"""


class Toy:
    """A folder with a plan, and the command line on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = folder / 'plan.yaml'
        self.config = folder / 'config.py'
        self.plan.write_text(PLAN)
        self.config.write_text(CONFIG)
        stubs = folder / 'stubs'
        stubs.mkdir()
        (stubs / 'train.py').write_text(textwrap.dedent(TRAIN))
        (stubs / 'test.py').write_text(textwrap.dedent(TEST))
        self.driver = folder / 'driver.py'
        self.driver.write_text(
            DRIVER.format(tools=str(ROOT / 'tools'), stubs=str(stubs))
        )
        self.trainings = folder / 'trainings.txt'
        self.ledger = folder / 'work_dirs' / 'toy' / 'ledger.csv'

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            'LT_TEST_TRAININGS': str(self.trainings),
            'PYTHONPATH': str(ROOT),
            'CUDA_VISIBLE_DEVICES': '',
        }

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, self.driver, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def call(self, *arguments: str) -> tuple[int, str]:
        """Exit status and output of a command."""
        with self.start(*arguments) as process:
            out, _ = process.communicate(timeout=300)
        return process.returncode, out

    def run(self, *arguments: str) -> tuple[int, str]:
        return self.call('run', str(self.plan), *arguments)

    def values(self) -> list[tuple[str, ...]]:
        """What must not depend on how a sweep came to its end."""
        names = ('task', 'method', 'seed', 'step', 'metric', 'value')
        return sorted(
            tuple(row[name] for name in names)
            for row in ledger.read(self.ledger)
            if row['role'] != 'loss'
        )

    def processes(self, word: str) -> list[int]:
        """Processes of a sweep here whose command has a word."""
        found = []
        for entry in Path('/proc').glob('[0-9]*'):
            try:
                line = (entry / 'cmdline').read_text()
            except OSError:
                continue
            if word in line and str(self.folder) in line:
                found.append(int(entry.name))
        return found

    def started(self) -> list[str]:
        """Folder of each training and test, as often as it was started."""
        if not self.trainings.exists():
            return []
        return self.trainings.read_text().splitlines()


@pytest.fixture(scope='session')
def tool():
    """The module of the command line."""
    pytest.importorskip('pandas')
    pytest.importorskip('scikit_posthocs')
    spec = importlib.util.spec_from_file_location(
        'sweep_tool', ROOT / 'tools' / 'sweep.py'
    )
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def sweep_tool(tool, monkeypatch):
    """Calls the command line in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['sweep', *map(str, arguments)])
        return tool.main()

    before = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope='module')
def make_toy():
    """The class of ``toy``, for a fixture of a module."""
    return Toy


@pytest.fixture
def toy(tmp_path):
    made = Toy(tmp_path)
    yield made
    # Whatever a test has killed the parent of.
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            line = (folder / 'cmdline').read_text()
        except OSError:
            continue
        if str(tmp_path) in line and int(folder.name) != os.getpid():
            os.kill(int(folder.name), signal.SIGKILL)
            time.sleep(0)
