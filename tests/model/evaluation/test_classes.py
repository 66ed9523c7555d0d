"""Several classes that share a keypoint set: the figures are pycocotools', of all classes and of each."""

import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.api import evaluate
from model.evaluation.coco_results import FIGURES
from pipeline.command import UserError

CATEGORIES = [
    {"id": number, "name": name, "keypoints": ["a", "b", "c"]} for number, name in ((3, "cat"), (8, "dog"), (9, "elk"))
]
SIGMA = 0.1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Annotations and results of three classes, of which the last has no annotation; some results are of a wrong class."""
    random = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 400, "width": 400} for i in range(1, 13)]
    persons: list[Any] = []
    results: list[Any] = []
    for image in images:
        for _ in range(random.integers(1, 5)):
            box = np.concatenate([random.uniform(0, 200, 2), random.uniform(20, 150, 2)])
            points = box[:2] + random.random((3, 2)) * box[2:]
            own = int(random.choice([3, 8]))
            entry = {"image_id": image["id"], "category_id": own, "bbox": box.tolist(), "area": float(box[2] * box[3]) / 2}
            entry |= {"id": len(persons) + 1, "iscrowd": 0, "num_keypoints": 3}
            persons.append(entry | {"keypoints": np.c_[points, np.full(3, 2)].ravel().tolist()})
            for _ in range(random.integers(0, 4)):
                said = own if random.random() < 0.7 else int(random.choice([3, 8, 9]))
                noisy = np.concatenate([box[:2] + random.normal(0, 5, 2), box[2:] * random.uniform(0.8, 1.2, 2)])
                result = {"image_id": image["id"], "category_id": said, "score": float(random.random()), "bbox": noisy.tolist()}
                near = points + random.normal(0, 8, (3, 2))
                results.append(result | {"keypoints": np.c_[near, np.ones(3)].ravel().tolist()})
    folder = tmp_path_factory.mktemp("classes")
    annotations, found = folder / "annotations.json", folder / "results.json"
    annotations.write_text(json.dumps({"images": images, "annotations": persons, "categories": CATEGORIES}))
    found.write_text(json.dumps(results))
    return annotations, found


def pycocotools_figures(files, kind, category_ids):
    with contextlib.redirect_stdout(io.StringIO()):  # it narrates
        truth = COCO(str(files[0]))
        evaluation = COCOeval(truth, truth.loadRes(str(files[1])), kind)
        evaluation.params.kpt_oks_sigmas = np.full(3, SIGMA)
        evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(FIGURES[kind], evaluation.stats.tolist(), strict=True))


def test_figures_are_pycocotools_of_all_classes_and_of_each(files):
    result = evaluate(annotations=files[0], results=files[1], categories="all", sigmas=[SIGMA])
    for kind in FIGURES:
        assert result.figures[kind] == pytest.approx(pycocotools_figures(files, kind, [3, 8, 9]), abs=1e-9)
        for number, name in ((3, "cat"), (8, "dog"), (9, "elk")):
            wanted = pycocotools_figures(files, kind, [number])
            assert result.figures["classes"][name][kind] == pytest.approx(wanted, abs=1e-9)
    assert result.figures["keypoints"]["AP"] != result.figures["classes"]["cat"]["keypoints"]["AP"]
    lines = str(result).splitlines()
    assert any(line.startswith("cat ") for line in lines) and any(line.startswith("elk ") and "–" in line for line in lines)


def test_one_class_has_no_figures_by_class(files):
    of_one = evaluate(annotations=files[0], results=files[1], categories="dog", sigmas=[SIGMA]).figures
    assert "classes" not in of_one
    assert of_one == evaluate(annotations=files[0], results=files[1], category="dog", sigmas=[SIGMA]).figures
    assert of_one["bbox"] == pytest.approx(pycocotools_figures(files, "bbox", [8]), abs=1e-9)


def test_categories_are_kept_apart_or_joined_not_both(files):
    with pytest.raises(UserError, match="--categories=all: keeps categories apart and --category=all joins them"):
        evaluate(annotations=files[0], results=files[1], categories="all", category="all")
    with pytest.raises(UserError, match=r"--categories=all: --data_dir has the classes"):
        evaluate(annotations=files[0], results=files[1], categories="all", data_dir=files[0].parent)
