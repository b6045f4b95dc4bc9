"""Notebooks executed through papermill: one, several in turn, or several at once with the cores shared among them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hcm_helpers.files import refusal
from hcm_helpers.report import clock

Parameters = dict[str, Any]
CELL_TIMEOUT = 24 * 3600  # seconds a cell may take: against a kernel that hangs, far above any training
KERNEL_STARTS = 3  # its ports are free when they are chosen, and another process may take one before it does


class NotebookError(Exception):
    """A cell failed.

    Args:
        message: what went wrong, where, and which file shows it, as printed to the user.
        bad_input: whether the cause is a DataError, that is, something that the user can put right.
    """

    def __init__(self, message: str, bad_input: bool = False):
        super().__init__(message)
        self.bad_input = bad_input

    def __reduce__(self):  # or on its way from another process it would lose bad_input
        return type(self), (str(self), self.bad_input)


def execute(notebook: Path, into: Path, parameters: Parameters) -> None:
    """Run one notebook in its own folder; the executed copy is written cell by cell.

    Args:
        notebook: the file to run.
        into: folder of the executed copy.
        parameters: all its parameters.

    Raises:
        NotebookError: a cell failed or the kernel died.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)  # quotes in a comment make it warn
    executed = into / notebook.name
    try:
        for _ in range(KERNEL_STARTS):
            try:
                papermill.execute_notebook(
                    notebook,
                    executed,
                    parameters=parameters,
                    kernel_name="python3",
                    cwd=notebook.parent,
                    execution_timeout=CELL_TIMEOUT,
                    progress_bar=False,
                    extra_arguments=["--IPKernelApp.log_level=50"],  # not its warnings in the midst of the progress
                )
                break
            except RuntimeError as error:
                if "before replying" not in str(error):  # jupyter_client's words; no cell has run then
                    raise
        else:
            raise NotebookError(f"{notebook.stem}: its kernel died in each of {KERNEL_STARTS} starts; it printed why")
    except PapermillExecutionError as error:
        shown = f"the notebook as far as it ran: {executed}"
        if error.ename == "ShareDone":  # this process had a share in a training, which another one goes on from
            return
        if error.ename == "DataError":
            raise NotebookError(f"{error.evalue}\n{notebook.stem}, cell [{error.exec_count}]; {shown}", True) from None
        last_lines = "\n".join("\n".join(error.traceback).splitlines()[-15:])
        source = "\n".join(f"    {line}" for line in error.source.splitlines())
        place = f"{notebook.stem} failed in cell [{error.exec_count}]:\n\n{source}"
        raise NotebookError(f"{place}\n\n{last_lines}\n\n{shown}") from None
    except DeadKernelError:
        cause = "its kernel died, most often because memory ran out: try a smaller batch_size or image size"
        raise NotebookError(f"{notebook.stem}: {cause}\nthe notebook as far as it ran: {executed}") from None
    except OSError as error:  # papermill could not write it
        raise NotebookError(str(refusal(error.filename or executed, error)), True) from None
    except CellTimeoutError:
        cause = f"a cell took longer than {CELL_TIMEOUT // 3600} hours"
        raise NotebookError(f"{notebook.stem}: {cause}\nthe notebook as far as it ran: {executed}") from None


Calls = Mapping[str, tuple[Path, Path, Parameters]]  # notebook: arguments of `execute`
Started, Ended = Callable[[str], None], Callable[[str, str, float], None]


def execute_in_turn(calls: Calls, started: Started, ended: Ended) -> None:
    """Run notebooks one after the other, in this process.

    Args:
        calls: notebook: arguments of `execute`.
        started, ended: are told each notebook, and at its end how it ended (done, failed, stopped) and its seconds.

    Raises:
        NotebookError: a cell failed; the notebooks after it are not run.
    """
    for notebook, arguments in calls.items():
        started(notebook)
        start, outcome = time.perf_counter(), "stopped"
        try:
            execute(*arguments)
            outcome = "done"
        except NotebookError:
            outcome = "failed"
            raise
        finally:
            ended(notebook, outcome, time.perf_counter() - start)


def execute_at_once(calls: Calls, jobs: int, started: Started, ended: Ended) -> None:
    """Run notebooks `jobs` at a time, begun in their order, each in a process of its own with its share of the cores.

    Arguments as `execute_in_turn`.

    Raises:
        NotebookError: a cell failed; no more notebooks are started, and those that run have been run to their end.
    """
    waiting, running, failures = list(calls)[::-1], {}, []
    jobs = min(jobs, len(calls))
    with (
        environment("OMP_NUM_THREADS", str(max(1, machine()["cpu_cores"] // jobs))),
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), leave_with_parent) as pool,
    ):
        try:
            while running or (waiting and not failures):
                while waiting and not failures and len(running) < jobs:
                    notebook = waiting.pop()
                    started(notebook)
                    running[pool.submit(execute, *calls[notebook])] = notebook, time.perf_counter()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    notebook, start = running.pop(future)
                    failure = future.exception()
                    ended(notebook, "failed" if failure else "done", time.perf_counter() - start)
                    failures += [failure] if failure else []
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            wait(running, timeout=10)  # for a training to finish its step and write its checkpoint
            for notebook, start in running.values():
                ended(notebook, "stopped", time.perf_counter() - start)
            raise
    if failures:
        raise failures[0]


def leave_with_parent() -> None:
    """Have this process leave Ctrl-C to its parent, take its SIGTERM for one, and end when the parent has."""
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which its kernels would inherit
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """An environment variable set for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def progress(total: int, echo: Callable[[str], None]):
    """In a terminal a bar with notebook and time, elsewhere a line a notebook; yields begin() and end()."""
    if not sys.stderr.isatty():
        yield (lambda notebook: None), (lambda notebook, seconds: echo(f"{notebook:<20}{clock(seconds):>9}"))
        return

    from tqdm import tqdm

    with tqdm(total=total, bar_format="{desc:<20} {bar:30} {n_fmt}/{total_fmt} notebooks  {elapsed}") as bar:
        stop = threading.Event()

        def tick() -> None:  # papermill holds the main thread, so the clock needs one of its own
            while not stop.wait(1):
                bar.refresh()

        def end(notebook: str, seconds: float) -> None:
            bar.write(f"{notebook:<20}{clock(seconds):>9}", file=sys.stderr)
            bar.update()

        clockwork = threading.Thread(target=tick)
        clockwork.start()
        try:
            yield bar.set_description_str, end
        finally:
            stop.set()
            clockwork.join()


def default_jobs() -> int:
    """One on a GPU; without, one a core: PyTorch gains less from a second core than a second training does."""
    import torch

    return 1 if torch.cuda.is_available() else machine()["cpu_cores"]


def machine() -> dict[str, Any]:
    """System, processor type and the number of CPU cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"system": platform.platform(terse=True), "processor": platform.machine(), "cpu_cores": cores}
