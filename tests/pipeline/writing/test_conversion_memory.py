"""What the main process of a conversion needs: for all of COCO's annotations, and for more and more images."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
# All that the main process does except for the shards: it reads the annotations, sorts and locates the images, and writes down
# which shard has which.
PLAN_ONLY = """
import sys
from pipeline.command import UserError
from pipeline.writing import conversion
from pipeline.writing.conversion_config import ConversionConfig

conversion.run_job = lambda settings, numbers, options: None
try:
    conversion.convert(sys.argv[1], sys.argv[2], sys.argv[3], "train", ConversionConfig())
except UserError as error:
    assert "shards that were not written" in str(error), error
else:
    raise AssertionError("there were no shards to write")
"""
CONVERT = """
import sys
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig

convert(sys.argv[1], sys.argv[2], sys.argv[3], "train", ConversionConfig(short_edges=(64,), num_shards=1))
"""


PEAK = """
from tests.memory import peak_kib

print(peak_kib())
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


def peak_bytes(program: str, *arguments: Path) -> int:
    """Of the resident memory of a Python process."""
    command = [sys.executable, "-c", program + PEAK, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.campaign
def test_all_of_cocos_annotations_need_less_than_two_and_a_half_gigabytes(shared_data: Path, tmp_path: Path) -> None:
    tool = shared_data.parent / "tools" / "make_annotations_scale.py"
    if not tool.is_file():
        pytest.skip(f"{tool} is missing")
    subprocess.run([sys.executable, str(tool), f"--output_dir={tmp_path / 'coco'}"], check=True, stdout=subprocess.DEVNULL)
    (annotations,) = (tmp_path / "coco").rglob("*.json")
    assert annotations.stat().st_size > 200e6
    (tmp_path / "images").mkdir()
    assert peak_bytes(PLAN_ONLY, annotations, tmp_path / "images", tmp_path / "out") < 2.5e9
    assert len(list((tmp_path / "out" / "unfinished-train").glob("images-*"))) == 125  # of 512 images each


def heavy_png(size: int) -> bytes:
    """A small image in a large file: with a comment of random bytes."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(file, "PNG")
    comment = b"teXt" + np.random.default_rng(0).bytes(size)
    chunk = size.to_bytes(4) + comment + zlib.crc32(comment).to_bytes(4)
    whole = file.getvalue()
    end = whole.index(b"IEND") - 4
    return whole[:end] + chunk + whole[end:]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(heavy_png(2_000_000))
    category = {"id": 1, "name": "person", "keypoints": ["nose"]}

    def peak(count: int) -> int:
        images = [{"id": i, "file_name": "1.png", "height": 48, "width": 64} for i in range(count)]
        path = tmp_path / f"{count}.json"
        path.write_text(json.dumps({"images": images, "annotations": [], "categories": [category]}))
        return peak_bytes(CONVERT, path, tmp_path, tmp_path / f"out-{count}")

    few, many = peak(10), peak(110)
    assert (tmp_path / "out-110" / "coco_person_keypoints-train.tfrecord-00000-of-00001").stat().st_size > 220e6
    assert many - few < 40e6  # of the 200 MB that were added
