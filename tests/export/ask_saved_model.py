"""Asks a SavedModel in a TensorFlow of another version: python ask_saved_model.py FOLDER ANSWERS.npz IMAGE...

Prints the version. The answers hold those of `serving_default` to all images together, and of `serve_images` to the pixels of
the first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

folder, answers, *files = sys.argv[1:]
signatures = tf.saved_model.load(folder).signatures
encoded = tf.constant([Path(file).read_bytes() for file in files])
pixels = tf.io.decode_jpeg(encoded[0], channels=3, dct_method="INTEGER_ACCURATE")
found = {f"default/{key}": value for key, value in signatures["serving_default"](image_bytes=encoded).items()}
found |= {f"images/{key}": value for key, value in signatures["serve_images"](images=tf.expand_dims(pixels, 0)).items()}
np.savez(answers, **{key: value.numpy() for key, value in found.items()})
print(tf.__version__)
