"""Trials come to the same numbers wherever they run."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lt_losses_mm.recipes import losses
from lt_losses_mm.sweeps import executors, worker
from lt_losses_mm.sweeps.executors import LocalExecutor
from lt_losses_mm.sweeps.plan import Plan
from lt_losses_mm.sweeps.trial import trials_of

slow = pytest.mark.slow


@pytest.fixture(scope='module')
def undisturbed(make_toy, tmp_path_factory):
    """What processes of this machine come to."""
    toy = make_toy(tmp_path_factory.mktemp('undisturbed'))
    assert toy.run('--only', 'first', '--jobs', '2')[0] == 0
    return toy.values()


def wait_for(condition, seconds=60):
    """What a condition says, once it says anything."""
    until = time.time() + seconds
    while time.time() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError('it has not happened')


def workers(folder: Path) -> list[int]:
    """Worker processes of the trials of a sweep."""
    found = []
    for entry in Path('/proc').glob('[0-9]*'):
        try:
            line = (entry / 'cmdline').read_bytes().decode().split('\0')
        except OSError:
            continue
        # Not a command that has the two words in its arguments somewhere.
        if (
            len(line) > 2
            and line[1].endswith('sweeps/worker.py')
            and line[2].startswith(str(folder))
        ):
            found.append(int(entry.name))
    return found


def parent(pid: int) -> int:
    return int(
        Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[1]
    )


def held(toy) -> list[Path]:
    """Trials that somebody trains."""
    folders = toy.folder.glob('work_dirs/toy/trials/*')
    return [folder for folder in folders if worker.is_held(folder)]


def stopped_by_hand(toy, *arguments: str) -> None:
    """Ctrl-C while two trainings run, after which none does."""
    toy.config.write_text(toy.config.read_text().replace('0.05', '5'))
    process = toy.start('run', str(toy.plan), *arguments)
    wait_for(lambda: len(toy.started()) == 2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert not held(toy)
    assert not workers(toy.folder)


# Commands of Slurm, on one machine and without limits; a job's number is that
# of its process.
SLURM = dict(
    sbatch="""
script="${@: -1}"
export SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0
export SLURM_LOCALID=0 SLURM_JOB_NODELIST=here
setsid bash -c 'export SLURM_JOB_ID=$$; exec bash "$0"' "$script" \\
    > /dev/null 2>&1 &
echo $! >> "$(dirname "$0")/submitted"
echo "Submitted batch job $!"
""",
    srun="""
while [[ $1 == -* ]]; do
    if [[ $1 == --output || $1 == --error ]]; then shift; fi
    shift
done
exec "$@"
""",
    sacct="""
echo 'JobID|State|NodeList'
while [[ $# -gt 0 ]]; do
    if [[ $1 == -j ]]; then
        state=COMPLETED
        if kill -0 "$2" 2> /dev/null; then state=RUNNING; fi
        echo "$2|$state|here"
        shift
    fi
    shift
done
""",
)


@slow
class TestCommandsOfSlurm:
    """With commands that behave as Slurm's do."""

    @pytest.fixture
    def toy(self, toy, monkeypatch):
        pytest.importorskip('submitit')
        commands = toy.folder / 'bin'
        commands.mkdir()
        for name, text in SLURM.items():
            (commands / name).write_text(f'#!/bin/bash{text}')
            (commands / name).chmod(0o755)
        monkeypatch.setenv('PATH', f'{commands}:{os.environ["PATH"]}')
        return toy

    def test_job_of_a_killed_sweep_is_found(self, toy, undisturbed):
        arguments = TestSlurm.arguments
        process = toy.start('run', str(toy.plan), *arguments)
        wait_for(lambda: len(toy.started()) == 3)
        process.kill()
        process.communicate(timeout=60)
        status, said = toy.run(*arguments)
        assert status == 0, said
        assert toy.values() == undisturbed
        assert len(toy.started()) == 6
        submitted = (toy.folder / 'bin' / 'submitted').read_text().split()
        assert len(submitted) == 6

    def test_without_slurm(self, toy):
        for name in SLURM:
            (toy.folder / 'bin' / name).unlink()
        status, said = toy.run(*TestSlurm.arguments)
        assert status == 1
        assert 'expected a Slurm cluster that takes these options' in said


@slow
class TestSlurm:
    """By submitit's executor for one machine."""

    arguments = (
        *('--executor', 'slurm', '--slurm', 'timeout_min=5'),
        *('--only', 'first', '--jobs', '2'),
    )

    @pytest.fixture
    def toy(self, toy):
        pytest.importorskip('submitit')
        toy.driver.write_text(
            toy.driver.read_text().replace(
                'import sweep\n',
                'import functools, sweep\n'
                'sweep.SlurmExecutor = functools.partial(\n'
                "    sweep.SlurmExecutor, cluster='local'\n"
                ')\n',
            )
        )
        return toy

    def test_values(self, toy, undisturbed):
        # The plan and the folder of the sweep are relative.
        status, said = toy.call('run', 'plan.yaml', *self.arguments)
        assert status == 0, said
        assert 'At most 2 jobs of Slurm' in said
        assert toy.values() == undisturbed
        assert len(toy.started()) == 6

    def test_stopped_by_hand(self, toy):
        stopped_by_hand(toy, *self.arguments)

    def test_killed_sweep(self, toy, undisturbed):
        """Its jobs go on, and the next sweep does not train them again."""
        process = toy.start('run', str(toy.plan), *self.arguments)
        wait_for(lambda: len(toy.started()) == 3)
        process.kill()
        process.communicate(timeout=60)
        assert toy.run(*self.arguments)[0] == 0
        assert toy.values() == undisturbed
        assert len(toy.started()) == 6


@pytest.fixture(scope='module')
def cluster():
    """A Ray cluster: a head that runs nothing, and two nodes."""
    pytest.importorskip('ray')
    from ray.cluster_utils import Cluster

    memory = dict(object_store_memory=80 * 2**20)
    found = Cluster(
        initialize_head=True,
        head_node_args=dict(num_cpus=0, include_dashboard=False, **memory),
    )
    for _ in range(2):
        found.add_node(num_cpus=1, **memory)
    yield found
    found.shutdown()


@slow
class TestRay:
    @pytest.fixture
    def arguments(self, cluster):
        return (
            *('--executor', 'ray', '--address', cluster.address),
            *('--only', 'first'),
        )

    def test_values(self, toy, undisturbed, arguments):
        status, said = toy.call('run', 'plan.yaml', *arguments)
        assert status == 0, said
        assert '3 nodes of Ray with 2 CPUs and 0 GPUs' in said
        assert toy.values() == undisturbed
        assert len(toy.started()) == 6

    def test_worker_of_ray_killed(self, toy, undisturbed, arguments):
        process = toy.start('run', str(toy.plan), *arguments)
        wait_for(lambda: len(toy.started()) >= 3)
        victim = parent(wait_for(lambda: workers(toy.folder))[0])
        assert 'ray::' in Path(f'/proc/{victim}/cmdline').read_text()
        os.kill(victim, signal.SIGKILL)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert toy.values() == undisturbed
        assert len(toy.started()) == 6

    def test_stopped_by_hand(self, toy, arguments):
        stopped_by_hand(toy, *arguments)

    def test_no_cluster(self, toy):
        status, said = toy.run('--executor', 'ray', '--address', 'localhost:1')
        assert status == 1
        assert "--address='localhost:1', expected a Ray cluster" in said
        assert not toy.started()


@pytest.mark.parametrize(
    'name, make',
    [
        ('submitit', lambda: executors.SlurmExecutor(Path('nowhere'))),
        ('ray', executors.RayExecutor),
    ],
)
def test_missing_package(name, make, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f'Fix: pip install {name}'):
        make()


@pytest.mark.parametrize(
    'options, expected',
    [
        ({}, 'without which submitit allows five'),
        ({'timeout_min': 5, 'colour': 'red'}, 'but: .*colour'),
        ({'timeout_min': 'long'}, 'but: .*long'),
    ],
)
def test_options_of_slurm(tmp_path, options, expected):
    pytest.importorskip('submitit')
    with pytest.raises(ValueError, match=expected):
        executors.SlurmExecutor(tmp_path, options=options, cluster='local')


@pytest.mark.parametrize('default', [0, 2])
def test_gpus_on_slurm(tmp_path, default):
    pytest.importorskip('submitit')
    executor = executors.SlurmExecutor(
        tmp_path, options={'timeout_min': 5}, gpus=default, cluster='local'
    )
    found = [executor.gpus_of(said) for said in (None, 0, 8)]
    assert found == [default, 0, 8]
    assert f'{default or "none"} for a task whose' in executor.describe()


# Says what it was given, and waits to be ended.
WORKER = """
import json, os, sys, time
from pathlib import Path
names = ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS')
part = Path(sys.argv[1], 'part')
part.write_text(json.dumps({name: os.environ[name] for name in names}))
part.rename(Path(sys.argv[1], 'given.json'))
time.sleep(60)
"""


class TestLocal:
    @pytest.fixture
    def start(self, tmp_path, monkeypatch):
        """Start a worker; what it was given, and its job."""
        script = tmp_path / 'worker.py'
        script.write_text(WORKER)
        monkeypatch.setattr(executors, 'WORKER', [sys.executable, str(script)])
        jobs = []

        def start(executor, gpus):
            assert executor.room_for(gpus)
            folder = tmp_path / str(len(jobs))
            folder.mkdir()
            jobs.append(executor.start(folder, gpus))
            file = folder / 'given.json'
            wait_for(file.exists)
            given = json.loads(file.read_text())
            return given, jobs[-1]

        yield start
        for job in jobs:
            job.stop()
            job.process.wait()

    def test_each_has_gpus_of_its_own(self, start, monkeypatch):
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,3,GPU-7')
        executor = LocalExecutor()
        assert '3 training(s) at a time' in executor.describe()
        two, first = start(executor, 2)
        assert two['CUDA_VISIBLE_DEVICES'] == '0,3'
        assert not executor.room_for(2)
        one, _ = start(executor, 1)
        assert one['CUDA_VISIBLE_DEVICES'] == 'GPU-7'
        assert not executor.room_for(1)
        # One without GPUs has room, and sees none.
        none, _ = start(executor, 0)
        assert none['CUDA_VISIBLE_DEVICES'] == ''
        first.stop()
        wait_for(first.ended)
        again, _ = start(executor, 1)
        assert again['CUDA_VISIBLE_DEVICES'] == '0'

    def test_no_more_than_jobs(self, start, monkeypatch):
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
        executor = LocalExecutor()
        start(executor, 0)
        assert not executor.room_for(0)

    @pytest.mark.parametrize(
        'visible, default, given',
        [
            # For a plan that says nothing, 0 and 1.
            ('', None, [0, 0, 0]),
            ('-1', None, [0, 0, 0]),
            ('0', None, [1, 0, 1]),
            ('0,1,2,3,4,5,6,7', None, [1, 0, 1]),
            ('0,1', 2, [2, 0, 1]),
            ('0,1', 0, [0, 0, 1]),
        ],
    )
    def test_gpus_of_a_plan(self, visible, default, given, monkeypatch):
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
        executor = LocalExecutor(gpus=default)
        assert [executor.gpus_of(said) for said in (None, 0, 1)] == given
        default = given[0] or 'none'
        assert f'{default} for a task whose plan' in executor.describe()

    @pytest.mark.parametrize('visible, there', [('', 0), ('0', 1)])
    def test_too_many_gpus(self, visible, there, monkeypatch):
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
        expected = f'gpus=2, expected at most the {there} of this machine'
        with pytest.raises(ValueError, match=expected):
            LocalExecutor().gpus_of(2)

    @pytest.mark.parametrize(
        'own, expected', [('', '2'), ('7', '7')], ids=['divided', 'own']
    )
    def test_threads(self, own, expected, start, monkeypatch):
        monkeypatch.setattr(os, 'cpu_count', lambda: 5)
        monkeypatch.setenv('OMP_NUM_THREADS', own)
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
        executor = LocalExecutor(2)
        given, _ = start(executor, 0)
        assert given['OMP_NUM_THREADS'] == expected
        assert f'OMP_NUM_THREADS={expected};' in executor.describe()


class TestGpusOfAPlan:
    @pytest.fixture
    def plan(self, toy, monkeypatch):
        monkeypatch.chdir(toy.folder)
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
        text = toy.plan.read_text()
        toy.plan.write_text(
            text.replace('second: *task', 'second: {<<: *task, gpus: 8}')
        )
        return toy.plan

    def test_too_many_are_told_before_any_training(self, plan, sweep_tool):
        for more in ([], ['--dry-run']):
            with pytest.raises(SystemExit, match='yaml:10: second: gpus=8, e'):
                sweep_tool('run', plan, *more)
        assert not list(plan.parent.rglob('log.txt'))

    def test_other_tasks_need_none(self, plan, sweep_tool, capsys):
        assert not sweep_tool('run', plan, '--dry-run', '--only', 'first')
        plan.write_text(plan.read_text().replace('gpus: 8', 'gpus: 1'))
        assert not sweep_tool('run', plan, '--dry-run')
        said = capsys.readouterr().out
        assert said.count('second: on the CPU, because there is no GPU') == 1

    def test_trials_have_what_is_there(self, plan, tool, monkeypatch):
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1,2,3,4,5,6,7')
        read = Plan(plan, losses())
        trials, _ = trials_of(read, plan.parent)
        tool.assign_gpus(read, trials, LocalExecutor(), print)
        found = {trial.task: trial.gpus for trial in trials}
        assert found == {'first': 1, 'second': 8}
        assert read.tasks['first']['gpus'] == 1


@pytest.mark.parametrize('gpus', [0, 1, 2])
def test_command(toy, gpus):
    toy.plan.write_text(
        toy.plan.read_text().replace('    base', f'    gpus: {gpus}\n    base')
    )
    (trial, *_), _ = trials_of(Plan(toy.plan, losses()), toy.folder)
    trial.prepare(['accuracy/all'])
    told = json.loads((trial.folder / worker.TRIAL).read_text())
    for name in ('train', 'test'):
        command = ' '.join(told[name])
        torchrun = '-m torch.distributed.run --standalone --nproc-per-node=2'
        assert (torchrun in command) == (gpus == 2)
        assert ('--launcher pytorch' in command) == (gpus == 2)
