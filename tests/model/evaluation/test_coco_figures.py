"""The figures are pycocotools', whatever the order of the images, and the memory is that of the matches."""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.evaluation.coco_results import FIGURES, CocoFigures
from model.evaluation.evaluator import Evaluation
from model.evaluation.ground_truth import GroundTruth
from pipeline.skeleton import COCO_SIGMAS, Skeleton
from tests.memory import in_own_process, resident_bytes

CATEGORY = {"id": 3, "name": "person", "keypoints": ["a", "b", "c"], "skeleton": []}
SIGMAS = (0.05, 0.1, 0.2)


def pycocotools_figures(kind: str, image_ids: list[int], persons: list[Any], results: list[Any]) -> dict[str, float]:
    def coco(entries: list[Any]) -> COCO:
        made = COCO()
        made.dataset = {
            "images": [{"id": i} for i in image_ids],
            "annotations": [dict(entry) for entry in entries],
            "categories": [CATEGORY],
        }
        made.createIndex()
        return made

    with contextlib.redirect_stdout(io.StringIO()):  # it narrates
        as_annotations = [
            {**result, "id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
            for number, result in enumerate(results, 1)
        ]
        evaluation = COCOeval(coco(persons), coco(as_annotations), kind)
        evaluation.params.kpt_oks_sigmas = np.array(SIGMAS)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(FIGURES[kind], evaluation.stats.tolist(), strict=True))


def random_case(seed: int) -> tuple[list[int], list[Any], list[Any]]:
    """Few images with crowds, persons without keypoints or area, equal scores, and more results than count."""
    rng = np.random.default_rng(seed)
    image_ids = list(range(0, 5 * int(rng.integers(1, 5)), 5))
    persons: list[Any] = []
    results: list[Any] = []
    for image_id in image_ids:
        for _ in range(rng.integers(0, 4)):
            box = np.concatenate([rng.uniform(0, 200, 2), rng.uniform(1, 150, 2)])
            visibility = rng.integers(0, 3, 3) * (rng.random() > 0.2)
            points = np.where(visibility[:, None] > 0, box[:2] + rng.random((3, 2)) * box[2:], 0)
            area = 0.0 if rng.random() < 0.05 else float(box[2] * box[3] * rng.uniform(0.3, 1))
            entry = {"image_id": image_id, "category_id": 3, "bbox": box.tolist(), "area": area, "id": len(persons) + 1}
            entry |= {"iscrowd": int(rng.random() < 0.15), "num_keypoints": int((visibility > 0).sum())}
            persons.append(entry | {"keypoints": np.c_[points, visibility].ravel().tolist()})
            for _ in range(rng.integers(0, 9)):
                noise = rng.normal(0, 10 * rng.random(), (3, 2))
                result = {"image_id": image_id, "category_id": 3, "score": float(rng.integers(1, 6)) / 5}
                result["bbox"] = np.concatenate([box[:2] + rng.normal(0, 5, 2), box[2:] * rng.uniform(0.7, 1.4, 2)]).tolist()
                results.append(result | {"keypoints": np.c_[points + noise, np.ones(3)].ravel().tolist()})
    return image_ids, persons, results


@pytest.mark.parametrize("kind", FIGURES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_figures_are_pycocotools_in_any_order_of_images(kind: str, seed: int) -> None:
    image_ids, persons, results = random_case(seed)
    figures = CocoFigures(kind, CATEGORY, SIGMAS)
    for image_id in random.Random(seed).sample(image_ids, len(image_ids)):
        theirs, found = ([entry for entry in entries if entry["image_id"] == image_id] for entries in (persons, results))
        figures.add([image_id], theirs, found)
    assert figures.figures() == pytest.approx(pycocotools_figures(kind, image_ids, persons, results), abs=1e-9)


IMAGES, PEOPLE = 2000, 100  # as many people in each image as a model may find


def growth_and_results() -> tuple[int, int]:
    """Of an evaluation: by how many bytes the process grows after its first images, and the results counted."""
    skeleton = Skeleton.from_category({"name": "person", "keypoints": list(COCO_SIGMAS), "skeleton": []})
    category = {"id": 1, "name": "person", "keypoints": list(COCO_SIGMAS)}
    truth = GroundTruth("synthetic", tuple(range(IMAGES)), (), category)
    evaluation = Evaluation(truth, skeleton)
    rng = np.random.default_rng(0)

    def image(image_id: int) -> tuple[int, list[dict[str, Any]]]:
        boxes, points = rng.uniform(1, 300, (PEOPLE, 4)), rng.uniform(0, 600, (PEOPLE, 51))
        return image_id, [
            {"image_id": image_id, "category_id": 1, "bbox": box, "score": score, "keypoints": keypoints}
            for box, score, keypoints in zip(boxes.tolist(), rng.random(PEOPLE).tolist(), points.tolist(), strict=True)
        ]

    evaluation.add(image(i) for i in range(100))
    before = resident_bytes()
    evaluation.add(image(i) for i in range(100, IMAGES))
    return resident_bytes() - before, evaluation.figures()["counts"]["results"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_people_found() -> None:
    growth, results = in_own_process(growth_and_results)
    assert growth < 80 * 2**20  # they would take half a gigabyte as Python entries
    assert results == IMAGES * PEOPLE
