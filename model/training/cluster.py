"""TF_CONFIG: what a cluster may be, and waiting until its machines are there. Needs no TensorFlow.

The form is TensorFlow's own, which Kubeflow's TFJob, Vertex AI and others write:

    {"cluster": {"chief": ["host0:2222"], "worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}

`chief` is optional; it is the first of the workers. A task of type `evaluator` takes no part in the training and may be missing
from the cluster.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from pipeline.command import UserError, say

EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
TRAINING_JOBS = ("chief", "worker")
SECONDS_BETWEEN_LINES = 60.0  # that say whom this worker waits for
SECONDS_TO_ANSWER = 2.0  # for one peer, when it is asked whether it is there


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster as one of its tasks sees it.

    Attributes:
      jobs: addresses "host:port" of the tasks that train, by job: `chief`, `worker`.
      task_type, task_index: which of the tasks this is; the type may be "evaluator".
    """

    jobs: Mapping[str, tuple[str, ...]]
    task_type: str
    task_index: int

    @property
    def is_evaluator(self) -> bool:
        return self.task_type == "evaluator"

    @property
    def addresses(self) -> list[str]:
        """The addresses of all tasks that train, the chief's first."""
        return [address for job in TRAINING_JOBS for address in self.jobs.get(job, ())]

    @property
    def own_address(self) -> str:
        return self.jobs[self.task_type][self.task_index]

    def to_json(self) -> str:
        """TF_CONFIG of the tasks that train, as TensorFlow takes it."""
        jobs = {job: list(addresses) for job, addresses in self.jobs.items()}
        return json.dumps({"cluster": jobs, "task": {"type": self.task_type, "index": self.task_index}})


def own_cluster() -> Cluster:
    """The cluster that TF_CONFIG gives this process. Raises: UserError, it is not set, or as `read_cluster`."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise UserError("--strategy=multi_worker: TF_CONFIG is not set; it names the cluster's workers and this one's index")
    return read_cluster(text)


def read_cluster(text: str) -> Cluster:
    """Checks a TF_CONFIG.

    Raises:
      UserError: names the value that is wrong, the rule, and what to write.
    """
    try:
        value = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise UserError(f"TF_CONFIG: not JSON ({error}); it must be like {EXAMPLE}") from None
    cluster = value.get("cluster") if isinstance(value, dict) else None
    task = value.get("task") if isinstance(value, dict) else None
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise UserError(f"TF_CONFIG={text:.200}: must be like {EXAMPLE}")
    jobs = _jobs(cluster)
    kind, index = task.get("type"), task.get("index")
    if isinstance(index, str) and index.isdecimal():  # as some schedulers write it
        index = int(index)
    if not isinstance(index, int) or isinstance(index, bool):
        raise UserError(f"TF_CONFIG: the task's index is {index!r}; it must be a number, as in {EXAMPLE}")
    if kind == "ps":
        raise UserError(_NO_PARAMETER_SERVERS)
    if kind not in (*TRAINING_JOBS, "evaluator"):
        raise UserError(f"TF_CONFIG: the task's type is {kind!r}; it must be chief, worker or evaluator, as in {EXAMPLE}")
    number = len(jobs.get(kind, ()))
    if kind != "evaluator" and not 0 <= index < number:
        raise UserError(f"TF_CONFIG: task index {index} is not among its {number} {kind}s")
    return Cluster(jobs, kind, index)


_NO_PARAMETER_SERVERS = (
    "TF_CONFIG: has a job 'ps', but training is synchronous and takes no parameter servers; leave the ps replicas out, and "
    "give their machines to worker"
)


def _jobs(cluster: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    jobs: dict[str, tuple[str, ...]] = {}
    for job, addresses in cluster.items():
        if job == "ps":
            raise UserError(_NO_PARAMETER_SERVERS)
        if job not in (*TRAINING_JOBS, "evaluator"):
            raise UserError(f"TF_CONFIG: the cluster has a job {job!r}; its jobs may be chief, worker and evaluator")
        if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
            raise UserError(f"TF_CONFIG: the addresses of {job} are {addresses!r:.100}; they must be a list, as in {EXAMPLE}")
        for address in addresses:
            host, _, port = address.rpartition(":")
            if not host or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 2**16:
                raise UserError(f"TF_CONFIG: {address!r} of {job} must be host:port, such as host1:2222")
        if job != "evaluator":
            jobs[job] = tuple(addresses)
    if len(jobs.get("chief", ())) > 1:
        raise UserError(f"TF_CONFIG: has {len(jobs['chief'])} chiefs; there must be one, and the others be workers")
    everybody = [address for addresses in jobs.values() for address in addresses]
    if not everybody:
        raise UserError(f"TF_CONFIG: its cluster has no worker; it must be like {EXAMPLE}")
    twice = sorted({address for address in everybody if everybody.count(address) > 1})
    if twice:
        raise UserError(f"TF_CONFIG: {', '.join(twice)} is there twice; each task must have an address of its own")
    return jobs


def wait_for_peers(cluster: Cluster) -> None:
    """Waits until every other task has started, and says every minute whom it waits for.

    TensorFlow waits inside its own code, where it says nothing and hears no signal. So the tasks find each other here first:
    each listens at its own address until it has reached all the others, and then leaves the address to TensorFlow.

    Raises:
      UserError: its own address cannot be listened at; SIGTERM or SIGHUP (status 128 + the signal's number).
      KeyboardInterrupt: Ctrl-C.
    """
    missing = [address for address in cluster.addresses if address != cluster.own_address]
    if not missing:
        return
    started = last_line = time.monotonic()
    with _ending_by_signals(), _listening(cluster.own_address):
        while True:
            missing = [address for address in missing if not answers(address)]
            if not missing:
                return
            now = time.monotonic()
            if now - last_line >= SECONDS_BETWEEN_LINES or last_line == started:
                last_line = max(now, started + 1e-3)
                waited = f" for {now - started:.0f} s" if now - started >= 1 else ""
                say(
                    f"train: {cluster.task_type} {cluster.task_index} waits{waited} for {', '.join(missing)}; start the same "
                    "command there, or look at its output"
                )
            time.sleep(0.5)


class StoppedWaitingError(UserError):
    """A signal that came while this worker waited for others."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped while waiting for the other workers; nothing was begun")
        self.status = 128 + number


@contextlib.contextmanager
def _ending_by_signals() -> Iterator[None]:
    def end(number: int, _: FrameType | None) -> None:
        raise StoppedWaitingError(number)

    on_main_thread = threading.current_thread() is threading.main_thread()  # the only one that Python lets hear signals
    numbers = (signal.SIGTERM, signal.SIGHUP) if on_main_thread else ()
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _listening(address: str) -> Iterator[None]:
    """Takes connections at an address, and says nothing on them: that they come about is the answer."""
    host, _, port = address.rpartition(":")
    try:
        family, _, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        try:
            listener = socket.create_server(place[:2], family=family, backlog=128)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            # The name is a service's that forwards to this machine, as in Kubernetes.
            listener = socket.create_server(("", int(port)), family=family, backlog=128)
    except OSError as error:
        # Negative numbers are those of getaddrinfo; of the others, Python's text repeats the address.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise UserError(
            f"TF_CONFIG: this task cannot listen at its own address {address} ({reason}); another process may have "
            "the port (a training that still runs?), or the address is another machine's"
        ) from None
    with listener:
        yield  # the kernel completes connections by itself, as long as its queue has room


def answers(address: str) -> bool:
    """Whether something listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError, UnicodeError):  # (a port above 65535, a host that is no name)
        return False
    return True
