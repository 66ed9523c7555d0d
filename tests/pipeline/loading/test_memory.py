"""Loading takes no more memory in the thirteenth epoch than in the third."""

from __future__ import annotations

import gc
import itertools
import os
from pathlib import Path

import pytest

from pipeline.data_config import DataConfig
from pipeline.loading import epoch_plan
from pipeline.loading.batches import training_batches, training_pool
from pipeline.loading.options import LoadingOptions
from pipeline.record_folder import RecordFolder

CONFIG = DataConfig(
    short_edges=(96, 128), max_edge=192, max_boxes=8, sampled_anchors=16, num_canvases=2, require_keypoints=False
)
SEED, BATCH = 1, 4


def resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "options", [LoadingOptions(), LoadingOptions(on_error="skip", cache="decoded")], ids=["plain", "skip and cache"]
)
def test_memory_is_flat_over_ten_epochs(small_record_folder: RecordFolder, options: LoadingOptions) -> None:
    pool = training_pool(small_record_folder, "train", CONFIG)
    epochs = epoch_plan.epochs_from(pool, seed=SEED, global_batch_size=BATCH, step=0)
    first_step = [first for _, first in itertools.islice(epochs, 14)]
    batches = training_batches(
        small_record_folder, "train", CONFIG, global_batch_size=BATCH, seed=SEED, num_steps=first_step[13], options=options
    )
    before, loaded = 0, 0
    for step, batch in enumerate(batches):
        if step == first_step[3]:
            before, loaded = resident_bytes(), 0
        loaded += batch["image"].numpy().nbytes
    assert loaded > 20e6  # so much had it grown if batches were kept
    assert resident_bytes() - before < 5e6
