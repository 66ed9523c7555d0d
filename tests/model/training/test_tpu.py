"""What a TPU asks of a training: a step that XLA compiles whole, in which every shape is known and nothing runs on the host."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tensorflow as tf

from model.config import Config
from model.training.arguments import Arguments
from model.training.step import Learner
from model.training.strategies import make_strategy
from pipeline.command import UserError
from pipeline.skeleton import Skeleton

# What XLA's CPU compiler makes of some operations: library calls on the same processor.
LIBRARY_CALLS = {"TopK"}


def test_a_machine_without_a_tpu_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPU_NAME", raising=False)
    with pytest.raises(UserError, match=r"^--strategy=tpu: this machine has no TPU .* TPU_NAME is not set") as caught:
        make_strategy("tpu")
    assert "\n" not in str(caught.value)


def test_an_address_at_which_nothing_listens_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPU_NAME", "grpc://127.0.0.1:1")
    with pytest.raises(UserError, match=r"^--strategy=tpu: TPU_NAME=grpc://127\.0\.0\.1:1: nothing listens there") as caught:
        make_strategy("tpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "mixed_float16"}, "--precision=mixed_float16: .*give --precision=mixed_bfloat16"),
        ({"eval_split": "val", "eval_annotations": "a.json"}, "--eval_split=val: .* run model.evaluate"),
        ({"jit_compile": True}, "--jit_compile=True: XLA compiles every step"),
        ({"cpu_devices": 2}, "--cpu_devices=2: splits the CPU"),
    ],
)
def test_what_a_tpu_does_not_take_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Arguments(data_dir="records", model_dir="run", strategy="tpu", **given)


@pytest.mark.slow
def test_the_compiled_step_has_no_dynamic_shape_and_no_operation_on_the_host(
    small_config: Config, skeleton: Skeleton, batch: dict[str, tf.Tensor]
) -> None:
    learner = Learner(small_config, skeleton, make_strategy("one_device"), precision="mixed_bfloat16", jit_compile=True)
    arguments = (batch, tf.constant(0.01), tf.constant(5), tf.constant(0.0))
    hlo = learner.replica_step.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
    instructions = re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = (\S+|\(.*?\)) ([\w-]+)\(", hlo, re.MULTILINE)
    assert len(instructions) > 1000
    kinds = {kind for _, kind in instructions}
    assert {"convolution", "while"} <= kinds or "custom-call" in kinds
    assert not kinds & {"set-dimension-size", "get-dimension-size", "infeed", "outfeed", "send", "recv"}
    assert not [shape for shape, _ in instructions if "<=" in shape]  # HLO's notation of a bound that stands for a shape
    assert set(re.findall(r'custom_call_target="([^"]+)"', hlo)) <= LIBRARY_CALLS
