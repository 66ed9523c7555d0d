"""What a training goes on from, and what becomes of a save that fails."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model.checkpoint_files import chosen_checkpoint, newest_checkpoint
from model.checkpoint_names import model_dir_of
from model.config import Config
from model.model_dir import restore
from model.training import best_checkpoint
from model.training.checkpoints import RUN_FILE, find_origin, note_run
from model.training.optimizer import FIRST_LOSS_SCALE, Optimizer
from model.training.saver import Saver
from model.training.update_rules import Sgd
from pipeline.command import UserError
from tests.full_disk import full_disk

START: Any = object()  # a starting point that is not looked at


def frozen(config: Config) -> Config:
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, norm="frozen_batch"))


def save(folder: Path, number: int, **parts: Any) -> None:
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(**parts), str(folder / "checkpoints"), 3, checkpoint_name="step")
    manager.save(checkpoint_number=number)


def test_the_order_of_what_training_goes_on_from(small_config: Config, tmp_path: Path) -> None:
    weights = {"model": {"a": tf.Variable(1.0)}}
    with pytest.raises(
        UserError, match=r"random weights have no statistics .* --init=FILE, .* --set backbone\.norm=group"
    ) as told:
        find_origin(tmp_path, frozen(small_config), None)
    assert "\n" not in str(told.value)
    random = find_origin(tmp_path, small_config, None)
    assert (random.checkpoint, random.start) == (None, None)
    assert find_origin(tmp_path, frozen(small_config), START).start is START
    save(tmp_path, 0, **weights)
    imported = find_origin(tmp_path, frozen(small_config), START)
    assert imported.checkpoint == newest_checkpoint(tmp_path) and not imported.resumable
    save(tmp_path, 7, **weights, optimizer={"velocity.a": tf.Variable(0.0)}, step=tf.Variable(7))
    resumed = find_origin(tmp_path, frozen(small_config), START)
    assert resumed.checkpoint == str(tmp_path / "checkpoints" / "step-7") and resumed.resumable


@pytest.mark.parametrize(
    ("saved_dynamic", "saved_scale", "dynamic", "scale"),
    [
        (True, 4096.0, True, 4096.0),
        (True, 4096.0, False, 1.0),
        (False, 1.0, True, FIRST_LOSS_SCALE),
        (False, 1.0, False, 1.0),
    ],
)
def test_the_loss_scale_fits_the_precision_after_a_resumption(
    tmp_path: Path, saved_dynamic: bool, saved_scale: float, dynamic: bool, scale: float
) -> None:
    """A scale of float16 that stayed when the loss was not scaled any more made every gradient too small by that factor."""

    def sgd(dynamic: bool) -> Optimizer:
        weight = {"a/kernel": tf.Variable([1.0, -2.0])}
        rule = Sgd(weight, momentum=0.9)
        return Optimizer(weight, rule, weight_decay=0.0, clip_norm=0.0, dynamic_loss_scale=dynamic)

    def checkpoint(sgd: Optimizer) -> tf.train.Checkpoint:
        return tf.train.Checkpoint(**{path.replace("/", "."): v for path, v in sgd.variables_by_path().items()})

    before, after = sgd(saved_dynamic), sgd(dynamic)
    before.variables_by_path()["loss_scale"].assign(saved_scale)
    if saved_dynamic:
        before.variables_by_path()["finite_steps"].assign(12.0)
    checkpoint(after).read(checkpoint(before).write(str(tmp_path / "saved"))).assert_consumed()
    after.adopt_restored_scale()
    assert float(after.variables_by_path()["loss_scale"]) == scale
    gradient = tf.constant([3.0, 4.0]) * after.scale_loss(tf.constant(1.0))
    assert float(after.apply([gradient], tf.constant(0.1))["gradient_norm"]) == pytest.approx(5.0)
    if saved_dynamic and dynamic:
        assert float(after.variables_by_path()["finite_steps"]) == 13.0


def learner() -> Any:
    step, weights = tf.Variable(0, dtype=tf.int64), tf.Variable(tf.random.normal([50_000]))
    return SimpleNamespace(checkpoint=tf.train.Checkpoint(weights=weights, step=step), step=step)


def test_a_save_that_fails_is_told_and_leaves_nothing_half(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saver = Saver(learner(), tmp_path, 0)
    saver.save(1, required=False)
    saver.wait()
    with full_disk(10_000):
        saver.save(2, required=False)
        saver.wait()
        assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoints" / "step-1")
        assert not [path.name for path in (tmp_path / "checkpoints").iterdir() if "step-2" in path.name]
        with pytest.raises(UserError, match=r"checkpoints: the checkpoint of step 3 could not be written \(.+\); make room"):
            saver.save(3, required=True)
    line = f"train: {tmp_path}/checkpoints: the checkpoint of step 2 could not be written ("
    assert capsys.readouterr().out.count(line) == 1
    saver.save(4, required=True)
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoints" / "step-4")


def test_a_folder_that_has_vanished_is_told_and_not_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    saver = Saver(learner(), tmp_path / "run", 0)
    saver.save(1, required=False)
    saver.wait()
    shutil.rmtree(tmp_path / "run")
    saver.save(2, required=False)
    saver.wait()
    assert "the model directory has vanished" in capsys.readouterr().out
    with pytest.raises(UserError, match="the model directory has vanished"):
        saver.save(3, required=True)
    assert not (tmp_path / "run").exists()


def test_what_a_kill_left_behind_is_swept_up(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    Saver(learner(), tmp_path, 0).save(5, required=True)
    (folder / "step-6_temp").mkdir()
    for name in ("step-6_temp/part-00000-of-00001.data-00000-of-00001", "step-6.data-00000-of-00001"):
        (folder / name).write_bytes(b"half")
    saver = Saver(learner(), tmp_path, 0)
    whole = ["checkpoint", "step-5.data-00000-of-00001", "step-5.index", "step-5.sha256"]
    assert sorted(path.name for path in folder.iterdir()) == whole
    saver.save(6, required=True)
    assert newest_checkpoint(tmp_path) == str(folder / "step-6")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("what", ["data-00000-of-00001", "index", "sha256", "missing", "cut"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    small_config: Config, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = Saver(learner(), tmp_path, 0)
    for step in (8, 9, 10):
        saver.save(step, required=True)
    newest = tmp_path / "checkpoints" / "step-10"
    data = newest.with_name("step-10.data-00000-of-00001")
    if what == "missing":
        data.unlink()
    elif what == "cut":
        data.write_bytes(data.read_bytes()[:-100])
    else:
        flip_a_bit(newest.with_name(f"step-10.{what}"))
    with pytest.raises(UserError, match=r"step-10: damaged \(.+\); restore it, or take") as told:
        find_origin(tmp_path, small_config, None, "fail")
    assert "\n" not in str(told.value)
    assert find_origin(tmp_path, small_config, None).checkpoint == str(newest.with_name("step-9"))
    assert f"{newest}: damaged (" in capsys.readouterr().out
    again = learner()
    Saver(again, tmp_path, 0).save(10, required=True)  # as the training that goes on from step 9 does
    assert find_origin(tmp_path, small_config, None, "fail").checkpoint == str(newest)
    for path in newest.parent.glob("*.data-*"):
        flip_a_bit(path)
    with pytest.raises(UserError, match="there is no sound one before it"):
        find_origin(tmp_path, small_config, None)


def test_only_the_newest_are_kept_with_their_checksums(tmp_path: Path) -> None:
    saver = Saver(learner(), tmp_path, 0, keep=2)
    for step in range(1, 5):
        saver.save(step, required=True)
    kept = {path.name.partition(".")[0] for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"checkpoint", "step-3", "step-4"}
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.sha256")) == ["step-3.sha256", "step-4.sha256"]


def test_what_changes_between_two_runs_is_noted_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(replicas: int, precision: str, done: int) -> str:
        strategy = SimpleNamespace(num_replicas_in_sync=replicas, cluster_resolver=None)
        some_learner: Any = SimpleNamespace(strategy=strategy)
        note_run(tmp_path, some_learner, precision, done, writes=True)
        return capsys.readouterr().out

    assert run(1, "float32", 0) == "" and run(1, "float32", 10) == ""
    told = run(2, "mixed_bfloat16", 20)
    assert "precision was float32 until step 20, and is mixed_bfloat16 from here" in told
    assert "replicas: 1 until step 20, 2 from here; the batches stay the same" in told
    assert json.loads((tmp_path / RUN_FILE).read_text())["replicas"] == 2
    (tmp_path / RUN_FILE).write_text("[]")
    with pytest.raises(UserError, match=r"run\.json: must hold a JSON object"):
        run(2, "float32", 30)


def test_a_save_goes_on_beside_the_steps_and_holds_what_was_when_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also: while a save is in progress, the next one is left out and told; one that is required waits for it."""
    held, honest = threading.Event(), Saver._write

    def slow(self: Saver, *arguments: Any) -> None:
        assert held.wait(30)
        honest(self, *arguments)

    monkeypatch.setattr(Saver, "_write", slow)
    trained = learner()
    weights = trained.checkpoint.weights
    before = weights.numpy().copy()
    with Saver(trained, tmp_path, 0) as saver:
        saver.save(1, required=False)
        weights.assign_add(tf.ones_like(weights))  # the next step, which the disk does not hold up
        saver.save(2, required=False)
        assert newest_checkpoint(tmp_path) is None and saver.written == -1
        threading.Timer(0.2, held.set).start()
        saver.save(3, required=True)
        assert saver.written == 3
    assert (
        capsys.readouterr().out
        == "train: the checkpoint of step 2 is left out, because the one before is still being written\n"
    )
    names = [name for name, _ in tf.train.list_variables(str(tmp_path / "checkpoints" / "step-1"))]
    assert sorted(names) == sorted(name for name, _ in tf.train.list_variables(trained.checkpoint.save(str(tmp_path / "own"))))
    for step, values in ((1, before), (3, before + 1)):
        again = learner()
        restore(again.checkpoint, str(tmp_path / "checkpoints" / f"step-{step}"))
        np.testing.assert_array_equal(again.checkpoint.weights, values)
        assert int(again.step) == step


def test_a_save_in_progress_is_waited_for_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Saver._write

    def slow(self: Saver, *arguments: Any) -> None:
        time.sleep(0.3)
        honest(self, *arguments)

    monkeypatch.setattr(Saver, "_write", slow)
    with pytest.raises(RuntimeError), Saver(learner(), tmp_path, 0) as saver:
        saver.save(7, required=False)
        raise RuntimeError
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoints" / "step-7")


def test_some_checkpoints_are_kept_for_good(tmp_path: Path) -> None:
    with Saver(learner(), tmp_path, 0, keep=1, keep_every=4) as saver:
        for step in (2, 4, 6, 8, 10, 11):
            saver.save(step, required=True)
    assert sorted(path.stem for path in (tmp_path / "checkpoints").glob("*.index")) == ["step-11", "step-4", "step-8"]
    with Saver(learner(), tmp_path, 1) as other_worker:
        other_worker.save(12, required=True)
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoints" / "step-11")


def test_the_best_is_kept_whatever_comes_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Saver(learner(), tmp_path, 0, keep=1) as saver:
        for step, figure in ((1, 0.25), (2, 0.5), (3, 0.5), (4, -1.0), (5, math.nan), (6, 0.25)):
            saver.save(step, required=True)
            best_checkpoint.offer(tmp_path, step, {"keypoint_ap": figure, "box_ap": 0.75})
    best = tmp_path / "checkpoints" / "best"
    names = ["best.json", "step-2.data-00000-of-00001", "step-2.index", "step-2.sha256"]
    assert sorted(path.name for path in best.iterdir()) == names
    assert json.loads((best / "best.json").read_text()) == {"step": 2, "figures": {"keypoint_ap": 0.5, "box_ap": 0.75}}
    output = capsys.readouterr().out
    assert (
        output.count("is the best so far") == 2 and f"step 2 is the best so far (keypoint AP 0.500); kept in {best}" in output
    )
    best_checkpoint.offer(tmp_path, 7, {"keypoint_ap": 0.75})
    assert "step 7 is the best so far (keypoint AP 0.750), but its checkpoint is not there" in capsys.readouterr().out
    (best / "best.json").write_text("{")
    best_checkpoint.offer(tmp_path, 6, {"keypoint_ap": 0.25})
    assert "best.json: not a note on the best checkpoint" in capsys.readouterr().out
    assert json.loads((best / "best.json").read_text())["step"] == 6


def test_any_checkpoint_can_be_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with Saver(learner(), run, 0) as saver:
        for step in (1, 2):
            saver.save(step, required=True)
    (run / "config.json").touch()
    step_1 = str(run / "checkpoints" / "step-1")
    assert chosen_checkpoint(run) == str(run / "checkpoints" / "step-2")
    with pytest.raises(UserError, match=r"run: has no best checkpoint, because no evaluation .* take --which=newest"):
        chosen_checkpoint(run, "best")
    best_checkpoint.offer(run, 1, {"keypoint_ap": 0.5})
    best = str(run / "checkpoints" / "best" / "step-1")
    assert chosen_checkpoint(run, "best") == chosen_checkpoint(run / "checkpoints" / "best") == best
    assert chosen_checkpoint(Path(best)) == best
    for name in ("step-1", "step-1.index", "step-1.data-00000-of-00001", "step-1.sha256"):
        named = run / "checkpoints" / name
        assert chosen_checkpoint(named) == step_1 and model_dir_of(named) == run
    with pytest.raises(UserError, match=r"step-9: no such checkpoint; .*checkpoints has step-1, step-2"):
        chosen_checkpoint(run / "checkpoints" / "step-9")
    flip_a_bit(Path(f"{step_1}.data-00000-of-00001"))
    for named in (Path(step_1), run / "checkpoints" / "best"):  # which share their files
        with pytest.raises(UserError, match=r"step-1: damaged \(.+\); restore it, or take another checkpoint"):
            chosen_checkpoint(named)
