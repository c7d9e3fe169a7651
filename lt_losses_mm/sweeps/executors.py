# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Where trials run: processes of this machine, Slurm, or a Ray cluster.

Each starts the same worker on the folder of a trial. What became of it is
read in the folder, so an executor says no more than whether it has ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from ..messages import describe, fault
from . import worker

WORKER = [sys.executable, worker.__file__]


class Job(Protocol):
    """A worker that was started."""

    def ended(self) -> bool:
        """Whether it is over, one way or the other."""

    def stop(self) -> None:
        """End it, with its training."""


class Executor(Protocol):
    """Starts workers."""

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


class LocalJob:
    """A worker of this machine."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process

    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


class LocalExecutor:
    """Processes of this machine, each with GPUs of its own.

    Args:
        jobs: Trainings at a time; by default as many as there are GPUs, or
            one on a machine without.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self.gpus = visible_gpus()
        self.jobs = jobs or max(1, len(self.gpus))
        self.active: list[tuple[LocalJob, list[str]]] = []
        self.threads = os.environ.get('OMP_NUM_THREADS') or str(
            max(1, (os.cpu_count() or 1) // self.jobs)
        )

    def describe(self) -> str:
        """What a person has to know of the threads that this sets."""
        return (
            f'{self.jobs} training(s) at a time on this machine, each with '
            f'OMP_NUM_THREADS={self.threads}; {len(self.gpus)} GPU(s)'
        )

    def free(self) -> list[str]:
        self.active = [x for x in self.active if not x[0].ended()]
        taken = {gpu for _, gpus in self.active for gpu in gpus}
        return [gpu for gpu in self.gpus if gpu not in taken]

    def room_for(self, gpus: int) -> bool:
        if gpus > len(self.gpus):
            raise fault(
                'gpus',
                gpus,
                f'at most the {len(self.gpus)} of this machine',
                'take the key out of the plan to train on the CPU, or use '
                '--executor slurm or ray',
            )
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
        return [name for name in said.split(',') if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


class SlurmJob:
    """A job of submitit."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def ended(self) -> bool:
        return self.job.done()

    def stop(self) -> None:
        self.job.cancel()


class SlurmExecutor:
    """Jobs of a Slurm cluster, by submitit.

    A job that is in the queue when the sweep is killed is found again by the
    next one.

    Args:
        folder: Where submitit keeps its files; all nodes have to see it.
        jobs: The most jobs in the queue at a time.
        options: For ``submitit.AutoExecutor.update_parameters``, e.g.
            ``timeout_min`` and ``slurm_partition``.
        cluster: For ``submitit.AutoExecutor``; ``'local'`` runs jobs here.
    """

    def __init__(
        self,
        folder: Path,
        jobs: int | None = None,
        options: dict[str, Any] | None = None,
        cluster: str = 'slurm',
    ) -> None:
        self.submitit = wanted('submitit', 'slurm')
        self.folder = folder / 'slurm'
        self.cluster = cluster
        self.jobs = jobs or 100
        self.options = options or {}
        self.active: list[SlurmJob] = []

    def room_for(self, gpus: int) -> bool:
        self.active = [job for job in self.active if not job.ended()]
        return len(self.active) < self.jobs

    def start(self, folder: Path, gpus: int) -> SlurmJob:
        found = self._queued(folder)
        if found is None:
            executor = self.submitit.AutoExecutor(
                self.folder, cluster=self.cluster
            )
            executor.update_parameters(
                **{
                    'name': folder.name,
                    'gpus_per_node': gpus,
                    **self.options,
                }
            )
            command = self.submitit.helpers.CommandFunction(
                [*WORKER, str(folder)], verbose=False
            )
            found = SlurmJob(executor.submit(command))
            worker.write_json(
                folder / 'slurm.json', dict(job=found.job.job_id)
            )
        self.active.append(found)
        return found

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

    Args:
        address: Of the cluster, as for ``ray.init``.
        jobs: The most tasks at a time; Ray starts those it has room for.
        cpus: Of one training; its ``OMP_NUM_THREADS`` as well.
    """

    def __init__(
        self, address: str = 'auto', jobs: int | None = None, cpus: int = 1
    ) -> None:
        self.ray = wanted('ray', 'ray')
        try:
            self.ray.init(
                address=address, log_to_driver=False, logging_level='error'
            )
        except ConnectionError as error:
            raise fault(
                '--address',
                address,
                f'a Ray cluster that is running, but: {error}',
                'start one with `ray start --head`',
            ) from error
        self.cpus = cpus
        self.jobs = jobs or 1000
        self.active: list[RayJob] = []

    def room_for(self, gpus: int) -> bool:
        self.active = [job for job in self.active if not job.ended()]
        return len(self.active) < self.jobs

    def start(self, folder: Path, gpus: int) -> RayJob:
        # By value: the nodes need the package, but not this module of it.
        def run(command: list[str], threads: str) -> int:
            import os
            import subprocess

            env = {**os.environ, 'OMP_NUM_THREADS': threads}
            return subprocess.run(command, env=env).returncode

        remote = self.ray.remote(
            num_cpus=self.cpus, num_gpus=gpus, max_retries=0
        )(run)
        task = remote.remote([*WORKER, str(folder)], str(self.cpus))
        job = RayJob(self.ray, task)
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
