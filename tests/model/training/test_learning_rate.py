from __future__ import annotations

import dataclasses

import pytest

from model.config import R50_FPN, TINY, Config, TrainConfig
from model.training.data_source import advice_on_inference_size, advice_on_padding
from model.training.learning_rate import advice_on_batch_size, learning_rate
from pipeline.loading.batches import training_pool
from pipeline.record_folder import RecordFolder


def test_warm_up_then_steps_down() -> None:
    config = TrainConfig(steps=2700, learning_rate=0.02, warmup_steps=100, warmup_factor=0.001)
    assert learning_rate(config, 0) == pytest.approx(0.02 * 0.001)
    assert learning_rate(config, 50) == pytest.approx(0.02 * 0.5005)
    rates = [learning_rate(config, step) for step in (100, 2099, 2100, 2499, 2500)]  # as Detectron2's 3x: 210,000 and 250,000
    assert rates == pytest.approx([0.02, 0.02, 0.002, 0.002, 0.0002])


def test_a_half_cosine_to_zero() -> None:
    config = TrainConfig(steps=100, learning_rate=0.04, schedule="cosine", warmup_steps=0)
    assert [learning_rate(config, step) for step in (0, 50, 100)] == pytest.approx([0.04, 0.02, 0.0])


def test_a_batch_size_that_leaves_the_learning_rate_is_told_with_what_would_fit() -> None:
    before = R50_FPN.train
    advice = advice_on_batch_size(before, dataclasses.replace(before, global_batch_size=4))
    assert advice is not None and advice.endswith("gives --learning_rate=0.005 --steps=1080000")
    fewer = advice_on_batch_size(before, dataclasses.replace(before, global_batch_size=4, steps=500))
    assert fewer is not None and fewer.endswith("gives --learning_rate=0.005")
    assert advice_on_batch_size(before, dataclasses.replace(before, global_batch_size=4, learning_rate=0.01)) is None
    assert advice_on_batch_size(before, before) is None


@pytest.mark.parametrize(("config", "rates"), [(TINY, (0.0125, 0.05, 0.1)), (R50_FPN, (0.00125, 0.005, 0.01))])
def test_the_rate_grows_with_the_batch_where_it_is_asked_to(config: Config, rates: tuple[float, ...]) -> None:
    for size, rate in zip((1, 4, 8), rates, strict=True):
        scaled = dataclasses.replace(config.train, global_batch_size=size, scale_learning_rate=True, warmup_steps=0)
        assert learning_rate(scaled, 0) == pytest.approx(rate)
        advice = advice_on_batch_size(config.train, scaled)
        assert advice is not None and advice.startswith(f"learning rate {rate:g}: ") and advice.endswith(f"batches of {size}")
        assert learning_rate(dataclasses.replace(scaled, scale_learning_rate=False), 0) == config.train.learning_rate


@pytest.mark.parametrize("config", [TINY, R50_FPN], ids=["tiny", "r50_fpn"])
def test_the_presets_are_evaluated_at_a_size_that_they_train(config: Config) -> None:
    assert advice_on_inference_size(config) is None


def test_a_training_size_that_leaves_inferences_is_told_with_what_would_fit() -> None:
    smaller = dataclasses.replace(R50_FPN, data=dataclasses.replace(R50_FPN.data, short_edges=(320, 480), max_edge=640))
    advice = advice_on_inference_size(smaller)
    assert advice is not None and advice.endswith("--set inference.short_edge=480 --set inference.max_edge=640 would fit")
    jitter = dataclasses.replace(R50_FPN, data=dataclasses.replace(R50_FPN.data, jitter_canvas=1024, anchors="online"))
    advice = advice_on_inference_size(jitter)
    assert advice is not None and "--set inference.short_edge=1024 --set inference.max_edge=1024" in advice


def test_half_empty_batches_are_told_with_their_share(small_record_folder: RecordFolder, small_config: Config) -> None:
    pool = training_pool(small_record_folder, "train", small_config.data)

    def with_batches_of(number: int) -> Config:
        return dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, global_batch_size=number))

    assert advice_on_padding(pool, with_batches_of(1)) is None
    advice = advice_on_padding(pool, with_batches_of(16))
    assert len(pool.rows) == 21  # in two batches
    assert advice is not None and advice.startswith(
        f"{1 - 21 / 32:.0%} of the places in batches are padding images, because 21"
    )
    assert "--set data.num_canvases=1" in str(advice)
