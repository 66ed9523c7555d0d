"""The campaign of kills in its short form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from scripts.kills import differences, run


@pytest.mark.campaign
@pytest.mark.timeout(900)  # four trainings, one after the other
def test_trainings_that_are_killed_end_with_the_same_weights() -> None:
    (tally,) = run(["one_device"], kills=2, steps=24, seed=3)
    assert tally.kills == 2 and tally.trainings >= 1 and tally.different == 0


def test_one_bit_is_a_difference(tmp_path: Path) -> None:
    """So that the campaign can fail."""
    values = np.ones([3], np.float32)
    for name in ("a", "b", "c"):
        if name == "c":
            values.view(np.uint32)[1] ^= 1
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        tf.train.Checkpoint(w=tf.Variable(values), n=tf.Variable(2.0)).write(str(tmp_path / name / "checkpoints" / "step-5"))
    assert differences(tmp_path / "a", tmp_path / "b", 5) == []
    assert differences(tmp_path / "a", tmp_path / "c", 5) == ["w/.ATTRIBUTES/VARIABLE_VALUE"]
