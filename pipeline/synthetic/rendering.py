"""One rendered image and its annotations: who stands where, what is seen of each, and what COCO would write down.

A label image is painted along with the people: each of its pixels names the person and the part of the body on top. It
gives silhouettes, boxes, areas, and whether a joint is hidden. An image is a function of (seed, split, index) and its size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from pipeline.synthetic.looks import Color, random_look, shade
from pipeline.synthetic.people import PARTS, SHOWS, Figure, draw_figure, visible_from
from pipeline.synthetic.poses import KEYPOINTS, Floats, random_pose
from pipeline.synthetic.scenes import SUPERSAMPLING, fill, random_background, random_obstacle

MIN_SIDE = 96  # below it the smallest people would be a few pixels high
MAX_SIDE = 4096

# Standing heights as shares of the image's height. Between the far and the near people lies no gap and no overlap:
# whoever is smaller than the second range's start never has keypoints, whoever is larger always has.
_FAR = (0.08, 0.17)
_CROWD = (0.08, 0.14)
_NEAR = (0.23, 0.95)

_LEAST_VISIBLE = 0.3  # share of a silhouette inside the image below which a person is left out
_LEAST_AREA = 12  # pixels
_LABELS_PER_LAYER = 64
assert len(PARTS) < _LABELS_PER_LAYER

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Layer:
    """What is painted in one go and annotated as one: a person, a crowd, or an object (no figures, its own polygons)."""

    figures: tuple[tuple[Figure, Floats], ...]  # with the place of the middle of the hips in the image
    kind: str  # "person", "far", "crowd", "object"
    polygons: tuple[tuple[Floats, Color], ...] = ()


@dataclasses.dataclass(frozen=True)
class RenderedImage:
    """`annotations` are COCO's, without `id` and `image_id`, which only the whole data set can give."""

    jpeg: bytes
    annotations: tuple[dict[str, Any], ...]


def render_image(seed: int, split: str, index: int, width: int, height: int) -> RenderedImage:
    """Renders image `index` of a split; the same arguments give the same bytes, whatever else is rendered."""
    split_key = int.from_bytes(hashlib.sha256(split.encode()).digest()[:8], "little")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, split_key, index])))
    layers, annotations = annotate(_random_layers(rng, width, height), width, height)
    image = random_background(rng, width, height)
    draw = ImageDraw.Draw(image)
    for layer in layers:
        paint(draw, layer)
    return RenderedImage(_photograph(rng, image), annotations)


def annotate(layers: Sequence[Layer], width: int, height: int) -> tuple[list[Layer], tuple[dict[str, Any], ...]]:
    """Leaves out people of whom hardly anything can be seen, and annotates the others.

    Args:
      layers: from the farthest to the nearest.
      width, height: size of the image in pixels.

    Returns: the layers to paint, and COCO's annotations of those that are no objects, without `id` and `image_id`.
    """
    kept, labels = _leave_out_the_hidden(list(layers), width, height)
    return kept, tuple(_annotate(layer, labels, number) for number, layer in enumerate(kept) if layer.kind != "object")


def _random_layers(rng: np.random.Generator, width: int, height: int) -> list[Layer]:
    """From the farthest to the nearest: crowds and far people, then the others by size, objects before some of them."""
    if rng.random() < 0.06:
        return []
    layers: list[Layer] = []
    taken: list[Box] = []
    if rng.random() < 0.07:
        layers.append(_random_crowd(rng, width, height, taken))
    near = int(rng.choice([1, 2, 3, 4, 5], p=[0.42, 0.32, 0.16, 0.07, 0.03]))
    low, high = np.log(_NEAR)
    # Half of the people are higher than half of the image.
    scales = sorted(float(np.exp(low + (high - low) * rng.random() ** 0.75)) * height for _ in range(near))
    people: list[Layer] = []
    for scale in scales:
        figure = draw_figure(random_pose(rng), random_look(rng), scale)
        people.append(Layer(((figure, _place(rng, figure, width, height, taken)),), "person"))
    if rng.random() < 0.13:
        for _ in range(int(rng.integers(1, 4))):
            figure = draw_figure(random_pose(rng, calm=True), random_look(rng), rng.uniform(*_FAR) * height)
            layers.append(Layer(((figure, _place(rng, figure, width, height, taken, inside=True)),), "far"))
    for person in people:
        layers.append(person)
        if rng.random() < 0.13:
            layers.append(Layer((), "object", tuple(random_obstacle(rng, _box_of(*person.figures[0])))))
    return layers


def _box_of(figure: Figure, at: Floats) -> Box:
    x0, y0, x1, y1 = figure.extent
    return x0 + at[0], y0 + at[1], x1 + at[0], y1 + at[1]


def _shared(box: Box, other: Box) -> float:
    """Intersection as a share of the smaller box."""
    w = min(box[2], other[2]) - max(box[0], other[0])
    h = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(0.0, w) * max(0.0, h) / max(smaller, 1e-6)


def _place(
    rng: np.random.Generator, figure: Figure, width: int, height: int, taken: list[Box], *, inside: bool = False
) -> Floats:
    """Finds a place for a figure, mostly with room around it, sometimes close to somebody or across the frame."""
    x0, y0, x1, y1 = figure.extent
    w, h = x1 - x0, y1 - y0
    low = np.array([min(0.0, width - w), min(0.0, height - h)])  # of the upper left corner, all in the image
    high = np.array([max(0.0, width - w), max(0.0, height - h)])
    cut, close = (not inside and rng.random() < 0.12), (not inside and taken and rng.random() < 0.2)
    candidates = rng.uniform(low, high, (6, 2))
    if close:
        other = taken[rng.integers(len(taken))]
        middle = np.array([(other[0] + other[2]) / 2, (other[1] + other[3]) / 2])
        reach = np.array([w + other[2] - other[0], h + other[3] - other[1]]) * [0.45, 0.15]
        candidates = np.clip(middle + rng.uniform(-1, 1, (6, 2)) * reach - [w / 2, h / 2], low, high)
    elif cut:
        side, beyond = int(rng.integers(4)), rng.uniform(0.1, 0.48, 6)
        if side == 3 and rng.random() < 0.6:
            side = 2  # feet are cut off more often than heads
        column, at = ((0, -beyond * w), (0, width - (1 - beyond) * w), (1, height - (1 - beyond) * h), (1, -beyond * h))[side]
        candidates[:, column] = at
    boxes = [(x, y, x + w, y + h) for x, y in candidates.tolist()]
    crowded = [max((_shared(box, other) for other in taken), default=0.0) for box in boxes]
    # Close to somebody: the candidate that covers least but does touch.
    best = min(range(6), key=lambda i: (crowded[i] + 10 * (crowded[i] == 0)) if close else crowded[i])
    taken.append(boxes[best])
    return np.array([boxes[best][0] - x0, boxes[best][1] - y0])


def _random_crowd(rng: np.random.Generator, width: int, height: int, taken: list[Box]) -> Layer:
    """Rows of small people close together."""
    rows, columns = int(rng.integers(2, 4)), int(rng.integers(4, 8))
    scale = rng.uniform(*_CROWD) * height
    left = rng.uniform(0, max(1.0, width - columns * scale * 0.4))
    top = rng.uniform(scale * 0.5, max(scale * 0.6, height - (rows * 0.5 + 0.6) * scale))
    yaw = float(rng.choice([0, 0, 180, 50, -50]))
    figures = []
    for row in range(rows):
        for column in range(columns):
            figure = draw_figure(
                random_pose(rng, calm=True, yaw=yaw + rng.normal(0, 20)), random_look(rng), scale * rng.uniform(0.85, 1.15)
            )
            spot = np.array([left + (column + 0.5 * (row % 2)) * scale * 0.4, top + row * scale * 0.5]) + rng.normal(
                0, 0.05 * scale, 2
            )
            figures.append((figure, spot))
    taken.append((left, top - scale / 2, left + columns * scale * 0.4, top + rows * scale * 0.5))
    return Layer(tuple(figures), "crowd")


def paint(draw: ImageDraw.ImageDraw, layer: Layer) -> None:
    """Paints a layer on an image of `SUPERSAMPLING` times its final size."""
    for polygon, color in layer.polygons:
        fill(draw, polygon, color)
    for figure, at in layer.figures:
        for shape in figure.shapes:
            if shape.outline is not None:
                fill(draw, shape.outline + at, shade(shape.color, 0.5))
            fill(draw, shape.polygon + at, shape.color)


def _paint_labels(draw: ImageDraw.ImageDraw, layer: Layer, number: int) -> None:
    first = (number + 1) * _LABELS_PER_LAYER
    for polygon, _ in layer.polygons:
        fill(draw, polygon, first)
    for figure, at in layer.figures:
        for shape in figure.shapes:
            if shape.outline is not None:
                fill(draw, shape.outline + at, first + shape.part)


def _label_image(layers: list[Layer], width: int, height: int) -> tuple[NDArray[np.int32], list[int]]:
    """Labels int32 [2H,2W], 0 for the background; and the area of each layer before the next ones cover it."""
    image = Image.new("I", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    draw = ImageDraw.Draw(image)
    areas = []
    for number, layer in enumerate(layers):
        _paint_labels(draw, layer, number)
        x0, y0, x1, y1 = _reach(layer, width, height)
        window = image.crop((x0 * SUPERSAMPLING, y0 * SUPERSAMPLING, x1 * SUPERSAMPLING, y1 * SUPERSAMPLING))
        areas.append(int(_silhouette(np.asarray(window), number).sum()))
    return np.array(image, dtype=np.int32), areas


def _reach(layer: Layer, width: int, height: int) -> tuple[int, int, int, int]:
    """A window x0, y0, x1, y1 of whole pixels in the image that holds all of a layer; work outside it is saved."""
    boxes = np.array([_box_of(*figure) for figure in layer.figures] or [(0, 0, 1, 1)])
    low = np.floor(boxes[:, :2].min(0)).astype(int) - 1
    high = np.ceil(boxes[:, 2:].max(0)).astype(int) + 1
    x0, y0 = max(0, int(low[0])), max(0, int(low[1]))
    return x0, y0, max(x0, min(width, int(high[0]))), max(y0, min(height, int(high[1])))


def _silhouette(labels: NDArray[np.int32], number: int) -> NDArray[np.bool_]:
    """Pixels [H,W] of which a layer covers more than half, or the half with the upper left corner: no pixel has two."""
    fine = (labels // _LABELS_PER_LAYER == number + 1).view(np.uint8)
    return np.asarray(2 * fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2] >= 3)


def _window(labels: NDArray[np.int32], reach: tuple[int, int, int, int]) -> NDArray[np.int32]:
    x0, y0, x1, y1 = (SUPERSAMPLING * edge for edge in reach)
    return labels[y0:y1, x0:x1]


def _leave_out_the_hidden(layers: list[Layer], width: int, height: int) -> tuple[list[Layer], NDArray[np.int32]]:
    """Removes people of whom hardly anything can be seen, so that nobody is visible without an annotation."""
    while True:
        labels, areas = _label_image(layers, width, height)
        keep = []
        for number, layer in enumerate(layers):
            seen = int(_silhouette(_window(labels, _reach(layer, width, height)), number).sum())
            if layer.kind == "object" or (seen >= _LEAST_AREA and seen >= _LEAST_VISIBLE * areas[number]):
                keep.append(layer)
        if len(keep) == len(layers):
            return layers, labels
        layers = keep


def _photograph(rng: np.random.Generator, image: Image.Image) -> bytes:
    """Reduces to the final size, then light, noise of the sensor, JPEG."""
    image = image.reduce(SUPERSAMPLING)
    gain, offset = rng.uniform(0.75, 1.15), rng.uniform(-12, 20)
    tint = rng.normal(1, 0.04, 3)
    table = np.clip(np.arange(256) * gain * tint[:, None] + offset, 0, 255).astype(int)
    if rng.random() < 0.04:
        image = image.convert("L").convert("RGB")
    pixels = np.asarray(image.point(table.ravel().tolist()), dtype=np.int16)
    strength = int(rng.integers(0, 9))
    pixels = pixels + rng.integers(-strength, strength + 1, pixels.shape, dtype=np.int8)
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=int(rng.integers(82, 96)))
    return stream.getvalue()


def _annotate(layer: Layer, labels: NDArray[np.int32], number: int) -> dict[str, Any]:
    height, width = labels.shape[0] // SUPERSAMPLING, labels.shape[1] // SUPERSAMPLING
    left, top, right, bottom = reach = _reach(layer, width, height)
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[top:bottom, left:right] = _silhouette(_window(labels, reach), number)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, y0, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    crowd = layer.kind == "crowd"
    keypoints = np.zeros((len(KEYPOINTS), 3))
    if layer.kind == "person":
        keypoints = _label_keypoints(*layer.figures[0], labels, number, (x0, y0, x1, y1))
    flat: list[float] = []
    for x, y, visibility in keypoints.tolist():
        flat += [round(x, 2), round(y, 2), int(visibility)]
    return {
        "category_id": 1,
        "iscrowd": int(crowd),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(mask.sum()),
        "segmentation": _run_lengths(mask, compressed=not crowd),
        "keypoints": flat,
        "num_keypoints": int((keypoints[:, 2] > 0).sum()),
    }


def _label_keypoints(
    figure: Figure, at: Floats, labels: NDArray[np.int32], number: int, box: tuple[int, int, int, int]
) -> Floats:
    """Visible, hidden, or not labelled, as COCO's annotators would have it: [K,3].

    Not labelled are points outside the image, those of a face that is turned away, and hidden ones so far outside
    what is seen of the person that nobody would guess them.
    """
    height, width = labels.shape[0] / SUPERSAMPLING, labels.shape[1] / SUPERSAMPLING
    points = np.round(figure.keypoints + at, 2)
    visibility = visible_from(figure.facing)
    margin = 0.04 * figure.scale
    result = np.zeros((len(KEYPOINTS), 3))
    for k, (name, (x, y)) in enumerate(zip(KEYPOINTS, points.tolist(), strict=True)):
        if not (0 <= x < width and 0 <= y < height) or visibility[k] == 0:
            continue
        label = int(labels[int(y * SUPERSAMPLING), int(x * SUPERSAMPLING)])
        layer, part = label // _LABELS_PER_LAYER - 1, label % _LABELS_PER_LAYER
        visible = visibility[k] == 2 and layer == number and part in SHOWS[name]
        near = box[0] - margin <= x <= box[2] + margin and box[1] - margin <= y <= box[3] + margin
        if visible or near:
            result[k] = x, y, 2 if visible else 1
    return result


def _run_lengths(mask: NDArray[np.bool_], *, compressed: bool) -> dict[str, Any]:
    """COCO's run-length encoding: column by column, starting with the length of a run of zeros.

    Official files write crowds with plain counts; for single persons the compressed form is shorter and as readable
    for pycocotools.
    """
    if compressed:
        encoded = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
        return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])  # where runs begin and end, in turns
    bounds = np.concatenate([[0], ends, [mask.size]] if ends[-1] != mask.size else [[0], ends])
    return {"size": list(mask.shape), "counts": np.diff(bounds).tolist()}
