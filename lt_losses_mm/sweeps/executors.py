# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Where trials run: processes of this machine, Slurm, or a Ray cluster.

Each starts the same worker on the folder of a trial. What became of it is
read in the folder, so an executor says no more than whether it has ended.

With several nodes the folder of the sweep, the clone or installed package,
Python and the data have to be at the same paths on all of them. The file
system of the folder has to support ``flock`` between nodes, which is what
keeps a trial from running twice, and renaming a file in one step: NFS 4 (and
NFS 3 with ``lockd``), Lustre mounted with ``-o flock``, GPFS, CephFS and
BeeGFS with ``tuneUseGlobalFileLocks`` do; Lustre with ``-o localflock``, and
object stores mounted as folders, do not.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Protocol

from ..messages import describe, fault
from . import worker

WORKER = [sys.executable, os.path.abspath(worker.__file__)]


class Job(Protocol):
    """A worker that was started."""

    def ended(self) -> bool:
        """Whether it is over, one way or the other."""

    def stop(self) -> None:
        """Ask it to end, with its training, and do not wait for it."""


class Executor(Protocol):
    """Starts workers."""

    # Seconds between two looks whether a job has ended.
    pause: float

    def describe(self) -> str:
        """What a person has to know of where and how trainings run."""

    def gpus_of(self, said: int | None) -> int:
        """GPUs that a training gets here for which a plan says this.

        Raises:
            ValueError: If there are not as many.
        """

    def room_for(self, gpus: int) -> bool:
        """Whether one more trial can be started now."""

    def start(self, folder: Path, gpus: int) -> Job:
        """Start the worker of a trial.

        Args:
            folder: Of the trial.
            gpus: How many its training uses.
        """

    def close(self) -> None:
        """Let go of what the executor holds; workers may go on."""


def task() -> Callable[[list[str], dict[str, str]], int]:
    """A function that runs a worker on a node, and ends it if it is ended.

    It is made here so that it travels by value: a node that had to import
    this package for it would import torch, for seconds.
    """

    def run(command: list[str], env: dict[str, str]) -> int:
        import os
        import subprocess
        import time

        process = subprocess.Popen(
            command,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            # The worker is ended below, and by nobody else.
            start_new_session=True,
        )
        try:
            # Ray's KeyboardInterrupt does not wake a process that waits.
            while process.poll() is None:
                time.sleep(0.1)
        finally:
            # The worker ends its training; a second interrupt changes nothing.
            process.terminate()
            process.wait()
        return process.returncode

    return run


def said_threads() -> str:
    """How the threads of a training are chosen that nobody chooses here."""
    threads = os.environ.get('OMP_NUM_THREADS')
    if threads:
        return f'OMP_NUM_THREADS={threads}, as here'
    return 'OMP_NUM_THREADS not set'


def said_gpus(default: int) -> str:
    """Where a training runs for which the plan does not say it."""
    return f'{default or "none"} for a task whose plan says nothing of gpus'


class LocalJob:
    """A worker of this machine."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process

    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self) -> None:
        self.process.terminate()


class LocalExecutor:
    """Processes of this machine, each with GPUs of its own.

    Args:
        jobs: Trainings at a time; by default as many as there are GPUs, or
            one on a machine without.
        gpus: Of a training for which the plan says nothing; by default one,
            if there is one.
    """

    pause = 0.05

    def __init__(
        self, jobs: int | None = None, gpus: int | None = None
    ) -> None:
        self.gpus = visible_gpus()
        self.default = min(1, len(self.gpus)) if gpus is None else gpus
        self.jobs = jobs or max(1, len(self.gpus))
        self.active: list[tuple[LocalJob, list[str]]] = []
        self.threads = os.environ.get('OMP_NUM_THREADS') or str(
            max(1, (os.cpu_count() or 1) // self.jobs)
        )

    def describe(self) -> str:
        return (
            f'{self.jobs} training(s) at a time on this machine, each with '
            f'OMP_NUM_THREADS={self.threads}; {len(self.gpus)} GPU(s), '
            f'{said_gpus(self.default)}'
        )

    def gpus_of(self, said: int | None) -> int:
        gpus = self.default if said is None else said
        if gpus > max(1, len(self.gpus)):
            raise fault(
                'gpus',
                gpus,
                f'at most the {len(self.gpus)} of this machine',
                'take the key out of the plan, or use --executor slurm or ray',
            )
        # What is meant for one GPU can be trained without any.
        return min(gpus, len(self.gpus))

    def free(self) -> list[str]:
        self.active = [x for x in self.active if not x[0].ended()]
        taken = {gpu for _, gpus in self.active for gpu in gpus}
        return [gpu for gpu in self.gpus if gpu not in taken]

    def room_for(self, gpus: int) -> bool:
        return len(self.free()) >= gpus and len(self.active) < self.jobs

    def start(self, folder: Path, gpus: int) -> LocalJob:
        given = self.free()[:gpus]
        job = LocalJob(
            subprocess.Popen(
                [*WORKER, str(folder)],
                env={
                    **os.environ,
                    'OMP_NUM_THREADS': self.threads,
                    'CUDA_VISIBLE_DEVICES': ','.join(given),
                },
                stdin=subprocess.DEVNULL,
                # Ctrl-C is for the sweep, which ends its workers itself.
                start_new_session=True,
            )
        )
        self.active.append((job, given))
        return job

    def close(self) -> None:
        pass


def visible_gpus() -> list[str]:
    """Names that ``CUDA_VISIBLE_DEVICES`` takes, none without a GPU."""
    import torch

    said = os.environ.get('CUDA_VISIBLE_DEVICES')
    if said is not None:
        # Of what follows -1, CUDA shows nothing.
        shown = (',' + said).partition(',-1')[0]
        return [name for name in shown.split(',') if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


class SlurmJob:
    """A job of submitit."""

    def __init__(self, job: Any) -> None:
        self.job = job
        self.stopped = False

    def ended(self) -> bool:
        # Slurm is asked every ten minutes only, and ends what it was told to.
        return self.stopped or self.job.done()

    def stop(self) -> None:
        self.job.cancel(check=False)
        self.stopped = True


class SlurmExecutor:
    """Jobs of a Slurm cluster, by submitit.

    A job that is in the queue when the sweep is killed is found again by the
    next one. Slurm gives each job its GPUs; it gets the environment that the
    sweep has.

    Args:
        folder: Where submitit keeps its files; all nodes have to see it.
        jobs: The most jobs in the queue at a time.
        options: For ``submitit.AutoExecutor.update_parameters``, e.g.
            ``timeout_min`` and ``slurm_partition``.
        gpus: Of a training for which the plan says nothing.
        cluster: For ``submitit.AutoExecutor``; ``'local'`` runs jobs here,
            all with the same GPUs, which is good for tests.

    Raises:
        ImportError: Without submitit.
        ValueError: If there is no Slurm, or an option is none.
    """

    pause = 2.0

    def __init__(
        self,
        folder: Path,
        jobs: int | None = None,
        options: dict[str, Any] | None = None,
        gpus: int = 0,
        cluster: str = 'slurm',
    ) -> None:
        self.default = gpus
        self.submitit = wanted('submitit', 'slurm')
        self.folder = folder / 'slurm'
        self.cluster = cluster
        self.jobs = jobs or 100
        self.options = options or {}
        self.active: list[SlurmJob] = []
        if not {'timeout_min', 'slurm_time'} & self.options.keys():
            raise fault(
                '--slurm timeout_min',
                None,
                'the minutes that a training may take, without which '
                'submitit allows five',
                'add e.g. --slurm timeout_min=600',
            )
        try:
            self._executor('lt', 0)
        except Exception as error:
            raise fault(
                '--slurm',
                self.options,
                f'a Slurm cluster that takes these options, but: {error}',
                'run it where `srun` is, and see '
                'submitit.AutoExecutor.update_parameters',
            ) from error

    def describe(self) -> str:
        return (
            f'At most {self.jobs} jobs of Slurm at a time, '
            f'{said_threads()}, {said_gpus(self.default)}; their logs: '
            f'{self.folder}'
        )

    def gpus_of(self, said: int | None) -> int:
        return self.default if said is None else said

    def room_for(self, gpus: int) -> bool:
        # How many GPUs a node has is for Slurm to know.
        self.active = [job for job in self.active if not job.ended()]
        return len(self.active) < self.jobs

    def start(self, folder: Path, gpus: int) -> SlurmJob:
        found = self._queued(folder)
        if found is None:
            env = {} if gpus else {'CUDA_VISIBLE_DEVICES': ''}
            found = SlurmJob(
                self._executor(folder.name, gpus).submit(
                    task(), [*WORKER, str(folder)], env
                )
            )
            worker.write_json(
                folder / 'slurm.json', dict(job=found.job.job_id)
            )
        self.active.append(found)
        return found

    def _executor(self, name: str, gpus: int) -> Any:
        executor = self.submitit.AutoExecutor(
            self.folder, cluster=self.cluster
        )
        executor.update_parameters(
            **{'name': name, 'gpus_per_node': gpus, **self.options}
        )
        return executor

    def _queued(self, folder: Path) -> SlurmJob | None:
        note = folder / 'slurm.json'
        if not note.exists() or self.cluster != 'slurm':
            return None
        job = SlurmJob(
            self.submitit.SlurmJob(
                self.folder, json.loads(note.read_text())['job']
            )
        )
        return None if job.ended() else job

    def close(self) -> None:
        pass


class RayJob:
    """A task of Ray."""

    def __init__(self, ray: Any, task: Any) -> None:
        self.ray = ray
        self.task = task

    def ended(self) -> bool:
        done, _ = self.ray.wait([self.task], timeout=0)
        return bool(done)

    def stop(self) -> None:
        self.ray.cancel(self.task)


class RayExecutor:
    """Tasks of a Ray cluster, whose nodes see the folder of the sweep.

    A task gets the environment that the sweep has, beside that of its node;
    Ray chooses its GPUs.

    Args:
        address: Of the cluster, as for ``ray.init``.
        jobs: The most tasks at a time; Ray starts those it has room for.
        cpus: Of one training; its ``OMP_NUM_THREADS`` as well, unless that is
            set.
        gpus: Of a training for which the plan says nothing.

    Raises:
        ImportError: Without Ray.
        ValueError: If there is no cluster at the address.
    """

    pause = 0.2

    def __init__(
        self,
        address: str = 'auto',
        jobs: int | None = None,
        cpus: int = 1,
        gpus: int = 0,
    ) -> None:
        self.default = gpus
        self.ray = wanted('ray', 'ray')
        host, _, port = address.rpartition('/')[2].rpartition(':')
        try:
            if port.isdigit():
                # Ray would try for minutes, and end the process then.
                socket.create_connection((host, int(port)), 10).close()
            self.ray.init(
                address=address, log_to_driver=False, logging_level='error'
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise fault(
                '--address',
                address,
                f'a Ray cluster that is running, but: {error}',
                'start one with `ray start --head`',
            ) from error
        self.cpus = cpus
        self.threads = os.environ.get('OMP_NUM_THREADS') or str(cpus)
        self.jobs = jobs or 1000
        self.active: list[RayJob] = []

    def describe(self) -> str:
        nodes = [n['Resources'] for n in self.ray.nodes() if n['Alive']]
        cpus, gpus = (
            [int(node.get(kind, 0)) for node in nodes]
            for kind in ('CPU', 'GPU')
        )
        return (
            f'{len(nodes)} nodes of Ray with {sum(cpus)} CPUs and '
            f'{sum(gpus)} GPUs; a training has {self.cpus} of the CPUs and '
            f'OMP_NUM_THREADS={self.threads}, and waits for a node if it '
            f'needs more than {max(cpus)} CPUs or {max(gpus)} GPUs; '
            f'{said_gpus(self.default)}'
        )

    def gpus_of(self, said: int | None) -> int:
        return self.default if said is None else said

    def room_for(self, gpus: int) -> bool:
        # A node that is large enough may join later.
        self.active = [job for job in self.active if not job.ended()]
        return len(self.active) < self.jobs

    def start(self, folder: Path, gpus: int) -> RayJob:
        worker_of = task()
        env = {**os.environ, 'OMP_NUM_THREADS': self.threads}

        def run(command: list[str]) -> int:
            import ray

            given = ','.join(map(str, ray.get_gpu_ids()))
            return worker_of(command, {**env, 'CUDA_VISIBLE_DEVICES': given})

        remote = self.ray.remote(
            num_cpus=self.cpus, num_gpus=gpus, max_retries=0
        )(run)
        job = RayJob(self.ray, remote.remote([*WORKER, str(folder)]))
        self.active.append(job)
        return job

    def close(self) -> None:
        self.ray.shutdown()


def wanted(module: str, extra: str) -> Any:
    """Import an optional package.

    Raises:
        ImportError: With the command that installs it.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            describe(
                '--executor',
                extra,
                f'the package {module}, which is not installed ({error})',
                f'pip install {module}',
            )
        ) from error
