"""Loading takes no more memory in the thirteenth epoch than in the third."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pipeline.data_config import DataConfig
from pipeline.loading import epoch_plan
from pipeline.loading.batches import training_batches, training_pool
from pipeline.loading.options import LoadingOptions
from pipeline.record_folder import RecordFolder
from tests.memory import in_own_process, resident_bytes

CONFIG = DataConfig(
    short_edges=(96, 128), max_edge=192, max_boxes=8, sampled_anchors=16, num_canvases=2, require_keypoints=False
)
SEED, BATCH = 1, 4


def loaded_and_growth(folder: RecordFolder, options: LoadingOptions) -> tuple[int, int]:
    """Of ten epochs after the first three: the bytes of their images, and by how much the process has grown."""
    pool = training_pool(folder, "train", CONFIG)
    epochs = epoch_plan.epochs_from(pool, seed=SEED, global_batch_size=BATCH, step=0)
    first_step = [first for _, first in itertools.islice(epochs, 14)]
    batches = training_batches(
        folder, "train", CONFIG, global_batch_size=BATCH, seed=SEED, num_steps=first_step[13], options=options
    )
    before, loaded = 0, 0
    for step, batch in enumerate(batches):
        if step == first_step[3]:
            before, loaded = resident_bytes(), 0
        loaded += batch["image"].numpy().nbytes
    return loaded, resident_bytes() - before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "options", [LoadingOptions(), LoadingOptions(on_error="skip", cache="decoded")], ids=["plain", "skip and cache"]
)
def test_memory_is_flat_over_ten_epochs(small_record_folder: RecordFolder, options: LoadingOptions) -> None:
    loaded, growth = in_own_process(loaded_and_growth, small_record_folder, options)
    assert loaded > 20e6  # so much had it grown if batches were kept
    assert growth < 5e6
