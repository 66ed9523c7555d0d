"""The doctor's findings: what is here is said, what is missing is named with its remedy, and a fault decides the status."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from model.config import Config
from model.training import diagnosis
from model.training.diagnosis import Finding
from model.training.strategies import make_strategy
from pipeline.record_folder import RecordFolder

ROOT = Path(__file__).parents[3]


def test_a_machine_without_a_gpu_passes_unless_one_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    monkeypatch.setattr(diagnosis, "_has_driver", lambda: False)
    (finding,) = diagnosis.gpus(required=False)
    assert finding.well and "no NVIDIA driver" in finding.line
    (finding,) = diagnosis.gpus(required=True)
    assert not finding.well and "--require_gpu" in finding.line


def test_a_driver_without_cuda_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    monkeypatch.setattr(diagnosis, "_has_driver", lambda: True)
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: {"is_cuda_build": True})
    monkeypatch.setattr(diagnosis, "_is_installed", lambda package: package != "nvidia-cudnn-cu12")
    (finding,) = diagnosis.gpus(required=False)
    assert not finding.well and "nvidia-cudnn-cu12 are not installed; pip install 'tensorflow[and-cuda]" in finding.line
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: {"is_cuda_build": False})
    assert "built without CUDA" in diagnosis.gpus(required=False)[0].line


def test_a_disk_that_is_nearly_full_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(tmp_path) in diagnosis.disk(tmp_path / "run" / "not yet").line
    (tmp_path / "file").touch()
    of_file = diagnosis.disk(tmp_path / "file" / "run")
    assert not of_file.well and of_file.line == f"{tmp_path / 'file'} is a file; name a folder with --model_dir"
    monkeypatch.setattr(diagnosis, "LEAST_FREE_BYTES", 1 << 60)
    assert not diagnosis.disk(tmp_path).well


def test_two_replicas_reduce(two_replicas: tf.distribute.Strategy) -> None:
    finding = diagnosis.all_reduce(two_replicas)
    assert finding.well and finding.line.startswith("2 replicas: an all-reduce of 64 MiB takes ")
    assert "nothing to reduce" in diagnosis.all_reduce(make_strategy("one_device")).line


def test_the_loader_is_measured_beside_the_step(small_config: Config, small_record_folder: RecordFolder) -> None:
    config = dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, global_batch_size=2))
    finding = diagnosis.rates(config, small_record_folder, "train", make_strategy("one_device"), "float32")
    assert finding.well and finding.line.startswith("batches of 2: the loader makes ")
    assert (
        "not tried on a CPU"
        in diagnosis.largest_batch(config, small_record_folder, "train", make_strategy("one_device"), "float32").line
    )


def test_every_finding_is_reported_and_a_fault_decides() -> None:
    def fails() -> list[Finding]:
        raise tf.errors.UnavailableError(None, None, "no peer")

    lines: list[str] = []
    assert not diagnosis.diagnose(iter([fails, lambda: [Finding("fine")]]), lines.append)
    assert lines == ["WRONG TensorFlow fails: no peer", "ok    fine"]
    assert diagnosis.diagnose(iter([lambda: [Finding("fine")]]), lines.append)


def test_the_command_ends_with_the_status_of_its_findings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "model.doctor", f"--model_dir={tmp_path}", "--strategy=one_device"]
    fine = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert fine.returncode == 0, fine
    assert "ok    TensorFlow 2." in fine.stdout and "GB free" in fine.stdout
    required = subprocess.run([*command, "--require_gpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    if not tf.config.list_physical_devices("GPU"):
        assert required.returncode == 1 and required.stderr.startswith("error: something above is WRONG"), required
