from __future__ import annotations

import colorsys
import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from pipeline import anchors, coco
from pipeline.anchors import AnchorConfig
from pipeline.coco import CocoImage
from pipeline.command import UserError
from pipeline.data_config import DataConfig
from pipeline.loading import augment
from pipeline.loading.batches import training_batches, training_pool
from pipeline.loading.image_grid import ImageGrid
from pipeline.record_folder import RecordFolder

Arrays = dict[str, NDArray[Any]]
SIZE = (37, 50)  # of the image within the canvas
USUAL = DataConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)


# Colours ------------------------------------------------------------------------------------------------------------


def photograph(seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours, uint8 [37, 50, 3]."""
    rough = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8))
    return np.asarray(rough.resize(SIZE[::-1], Image.Resampling.BICUBIC))


def on_canvas(*entries: NDArray[np.uint8]) -> NDArray[np.uint8]:
    canvas = np.full((len(entries), 64, 64, 3), 77, np.uint8)  # what lies outside must neither count nor stay
    for row, entry in enumerate(entries):
        canvas[row, : SIZE[0], : SIZE[1]] = entry
    return canvas


def adjusted(entry: NDArray[np.uint8], **factors: float) -> NDArray[np.float32]:
    named = {
        name: tf.constant([factors[name]]) if name in factors else None
        for name in ("brightness", "contrast", "saturation", "hue")
    }
    result = augment.adjust_colours(on_canvas(entry), tf.constant([SIZE]), **named).numpy()
    assert result.dtype == np.float32 and result.shape == (1, 64, 64, 3)
    assert not result[0, SIZE[0] :].any() and not result[0, :, SIZE[1] :].any()
    return np.asarray(result[0, : SIZE[0], : SIZE[1]])


@pytest.mark.parametrize("factors", [{}, {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}, {"hue": 1.0}])
def test_factors_that_change_nothing(factors: dict[str, float]) -> None:
    np.testing.assert_allclose(adjusted(photograph(), **factors), photograph(), atol=1e-3)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.4, 2.5])
@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
def test_pillows_colours(kind: str, factor: float) -> None:
    """Torchvision's formulas are Pillow's, which rounds greys and results to whole numbers."""
    enhance = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}[kind]
    expected = np.asarray(enhance(Image.fromarray(photograph())).enhance(factor))
    assert np.abs(adjusted(photograph(), **{kind: factor}) - expected).max() <= 1 + 0.5 * abs(1 - factor) + 1e-2


@pytest.mark.parametrize("shift", [-0.5, -0.08, 0.1, 0.3])
def test_hue_turns_in_hsv(shift: float) -> None:
    entry = photograph()
    expected = np.empty(entry.shape)
    for place in np.ndindex(*SIZE):
        hue, saturation, value = colorsys.rgb_to_hsv(*(entry[place] / 255))
        expected[place] = np.multiply(colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value), 255)
    np.testing.assert_allclose(adjusted(entry, hue=shift), expected, atol=0.01)


def test_brightness_comes_first_and_hue_last() -> None:
    factors = {"brightness": 1.3, "contrast": 0.7, "saturation": 1.4, "hue": 0.08}
    step = photograph().astype(np.float64)
    step = np.clip(1.3 * step, 0, 255)
    luma = np.array([0.299, 0.587, 0.114])
    step = np.clip(0.7 * step + 0.3 * (step @ luma).mean(), 0, 255)
    step = np.clip(1.4 * step - 0.4 * (step @ luma)[..., None], 0, 255)
    for place in np.ndindex(*SIZE):
        hue, saturation, value = colorsys.rgb_to_hsv(*(step[place] / 255))
        step[place] = np.multiply(colorsys.hsv_to_rgb((hue + 0.08) % 1.0, saturation, value), 255)
    np.testing.assert_allclose(adjusted(photograph(), **factors), step, atol=0.02)


def batch_of(ids: list[int]) -> dict[str, tf.Tensor]:
    return {
        "image": tf.constant(on_canvas(*(photograph() for _ in ids))),
        "image_size": tf.constant([SIZE] * len(ids)),
        "image_id": tf.constant(ids, tf.int64),
    }


def jittered(ids: list[int], config: DataConfig = USUAL, seed: int = 5) -> NDArray[np.float32]:
    return np.asarray(augment.jitter_colours(batch_of(ids), config, tf.constant(seed))["image"])


def test_no_strength_no_work() -> None:
    batch = batch_of([1])
    assert augment.jitter_colours(batch, DataConfig(), tf.constant(5)) is batch


def test_a_draw_belongs_to_seed_and_image() -> None:
    first = jittered([3, 9, 2**40 + 1])
    np.testing.assert_array_equal(first[[1]], jittered([9]))
    np.testing.assert_array_equal(first[[2, 0]], jittered([2**40 + 1, 3]))
    for other in (first[1], first[2], jittered([3], seed=6)[0]):
        assert np.abs(first[0] - other).max() > 5


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "hue"])
def test_each_strength_is_its_own(kind: str) -> None:
    config = DataConfig(**{kind: 0.3})  # type: ignore[arg-type]
    results = jittered(list(range(100)), config)[:, : SIZE[0], : SIZE[1]]
    if kind == "brightness":  # the draws themselves, from pixels that nothing clips
        ratios = (results / np.maximum(photograph(), 1))[:, (photograph() > 50) & (photograph() < 150)]
        drawn = np.median(ratios, axis=1)
        assert drawn.min() >= 0.7 - 1e-4 and drawn.max() <= 1.3 + 1e-4
        assert abs(drawn.mean() - 1) < 0.06 and drawn.min() < 0.73 and drawn.max() > 1.27
    edges = {"brightness": (0.7, 1.3), "contrast": (0.7, 1.3), "saturation": (0.7, 1.3), "hue": (-0.3, 0.3)}[kind]
    low, high = (adjusted(photograph(), **{kind: edge}) for edge in edges)
    distance = min(np.abs(result - edge).mean() for result in results for edge in (low, high))
    assert distance < 3  # some draw comes close to either end
    assert np.abs(results - photograph()).max(axis=(1, 2, 3)).min() < 20  # and some to none


def test_compiled_and_interpreted_alike() -> None:
    batch = batch_of([4, 7])
    compiled = tf.function(lambda b, s: augment.jitter_colours(b, USUAL, s), jit_compile=True)(batch, tf.constant(5))
    np.testing.assert_allclose(compiled["image"], jittered([4, 7]), atol=0.01)


# Large-scale jitter ---------------------------------------------------------------------------------------------------

JITTER = DataConfig(
    anchors="online",
    jitter_canvas=128,
    flip=True,
    max_boxes=8,
    sampled_anchors=5000,
    positive_fraction=1.0,
    require_keypoints=False,
)


def train(
    record_folder: RecordFolder, config: DataConfig, *, steps: int = 12, seed: int = 1, batch: int = 4
) -> list[tuple[int, Arrays]]:
    """Images with their ids, over several epochs."""
    result = []
    for b in training_batches(record_folder, "train", config, global_batch_size=batch, seed=seed, num_steps=steps):
        arrays = {name: value.numpy() for name, value in b.items()}
        for row, image_id in enumerate(arrays["image_id"].tolist()):
            if image_id >= 0:
                result.append((image_id, {name: value[row] for name, value in arrays.items()}))
    return result


def coordinates(entry: CocoImage) -> bytes:
    """A PNG whose red is x and whose green is y, 0 at one edge and 250 at the other; blue is full inside of the image."""
    y, x = np.mgrid[: entry.height, : entry.width] + 0.5
    pixels = np.stack([250 * x / entry.width, 250 * y / entry.height, np.full(x.shape, 255)], axis=-1)
    file = io.BytesIO()
    Image.fromarray(np.round(pixels).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class _Window:
    """Where a window's pixels lie in the image: x = left + step_x · column."""

    left: float
    top: float
    step_x: float
    step_y: float

    def of(self, x: float, y: float) -> tuple[float, float]:
        return (x - self.left) / self.step_x, (y - self.top) / self.step_y


def test_boxes_and_keypoints_stay_on_the_same_content(
    make_record_folder: Callable[..., RecordFolder], entries: dict[int, CocoImage]
) -> None:
    record_folder = make_record_folder(list(entries.values()), draw=coordinates)
    flip = np.array(record_folder.skeleton.flip)
    cut = whole = points = lost = 0
    scales = []
    for image_id, example in train(record_folder, JITTER, steps=42):
        entry = entries[image_id]
        height, width = example["image_size"]
        assert example["image"].shape == (128, 128, 3) and height <= 128 and width <= 128
        content = example["image"][:height, :width]
        assert (content[..., 2] == 255).all()
        assert not example["image"][height:].any() and not example["image"][:, width:].any()
        scales.append(example["scale"][0] * entry.height / 128 * max(1, entry.width / entry.height))
        if min(height, width) < 24:
            continue  # too coarse to tell places from colours

        # Where the window lies in the image, from its colours: x = offset + slope · column.
        red, green = (content[..., channel].astype(np.float64) / 250 for channel in (0, 1))
        column, row = np.arange(width) + 0.5, np.arange(height) + 0.5
        middle = slice(2, -2)  # at the image's own edges a resize repeats pixels
        slope_x, left = np.polyfit(column[middle], red.mean(axis=0)[middle], 1)
        slope_y, top = np.polyfit(row[middle], green.mean(axis=1)[middle], 1)
        flipped = slope_x < 0
        np.testing.assert_allclose(abs(slope_x) * entry.width * example["scale"][1], 1, atol=0.03)
        np.testing.assert_allclose(slope_y * entry.height * example["scale"][0], 1, atol=0.03)

        places = _Window(left * entry.width, top * entry.height, slope_x * entry.width, slope_y * entry.height)

        expected = []
        for person in entry.persons:
            (xa, y0), (xb, y1) = places.of(*person.box[:2]), places.of(*person.box[2:])
            box = np.clip([min(xa, xb), y0, max(xa, xb), y1], 0, [width, height, width, height])
            keypoints = person.keypoints[flip] if flipped else person.keypoints
            expected.append((box, np.array([(*places.of(x, y), v) for x, y, v in keypoints]), person.is_crowd))
            whole += 1
        shown = [e for e in expected if (e[0][2:] - e[0][:2]).min() > 1]
        cut += whole - len(shown)
        kinds = example["box_kind"]
        visible = [r for r in range(8) if kinds[r] and (example["boxes"][r][2:] - example["boxes"][r][:2]).min() > 1]
        if len(visible) != len(shown):  # a box about as thin as the limit
            continue
        for place, (box, keypoints, is_crowd) in zip(visible, shown, strict=True):
            assert kinds[place] == (2 if is_crowd else 1)
            np.testing.assert_allclose(example["boxes"][place], box, atol=1.5)
            for found, (x, y, v) in zip(example["keypoints"][place], keypoints, strict=True):
                inside = 0 <= x <= width and 0 <= y <= height
                if min(abs(x), abs(x - width), abs(y), abs(y - height)) < 1.5:
                    continue
                points += 1
                if v and inside:
                    np.testing.assert_allclose(found, [x, y, v], atol=1.5)
                else:
                    assert not found.any()
                    lost += bool(v)
    assert points > 300 and lost > 20 and cut > 5
    assert min(scales) < 0.25 and max(scales) > 1.8 and min(scales) > 0.09 and max(scales) < 2.01


def test_anchors_of_a_crop_are_those_of_the_definition(small_record_folder: RecordFolder) -> None:
    config, canvas = AnchorConfig(), (128, 128)
    some = 0
    for _, example in train(small_record_folder, JITTER):
        height, width = example["image_size"].tolist()
        person = np.flatnonzero(example["box_kind"] == 1)
        expected = anchors.match(config, example["boxes"][person], height, width, canvas)
        label, index, box = (example[f"anchor_{name}"] for name in ("label", "index", "box"))
        order = np.argsort(index[label == 1])
        positive = ImageGrid.of(config, (height, width), canvas).positions(expected.positive.astype(np.int32)).numpy()
        np.testing.assert_array_equal(index[label == 1][order], positive)
        np.testing.assert_array_equal(box[label == 1][order], person[expected.positive_box])
        some += len(positive)
    assert some > 100


def test_scale_one_is_the_plain_path(small_record_folder: RecordFolder) -> None:
    """Nothing is larger than the canvas then, so nothing is cropped."""
    plain = dataclasses.replace(JITTER, jitter_canvas=0, short_edges=(128,), max_edge=128, num_canvases=1)
    one = dataclasses.replace(JITTER, jitter_scales=(1.0, 1.0))
    for (image_id, example), (other_id, other) in zip(
        train(small_record_folder, one, steps=6), train(small_record_folder, plain, steps=6), strict=True
    ):
        assert image_id == other_id
        for name, value in other.items():
            np.testing.assert_array_equal(example[name], value, err_msg=name)


def test_draws_are_keyed_by_seed_epoch_and_image(small_record_folder: RecordFolder) -> None:
    steps = 6  # one epoch, of 24 images in batches of 4
    epochs = train(small_record_folder, JITTER, steps=2 * steps)
    assert len(epochs) == 48
    first, second = dict(epochs[:24]), dict(epochs[24:])
    in_threes = dict(train(small_record_folder, JITTER, steps=8, batch=3))
    other_seed = dict(train(small_record_folder, JITTER, steps=steps, seed=2))
    for image_id, example in first.items():
        np.testing.assert_array_equal(example["boxes"], in_threes[image_id]["boxes"])
        np.testing.assert_array_equal(example["image"], in_threes[image_id]["image"])
        assert not np.array_equal(example["scale"], second[image_id]["scale"])
        assert not np.array_equal(example["scale"], other_seed[image_id]["scale"])


def test_padding_to_expect(small_record_folder: RecordFolder) -> None:
    pool = training_pool(small_record_folder, "train", JITTER)
    assert pool.canvases.sizes == ((128, 128),)
    filled = [np.prod(example["image_size"]) / 128**2 for _, example in train(small_record_folder, JITTER, steps=60)]
    assert abs(1 - np.mean(filled) - pool.canvases.padding) < 0.05


def test_nobody_left_in_the_crop(make_record_folder: Callable[..., RecordFolder]) -> None:
    """A person in a corner, and a window that mostly shows the rest: no box, no positive anchor."""
    keypoints = np.array([[2.0, 2, 2]] * 5)
    entry = CocoImage(1, "", 200, 200, (coco.Person(1, (1, 1, 4, 4), 9.0, False, keypoints),))
    config = dataclasses.replace(JITTER, jitter_scales=(2.0, 2.0), flip=False)
    empty = 0
    for _, example in train(make_record_folder([entry]), config, steps=8, batch=1):
        if not example["box_kind"].any():
            assert not example["boxes"].any() and not example["keypoints"].any()
            assert not (example["anchor_label"] == 1).any() and (example["anchor_label"] == 0).any()
            empty += 1
    assert empty > 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hue": 0.6}, "data.hue=0.6"),
        ({"contrast": -0.1}, "data.contrast=-0.1"),
        ({"brightness": float("nan")}, "data.brightness=nan"),
        ({"jitter_canvas": 1000, "anchors": "online"}, "data.jitter_canvas=1000: must be a multiple of 32"),
        ({"jitter_canvas": 1024}, "add data.anchors=online"),
        ({"jitter_scales": (2.0, 0.1)}, "0 < smallest ≤ largest"),
        ({"jitter_scales": (1.0,)}, "two numbers"),
    ],
)
def test_wrong_configuration(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataConfig(**wrong)
