"""The Beam job: shard numbers → workers that write them, on whatever engine Beam's flags name."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.runner import create_runner

from pipeline.command import UserError
from pipeline.writing.shard_writer import ShardSettings, write_shard

# The in-process runner. Beam's default would first try to download another one.
DEFAULT_RUNNER = "FnApiRunner"
# Names that Beam itself does not know in this short form.
_RUNNERS = {"DaskRunner": "apache_beam.runners.dask.dask_runner.DaskRunner"}


def beam_options(flags: Sequence[str]) -> PipelineOptions:
    """Beam's options from flags, with its own parsers.

    Raises:
      UserError: a flag that Beam does not know either, or a runner that is not installed.
    """
    for before, flag in zip(["--flag=value", *flags], flags, strict=False):
        if not flag.startswith("--") and ("=" in before or not before.startswith("--")):
            raise UserError(f"{flag!r}: every argument is a flag --name=value; --help lists them")
    options = PipelineOptions(list(flags))
    with _refusals_of_beam():
        standard = options.view_as(StandardOptions)
    standard.runner = _RUNNERS.get(standard.runner, standard.runner or DEFAULT_RUNNER)
    try:
        create_runner(standard.runner)  # and its module, which brings flags of its own
    except (ValueError, ImportError, AttributeError) as error:
        way_out = "; pip install 'apache-beam[dask]'" if "dask" in standard.runner and isinstance(error, ImportError) else ""
        raise UserError(f"--runner={standard.runner}: no runner of this installation ({error}){way_out}") from None
    with _refusals_of_beam():
        given = options.get_all_options(retain_unknown_options=True)
    for name in sorted(set(given) - set(PipelineOptions([]).get_all_options())):
        raise UserError(f"--{name}: no flag of this command nor of Beam; --help lists this command's")
    if standard.runner == _RUNNERS["DaskRunner"]:
        _spread_over_dask(options)
    return options


@contextlib.contextmanager
def _refusals_of_beam() -> Iterator[None]:
    """Beam's parsers print their usage and exit when they refuse a value."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
    except SystemExit:
        raise UserError(f"{complaint.getvalue().strip().splitlines()[-1].partition('error: ')[2]} (a flag of Beam)") from None


def _spread_over_dask(options: PipelineOptions) -> None:
    """Makes each shard a task of its own: Beam would put 128 into one, which is all of COCO on one worker."""
    from apache_beam.runners.dask.dask_runner import DaskOptions

    dask = options.view_as(DaskOptions)
    if dask.npartitions is None and dask.partition_size is None:
        dask.partition_size = 1


def run_job(settings: ShardSettings, numbers: Sequence[int], options: PipelineOptions) -> None:
    """Writes the shards of these numbers, and returns when no worker is at it any more.

    Raises:
      UserError: the engine cannot be reached, or a worker failed in another way than `write_shard` foresees.
    """
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            with _services_on_loopback(), _dask_of_this_machine(options):
                _run_pipeline(settings, numbers, options)
        except BaseException as error:
            _finish(outcome, error)
        else:
            _finish(outcome, None)

    # In a thread of its own, since Beam waits for ever if one of its worker processes dies.
    thread = threading.Thread(target=run, name="beam job", daemon=True)
    with _notice_dead_workers(outcome):
        thread.start()
        try:
            outcome.result()
        except Exception as error:
            if thread.is_alive():
                threading.Thread(target=_end_with_main_thread, daemon=True).start()
            again = "started again, the same command goes on"
            raise UserError(f"the Beam job failed: {reason_of_failure(error)}; {_noted(error)}; {again}") from error


def _run_pipeline(settings: ShardSettings, numbers: Sequence[int], options: PipelineOptions) -> None:
    write = functools.partial(_write_on_worker, settings, options.get_all_options(drop_default=True))
    with _no_notebook():
        pipeline = beam.Pipeline(options=options)
        shards = pipeline | "shards" >> beam.Create(numbers, reshuffle=False) | "spread" >> beam.Reshuffle()
        _ = shards | "write" >> beam.Map(write)
        result = pipeline.run()
    try:
        result.wait_until_finish()
    finally:
        if hasattr(result, "client"):  # of Dask: it would complain of the end of the process
            result.client.close()


@contextlib.contextmanager
def _no_notebook() -> Iterator[None]:
    """Has Beam build a pipeline in a notebook as it does elsewhere.

    There it numbers labels by cells, for which it imports its data frames, which pandas 3 breaks (Beam 2.77).
    """
    module: Any = beam.pipeline
    theirs = module.alter_label_if_ipython, module.is_in_ipython
    module.alter_label_if_ipython, module.is_in_ipython = lambda transform, pvalueish: None, lambda: False
    try:
        yield
    finally:
        module.alter_label_if_ipython, module.is_in_ipython = theirs


@contextlib.contextmanager
def _dask_of_this_machine(options: PipelineOptions) -> Iterator[None]:
    """Starts a Dask cluster for a DaskRunner that is given none: the one that it would start shows its pages to everybody."""
    if options.view_as(StandardOptions).runner != _RUNNERS["DaskRunner"]:
        yield
        return
    from apache_beam.runners.dask.dask_runner import DaskOptions
    from dask.distributed import LocalCluster

    dask = options.view_as(DaskOptions)
    if dask.address is not None or dask.scheduler_file is not None:
        yield
        return
    local = LocalCluster(host="127.0.0.1", dashboard_address="127.0.0.1:0")  # type: ignore[no-untyped-call]
    with local as cluster:
        dask.address = cluster.scheduler_address
        try:
            yield
        finally:
            dask.address = None


@contextlib.contextmanager
def _services_on_loopback() -> Iterator[None]:
    """Lets only this machine reach the services that Beam starts in this process, for worker processes beside it.

    Beam binds them on every interface without authentication, and one of them hands out any file that this user can read.
    The workers reach them as `localhost`.
    """
    make_server = grpc.server

    def on_loopback(*arguments: Any, **options: Any) -> grpc.Server:
        server = make_server(*arguments, **options)
        bind = server.add_insecure_port
        server.add_insecure_port = lambda address: bind(address.replace("[::]:", "127.0.0.1:", 1))
        return server

    grpc.server = on_loopback
    try:
        yield
    finally:
        grpc.server = make_server


def _write_on_worker(settings: ShardSettings, options: dict[str, Any], number: int) -> None:
    """Shard number → nothing: what a shard holds lies in its facts file, where a restart finds it too."""
    FileSystems.set_options(PipelineOptions.from_dictionary(options))  # not every engine does so on its workers
    write_shard(settings, number)


def _noted(error: Exception) -> str:
    """Where the traceback lies."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="make_tfrecords-failure-", suffix=".txt", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return f"the rest of it could not be written to {tempfile.gettempdir()}"
    return f"{file.name} has all of it"


def _finish(outcome: Future[None], error: BaseException | None) -> None:
    with contextlib.suppress(Exception):  # the first outcome stands
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)


@contextlib.contextmanager
def _notice_dead_workers(outcome: Future[None]) -> Iterator[None]:
    """Fails the job if a process of `multi_processing` ends before its work: killed, most often for want of memory."""
    previous = threading.excepthook

    def notice(arguments: threading.ExceptHookArgs) -> None:
        if arguments.thread is not None and arguments.thread.name == "run_worker":
            _finish(outcome, arguments.exc_value)
        else:
            previous(arguments)

    threading.excepthook = notice
    try:
        yield
    finally:
        threading.excepthook = previous


def _end_with_main_thread() -> None:
    """Ends the process soon after its main thread: threads of Beam that wait for a dead worker would keep it for ever."""
    threading.main_thread().join()
    time.sleep(2)
    os._exit(1)


def reason_of_failure(error: BaseException) -> str:
    """What a failed job says, in one line: the Python module that a machine lacks, if that is it, else the last line.

    Dask's message on a task that its scheduler or a worker cannot load is a paragraph that ends with an address; the module is
    named only in an error behind it.
    """
    chain: BaseException | None = error
    seen: set[int] = set()
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        found = re.search(r"No module named '([\w.]+)'", str(chain))
        if found:
            return (
                f"the Python module {found.group(1)} is missing on a machine of the engine; install this project and what it "
                "needs on all of them, on Dask on the scheduler, too"
            )
        chain = chain.__cause__ or chain.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "://" not in line.split()[0]]
    return lines[-1] if lines else type(error).__name__


@contextlib.contextmanager
def quiet_workers(options: PipelineOptions) -> Iterator[None]:
    """Keeps what decoders and worker processes write to standard error off the terminal, in a file that is deleted at the end.

    The decoders' libraries print a line for each damaged image; this project itself names an image that cannot be used.
    Standard error of both is this process's file descriptor 2, so this process gets another one meanwhile. If the job fails in
    worker processes, the file stays, and the error names it.
    """
    in_processes = options.view_as(DirectOptions).direct_running_mode == "multi_processing"
    descriptor, name = tempfile.mkstemp(prefix="make_tfrecords-workers-", suffix=".log")
    sys.stderr.flush()
    terminal = os.dup(2)
    stderr = sys.stderr
    keep = False
    with os.fdopen(terminal, "w", buffering=1, closefd=False) as replacement:
        os.dup2(descriptor, 2)
        if stderr is sys.__stderr__:
            sys.stderr = replacement
        try:
            yield
        except UserError as error:
            if not in_processes:
                raise
            keep = True
            raise UserError(f"{error} (what the workers said: {name})") from error
        finally:
            sys.stderr = stderr
            os.dup2(terminal, 2)
            os.close(terminal)
            os.close(descriptor)
            if not keep:
                Path(name).unlink()
