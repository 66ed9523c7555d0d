"""Trainings as people start and stop them: processes of a cluster's kinds of task, and Ctrl-C at an unlucky moment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint_files import newest_checkpoint
from model.config import Config
from model.model_dir import prepare_model_dir
from pipeline.record_folder import RecordFolder

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # processes that import TensorFlow, on a machine that may be busy
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(record_folder: RecordFolder, small_config: Config, tmp_path: Path) -> Any:
    """Starts `model.train` into `run`, evaluated on the split it is trained on; what still runs at the end is killed."""
    prepare_model_dir(tmp_path / "run", small_config, record_folder.skeleton)
    annotations = record_folder.path.parent / "annotations" / "person_keypoints_train.json"
    command = [sys.executable, "-m", "model.train", f"--data_dir={record_folder.path}", f"--model_dir={tmp_path / 'run'}"]
    command += ["--eval_split=train", f"--eval_annotations={annotations}"]
    with contextlib.ExitStack() as stack:

        def start_one(flags: Sequence[str], **environment: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [*command, *flags],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start_one


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.campaign
def test_ctrl_c_in_an_evaluation_ends_in_one_line_and_the_evaluation_is_made_up(start: Start, tmp_path: Path) -> None:
    flags = ["--steps=1", "--learning_rate=0.001"]
    first = start(flags)
    while not list((tmp_path / "run").glob("checkpoints/step-1.index")):  # after which the evaluation begins
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    time.sleep(0.5)
    first.send_signal(signal.SIGINT)
    output, errors = first.communicate(timeout=120)
    assert first.returncode == 130, output + errors
    assert errors.startswith("error: stopped") and errors.count("\n") == 1
    made = "was evaluated" in errors  # if the signal came after the last images had been looked at
    assert [line["kind"] for line in metrics(tmp_path / "run")] == (["train", "eval"] if made else ["train"])
    second = start(flags)
    output, errors = second.communicate(timeout=300)
    assert (second.returncode, errors) == (0, ""), output + errors
    assert [(line["kind"], line["step"]) for line in metrics(tmp_path / "run")] == [("train", 1), ("eval", 1)]


def test_a_chief_trains_and_an_evaluator_evaluates_beside_it(start: Start, small_config: Config, tmp_path: Path) -> None:
    """As a TFJob starts them: the evaluator is in the cluster, which the chief does not wait for."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in (one, other)]
    cluster = {"chief": addresses[:1], "evaluator": addresses[1:]}
    tasks = {
        kind: start(
            ["--strategy=multi_worker", "--steps=2", "--save_every=1", "--learning_rate=0.001"],
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": kind, "index": 0}}),
        )
        for kind in ("evaluator", "chief")
    }
    ended = {kind: (*process.communicate(timeout=400), process.returncode) for kind, process in tasks.items()}
    for kind, (output, errors, status) in ended.items():
        assert status == 0 and "Traceback" not in errors, f"{kind}: {output}{errors}"
    assert newest_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoints" / "step-2")
    assert "the evaluator has evaluated step 2 of 2, the last" in ended["evaluator"][0]
    figures = metrics(tmp_path / "run" / "evaluator")
    assert figures[-1]["step"] == 2 and {line["kind"] for line in figures} == {"eval"}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["train"]["steps"] == 2 and config["rpn"] == json.loads(json.dumps(dataclasses.asdict(small_config.rpn)))
