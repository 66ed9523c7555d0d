"""Pixels → the bytes of a JPEG or PNG file: for records whose image is turned or shrunk, for sheets, pages and reports."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image


def encode(pixels: npt.NDArray[Any], image_format: Literal["jpeg", "png"], quality: int = 95) -> bytes:
    """Writes pixels as a file, without any metadata.

    Args:
      pixels: uint8 [h, w, 3].
      quality: of a JPEG, 1…95; its colours are not subsampled.
    """
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image_format == "png":
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()
