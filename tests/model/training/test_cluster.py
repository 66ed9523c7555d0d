"""What is no cluster is answered before TensorFlow waits for workers that will never come."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from model.training.cluster import Cluster, read_cluster, wait_for_peers
from pipeline.command import UserError

ROOT = Path(__file__).parents[3]
TASK: dict[str, Any] = {"type": "worker", "index": 0}
CLUSTER: dict[str, Any] = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "must be like"),
        ("[]", "must be like"),
        ({"cluster": CLUSTER}, "must be like"),
        ({"cluster": {"worker": 3}, "task": TASK}, "must be a list, as in"),
        ({"cluster": CLUSTER, "task": TASK | {"index": "first"}}, "must be a number, as in"),
        ({"cluster": CLUSTER, "task": {"index": 0}}, "must be chief, worker or evaluator, as in"),
        ({"cluster": CLUSTER, "task": TASK | {"index": 2}}, "task index 2 is not among its 2 workers"),
        ({"cluster": CLUSTER, "task": TASK | {"index": -1}}, "task index -1 is not among its 2 workers"),
        ({"cluster": CLUSTER, "task": TASK | {"type": "trainer"}}, "the task's type is 'trainer'; it must be chief, worker or"),
        ({"cluster": CLUSTER | {"ps": ["c:1"]}, "task": TASK}, "takes no parameter servers"),
        ({"cluster": CLUSTER, "task": TASK | {"type": "ps"}}, "takes no parameter servers"),
        ({"cluster": CLUSTER | {"trainer": ["c:1"]}, "task": TASK}, "has a job 'trainer'"),
        ({"cluster": {"worker": "a:1"}, "task": TASK}, "the addresses of worker are 'a:1'; they must be a list"),
        ({"cluster": {"worker": ["a", "b:1"]}, "task": TASK}, "'a' of worker must be host:port"),
        ({"cluster": {"worker": ["a:1", "b:99999"]}, "task": TASK}, "'b:99999' of worker must be host:port"),
        ({"cluster": {"worker": ["a:1", "a:1"]}, "task": TASK}, "a:1 is there twice"),
        ({"cluster": {"chief": ["a:1", "b:1"]}, "task": TASK | {"type": "chief"}}, "has 2 chiefs"),
        ({"cluster": CLUSTER, "task": TASK | {"type": "chief"}}, "task index 0 is not among its 0 chiefs"),
        ({"cluster": {}, "task": TASK}, "has no worker"),
    ],
)
def test_a_wrong_cluster_is_one_line(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_cluster(value if isinstance(value, str) else json.dumps(value))
    assert "TF_CONFIG" in str(caught.value) and "\n" not in str(caught.value)


def test_what_schedulers_write_is_taken() -> None:
    jobs = {"chief": ["a:1"], "worker": ["b:1", "[::1]:2"], "evaluator": ["e:1"]}
    chief = read_cluster(json.dumps({"cluster": jobs, "task": {"type": "chief", "index": "0"}, "environment": "cloud"}))
    assert chief.addresses == ["a:1", "b:1", "[::1]:2"] and chief.own_address == "a:1" and not chief.is_evaluator
    trains = {"cluster": {"chief": ["a:1"], "worker": ["b:1", "[::1]:2"]}, "task": {"type": "chief", "index": 0}}
    assert json.loads(chief.to_json()) == trains  # TensorFlow would wait for the evaluator
    del jobs["evaluator"]
    assert read_cluster(json.dumps({"cluster": jobs, "task": {"type": "evaluator", "index": 0}})).is_evaluator


def test_peers_find_each_other_and_leave_their_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    addresses = free_addresses(3)

    def wait(index: int) -> None:
        wait_for_peers(Cluster({"chief": (addresses[0],), "worker": tuple(addresses[1:])}, *tasks[index]))
        servers.append(socket.create_server(("127.0.0.1", int(addresses[index].rpartition(":")[2]))))  # as TensorFlow does

    servers: list[socket.socket] = []
    tasks = [("chief", 0), ("worker", 0), ("worker", 1)]
    threads = [threading.Thread(target=wait, args=(index,)) for index in range(3)]
    for thread in threads:  # not on the main thread: no signals are set
        thread.start()
        time.sleep(0.3)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(servers) == 3
    for server in servers:
        server.close()
    assert f"train: chief 0 waits for {addresses[1]}, {addresses[2]}" in capsys.readouterr().out


WAITING = """
import os
from model.training import cluster
cluster.SECONDS_BETWEEN_LINES = 0.5
def main(_):
    cluster.wait_for_peers(cluster.read_cluster(os.environ["TF_CONFIG"]))
from absl import flags
from pipeline import command
command.run(main, flags.FlagValues(), "")
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_worker_that_waits_says_for_whom_and_hears_signals(number: int, status: int) -> None:
    own, missing = free_addresses(2)
    config = {"cluster": {"worker": [own, missing]}, "task": {"type": "worker", "index": 0}}
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        env=os.environ | {"TF_CONFIG": json.dumps(config)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert lines[0].startswith(f"train: worker 0 waits for {missing}; start the same command there")
    assert f"waits for 1 s for {missing}" in lines[2]
    assert process.returncode == status and errors.startswith("error: stopped") and errors.count("\n") == 1


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        own = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UserError, match=f"cannot listen at its own address {own} \\(Address already in use\\)"):
            wait_for_peers(Cluster({"worker": (own, "127.0.0.1:1")}, "worker", 0))


def free_addresses(number: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
