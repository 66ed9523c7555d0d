"""Data that several tests share: real photographs where they are there, and small images made on the spot.

What lies beside the project is found through KEYPOINT_SHARED, `../shared` by default.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.anchors import AnchorConfig
from pipeline.coco import CocoImage, Person
from pipeline.record_folder import INDEX_DTYPE, RecordFolder, open_record_folder
from pipeline.skeleton import Skeleton

# What `--fast` runs: the parts that need no TensorFlow, whose import alone takes seconds, and small ones that need it.
FAST = (
    "model/test_config.py",
    "pipeline/inspection/test_sheet.py",
    "pipeline/loading/test_canvases.py",
    "pipeline/test_anchors.py",
    "pipeline/test_batch_flags.py",
    "pipeline/test_coco.py",
    "pipeline/test_command.py",
    "pipeline/test_drawing.py",
    "pipeline/test_files.py",
    "pipeline/test_skeleton.py",
    "scripts/test_demo.py",
    "test_architecture.py",
    "test_path.py",
)

# The files that take longest come first, so that no worker of scripts/test.sh ends minutes after the others.
LONGEST = (
    "model/training/test_loop.py",
    "end_to_end/test_commands.py",
    "model/training/test_endings.py",
    "export/test_publish.py",
    "model/training/test_accumulation.py",
    "model/training/test_moving_average.py",
    "export/test_faults.py",
    "export/test_classes.py",
    "export/test_ap.py",
    "model/inference/test_serving.py",
    "model/training/test_sync_batch_norm.py",
    "model/training/test_processes.py",
)

SKELETON = Skeleton(
    category="person",
    keypoints=("nose", "left_hand", "right_hand", "left_foot", "right_foot"),
    limbs=((0, 1), (0, 2)),
    flip=(0, 2, 1, 4, 3),
    sigmas=(0.05,) * 5,
)
COLOURS = np.array([[255, 255, 255], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 0]], np.uint8)  # of each keypoint
MARK = 6  # half the side of a keypoint's square

LOG_LEVEL = os.environ.get("TF_CPP_MIN_LOG_LEVEL")  # as this run was started with

MakeRecordFolder = Callable[..., RecordFolder]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="Runs FAST of tests/conftest.py: what needs no TensorFlow, and a few small tests."
    )


def pytest_configure(config: pytest.Config) -> None:
    # What a shell runs in its background ignores SIGINT, and SIGHUP under nohup; the commands under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if config.getoption("--fast"):
        return
    import tensorflow as tf

    # Tests of tf.distribute need two devices, which must be set before TensorFlow looks for devices.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.getoption("--fast") and collection_path.is_file():
        return str(collection_path.relative_to(Path(__file__).parent)) not in FAST
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))  # stable: the others stay in their order


@pytest.fixture(autouse=True)
def terminal_log_level() -> None:
    """Commands under test start as from a terminal: some libraries set TF_CPP_MIN_LOG_LEVEL when they are imported."""
    if LOG_LEVEL is None:
        os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)


def draw(image: CocoImage) -> bytes:
    """A PNG: grey noise, and a square of its colour around every labelled keypoint."""
    pixels = np.random.default_rng(image.id).integers(60, 120, (image.height, image.width, 1)).repeat(3, axis=2)
    for person in image.persons:
        for (x, y, visibility), colour in zip(person.keypoints, COLOURS, strict=True):
            if visibility:
                pixels[max(0, int(y) - MARK) : int(y) + MARK, max(0, int(x) - MARK) : int(x) + MARK] = colour
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def random_image(image_id: int, rng: np.random.Generator, persons: int, crowds: int = 0) -> CocoImage:
    height, width = (int(side) for side in rng.integers(90, 240, 2))
    everybody = []
    for number in range(persons + crowds):
        low = rng.uniform(0, 0.5, 2) * (width, height)
        high = low + rng.uniform(0.2, 0.5, 2) * (width, height)
        points = np.zeros((SKELETON.num_keypoints, 3))
        if number < persons:
            points[:, :2] = np.floor(rng.uniform(low, high, (len(points), 2)))
            points[:, 2] = rng.integers(0, 3, len(points))
            points[0, 2] = 2
            points[points[:, 2] == 0] = 0
        box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        area = float(np.prod(high - low))
        everybody.append(Person(100 * image_id + number, box, area, is_crowd=number >= persons, keypoints=points))
    return CocoImage(image_id, f"{image_id}.png", height, width, tuple(everybody))


@pytest.fixture(scope="session")
def make_record_folder(tmp_path_factory: pytest.TempPathFactory) -> MakeRecordFolder:
    """Function that writes images as one split, in two shards."""
    import tensorflow as tf

    from pipeline import records

    def make(
        images: list[CocoImage],
        *,
        short_edges: tuple[int, ...] = (96, 128),
        max_edge: int = 192,
        split: str = "train",
        draw: Callable[[CocoImage], bytes] = draw,
    ) -> RecordFolder:
        folder = tmp_path_factory.mktemp("records")
        anchors = AnchorConfig()
        index: list[tuple[int, ...]] = []
        shards: list[dict[str, Any]] = []
        for shard in range(2):
            path = folder / f"small-{split}.tfrecord-{shard:05d}-of-00002"
            offset = 0
            with tf.io.TFRecordWriter(str(path)) as writer:
                for p in images[shard::2]:
                    record = records.encode(p, draw(p), "png", "person", records.match_image(p, anchors, short_edges, max_edge))
                    writer.write(record)
                    crowds = sum(person.is_crowd for person in p.persons)
                    labelled = sum(person.num_labelled > 0 for person in p.persons)
                    row = (shard, offset, len(record), p.id, p.height, p.width, len(p.persons) - crowds, crowds, labelled)
                    index.append(row)
                    offset += len(record) + 16
            shards.append({"file": path.name, "bytes": path.stat().st_size})
        np.save(folder / "index.npy", np.array(index, INDEX_DTYPE))
        splits = {split: {"shards": shards, "images": len(images), "index": "index.npy"}}
        return RecordFolder(folder, "small", anchors, short_edges, max_edge, SKELETON, 1, splits)

    return make


@pytest.fixture(scope="session")
def entries() -> dict[int, CocoImage]:
    """Two dozen small images by id: with one to four persons, three with nobody, two with crowds."""
    rng = np.random.default_rng(7)
    people = {5: 0, 11: 0, 17: 0}
    return {i: random_image(i, rng, people.get(i, 1 + i % 4), crowds=int(i in (8, 20))) for i in range(1, 25)}


@pytest.fixture(scope="session")
def small_record_folder(make_record_folder: MakeRecordFolder, entries: dict[int, CocoImage]) -> RecordFolder:
    return make_record_folder(list(entries.values()))


@pytest.fixture(scope="session")
def colours() -> NDArray[np.uint8]:
    return COLOURS


def shared_folder(name: str) -> Path:
    """A folder of the sample data, absolute for commands that start elsewhere; the test is skipped where it is missing."""
    folder = Path(os.environ.get("KEYPOINT_SHARED") or Path(__file__).parents[2] / "shared").absolute() / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing (KEYPOINT_SHARED says where it is)")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Malformed inputs, and figures of COCO."""
    return shared_folder("data")


@pytest.fixture(scope="session")
def eval_oracles() -> Path:
    """Cases of evaluation: annotations, results, and the figures that pycocotools gives."""
    return shared_folder("data/eval_oracles")


@pytest.fixture(scope="session")
def oracles() -> Path:
    """Answers of torchvision and Detectron2: a folder for each, and `pictures`."""
    return shared_folder("oracles")


@pytest.fixture(scope="session")
def coco_sample() -> Path:
    """A sample of COCO 2017 laid out as the data set itself: annotations/person_keypoints_*.json, train2017/, val2017/."""
    return shared_folder("data/coco_sample")


@pytest.fixture(scope="session")
def coco_sample_records(coco_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordFolder:
    """Both splits of the sample, `train` and `val`, as records for short edges 128 and 160."""
    from pipeline.writing.conversion import convert  # Beam takes seconds to import
    from pipeline.writing.conversion_config import ConversionConfig

    folder = tmp_path_factory.mktemp("coco_sample")
    config = ConversionConfig(dataset_name="coco_sample", num_shards=2, short_edges=(128, 160))
    for split in ("train", "val"):
        annotations = coco_sample / "annotations" / f"person_keypoints_{split}2017.json"
        convert(annotations, coco_sample / f"{split}2017", folder, split, config)
    return open_record_folder(folder)
