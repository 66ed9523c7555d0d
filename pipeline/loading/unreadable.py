"""Images that cannot be read: each is named with file and byte, and counted if a run goes on without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline import records
from pipeline.command import UserError, counted, reason_of
from pipeline.data_config import DataConfig
from pipeline.loading import reader
from pipeline.loading.batches import training_pool
from pipeline.loading.epoch_plan import planned_batches
from pipeline.record_folder import RecordFolder
from pipeline.record_reader import read_payload

MOST_SKIPPED = 0.1  # of all images of the split; beyond that the records are not only a little damaged
ALWAYS_SKIPPED = 10  # images, however small the split is


def describe(record_folder: RecordFolder, split: str, image: np.void) -> str | None:
    """Reads an image as training does, and says where it lies and what is wrong with it; None if it can be read.

    Args:
      image: its row of the index.
    """
    path, offset, length = record_folder.shards(split)[image["shard"]], int(image["offset"]), int(image["length"])
    result: Any = None
    steps: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("the record is damaged or cut short", lambda: read_payload(path, offset, length)),
        ("the record does not hold what a record holds", lambda: records.parse(result)),
        ("the image is damaged, cut short, or not of the size that the record says", lambda: _decode(result)),
    )
    for wrong, step in steps:
        try:
            result = step()
        except records.READ_ERRORS as error:
            return f"{path}, record at byte {offset}, image {image['image_id']}: {wrong} ({reason_of(error)})"
    return None


@tf.function(reduce_retracing=True, autograph=False)
def _decode(record: dict[str, Any]) -> tf.Tensor:
    return reader.decode(record)


class Skipped:
    """Names each unreadable image when it is first met, and says at the end how often images were skipped.

    Args:
      record_folder, split: what is read.
      report: takes a line.
    """

    def __init__(self, record_folder: RecordFolder, split: str, report: Callable[[str], None]) -> None:
        self._record_folder, self._split, self._report = record_folder, split, report
        self._known: set[int] = set()
        self._times = 0

    def see(self, unreadable: npt.NDArray[np.int64]) -> None:
        """Takes the `unreadable` of a batch.

        Raises:
          UserError: more than `MOST_SKIPPED` of the images are unreadable, and more than `ALWAYS_SKIPPED`.
        """
        met = unreadable[unreadable >= 0].tolist()
        self._times += len(met)
        new = [image_id for image_id in met if image_id not in self._known]
        if not new:
            return
        index = self._record_folder.index(self._split)
        for image_id in new:
            found = describe(self._record_folder, self._split, index[np.flatnonzero(index["image_id"] == image_id)[0]])
            self._report(f"skipped {found or f'image {image_id}: unreadable a moment ago, readable now'}")
        self._known.update(new)
        if len(self._known) > max(ALWAYS_SKIPPED, MOST_SKIPPED * len(index)):
            raise UserError(
                f"{self._record_folder.path}: {len(self._known)} of the {len(index)} images of split {self._split!r} cannot be "
                "read, too many to go on without them; copy the records again or convert anew"
            )

    def __enter__(self) -> Skipped:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._known:
            self._report(f"{counted(len(self._known), 'image')} could not be read, and skipped {counted(self._times, 'time')}")


def describe_unreadable(
    record_folder: RecordFolder, split: str, config: DataConfig, *, global_batch_size: int, seed: int, step: int
) -> list[str]:
    """Which images of a step's global batch cannot be read: where each lies, and what is wrong with it.

    TensorFlow's own error in a step's batch does not say where the image lies.
    """
    index = record_folder.index(split)
    pool = training_pool(record_folder, split, config)
    rows = next(planned_batches(pool, global_batch_size=global_batch_size, seed=seed, start_step=step))["rows"]
    found = (describe(record_folder, split, index[row]) for row in rows[rows >= 0])
    return [line for line in found if line is not None]


def reading_error(
    error: tf.errors.OpError | UnicodeDecodeError,
    record_folder: RecordFolder,
    split: str,
    config: DataConfig,
    *,
    global_batch_size: int,
    seed: int,
    steps: Iterable[int],
    way_out: str,
) -> UserError:
    """The error to show for one that was met in the batches of `steps`: the first image that cannot be read, and a way out."""
    batch = {"global_batch_size": global_batch_size, "seed": seed}
    found = (line for step in steps for line in describe_unreadable(record_folder, split, config, **batch, step=step))
    return UserError(f"{next(found, f'the data cannot be read ({reason_of(error)})')}; {way_out}")
