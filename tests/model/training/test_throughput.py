"""MFU: the arithmetic that is counted from a graph, the devices' peaks, and what the log says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from model.config import Config
from model.training import arithmetic
from model.training.loop import Run, train
from model.training.metrics_log import Interval, notes
from model.training.step import Learner
from model.training.strategies import make_strategy
from model.training.throughput import Throughput
from pipeline.record_folder import RecordFolder
from tests.model.training.test_metrics_log import step_values


def test_products_are_counted_forward_and_backward_for_the_shapes_of_a_call() -> None:
    """Whatever shapes the graph itself was traced with, and within compiled functions, too."""
    kernel, weights = tf.Variable(tf.zeros([3, 3, 4, 8])), tf.Variable(tf.zeros([8, 5]))

    def loss(image: tf.Tensor) -> tf.Tensor:
        features = tf.nn.conv2d(image, kernel, strides=2, padding="SAME")
        return tf.reduce_sum(tf.matmul(tf.reduce_mean(features, [1, 2]), weights) ** 2)

    inner = tf.function(loss, jit_compile=True)

    @tf.function(reduce_retracing=True, autograph=False)
    def forward(image: tf.Tensor) -> tf.Tensor:
        return loss(image)

    @tf.function(reduce_retracing=True, autograph=False)
    def step(image: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            value = loss(image)
        gradients: list[tf.Tensor] = tape.gradient(value, [kernel, weights])
        return gradients

    @tf.function(reduce_retracing=True, autograph=False)
    def compiled(image: tf.Tensor) -> tf.Tensor:
        return inner(image)

    for size in (16, 32, 64):
        image = tf.zeros([2, size, size, 4])
        convolution = 2 * 2 * (size // 2) ** 2 * 8 * 3 * 3 * 4
        matrix = 2 * 2 * 8 * 5
        for function, expected in (
            (forward, convolution + matrix),
            (step, 2 * convolution + 3 * matrix),  # the image needs no gradient, the features do
            (compiled, convolution + matrix),
        ):
            function(image)
            traces = function.experimental_get_tracing_count()
            assert arithmetic.products(function, (image,)) == expected
            assert function.experimental_get_tracing_count() == traces


def test_peaks_are_those_of_the_device_and_the_precision() -> None:
    assert arithmetic.peak_tflops("NVIDIA H200", "mixed_bfloat16") == 989
    assert arithmetic.peak_tflops("NVIDIA H100 PCIe", "mixed_float16") == 756
    assert arithmetic.peak_tflops("NVIDIA A100-SXM4-80GB", "float32") == 156
    assert arithmetic.peak_tflops("NVIDIA L40S", "float32") == 183
    assert arithmetic.peak_tflops("Tesla T4", "float32") == 8.1
    assert arithmetic.peak_tflops("Some GPU", "float32") is None


@pytest.mark.parametrize(
    ("peak", "products", "expected"),
    [(10.0, 2e12, "MFU 20.0%"), (None, 2e12, "2 TFLOP/s"), (10.0, None, None)],
)
def test_the_progress_line_says_mfu_where_the_peak_is_known(
    peak: float | None, products: float | None, expected: str | None
) -> None:
    interval = Interval(peak)
    for _ in range(10):
        interval.add(step_values(1.0), products)
    interval._start -= 10.0
    found = [part for part in notes(interval.means(), interval) if "MFU" in part or "FLOP" in part]
    assert found == ([expected] if expected else [])


def test_a_training_logs_its_arithmetic_and_a_profile(
    record_folder: RecordFolder, small_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run", log_every=1, peak_tflops=1.0, profile=(2, 3))
    train(small_config, record_folder, "train", run, make_strategy("one_device"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines and all(0 < line["mfu"] < 1 and line["mfu"] == pytest.approx(line["tflops"], rel=1e-4) for line in lines)
    assert "device_memory_gb" not in lines[0]  # of a CPU
    folder = tmp_path / "run" / "tensorboard"
    assert f"train: the profile of the steps 2 to 2 is in {folder}" in capsys.readouterr().out
    assert list(folder.glob("plugins/profile/*/*.xplane.pb"))


def test_a_step_that_is_traced_after_the_first_epoch_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    learner: Any = Learner.__new__(Learner)
    learner.strategy = make_strategy("one_device")
    learner.take_step = tf.function(lambda image: tf.shape(image))
    learner.take_steps = tf.function(lambda images: [tf.shape(image) for image in images])
    throughput = Throughput(learner, "float32", None, settled_after=2)
    for step, size in enumerate((1, 2, 1, 2, 3)):
        learner.take_step(tf.zeros([size]))
        assert throughput.watch_traces(step, 1) == (step in (0, 1, 4))
        assert ("train: step 4 was traced again" in capsys.readouterr().out) == (step == 4)
    learner.take_steps([tf.zeros([1]), tf.zeros([1])])
    assert throughput.watch_traces(5, 2)  # a call of several steps, which no epoch need have had
    assert "traced again" not in capsys.readouterr().out
    assert throughput.device_memory() == {} and throughput.peak is None
