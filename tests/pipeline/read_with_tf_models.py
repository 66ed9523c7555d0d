"""Reads records with the decoder of tf-models-official, in whose environment this runs; see test_foreign_decoder.py.

Usage: python read_with_tf_models.py OUTPUT.npz SHARD…
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np
import tensorflow as tf
from official.vision.dataloaders.tf_example_decoder import TfExampleDecoder


def main(output: str, shards: list[str]) -> None:
    dataset = tf.data.TFRecordDataset(shards).map(TfExampleDecoder().decode)
    arrays: dict[str, Any] = {}
    for decoded in dataset.as_numpy_iterator():
        image_id = decoded.pop("source_id").decode()
        arrays |= {f"{image_id}/{name}": value for name, value in decoded.items() if name != "image"}
        arrays[f"{image_id}/pixels_sha256"] = np.array(hashlib.sha256(decoded["image"].tobytes()).hexdigest())
    np.savez(output, **arrays)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
