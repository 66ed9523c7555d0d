"""Sixty malformed or unusual data sets, each beside a sound image: what becomes of every one, and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import records
from pipeline.command import UserError
from pipeline.record_folder import open_record_folder
from pipeline.writing import conversion, shard_writer
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig

# Number of the case (and image id) → why it is refused.
REFUSED = {
    2: r"truncated or no image \(image file is truncated",
    3: r"truncated or no image \(image file is truncated",
    4: r"truncated or no image \(image file is truncated",
    5: r"truncated or no image \(image file is truncated",
    6: r"truncated or no image \(Truncated File Read\)",
    8: r"the file is empty",
    9: r"truncated or no image \(cannot identify image file\)",
    10: r"no such file",
    21: r"192×130 pixels, the annotations say 384×260",
    22: r"192×144 pixels, the annotations say 144×192",
    23: r"width 0, height 0 in the image entry: whole numbers above 0 are needed",
    26: r"several image entries with this id, which differ",
    27: r"no file_name in the image entry",
    28: r"file_name leads out of the folder of images",
    29: r"annotation 2900: keypoints has 50 numbers, 51 are needed",
    30: r"annotation 3000: keypoints has 54 numbers, 51 are needed",
    33: r"annotation 3301: keypoints holds nan, which is no finite number",
    34: r"annotation 3400: keypoints holds inf, which is no finite number",
    36: r"annotation 3601: visibilities \[0.0, 2.0, 3.0\] must be 0, 1 or 2",
    46: r"annotation 4600: bbox holds nan, which is no finite number",
    47: r"annotation 4701: bbox has 3 numbers, 4 are needed",
    48: r"annotation 4801: bbox has None, 4 are needed",
    49: r"annotation 4901: bbox holds '33.22', which is no finite number",
    54: r"annotation 5400: category_id None is not an integer",
}
# Number of the case → what is put right or left out, and counted; all the others are taken as they are.
COUNTED = {
    17: {"images_rotated": 1},
    24: {"sizes_read_off_images": 1},
    25: {"images_twice": 1},
    35: {"keypoints_outside": 3},
    40: {"boxes_made_around_points": 1},
    41: {"boxes_made_around_points": 1},
    42: {"boxes_made_around_points": 1},
    43: {"boxes_clipped": 1},
    44: {"boxes_clipped": 1},
    45: {"boxes_made_around_points": 1},
    50: {"annotation_ids_twice": 1},
    51: {"annotations_twice": 1},
    52: {"annotations_of_no_image": 1},
    53: {"annotations_of_other_categories": 1},
}
# Annotations of the case that its record does not have, since they are counted above.
DROPPED = {51: 1, 53: 1}
REPAIRS = {key for counts in COUNTED.values() for key in counts}


@pytest.fixture
def run(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Converts one case, with on_error="fail"; returns the JSON and the summary."""

    def without_beam(settings: shard_writer.ShardSettings, numbers: list[int], options: object) -> None:
        for number in numbers:
            shard_writer.write_shard(settings, number)

    def convert_case(number: int) -> tuple[dict[str, Any], dict[str, int]]:
        (case,) = (shared_data / "bad_inputs" / "cases").glob(f"{number:02d}_*.json")
        config = ConversionConfig(short_edges=(64,))
        images = shared_data / "bad_inputs" / "images"
        return json.loads(case.read_text()), dict(convert(case, images, tmp_path / "out", "bad", config).summary)

    monkeypatch.setattr(conversion, "run_job", without_beam)
    return convert_case


@pytest.mark.parametrize("number", sorted(REFUSED))
def test_what_cannot_be_right_is_refused_with_image_file_and_reason(run: Any, tmp_path: Path, number: int) -> None:
    with pytest.raises(UserError) as caught:
        run(number)
    message = str(caught.value)
    file = {27: r"\(no file\)", 28: r".*/bad_inputs/images/\.\./annotations\.json"}.get(
        number, rf".*/images/{number:012d}\.jpg"
    )
    assert "\n" not in message
    caught.match(rf"^image {number}, {file}: {REFUSED[number]}.*; put it right, or leave such images out with --on_error=skip$")
    assert not [path.name for path in (tmp_path / "out").glob("*") if path.name != "unfinished-bad"]


@pytest.mark.parametrize("number", sorted(set(range(1, 62)) - REFUSED.keys()))
def test_the_rest_is_accepted_and_what_was_put_right_is_counted(run: Any, tmp_path: Path, number: int) -> None:
    content, summary = run(number)
    images = {image["id"] for image in content["images"]}
    assert images == {1, number} and summary["images"] == len(images)
    assert {key: summary[key] for key in REPAIRS if summary[key]} == COUNTED.get(number, {})

    examples = {}
    data = open_record_folder(tmp_path / "out")
    for record in tf.data.TFRecordDataset([str(path) for path in data.shards("bad")]):
        example = records.parse(record)
        examples[int(example["image/source_id"].numpy())] = example
    assert examples.keys() == images
    example = examples[number]
    height, width = int(example["image/height"]), int(example["image/width"])
    entry = next(i for i in content["images"] if i["id"] == number)
    assert (height, width) == (entry.get("height", height), entry.get("width", width))

    annotations = sorted((a for a in content["annotations"] if a["image_id"] == number), key=lambda a: a["id"])
    assert len(example["image/object/id"]) == len(annotations) - DROPPED.get(number, 0)
    if DROPPED.get(number, 0):
        return
    x, y, visibility = (example[f"image/object/keypoint/{key}"].numpy().reshape(-1, 17) for key in ("x", "y", "visibility"))
    for i, annotation in enumerate(annotations):
        points = np.array(annotation.get("keypoints") or [0] * 51, float).reshape(17, 3)
        outside = (points[:, 0] < 0) | (points[:, 1] < 0) | (points[:, 0] > width) | (points[:, 1] > height)
        labelled = (points[:, 2] > 0) & ~outside
        np.testing.assert_array_equal(visibility[i], points[:, 2] * labelled)
        np.testing.assert_allclose(x[i] * width, points[:, 0] * labelled, atol=1e-4)
        np.testing.assert_allclose(y[i] * height, points[:, 1] * labelled, atol=1e-4)
        left, top, box_width, box_height = annotation["bbox"]
        box = np.clip([left, top, left + box_width, top + box_height], 0, [width, height, width, height])
        corners = [example[f"image/object/bbox/{side}"].numpy()[i] for side in ("xmin", "ymin", "xmax", "ymax")]
        sides = np.array(corners) * [width, height, width, height]
        if box[2] > box[0] and box[3] > box[1]:
            np.testing.assert_allclose(sides, box, atol=1e-4)
        else:  # made around the labelled points
            assert (points[labelled, :2] >= sides[:2]).all() and (points[labelled, :2] <= sides[2:]).all()
        assert example["image/object/is_crowd"].numpy()[i] == annotation.get("iscrowd", 0)
