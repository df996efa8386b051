"""Who evaluates a sweep's blocks: this process, processes of this machine, or a Dask cluster; all find the same."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from helix_sim.core.errors import Exit, SpecError, Stopped
from helix_sim.core.files import PointsWriter
from helix_sim.search.block import error_bars, evaluate_block
from helix_sim.search.journal import GO_ON, Outcome, file_digest
from helix_sim.search.plan import Block, Plan

EXECUTORS = ("auto", "serial", "processes", "dask")

WORTH = 10
"""How many times longer what is left of a sweep must take than processes take to start, for `auto` to start them."""

START_S = {"fork": 0.05, "spawn": 0.5}
"""Seconds that a process takes to start: measured for one that has the plan already, and one that imports numpy."""

BLOCK_S = 0.1
"""Seconds of a block that `auto` counts on before any was evaluated: few take less."""

RESTARTS = 3
"""Times in a row that workers may die without finishing a block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One block, its place in the sweep, and where its points go, if they are kept."""

    index: int
    block: Block
    part: Path | None = None


Results = Iterator[tuple[int, Outcome]]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_executor(executor: str) -> None:
    """SpecError where nobody knows the executor."""
    if executor not in EXECUTORS:
        raise SpecError([f"--executor: {executor!r} is not one of {', '.join(EXECUTORS)}"])


def execute(
    executor: str, planned: Plan, tasks: list[Task], *, workers: int | None = None, scheduler: str | None = None
) -> Results:
    """Every task's outcome, in whatever order they are ready.

    `auto` evaluates blocks here, and hands the others to processes as soon as what is left, at the rate of those that
    are done, takes longer than WORTH starts: at once, where blocks are many.
    """
    if executor == "processes":
        return _processes(planned, tasks, workers or cores())
    if executor == "dask":
        return _dask(planned, tasks, workers, scheduler)
    return _here(planned, tasks, (workers or cores()) if executor == "auto" else 1)


def _here(planned: Plan, tasks: list[Task], workers: int) -> Results:
    """Blocks one after another, as long as starting that many workers would take longer than they save."""
    seconds = 0.0
    start_s = workers * START_S[_start_method(tasks)]
    for done, task in enumerate(tasks):
        left_s = (len(tasks) - done) * (seconds / done if done else BLOCK_S)
        if workers > 1 and done < len(tasks) - 1 and left_s > WORTH * start_s:
            yield from _processes(planned, tasks[done:], workers)
            return
        begun = time.perf_counter()
        yield task.index, perform(planned, task)
        seconds += time.perf_counter() - begun


def perform(planned: Plan, task: Task) -> Outcome:
    """Evaluate one block, and write its points if they are kept."""
    if task.part is None:
        return Outcome(evaluated=evaluate_block(planned, task.block))
    task.part.unlink(missing_ok=True)
    with PointsWriter(task.part, list(planned.sweep.families)) as writer:
        evaluated = evaluate_block(
            planned, task.block, lambda columns: writer.write({**columns, **error_bars(planned, columns)})
        )
    return Outcome(evaluated=evaluated, points=file_digest(task.part))


# --- Processes -------------------------------------------------------------------------------------------------------

_plan_here: Plan | None = None


def _start_worker(planned: Plan, parent: int) -> None:
    """Keep the plan; leave Ctrl-C to the parent, and follow it when it is killed."""
    global _plan_here
    _plan_here = planned
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)


def _perform_here(task: Task) -> Outcome:
    assert _plan_here is not None
    return perform(_plan_here, task)


def _start_method(tasks: list[Task]) -> str:
    """How processes start: as copies of this one, which is at once, on Linux unless they write Parquet files.

    A copy has this process's threads stopped, which pyarrow's may not survive, nor the system libraries of macOS.
    """
    return "fork" if sys.platform == "linux" and not any(task.part for task in tasks) else "spawn"


def _processes(planned: Plan, tasks: list[Task], workers: int) -> Results:
    """A pool of processes; one that dies is replaced, and its block evaluated again."""
    started_as: Any = get_context(_start_method(tasks))
    left = {task.index: task for task in tasks}
    deaths = 0
    while left:
        pool = ProcessPoolExecutor(
            min(workers, len(left)), started_as, initializer=_start_worker, initargs=(planned, os.getpid())
        )
        try:
            for index, outcome in _bounded(pool, list(left.values()), 2 * workers):
                deaths = 0
                del left[index]
                yield index, outcome
        except BrokenProcessPool:
            deaths += 1
            if deaths > RESTARTS:
                sentence = f"worker processes died {deaths} times in a row (out of memory?); what is done is kept: "
                raise Stopped(Exit.WORKERS_DIED, f"{sentence}{GO_ON}, with --workers 1 perhaps") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _bounded(pool: ProcessPoolExecutor, tasks: Iterable[Task], most: int) -> Results:
    """Outcomes as they come, with at most that many tasks handed out."""
    waiting, under_way = iter(tasks), dict[Future[Outcome], int]()
    while True:
        for task in itertools.islice(waiting, most - len(under_way)):
            under_way[pool.submit(_perform_here, task)] = task.index
        if not under_way:
            return
        for future in wait(under_way, return_when=FIRST_COMPLETED).done:
            yield under_way.pop(future), future.result()


# --- Dask ------------------------------------------------------------------------------------------------------------


def _dask(planned: Plan, tasks: list[Task], workers: int | None, scheduler: str | None) -> Results:
    """A Dask cluster: the one at `scheduler`, or one of this machine's processes; Dask evaluates a lost block again."""
    import logging

    try:
        from distributed import Client, LocalCluster, as_completed
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise SpecError(["--executor dask needs Dask: pip install 'helix-sim[distributed]'"]) from None

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            quiet: dict[str, Any] = {"silence_logs": logging.CRITICAL, "dashboard_address": None}
            local = LocalCluster(n_workers=workers or cores(), threads_per_worker=1, **quiet)
            client: Any = stack.enter_context(Client(stack.enter_context(local)))
        else:
            try:
                client = stack.enter_context(Client(scheduler, timeout=10))
            except (OSError, TimeoutError, ValueError) as error:
                raise SpecError([f"--scheduler: no Dask scheduler answers at {scheduler}: {error}"]) from None
        there = client.submit(_kept, planned, pure=False)  # not scattered: Dask can make it again on another worker
        waiting = iter(tasks)

        def submit(count: int) -> list[Any]:
            return [
                client.submit(_performed, there, task, pure=False, retries=RESTARTS)
                for task in itertools.islice(waiting, count)
            ]

        under_way = as_completed(submit(4 * max(len(client.scheduler_info()["workers"]), 1)))
        for future in under_way:
            try:
                index, outcome = future.result()
            except KilledWorker as error:
                sentence = f"Dask's workers died again and again ({error}); what is done is kept: {GO_ON}"
                raise Stopped(Exit.WORKERS_DIED, sentence) from None
            future.release()
            for task in submit(1):
                under_way.add(task)
            yield index, outcome


def _kept(planned: Plan) -> Plan:
    return planned


def _performed(planned: Plan, task: Task) -> tuple[int, Outcome]:
    return task.index, perform(planned, task)
