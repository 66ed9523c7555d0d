"""The same conversion on engines that others made, as separate processes: every byte must be the in-process runner's."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.command import UserError
from pipeline.writing import beam_job
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig
from tests.listening import open_to_others, ports_of

CONFIG = ConversionConfig(dataset_name="small", short_edges=(64, 96), num_shards=6)
ROOT = Path(__file__).parents[3]
TIMINGS = "summary-train.json"
pytestmark = pytest.mark.timeout(900)  # processes that import TensorFlow, on a machine that may be busy
Check = Callable[[Sequence[str]], None]


@pytest.fixture(scope="module")
def in_process(forty_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in_process") / "out"
    convert(forty_images / "a.json", forty_images / "images", folder, "train", CONFIG)
    return folder


@pytest.fixture
def check(forty_images: Path, in_process: Path, tmp_path: Path) -> Check:
    """Converts with Beam's flags, and compares all files with the in-process conversion's."""

    def convert_and_compare(flags: Sequence[str]) -> None:
        convert(forty_images / "a.json", forty_images / "images", tmp_path / "out", "train", CONFIG, beam_flags=flags)
        files, expected = (
            {path.name: path.read_bytes() for path in folder.iterdir() if path.name != TIMINGS}
            for folder in (tmp_path / "out", in_process)
        )
        assert files == expected

    return convert_and_compare


def test_in_a_notebook_as_elsewhere(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam asks IPython whether it runs in a notebook, and would import its data frames then."""
    shell = types.SimpleNamespace(execution_count=3, config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    check([])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["--direct_running_mode=multi_processing --direct_num_workers=2", "--runner=DaskRunner"])
def test_worker_processes_are_not_served_on_the_network(
    forty_images: Path, in_process: Path, tmp_path: Path, engine: str
) -> None:
    """Beam's own services ask nobody who he is, and hand out any file of the user; Dask's cluster has a page for everybody."""
    if "Dask" in engine and importlib.util.find_spec("dask") is None:
        pytest.skip("Dask is not installed: pip install 'apache-beam[dask]'")
    command = [sys.executable, "-m", "pipeline.make_tfrecords", f"--annotations={forty_images / 'a.json'}"]
    command += [f"--images={forty_images / 'images'}", f"--output_dir={tmp_path / 'out'}", "--dataset_name=small"]
    command += ["--num_shards=6", "--short_edges=64,96", *engine.split()]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
        ports_of(process) as ports,
    ):
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert len(ports) >= 4  # control, data, state, logging; or scheduler, its page, workers
    assert not open_to_others(ports), ports
    shards = sorted(path.name for path in in_process.glob("*.tfrecord-*"))
    assert len(shards) == 6 and all(
        (tmp_path / "out" / name).read_bytes() == (in_process / name).read_bytes() for name in shards
    )


@contextlib.contextmanager
def running(log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs Python with these arguments (and whatever processes that starts) until the end of the block."""
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment["PYTHONPATH"] = str(ROOT)  # where a worker finds this package, as if it were installed
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"{process.args!r} ended with status {process.returncode}"
        assert time.monotonic() < deadline, f"waited two minutes for {process.args!r}"
        time.sleep(0.1)


# Flink and Spark ask a pool for as many workers as their parallelism; the local job service asks for one, whatever flags say.
TWO_WORKERS = """
import sys
from apache_beam.runners.portability import local_job_service_main
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

run_job = FnApiRunner.run_via_runner_api

def run_with_two_workers(self, *arguments):
    self._num_workers = 2
    return run_job(self, *arguments)

FnApiRunner.run_via_runner_api = run_with_two_workers
local_job_service_main.run(sys.argv[1:])
"""


@pytest.fixture
def job_service(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Beam's local job service, which speaks the protocol of Flink's, Spark's and Dataflow's runners: its address."""
    port = tmp_path / "port"
    program = getattr(request, "param", ["-m", "apache_beam.runners.portability.local_job_service_main"])
    arguments = [*program, "--port_file", str(port), "--staging_dir", str(tmp_path / "staging")]
    with running(tmp_path / "service.log", *arguments) as service:
        wait_for(port.exists, service)
        yield f"localhost:{port.read_text()}"


def test_portable_with_workers_in_the_submitting_process(check: Check, job_service: str) -> None:
    check(["--runner=PortableRunner", f"--job_endpoint={job_service}", "--environment_type=LOOPBACK"])


@pytest.mark.slow
@pytest.mark.parametrize("job_service", [["-c", TWO_WORKERS]], indirect=True, ids=[""])
def test_portable_with_an_external_pool_of_two_worker_processes(check: Check, job_service: str, tmp_path: Path) -> None:
    pool, log = free_port(), tmp_path / "pool.log"
    with running(log, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}") as process:
        wait_for(lambda: answers(pool), process)
        where = ["--environment_type=EXTERNAL", f"--environment_config=localhost:{pool}"]
        check(["--runner=PortableRunner", f"--job_endpoint={job_service}", *where])
    assert log.read_text().count("Starting worker with command") == 2


@pytest.mark.slow
def test_dask_with_two_workers(check: Check, tmp_path: Path) -> None:
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("Dask is not installed: pip install 'apache-beam[dask]'")
    from dask.distributed import Client

    address = f"tcp://127.0.0.1:{free_port()}"
    worker = ["-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard", "--nthreads=1"]
    with contextlib.ExitStack() as stack:
        port = address.rpartition(":")[2]
        scheduler = ["-m", "distributed.cli.dask_scheduler", "--host=127.0.0.1", f"--port={port}", "--no-dashboard"]
        stack.enter_context(running(tmp_path / "scheduler.log", *scheduler))
        for number in range(2):
            local = [f"--local-directory={tmp_path}", f"--name=worker-{number}"]
            stack.enter_context(running(tmp_path / f"worker-{number}.log", *worker, *local))
        client = stack.enter_context(Client(address, timeout=120))
        client.wait_for_workers(2, timeout=120)
        check(["--runner=DaskRunner", f"--dask_client_address={address}"])
        imported = client.run(lambda: "pipeline.writing.shard_writer" in sys.modules)
    assert list(imported.values()) == [True, True]  # each wrote some of the shards


@pytest.mark.slow
def test_flink(check: Check) -> None:
    jar = os.environ.get("FLINK_JOB_SERVER_JAR")
    if not jar:
        pytest.skip("FLINK_JOB_SERVER_JAR does not name the jar of beam-runners-flink-*-job-server")
    if shutil.which("java") is None:
        pytest.skip("Flink needs Java")
    check(["--runner=FlinkRunner", f"--flink_job_server_jar={jar}", "--flink_master=[local]", "--environment_type=LOOPBACK"])


@pytest.mark.campaign
def test_a_killed_worker_process_ends_the_job_and_another_run_finishes_it(
    check: Check, forty_images: Path, tmp_path: Path
) -> None:
    arguments = [f"--annotations={forty_images / 'a.json'}", f"--images={forty_images / 'images'}", "--dataset_name=small"]
    arguments += [f"--output_dir={tmp_path / 'out'}", "--short_edges=64,96", "--num_shards=6"]
    arguments += ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    with running(tmp_path / "log", "-m", "pipeline.make_tfrecords", *arguments) as process:
        victims: list[int] = []

        def found_one() -> bool:
            for task in Path(f"/proc/{process.pid}/task").glob("*/children"):
                for shell in task.read_text().split():
                    victims.extend(int(child) for child in Path(f"/proc/{shell}/task/{shell}/children").read_text().split())
            return bool(victims)

        wait_for(found_one, process)
        os.kill(victims[0], signal.SIGKILL)
        assert process.wait(timeout=120) == 1
    log = (tmp_path / "log").read_text()
    assert log.count("\n") == log.count("images/s") + 1 and "exited with return code" in log and "started again" in log
    check([])


def test_an_engine_that_cannot_be_reached_is_an_error_of_one_line(forty_images: Path, tmp_path: Path) -> None:
    flags = ["--runner=PortableRunner", f"--job_endpoint=localhost:{free_port()}", "--environment_type=LOOPBACK"]
    flags += ["--job_server_timeout=2"]
    with pytest.raises(UserError, match="the Beam job failed") as caught:
        convert(forty_images / "a.json", forty_images / "images", tmp_path / "out", "train", CONFIG, beam_flags=flags)
    assert "\n" not in str(caught.value)


def test_a_module_that_is_missing_on_a_cluster_is_named() -> None:
    """Dask's own words, of the scheduler that cannot load the tasks; and a worker's, which Beam wraps in its traceback."""
    of_dask = RuntimeError(
        "Error during deserialization of the task graph. This frequently\noccurs if the Scheduler and Client have different "
        "environments.\nFor more information, see\n"
        "https://docs.dask.org/en/stable/deployment-considerations.html#consistent-software-environments\n"
    )
    assert beam_job.reason_of_failure(of_dask) == "For more information, see"
    of_dask.__cause__ = ModuleNotFoundError("No module named 'apache_beam.runners'")
    assert "the Python module apache_beam.runners is missing" in beam_job.reason_of_failure(of_dask)
    of_a_worker = RuntimeError("Traceback …\nModuleNotFoundError: No module named 'pipeline'\n while running write")
    assert beam_job.reason_of_failure(of_a_worker).startswith("the Python module pipeline is missing on a machine")
    assert beam_job.reason_of_failure(ValueError("first\nlast\n")) == "last"
    assert beam_job.reason_of_failure(ValueError()) == "ValueError"


def test_dask_gets_a_task_for_each_shard() -> None:
    pytest.importorskip("distributed")
    from apache_beam.runners.dask.dask_runner import DaskOptions

    assert beam_job.beam_options(["--runner=DaskRunner"]).view_as(DaskOptions).partition_size == 1
    given = beam_job.beam_options(["--runner=DaskRunner", "--dask_npartitions=3"]).view_as(DaskOptions)
    assert (given.npartitions, given.partition_size) == (3, None)
