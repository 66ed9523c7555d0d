"""How a training ends: what it says, what it saves, and its status."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model.checkpoint_files import newest_checkpoint
from model.checkpoint_names import Which
from model.config import Config
from model.model_dir import load_model, prepare_model_dir
from model.network.keypoint_rcnn import KeypointRCNN
from model.training.evaluator_task import follow
from model.training.loop import Run, train
from model.training.metrics_log import MetricsLog
from model.training.step import Learner
from model.training.strategies import advice_on_missing_gpu, make_strategy
from pipeline.command import UserError
from pipeline.loading.batches import training_pool
from pipeline.loading.epoch_plan import planned_batches
from pipeline.record_folder import RecordFolder, open_record_folder

ROOT = Path(__file__).parents[3]
NEWEST_AND_BEST: tuple[Which, Which] = ("newest", "best")


def with_train(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def metrics(model_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]


def test_gradients_that_are_never_finite_end_the_run(record_folder: RecordFolder, small_config: Config, tmp_path: Path) -> None:
    """The loss stays finite, but the squares of the gradient do not fit into float32."""
    hopeless = with_train(small_config, keypoint_loss_weight=1e25, steps=30)
    with pytest.raises(UserError, match=r"step 10: no gradient of the last 11 steps was finite.*lower --learning_rate") as told:
        train(hopeless, record_folder, "train", Run(tmp_path / "run", log_every=2), make_strategy("one_device"))
    assert "\n" not in str(told.value)
    lines = metrics(tmp_path / "run")
    assert lines and all(line["gradient_norm"] is None and line["skipped"] == 1 for line in lines)
    short = with_train(small_config, keypoint_loss_weight=1e25, steps=2)
    with pytest.raises(UserError, match="none of the 2 steps changed a weight"):
        train(short, record_folder, "train", Run(tmp_path / "short"), make_strategy("one_device"))


def test_another_precision_goes_on_with_gradients_of_the_same_size(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run", log_every=1)
    for steps, precision in ((3, "mixed_float16"), (6, "float32"), (9, "mixed_float16")):
        changed = dataclasses.replace(run, precision=precision)
        train(with_train(small_config, steps=steps), record_folder, "train", changed, make_strategy("one_device"))
    norms = [line["gradient_norm"] for line in metrics(run.model_dir) if line["gradient_norm"] is not None]
    assert len(norms) >= 3 and max(norms) < 100 * min(norms), norms
    scales = [line["loss_scale"] for line in metrics(run.model_dir)]
    assert scales[-1] > 1000 and scales[len(scales) // 2] == 1
    assert json.loads((run.model_dir / "run.json").read_text())["precision"] == "mixed_float16"
    output = capsys.readouterr().out
    assert "train: precision was mixed_float16 until step 3, and is float32 from here" in output
    assert "train: precision was float32 until step 6, and is mixed_float16 from here" in output
    assert output.startswith("train: 1 replica (CPU:0), 1 worker, mixed_float16, 2 images per replica\n")


def test_an_evaluation_that_was_interrupted_is_made_up(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also the seed, which Keras alone would limit to 32 bits, and the loss that a run of one step logs."""
    config, evaluated = with_train(small_config, steps=1, seed=5_000_000_000), []

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def validate(model: KeypointRCNN, log: MetricsLog | None, step: int, hear: Callable[[], None]) -> None:
        assert log is not None
        hear()
        evaluated.append(step)
        log.evaluation(step, {"keypoint_ap": 0.1})

    strategy = make_strategy("one_device")
    with pytest.raises(KeyboardInterrupt):
        train(config, record_folder, "train", Run(tmp_path / "run"), strategy, killed)
    for _ in range(2):
        train(config, record_folder, "train", Run(tmp_path / "run"), strategy, validate)
    assert evaluated == [1]
    output = capsys.readouterr().out
    assert output.count("has been trained for 1 of 1 steps already; nothing to do") == 1
    kinds = [(line["kind"], line["step"]) for line in metrics(tmp_path / "run")]
    assert kinds == [("train", 1), ("eval", 1)]
    best = tmp_path / "run" / "checkpoints" / "best"
    for _ in range(2):
        assert json.loads((best / "best.json").read_text()) == {"step": 1, "figures": {"keypoint_ap": 0.1}}
        expected, found = (load_model(tmp_path / "run", which).variables_by_path() for which in NEWEST_AND_BEST)
        assert all(found[path].numpy().tobytes() == value.numpy().tobytes() for path, value in expected.items())
        shutil.rmtree(best)  # as if the process had been killed just after the line of the evaluation was written
        train(config, record_folder, "train", Run(tmp_path / "run"), strategy, validate)


def test_lack_of_memory_is_one_line_with_ways_out(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Learner.gradients

    def greedy(self: Learner, batch: dict[str, tf.Tensor], seed: tf.Tensor) -> Any:
        gradients, values = honest(self, batch, seed)
        more_than_can_be_addressed = tf.random.uniform([400_000, 500_000_000 + 0 * seed])
        return gradients, values | {"greed": tf.reduce_sum(more_than_can_be_addressed)}

    monkeypatch.setattr(Learner, "gradients", greedy)
    with pytest.raises(
        UserError, match=r"^step 0: out of memory with 2 images per replica .* try a smaller --batch_size"
    ) as told:
        train(small_config, record_folder, "train", Run(tmp_path / "run"), make_strategy("one_device"))
    assert "OOM when allocating tensor" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("step", [1, 2])
def test_a_data_error_saves_the_sound_weights_first(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, step: int
) -> None:
    shutil.copytree(record_folder.path, tmp_path / "records")
    pool = training_pool(record_folder, "train", small_config.data)
    planned = planned_batches(pool, global_batch_size=small_config.train.global_batch_size, seed=0, start_step=step)
    row = max(next(planned)["rows"])  # not −1, which is padding
    (shard,) = (tmp_path / "records").glob("*.tfrecord-*")
    with shard.open("r+b") as file:
        file.seek(record_folder.index("train")[row]["offset"] + 5000)
        file.write(bytes(16))
    damaged = open_record_folder(tmp_path / "records")
    with pytest.raises(UserError, match="the record is damaged"):
        train(small_config, damaged, "train", Run(tmp_path / "run"), make_strategy("one_device"))
    assert newest_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoints" / f"step-{step}")


@pytest.mark.campaign
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_a_checkpoint_and_a_second_training_is_refused_meanwhile(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, number: int, status: int
) -> None:
    prepare_model_dir(tmp_path / "run", small_config, record_folder.skeleton)
    command = [sys.executable, "-m", "model.train", f"--data_dir={record_folder.path}", f"--model_dir={tmp_path / 'run'}"]
    options: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(subprocess.Popen([*command, "--steps=100000"], **options))
        stack.callback(first.kill)
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.2)
        if number == signal.SIGINT:
            second = subprocess.run([*command, "--steps=5"], check=False, **options)
            assert second.returncode == 1 and second.stderr.count("\n") == 1, second
            assert f"{tmp_path / 'run'}: another training" in second.stderr
        first.send_signal(number)
        output, errors = first.communicate(timeout=120)
    assert first.returncode == status, output + errors
    assert errors.startswith("error: stopped at step") and errors.count("\n") == 1
    assert newest_checkpoint(tmp_path / "run") is not None


SLOW_PIPELINE = """
import sys, time
import tensorflow as tf
from model.training.feed import Feed
def slowly():
    for number in range(1000):
        time.sleep(0.05)
        yield number
values = tf.data.Dataset.from_generator(slowly, output_signature=tf.TensorSpec([], tf.int64)).prefetch(2)
Feed.SECONDS_BETWEEN_LOOKS, Feed.SECONDS_TO_END = 0.01, float(sys.argv[1])
with Feed(iter(values)) as feed:
    feed.take(lambda seconds: True)
    feed.take(lambda seconds: False)
"""


@pytest.mark.campaign  # again and again, for what went wrong in every second end
@pytest.mark.parametrize("seconds_to_end", [5.0, 0.001])
def test_a_process_whose_data_are_slow_ends_well(seconds_to_end: float) -> None:
    """A thread that came back from TensorFlow while the interpreter ended made the status 134, on 8 of 18 ends."""
    command = [sys.executable, "-c", SLOW_PIPELINE, str(seconds_to_end)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(4):
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode in (0, 1) and "FATAL" not in ended.stderr, ended


@pytest.mark.campaign
def test_the_evaluator_of_a_cluster_evaluates_until_the_last_step(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated = []

    def validate(model: KeypointRCNN, log: MetricsLog | None, step: int, hear: Callable[[], None]) -> None:
        assert log is not None
        hear()
        evaluated.append((step, [v.numpy().copy() for v in model.variables_by_path().values()]))
        log.evaluation(step, {"keypoint_ap": 0.1})

    train(with_train(small_config, steps=1), record_folder, "train", Run(tmp_path / "run"), make_strategy("one_device"))
    follower = threading.Thread(target=follow, args=(tmp_path / "run", validate))
    prepare_model_dir(tmp_path / "run", with_train(small_config, steps=2), record_folder.skeleton)  # so that one more comes
    follower.start()
    train(with_train(small_config, steps=2), record_folder, "train", Run(tmp_path / "run"), make_strategy("one_device"))
    follower.join(60)
    assert not follower.is_alive() and [step for step, _ in evaluated] in ([1, 2], [2])
    final = load_model(tmp_path / "run").variables_by_path().values()
    for found, expected in zip(evaluated[-1][1], final, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert "the evaluator has evaluated step 2 of 2, the last" in capsys.readouterr().out
    assert metrics(tmp_path / "run" / "evaluator")[-1] == {"kind": "eval", "step": 2, "keypoint_ap": 0.1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset=r50"], "--preset=r50: must be one of tiny, r50_fpn, r101_fpn, x101_fpn"),
        (["--init=nowhere.pth"], "--init=nowhere.pth: does not exist"),
        (["--init=empty"], "--init=empty: has no config.json; name a directory that model.train or"),
        (["--init=exported"], "--init=exported: a SavedModel, which holds no model to train; give the model directory"),
        (["--init=exported/1"], "--init=exported/1: a SavedModel, which holds no model to train"),
        (["--set", "inference.short_edge=2000"], "inference.short_edge=2000: must be at most inference.max_edge=1333"),
        (["--set", "rpn.nms=3"], "--set rpn.nms=3: rpn has no 'nms'"),
        (["--seed=-1"], "--seed=-1: must be from 0 to"),
        (["--seed=99999999999999999999"], "--seed=99999999999999999999: must be from 0 to"),
        (["--eval_every=-1"], "--eval_every=-1: must be 0 or more"),
        (["--eval_every=5"], "--eval_every=5: needs --eval_split and --eval_annotations; give both, or leave it out"),
        (["--patience=2"], "--patience=2: counts evaluations; give --eval_split, --eval_annotations and --eval_every, too"),
        (["--patience=-2"], "--patience=-2: must be 0 or more"),
        (["--epochs=0"], "--epochs=0: must be above 0"),
        (["--epochs=20000"], "--epochs=20000: must be 10000 or less"),
        (["--epochs=2", "--steps=9"], "--epochs=2: excludes --steps and --set train.steps; give one of them"),
        (["--epochs=2", "--set=train.steps=9"], "--epochs=2: excludes --steps"),
        (["--learning_rate=nan"], "--learning_rate=nan: must be a finite number"),
    ],
)
def test_wrong_flags_are_answered_before_tensorflow_is_imported(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "exported" / "1").mkdir(parents=True)
    (tmp_path / "exported" / "1" / "saved_model.pb").touch()
    command = [sys.executable, "-m", "model.train", f"--data_dir={tmp_path}", f"--model_dir={tmp_path / 'run'}", *arguments]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 1 and ended.stderr.startswith(f"error: {message}") and ended.stderr.count("\n") == 1, ended


def test_a_missing_gpu_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch, two_replicas: tf.distribute.Strategy) -> None:
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    one = make_strategy("one_device")
    assert advice_on_missing_gpu(one, "float32") is None and advice_on_missing_gpu(two_replicas, "float32") is None
    advice = advice_on_missing_gpu(one, "mixed_float16")
    assert advice is not None and re.match(
        r"no GPU was found \(.+\); training runs on the CPU, .* --precision=mixed_float16$", advice
    )


@pytest.mark.campaign
@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_that_is_killed_is_told_by_the_other_within_a_minute(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, victim: int
) -> None:
    """Also if it is the first, which saves and evaluates, and whose process the others register with."""
    prepare_model_dir(tmp_path / "run", small_config, record_folder.skeleton)
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in (a, b)]
    command = [sys.executable, "-m", "model.train", f"--data_dir={record_folder.path}", f"--model_dir={tmp_path / 'run'}"]
    command += ["--strategy=multi_worker", "--steps=100000"]
    with contextlib.ExitStack() as stack:
        workers = []
        for index in range(2):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            output = stack.enter_context((tmp_path / f"worker-{index}.txt").open("w"))
            worker = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | {"TF_CONFIG": json.dumps(task)}, stdout=output, stderr=subprocess.STDOUT
            )
            stack.callback(worker.kill)
            workers.append(worker)
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert all(worker.poll() is None for worker in workers)
            time.sleep(0.2)
        workers[victim].kill()
        status = workers[1 - victim].wait(timeout=180)  # a minute on a free machine; other tests run beside this one
    told = (tmp_path / f"worker-{1 - victim}.txt").read_text()
    (error,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert status == 1 and f"worker {1 - victim}: another worker has ended or cannot be reached" in error
    assert "Traceback" not in told
