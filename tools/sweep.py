# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Run the trainings of a plan, and make a report that one can decide from.

    python tools/sweep.py run PLAN.yaml            what is missing
    python tools/sweep.py run PLAN.yaml --dry-run  what would be run
    python tools/sweep.py status PLAN.yaml         from another shell
    python tools/sweep.py search PLAN.yaml         good values of a loss
    python tools/sweep.py report LEDGER
    python tools/sweep.py recommend CONFIG         which loss for this one
    python tools/sweep.py merge LEDGER... --out LEDGER

From an installed package: `mim run mm-lt-losses sweep run PLAN.yaml`. What a
plan says: docs/sweeps.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Callable, Iterable

from mmengine.config import DictAction

from lt_losses_mm.recipes import CONFIGS, losses, read_config
from lt_losses_mm.sweeps.results import needed

# Told now, and not when the report is made after hours of training.
for name in (
    *('jinja2', 'jsonschema', 'matplotlib', 'pandas', 'rich'),
    *('scikit_posthocs', 'scipy', 'yaml'),
):
    try:
        needed(name)
    except ImportError as error:
        sys.exit(f'sweep: {error}')

# ruff: noqa: E402
from lt_losses_mm.sweeps import ledger
from lt_losses_mm.sweeps.executors import (
    Executor,
    LocalExecutor,
    RayExecutor,
    SlurmExecutor,
)
from lt_losses_mm.sweeps.plan import Plan
from lt_losses_mm.sweeps.progress import Lines, dry_run, failed_before, status
from lt_losses_mm.sweeps.recommend import recommend
from lt_losses_mm.sweeps.report import write_report
from lt_losses_mm.sweeps.search import Search, points_named
from lt_losses_mm.sweeps.sweep import Sweep, SweepError
from lt_losses_mm.sweeps.timing import check_disk, time_tasks
from lt_losses_mm.sweeps.trial import Trial, trials_of

# Of a clone, or of a wheel.
SWEEPS = CONFIGS.parent / 'benchmarks' / 'sweeps'
# Exit status where another sweep runs; what was asked for may be missing.
BUSY = 3
LEDGER = SWEEPS / 'embedded.csv.gz'


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    add_run(commands.add_parser('run', help='run what is missing'))
    add_search(
        commands.add_parser(
            'search', help='find values of what the plan calls "search"'
        )
    )
    add_status(commands.add_parser('status', help='what runs, what is done'))
    add_report(commands.add_parser('report', help='one page of a ledger'))
    add_recommend(
        commands.add_parser('recommend', help='which loss for a config')
    )
    add_merge(commands.add_parser('merge', help='join ledgers'))
    args = parser.parse_args()
    try:
        return args.call(args)
    except (ValueError, ImportError, OSError, SweepError) as error:
        sys.exit(f'sweep: {error}')
    except KeyboardInterrupt:
        print('stopped; `sweep run` goes on where it was')
        return 130


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add what every command about a plan takes."""
    add = parser.add_argument
    add('plan', type=Path, metavar='PLAN', help='YAML file')
    add(
        '--folder',
        type=Path,
        help='of the trials (default: work_dirs/ and the name of the plan)',
    )
    add(
        '--ledger',
        type=Path,
        metavar='FILE',
        help='CSV file, compressed if it ends in .gz (default: ledger.csv in '
        'the folder)',
    )
    add(
        '--only',
        nargs='+',
        default=[],
        metavar='TASK/METHOD/SEED',
        help='these trials and those that they need; TASK or TASK/METHOD for '
        'all of it',
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(call=run)
    add_plan(parser)
    add = parser.add_argument
    add('--dry-run', action='store_true', help='only say what would be run')
    add(
        '--time-steps',
        type=int,
        metavar='N',
        help='with --dry-run: train N iterations in each task that the '
        'ledger does not know, for hours and disk',
    )
    add_execution(parser)


def add_search(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(call=search)
    add_plan(parser)
    add_execution(parser)


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Add where and how often trials are run."""
    add = parser.add_argument
    add(
        '--executor',
        choices=['local', 'slurm', 'ray'],
        default='local',
        help='default: processes of this machine',
    )
    add(
        '--jobs',
        type=int,
        metavar='N',
        help='trainings at a time (default: one a GPU, one without GPUs)',
    )
    add(
        '--gpus',
        type=int,
        metavar='N',
        help='of a training for which the plan says nothing (default: one '
        'if this machine has any; none on Slurm and Ray)',
    )
    add('--retries', type=int, default=1, metavar='N', help='default: 1')
    add(
        '--retry-failed',
        action='store_true',
        help='run again what an earlier run gave up',
    )
    add(
        '--slurm',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='for submitit, e.g. timeout_min=600 slurm_partition=gpu',
    )
    add(
        '--address',
        default='auto',
        help='of the Ray cluster (default: auto)',
    )
    add(
        '--cpus',
        type=int,
        default=1,
        metavar='N',
        help='of one training on Ray (default: 1)',
    )


def add_status(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(call=show_status)
    add_plan(parser)


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(call=make_report)
    add = parser.add_argument
    add('ledger', type=Path, metavar='LEDGER')
    add(
        '--out',
        type=Path,
        metavar='FILE.html',
        help='default: report.html beside the ledger; report.md goes with it',
    )


def add_recommend(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(call=advise)
    add = parser.add_argument
    add('config', help='config file of any host, with its data in place')
    add(
        '--ledger',
        type=Path,
        default=LEDGER,
        metavar='FILE',
        help='default: that of this package, of its embedded benchmark',
    )
    add(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override config values',
    )


def add_merge(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(call=merge)
    parser.add_argument('ledgers', type=Path, nargs='+', metavar='LEDGER')
    parser.add_argument('--out', type=Path, required=True, metavar='LEDGER')


def read(args: argparse.Namespace) -> tuple[Plan, list[Trial], list[str]]:
    """The plan, its trials, and what does not fit."""
    plan = read_plan(args)
    trials, left_out = trials_of(plan, args.folder)
    if args.only:
        trials = chosen(plan, trials, args.only, args.folder)
    return plan, trials, left_out


def read_plan(args: argparse.Namespace) -> Plan:
    """The plan; what the command line leaves open follows from it."""
    plan = Plan(args.plan, losses())
    args.folder = args.folder or Path('work_dirs', plan.name)
    args.ledger = args.ledger or args.folder / 'ledger.csv'
    return plan


def chosen(
    plan: Plan, trials: list[Trial], only: list[str], folder: Path
) -> list[Trial]:
    """The trials that ``--only`` names, and those that they need."""
    wanted = []
    for name in only:
        # With all points of a grid.
        starts = (f'{name}/', f'{name}[')
        found = [t for t in trials if f'{t}/'.startswith(starts)]
        if not found:
            found = points_named(plan, folder, name)
            known = {str(trial) for trial in trials}
            trials = [*trials, *(t for t in found if str(t) not in known)]
        if not found:
            raise ValueError(
                f'--only {name}: no trial of {plan.path} is called so, '
                f'expected e.g. {trials[0]}'
            )
        wanted += found
    for trial in wanted:
        wanted += [t for t in trial.needed if t not in wanted]
    return [trial for trial in trials if trial in wanted]


def run(args: argparse.Namespace) -> int:
    if args.time_steps is not None and not (
        args.dry_run and args.time_steps > 0
    ):
        raise ValueError(
            f'--time-steps {args.time_steps}: expected a number above 0, and '
            '--dry-run beside it'
        )
    plan, trials, left_out = read(args)
    if args.dry_run:
        if args.time_steps:
            where = executor(args)
            assign_gpus(plan, trials, where, print)
            time_tasks(trials, args.ledger, where, args.time_steps)
        dry_run(plan, trials, left_out, args.ledger, args.retry_failed)
        if args.executor == 'local':  # Others may get more GPUs later.
            assign_gpus(plan, trials, executor(args), print)
        return 0
    for sentence in left_out:
        print(sentence)
    check_disk(trials, args.ledger)
    return execute(
        args,
        lambda say: Sweep(
            plan, trials, args.ledger, say, args.retries, args.retry_failed
        ),
    )


def search(args: argparse.Namespace) -> int:
    plan = read_plan(args)
    if not plan.search:
        plan.refuse(
            ('search',),
            None,
            'method, parameters and trials',
            'add search: {method: balanced_softmax, parameters: {loss.tau: '
            '{low: 0.25, high: 2.0}}, trials: 12}',
        )
    unknown = [name for name in args.only if name not in plan.tasks]
    if unknown:
        raise ValueError(
            f'--only {unknown[0]}: no task of {plan.path} is called so, '
            f'expected one of {", ".join(plan.tasks)}'
        )
    return execute(
        args,
        lambda say: Search(
            plan,
            args.folder,
            args.only or list(plan.tasks),
            args.ledger,
            say,
            args.retries,
            args.retry_failed,
        ),
    )


def execute(
    args: argparse.Namespace, make: Callable[[Callable[[str], None]], Sweep]
) -> int:
    """Run a sweep to its end, unless one runs in its folder."""
    # As Ctrl-C: the trainings are ended, and the ledger is whole.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ledger.locked(args.folder / 'sweep', wait=False) as first:
        if not first:
            print(
                f'Another sweep runs in {args.folder}, see `sweep status '
                f'{args.plan}`. When it has ended, run this again: it does '
                'what is still missing.'
            )
            return BUSY
        with Lines() as lines:
            sweep = make(lines.say)
            where = executor(args)
            lines.say(where.describe())
            tasks = sweep.studies if isinstance(sweep, Search) else ()
            assign_gpus(sweep.plan, sweep.trials, where, lines.say, tasks)
            failed = len(sweep.outcome().failed)
            if failed:
                lines.say(failed_before(failed))
            started = time.time()
            outcome = sweep.run(where, lines.show)
    if outcome.done:
        page = args.folder / 'report.html'
        write_report(args.ledger, page, page.with_suffix('.md'))
        if not isinstance(sweep, Search):
            print(page.with_suffix('.md').read_text('utf-8'))
        print(f'report: {page}')
    if isinstance(sweep, Search):
        sweep.show_result()
    print(f'ledger: {args.ledger}')
    if outcome.failed or outcome.waiting:
        print(
            f'{len(outcome.done)} done, {len(outcome.failed)} failed (run '
            f'again with --retry-failed), {len(outcome.waiting)} not started'
        )
    hours = sweep.plan.budget.get('hours')
    if hours and time.time() - started > hours * 3600 and sweep.ready():
        print(
            f'The reason is budget.hours={hours}, which is over; the next '
            'start has as many again.'
        )
    return 1 if outcome.failed else 0


def executor(args: argparse.Namespace) -> Executor:
    if args.gpus is not None and args.gpus < 0:
        raise ValueError(f'--gpus {args.gpus}: expected 0 or more')
    if args.executor == 'slurm':
        return SlurmExecutor(
            args.folder,
            args.jobs,
            dict(parse(option) for option in args.slurm),
            args.gpus or 0,
        )
    if args.executor == 'ray':
        return RayExecutor(args.address, args.jobs, args.cpus, args.gpus or 0)
    return LocalExecutor(args.jobs, args.gpus)


def assign_gpus(
    plan: Plan,
    trials: list[Trial],
    where: Executor,
    say: Callable[[str], None],
    tasks: Iterable[str] = (),
) -> None:
    """Settle how many GPUs the trainings have where they run.

    Args:
        plan: Gets the number for trials that are made later.
        trials: Made already.
        where: They will run.
        say: Takes a line for a person.
        tasks: Of trials that are made later.
    """
    wanting = []
    for task in dict.fromkeys([*(t.task for t in trials), *tasks]):
        said = plan.tasks[task].get('gpus')
        try:
            given = where.gpus_of(said)
        except ValueError as error:
            place = plan.where('tasks', task, 'gpus')
            raise ValueError(f'{place}: {task}: {error}') from error
        if said and not given:
            wanting.append(task)
        plan.tasks[task] = {**plan.tasks[task], 'gpus': given}
    for trial in trials:
        trial.gpus = plan.tasks[trial.task]['gpus']
    if wanting:
        say(f'{", ".join(wanting)}: on the CPU, because there is no GPU')


def parse(option: str) -> tuple[str, object]:
    """``KEY=VALUE``, numbers as numbers."""
    key, equals, value = option.partition('=')
    if not equals:
        raise ValueError(f'--slurm {option}: expected KEY=VALUE')
    return key, int(value) if value.isdigit() else value


def show_status(args: argparse.Namespace) -> int:
    plan, trials, _ = read(args)
    status(plan, trials, args.ledger)
    return 0


def make_report(args: argparse.Namespace) -> int:
    page = args.out or args.ledger.with_name('report.html')
    write_report(args.ledger, page, page.with_suffix('.md'))
    print(f'report: {page}')
    return 0


def advise(args: argparse.Namespace) -> int:
    # It builds the data set, which other commands need no host for.
    from class_statistics import from_config, heads_of_config

    parser = argparse.ArgumentParser('sweep recommend')
    known = dict(split='train', unit=None, groups=None, loss=None)
    full = argparse.Namespace(
        work_dir=None, launcher='none', local_rank=0, **vars(args), **known
    )
    counts, *_ = from_config(parser, full)
    cfg = read_config(args.config)
    found = next(heads_of_config(cfg), None)
    if found is None:
        raise ValueError(
            f'{args.config}: expected a head with a classification loss'
        )
    host = cfg.get('default_scope', 'mmengine')
    print(recommend(counts, host, found, args.ledger, args.config))
    return 0


def merge(args: argparse.Namespace) -> int:
    rows, conflicts = ledger.merge(args.ledgers)
    for sentence in conflicts:
        print(sentence)
    ledger.write(args.out, rows)
    trials = {row['trial'] for row in rows}
    print(f'{args.out}: {len(trials)} trials, {len(rows)} rows')
    return 1 if conflicts else 0


if __name__ == '__main__':
    sys.exit(main())
