"""Training under each strategy and precision, on rendered images: a few steps of a small model."""

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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model import model_dir
from model.checkpoint_files import newest_checkpoint
from model.config import Config
from model.interrupt import InterruptedWorkError
from model.training.loop import Run, train
from model.training.step import Learner
from model.training.strategies import distribute, make_strategy
from model.training_data import training_data
from pipeline.command import UserError
from pipeline.loading.batches import training_batches, training_pool
from pipeline.loading.options import LoadingOptions
from pipeline.record_folder import RecordFolder, open_record_folder
from pipeline.synthetic import poses
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig

ROOT = Path(__file__).parents[3]
COLOURS: dict[str, Any] = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
}  # whose draws must not depend on how a step runs


def global_batch(record_folder: RecordFolder, config: Config) -> dict[str, tf.Tensor]:
    batches = training_batches(
        record_folder, "train", config.data, global_batch_size=config.train.global_batch_size, seed=3, num_steps=1
    )
    return next(iter(batches))


def taking_every_roi(config: Config) -> Config:
    """Rounding reorders nearly equal proposals, and RoIs are drawn by their place: nothing is left to the draw here."""
    candidates = config.rpn.proposals_train + config.data.max_boxes
    return dataclasses.replace(
        config,
        box_head=dataclasses.replace(config.box_head, rois=candidates, positive_fraction=1.0),
        keypoint_head=dataclasses.replace(config.keypoint_head, rois=candidates),
    )


def summed_gradients(learner: Learner, batch: dict[str, tf.Tensor]) -> tuple[list[np.ndarray], dict[str, float]]:
    @tf.function(autograph=False)
    def run(batch):
        return learner.strategy.run(learner.gradients, args=(batch, tf.constant(7)))

    iterator = distribute(tf.data.Dataset.from_tensors(batch), learner.strategy)
    gradients, metrics = run(next(iterator))
    local = learner.strategy.experimental_local_results
    totals = [sum(g.numpy() for g in local(per_replica)) for per_replica in gradients]
    return totals, {name: float(local(value)[0]) for name, value in metrics.items()}


def test_two_replicas_give_the_gradients_of_one(
    record_folder: RecordFolder, small_config: Config, two_replicas: tf.distribute.Strategy
) -> None:
    config = dataclasses.replace(
        taking_every_roi(small_config),
        train=dataclasses.replace(small_config.train, global_batch_size=4),
        data=dataclasses.replace(small_config.data, **COLOURS),
    )
    batch = global_batch(record_folder, config)
    assert int(tf.reduce_sum(tf.cast(batch["box_kind"] == 1, tf.int32))) >= 4
    skeleton = record_folder.skeleton
    one = Learner(config, skeleton, tf.distribute.OneDeviceStrategy("CPU:0"), precision="float32", jit_compile=False)
    two = Learner(config, skeleton, two_replicas, precision="float32", jit_compile=False)
    for path, variable in one.model.variables_by_path().items():
        np.testing.assert_array_equal(variable, two.model.variables_by_path()[path])  # the same seed
    expected, expected_metrics = summed_gradients(one, batch)
    found, metrics = summed_gradients(two, batch)
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4), name
    assert metrics["keypoint_overflow"] == 0 and metrics["keypoint_rois"] > 0
    for path, a, b in zip(one.model.variables_by_path(trainable_only=True), expected, found, strict=True):
        # The keypoint deconvolution's bias has a gradient of exactly zero; what is there is rounding.
        np.testing.assert_allclose(b, a, rtol=2e-3, atol=2e-5 * max(1.0, float(np.abs(a).max())), err_msg=path)
        assert path.endswith("deconv/bias") or np.abs(a).max() > 0, path


@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("strategy", ["one_device", "mirrored"])
def test_trains_under_each_strategy_and_precision(
    record_folder: RecordFolder,
    small_config: Config,
    tmp_path: Path,
    strategy: str,
    precision: str,
    two_replicas: tf.distribute.Strategy,
    trained_in_one_go: Path,
) -> None:
    run = tmp_path / "run"
    if (strategy, precision) == ("one_device", "float32"):
        run = trained_in_one_go
    else:
        used = two_replicas if strategy == "mirrored" else make_strategy("one_device")
        train(small_config, record_folder, "train", Run(run, precision=precision, log_every=1), used)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4]  # the first contains tracing; a line tells of the steps before its own
    assert all(np.isfinite(line["loss"]) for line in lines)
    saved = json.loads((run / "canvases.json").read_text())
    chosen = training_pool(record_folder, "train", small_config.data).canvases
    assert [(c["height"], c["width"]) for c in saved["canvases"]] == list(chosen.sizes) and saved["padding"] == chosen.padding
    (trained_on,) = training_data(run)
    assert (trained_on["split"], trained_on["images"]) == ("train", len(record_folder.index("train")))
    assert [licence["name"] for licence in trained_on["stated"]["licences"]] == ["CC0 1.0"]  # of the rendered images
    model = model_dir.load_model(run)
    assert all(v.dtype == tf.float32 and np.isfinite(v).all() for v in model.variables_by_path().values())


def test_a_finished_training_says_so_and_another_model_is_refused(
    record_folder: RecordFolder,
    small_config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    two_replicas: tf.distribute.Strategy,
) -> None:
    run = Run(tmp_path / "run")
    one_step = dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, steps=1))
    train(one_step, record_folder, "train", run, make_strategy("one_device"))
    train(one_step, record_folder, "train", run, make_strategy("one_device"))
    assert "nothing to do" in capsys.readouterr().out
    wider = dataclasses.replace(one_step, backbone=dataclasses.replace(one_step.backbone, width=16))
    with pytest.raises(UserError, match=r"backbone.width = 8.*16"):
        train(wider, record_folder, "train", run, make_strategy("one_device"))
    other_anchors = dataclasses.replace(
        one_step, anchors=dataclasses.replace(one_step.anchors, sizes=(16.0, 32.0, 64.0, 128.0, 256.0))
    )
    with pytest.raises(UserError, match=r"anchors.*32.*16"):
        train(other_anchors, record_folder, "train", Run(tmp_path / "other"), make_strategy("one_device"))
    odd = dataclasses.replace(one_step, train=dataclasses.replace(one_step.train, global_batch_size=3))
    with pytest.raises(UserError, match="multiple of the 2 replicas"):
        train(odd, record_folder, "train", Run(tmp_path / "odd"), two_replicas)


def test_a_loss_that_is_not_finite_is_named_and_not_saved(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path
) -> None:
    hot = dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, learning_rate=1e30, clip_norm=0.0))
    with pytest.raises(UserError, match=r"step \d: the loss \w+ is (nan|inf) on images \[\d+"):
        train(hot, record_folder, "train", Run(tmp_path / "run", save_every=1), make_strategy("one_device"))
    saved = newest_checkpoint(tmp_path / "run")
    if saved is not None:
        model = model_dir.load_model(tmp_path / "run")
        assert all(np.isfinite(v).all() for v in model.variables_by_path().values())


def test_an_empty_split_is_ordinary(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = {"images": [], "annotations": [], "categories": [poses.PERSON_CATEGORY]}
    (tmp_path / "empty.json").write_text(json.dumps(nobody))
    convert(
        tmp_path / "empty.json", tmp_path, tmp_path / "records", "train", ConversionConfig(short_edges=(96, 128), max_edge=192)
    )
    train(small_config, open_record_folder(tmp_path / "records"), "train", Run(tmp_path / "run"), make_strategy("one_device"))
    assert "no images" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_damaged_record_is_named_or_skipped(
    small_config: Config, record_folder: RecordFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(record_folder.path, tmp_path / "records")
    (shard,) = (tmp_path / "records").glob("*.tfrecord-*")
    places = []
    for image in record_folder.index("train")[[3, 8]]:  # of the first step; and of the third and seventh
        places.append(f"{shard}, record at byte {image['offset']}, image {image['image_id']}: ")
        with shard.open("r+b") as file:
            file.seek(image["offset"] + 5000)
            file.write(bytes(16))
    config = dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, steps=8))
    damaged = open_record_folder(tmp_path / "records")
    with pytest.raises(UserError, match=rf"^{places[0]}the record is damaged .*--on_error=skip"):
        train(config, damaged, "train", Run(tmp_path / "run"), make_strategy("one_device"))
    capsys.readouterr()

    run = Run(tmp_path / "run", log_every=1, options=LoadingOptions(on_error="skip"))
    train(config, damaged, "train", run, make_strategy("one_device"))
    output = capsys.readouterr().out
    assert all(output.count(f"train: skipped {place}") == 1 for place in places)
    assert "train: 2 images could not be read, and skipped 3 times" in output
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["unreadable"] == 1] == [4, 8]  # a line tells of the step before its own


def test_ctrl_c_saves_a_checkpoint(record_folder: RecordFolder, small_config: Config, tmp_path: Path) -> None:
    long = dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, steps=5000))
    previous = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        log = tmp_path / "run" / "metrics.jsonl"
        while not log.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(InterruptedWorkError, match=r"stopped at step \d+ of 5000"):
        train(long, record_folder, "train", Run(tmp_path / "run", log_every=1), make_strategy("one_device"))
    assert newest_checkpoint(tmp_path / "run") is not None
    assert signal.getsignal(signal.SIGINT) is previous


SERVICE = """
import sys
import tensorflow as tf
service = tf.data.experimental.service
dispatcher = service.DispatchServer(service.DispatcherConfig())
config = service.WorkerConfig(dispatcher_address=dispatcher.target.removeprefix("grpc://"), heartbeat_interval_ms=100)
worker = service.WorkerServer(config)
print(dispatcher.target, flush=True)
sys.stdin.read()
"""


# Impatient, and in a process of its own: TensorFlow goes on looking for the service that was lost until the process ends.
TRAIN_FROM_SERVICE = """
import sys
from pathlib import Path
from model import config, interrupt
from model.training import loop, strategies
from model.training.feed import Feed
from pipeline.command import Progress
from pipeline.record_folder import open_record_folder
from pipeline.loading.options import LoadingOptions
Feed.SECONDS_BETWEEN_LOOKS, loop.SECONDS_OF_PATIENCE, Progress.SECONDS_BETWEEN_LINES = 0.125, 0.25, 0.0
settings = loop.Run(Path(sys.argv[3]), log_every=1, options=LoadingOptions(data_service=sys.argv[4]))
strategy = strategies.make_strategy("one_device")
try:
    loop.train(config.load(Path(sys.argv[1])), open_record_folder(sys.argv[2]), "train", settings, strategy)
except interrupt.InterruptedWorkError as error:
    print(error, flush=True)
    sys.exit(error.status)
"""


@pytest.mark.campaign
def test_a_data_service_that_is_lost_is_named_and_ctrl_c_is_heard(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path
) -> None:
    long = dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, steps=5000))
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(long)))
    with contextlib.ExitStack() as stack:

        def start(*command: str, **options: Any) -> subprocess.Popen[str]:
            arguments = [sys.executable, "-c", *command]
            process = stack.enter_context(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, **options))
            stack.callback(process.kill)
            return process

        service = start(SERVICE, cwd="/", stdin=subprocess.PIPE)
        assert service.stdout is not None
        address = service.stdout.readline().strip()
        folders = [str(tmp_path / "config.json"), str(record_folder.path), str(tmp_path / "run")]
        errors = stack.enter_context((tmp_path / "errors.txt").open("w"))  # a page of TensorFlow's about the service
        training = start(TRAIN_FROM_SERVICE, *folders, address, cwd=ROOT, stderr=errors)
        assert training.stdout is not None
        output, interrupted = "", False
        for line in training.stdout:
            output += line
            if "steps/s" in line:
                service.kill()
            if "does not answer" in line and not interrupted:
                training.send_signal(signal.SIGINT)
                interrupted = True
        assert training.wait() == 130, output + (tmp_path / "errors.txt").read_text()
    assert f"train: {address} promises neither an order of batches nor exact resumption" in output
    stopped = re.search(r"stopped at step (\d+) of 5000, waiting for data", output)
    assert stopped, output
    silence = rf"train: step {stopped[1]} has been waiting for data for \d+ s; {address} does not answer \("
    assert re.search(silence, output), output
    newest = newest_checkpoint(tmp_path / "run")
    assert newest == str(tmp_path / "run" / "checkpoints" / f"step-{stopped[1]}")


def run_two_workers(arguments: list[str], folder: Path) -> tuple[list[int], list[str]]:
    """Starts Python twice, as the two workers of a cluster, in a folder; returns the statuses, and what was printed."""
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{s.getsockname()[1]}" for s in (a, b)]
    processes = []
    for index in range(2):
        cluster = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CONFIG": json.dumps(cluster), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *arguments]
        processes.append(
            subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


@pytest.mark.slow
@pytest.mark.campaign
def test_two_workers_train_one_model(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, trained_in_one_go: Path
) -> None:
    """Two processes under MultiWorkerMirroredStrategy end with the weights of one process with the same global batch."""
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(small_config)))
    script = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "import tensorflow as tf\n"
        "from model import config\n"
        "from model.inference.predictor import Predictor\n"
        "from model.training import loop, strategies, validation\n"
        "from model.training.validation_loss import ValidationLoss\n"
        "from pipeline.record_folder import open_record_folder\n"
        "strategy = strategies.make_strategy('multi_worker')\n"
        "looked, predict, evaluate = [], Predictor.predict, validation.evaluate\n"
        "def noting(self, images, *arguments, **options):\n"
        "    looked.extend(images)\n"
        "    return predict(self, images, *arguments, **options)\n"
        "def telling(*arguments, **options):\n"
        "    figures = evaluate(*arguments, **options)\n"
        "    print('looked at', len(looked), len(set(looked)), json.dumps(figures['counts']))\n"
        "    return figures\n"
        "measure = ValidationLoss.__call__\n"
        "def measuring(self, *arguments):\n"
        "    losses, alone = measure(self, *arguments), ValidationLoss(folder, 'train', trained)\n"
        "    alone._sums = self._sums\n"
        "    print('losses', len(list(self._batches)), len(list(alone._batches)), losses == measure(alone, *arguments))\n"
        "    return losses\n"
        "Predictor.predict, validation.evaluate, ValidationLoss.__call__ = noting, telling, measuring\n"
        "folder = open_record_folder(sys.argv[2])\n"
        "trained, share = config.load(Path(sys.argv[1])), strategies.share_of(strategy)\n"
        "validate = validation.Validation(folder, 'train', sys.argv[4], trained, share)\n"
        "loop.train(trained, folder, 'train', loop.Run(Path(sys.argv[3])), strategy, validate)\n"
    )
    annotations = record_folder.path.parent / "annotations" / "person_keypoints_train.json"
    arguments = ["-c", script, str(tmp_path / "config.json"), str(record_folder.path), str(tmp_path / "two"), str(annotations)]
    statuses, outputs = run_two_workers(arguments, tmp_path)
    assert statuses == [0, 0] and not any("AutoGraph" in output for output in outputs), outputs
    # Each worker looks at half of the images, and both have the figures of all.
    told = [re.findall(r"^looked at (\d+) (\d+) (.*)$", output, re.MULTILINE) for output in outputs]
    assert [[line[:2] for line in lines] for lines in told] == [[("6", "6")]] * 2 and told[0] == told[1], outputs
    assert json.loads(told[0][0][2])["images"] == len(record_folder.index("train")) == 12
    # So do they with the batches of the validation loss, which is that of one worker to the bit.
    batches = [re.findall(r"^losses (\d+) (\d+) (\w+)$", output, re.MULTILINE) for output in outputs]
    (mine, total, same), (others, _, same_there) = batches[0][0], batches[1][0]
    assert int(mine) + int(others) == int(total) and abs(int(mine) - int(others)) <= 1 and same == same_there == "True", outputs
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["validation_loss"] > 0) for line in lines if line["kind"] == "eval"] == [(4, True)]
    expected, found = (model_dir.load_model(path).variables_by_path() for path in (trained_in_one_go, tmp_path / "two"))
    for path, variable in expected.items():
        np.testing.assert_allclose(found[path], variable, rtol=1e-3, atol=1e-5, err_msg=path)


@pytest.mark.campaign
def test_where_one_worker_ends_the_other_says_so_in_a_line(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path
) -> None:
    model_dir.prepare_model_dir(tmp_path / "run", small_config, record_folder.skeleton)
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "step-1.index").touch()  # so that worker 0 compares its model with the one asked for
    arguments = ["-m", "model.train", f"--data_dir={record_folder.path}", "--model_dir=run", "--strategy=multi_worker"]
    statuses, outputs = run_two_workers([*arguments, "--set", "box_head.channels=48"], tmp_path)
    refused, told = ([line for line in output.splitlines() if line.startswith("error: ")] for output in outputs)
    assert statuses == [1, 1] and "holds a model with" in "".join(refused), outputs
    assert len(told) == 1 and "worker 1: another worker has ended" in told[0], outputs
    assert "Traceback" not in "".join(outputs)
