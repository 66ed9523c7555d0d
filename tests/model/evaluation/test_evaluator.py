"""The figures are pycocotools'; a whole split is looked at; broken files are named."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model import api
from model.config import TINY
from model.evaluation.evaluator import evaluate, evaluate_results
from model.evaluation.figures_table import table
from model.evaluation.ground_truth import read_ground_truth
from model.inference.coco_format import results_to_coco
from model.inference.people import People
from model.inference.predictor import Answer, Predictor
from pipeline import records
from pipeline.anchors import AnchorConfig
from pipeline.coco import read_coco
from pipeline.command import UserError
from pipeline.record_folder import INDEX_DTYPE, RecordFolder
from scripts.mean_pose import mean_pose, mean_pose_baseline

CATEGORY = {"id": 7, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [1, 3]]}


def person(image_id: int, number: int, x: float, **more: Any) -> dict[str, Any]:
    keypoints = [x + 10, 20, 2, x + 20, 30, 1, 0, 0, 0]
    box = [x, 10.0, 60.0, 80.0]
    entry = {"id": number, "image_id": image_id, "category_id": 7, "bbox": box, "area": 4800.0, "iscrowd": 0}
    return entry | {"keypoints": keypoints, "num_keypoints": 2} | more


def ground_truth() -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 120, "width": 160 + i} for i in (1, 2, 3, 4)],
        # Numbered from 0: pycocotools takes an annotation of id 0 for no match, this project must not.
        "annotations": [person(1, 0, 5.0), person(1, 1, 90.0), person(2, 2, 40.0), person(4, 3, 40.0)],
        "categories": [CATEGORY, {"id": 8, "name": "dog"}],
    }


@pytest.fixture(name="annotations")
def annotation_file(tmp_path: Path) -> Path:
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(ground_truth()))
    return path


@pytest.fixture
def record_folder(annotations: Path, tmp_path: Path) -> RecordFolder:
    """Images 1, 2 and 3 as the split val; 4 is in the annotations only."""
    coco, index, path = read_coco(annotations), [], tmp_path / "val.tfrecord"
    offset = 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image in coco.images[:3]:
            encoded = io.BytesIO()
            Image.new("RGB", (image.width, image.height)).save(encoded, "PNG")
            matching = records.match_image(image, AnchorConfig(), (96,), 192)
            record = records.encode(image, encoded.getvalue(), "png", "person", matching)
            writer.write(record)
            index.append((0, offset, len(record), image.id, image.height, image.width, len(image.persons), 0, 1))
            offset += len(record) + 16
    np.save(tmp_path / "index.npy", np.array(index, INDEX_DTYPE))
    splits = {"val": {"shards": [{"file": path.name, "bytes": offset}], "images": 3, "index": "index.npy"}}
    return RecordFolder(tmp_path, "small", AnchorConfig(), (96,), 192, coco.skeleton, coco.category_id, splits)


def knowing(record_folder: RecordFolder) -> Predictor:
    """Knows the truth about images 1 and 2 by their width; finds nobody in the third."""

    def answer(images: Sequence[bytes]) -> Answer:
        found = {name: np.zeros((len(images), 2, *shape), np.float32) for name, shape in SHAPES.items()}
        number = np.zeros(len(images), np.int32)
        for row, encoded in enumerate(images):
            image_id = Image.open(io.BytesIO(encoded)).width - 160
            for entry in ground_truth()["annotations"]:
                if entry["image_id"] == image_id:
                    x, y, w, h = entry["bbox"]
                    found["boxes"][row, number[row]] = x, y, x + w, y + h
                    found["scores"][row, number[row]] = 0.9
                    found["keypoints"][row, number[row]] = np.reshape(entry["keypoints"], (3, 3))[:, :2]
                    number[row] += 1
        return {**found, "num_detections": number}

    return Predictor(TINY, record_folder.skeleton, answer, lambda height, width: (128, 192))


SHAPES: dict[str, tuple[int, ...]] = {"boxes": (4,), "scores": (), "keypoints": (3, 2), "keypoint_scores": (3,)}


@pytest.mark.parametrize("case", ["a_perturbed", "b_crowds", "c_empty", "d_thirteen"])
def test_figures_of_the_cases(case: str, eval_oracles: Path) -> None:
    folder = eval_oracles / case
    expected = json.loads((folder / "expected.json").read_text())
    truth = read_ground_truth(folder / "gt.json")
    figures = evaluate_results(truth, folder / "results.json", truth.skeleton(expected["kpt_oks_sigmas"]))
    for kind in ("keypoints", "bbox"):
        assert figures[kind] == pytest.approx(expected[kind], abs=1e-6)
    assert figures["counts"]["results"] == expected["counts"]["results"]
    assert figures["counts"]["persons_with_keypoints"] == expected["counts"]["with_keypoints"]
    if case == "b_crowds":  # COCO's own sigmas are the default
        assert evaluate_results(truth, folder / "results.json")["keypoints"] == pytest.approx(expected["keypoints"], abs=1e-6)


def test_a_model_that_knows_the_truth_reaches_one(record_folder: RecordFolder, annotations: Path) -> None:
    figures = evaluate(knowing(record_folder), record_folder, "val", annotations)
    assert figures["keypoints"]["AP"] == pytest.approx(1.0)
    assert figures["bbox"]["AP"] == pytest.approx(1.0)
    # Image 4 is no part of the split: whom nobody found there costs nothing.
    assert figures["counts"] == {"images": 3, "persons": 3, "persons_with_keypoints": 3, "crowds": 0, "results": 3}


def test_damaged_records_are_told(record_folder: RecordFolder, annotations: Path) -> None:
    (shard,) = record_folder.shards("val")
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        UserError, match=r"the split 'val' is damaged \(.*corrupted record.*\); .*inspect_records .*--verify"
    ) as caught:
        evaluate(knowing(record_folder), record_folder, "val", annotations)
    assert "\n" not in str(caught.value)


def test_images_that_do_not_count(annotations: Path) -> None:
    truth = read_ground_truth(annotations)
    right = [{**a, "score": 1.0} for a in ground_truth()["annotations"]]
    assert evaluate_results(truth, right)["keypoints"]["AP"] == pytest.approx(1.0)
    assert evaluate_results(truth, right[:2])["keypoints"]["AP"] < 0.6
    assert evaluate_results(truth, right[:2], image_ids=[1])["keypoints"]["AP"] == pytest.approx(1.0)
    nothing = evaluate_results(truth, [], image_ids=[])
    assert set(nothing["keypoints"].values()) == {-1.0}
    assert "AP –" in table(nothing)
    with pytest.raises(UserError, match="no image with id 99"):
        evaluate_results(truth, [], image_ids=[1, 99])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "entry 0 is of image 99"),
        ({"keypoints": [1, 2, 3]}, "3 numbers in keypoints"),
        ({"bbox": "wide"}, "entry 0 is broken .could not convert string to float: 'w'"),
        ({"score": None}, "entry 0 is broken"),
        ({"score": float("nan")}, "entry 0 is broken .*infinite or none"),
        ({"bbox": [1, 2, float("inf"), 4]}, "entry 0 is broken .*infinite or none"),
        ({"image_id": "one"}, "entry 0 is of image 'one'"),
        ({"image_id": [1]}, "entry 0 is broken"),
        ({"score": 10**400}, "entry 0 is broken"),
        ({"category_id": 1}, "its entries are of category 1, the annotations' persons of 7"),
        ({"category_id": [1]}, r"its entries are of category \[1\], the annotations' persons of 7"),
    ],
)
def test_broken_results_are_named(annotations: Path, change: dict[str, Any], message: str) -> None:
    entry = {**ground_truth()["annotations"][0], "score": 1.0, **change}
    with pytest.raises(UserError, match=message):
        evaluate_results(annotations, [entry])


def test_broken_annotations_are_named(tmp_path: Path) -> None:
    path = tmp_path / "gt.json"
    with pytest.raises(UserError, match="no such annotation file"):
        read_ground_truth(path)
    for text, message in (
        ("{", "not JSON"),
        ("[]", "a COCO file is an object with images, annotations, categories"),
        (json.dumps(ground_truth()), "0 categories"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_ground_truth(path, "cat")
    path.write_text(json.dumps(ground_truth() | {"annotations": [{"category_id": 7, "image_id": 1}]}))
    with pytest.raises(UserError, match="annotation id None of image 1 is not an integer"):
        read_ground_truth(path)
    path.write_text(json.dumps(ground_truth() | {"images": [{"id": 1}, {"id": "two"}]}))
    with pytest.raises(UserError, match="image id 'two' is not an integer from 0 up"):
        read_ground_truth(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": [1]}, r"annotation 0 has the image_id \[1\]"),
        ({"image_id": None}, "annotation 0 has the image_id None"),
        ({"iscrowd": float("inf")}, "image 1 has a broken annotation: annotation 0: iscrowd inf"),
        ({"num_keypoints": -1}, "image 1 has a broken annotation: annotation 0: num_keypoints is -1"),
        ({"bbox": [10**400, 0, 1, 1]}, "image 1 has a broken annotation: annotation 0: bbox holds 1000"),
        ({"bbox": [float("nan"), 0, 1, 1]}, "annotation 0: bbox holds nan, which is no finite number"),
        ({"area": float("inf")}, "annotation 0: area holds inf, which is no finite number"),
        ({"area": float("nan")}, "annotation 0: area holds nan, which is no finite number"),
        ({"keypoints": [float("nan"), 1, 2, 0, 0, 0, 0, 0, 0]}, "annotation 0: keypoints holds nan, which is no finite number"),
        ({"keypoints": [1, float("-inf"), 1, 0, 0, 0, 0, 0, 0]}, "annotation 0: keypoints holds -inf"),
    ],
)
def test_a_broken_annotation_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = ground_truth()
    content["annotations"][0] |= change
    (tmp_path / "gt.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        evaluate_results(tmp_path / "gt.json", [])
    if "broken" in message:  # of one image: the others count, as they do in a conversion that skips
        assert evaluate_results(tmp_path / "gt.json", [], image_ids=[2, 3])["counts"]["persons"] == 1


def test_what_converts_evaluates(tmp_path: Path) -> None:
    """Numbers as text, nested and missing keypoints, boxes without area: the same persons in both."""
    content = ground_truth()
    first, second, third, fourth = content["annotations"]
    first |= {"image_id": "1", "id": "0", "category_id": "7", "keypoints": [[15, 20, 2], [25, 30, 1], [None, None, 0]]}
    second |= {"bbox": [100, 20, 0, 0], "area": 0, "keypoints": [100, 20, 2, 0, 0, 0, 0, 0, 0], "num_keypoints": 1}
    third |= {"bbox": [10, 10, 0, 5], "keypoints": [0] * 9, "num_keypoints": 0}
    fourth |= {"keypoints": None, "num_keypoints": None}
    (tmp_path / "gt.json").write_bytes(gzip.compress(json.dumps(content).encode()))
    coco, truth = read_coco(tmp_path / "gt.json"), read_ground_truth(tmp_path / "gt.json")
    found = evaluate_results(truth, [])
    assert found["counts"]["persons"] == 4 and found["counts"]["persons_with_keypoints"] == 2
    made = truth.by_image[1][1]
    (x, y, width, height) = made["bbox"]
    assert coco.images[0].persons[1].box == (x, y, x + width, y + height) == (84, 4, 116, 36)
    assert made["area"] == coco.images[0].persons[1].area == 32 * 32
    np.testing.assert_array_equal(np.reshape(truth.by_image[1][0]["keypoints"], (3, 3)), coco.images[0].persons[0].keypoints)


@pytest.mark.parametrize(
    ("category", "message"),
    [
        (3, "no list of 'categories'"),
        (CATEGORY | {"id": None}, "has the id None; a name and a whole number are needed"),
        (CATEGORY | {"name": 3}, "the category 3 has the id 7; a name and a whole number are needed"),
        (CATEGORY | {"keypoints": 5}, "keypoints 5: a list of names is needed"),
    ],
)
def test_a_broken_category_is_named(tmp_path: Path, category: Any, message: str) -> None:
    (tmp_path / "gt.json").write_text(json.dumps(ground_truth() | {"categories": [category]}))
    with pytest.raises(UserError, match=message):
        read_ground_truth(tmp_path / "gt.json")


def test_json_that_nests_too_deep_or_has_a_byte_order_mark(annotations: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text("[" * 100_000)
    for file in (lambda: read_ground_truth(results), lambda: evaluate_results(annotations, results)):
        with pytest.raises(UserError, match="not JSON"):
            file()
    results.write_text(json.dumps([{**a, "score": 1.0} for a in ground_truth()["annotations"]]), encoding="utf-8-sig")
    assert evaluate_results(annotations, results)["counts"]["results"] == 4


def test_results_have_cocos_format() -> None:
    people = People(
        np.array([[1, 2, 11.25, 22]], np.float32),
        np.array([0.75], np.float32),
        np.array([[[3, 4], [5, 6.5]]], np.float32),
        np.array([[0.5, 0.25]], np.float32),
    )
    (entry,) = results_to_coco(12, people, 7, file_name="12.jpg")
    assert entry == {
        "image_id": 12,
        "file_name": "12.jpg",
        "category_id": 7,
        "bbox": [1.0, 2.0, 10.25, 20.0],
        "score": 0.75,
        "keypoints": [3.0, 4.0, 0.5, 5.0, 6.5, 0.25],
    }


def test_command_without_a_model(annotations: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{**a, "score": 1.0} for a in ground_truth()["annotations"]]))
    result = api.evaluate(annotations=annotations, results=results, output_dir=tmp_path / "out")
    text = str(result)
    assert result.keypoint_ap == result.keypoints["AP"] == result.boxes["AP"] == result.box_ap == pytest.approx(1.0)
    assert result.joints["nose"]["found"] == 4 and result.counts["images"] == 4 and result.notes == result.figures["notes"]
    assert "AP 1.000" in text and "evaluation.json" in text
    assert "left_eye / right_eye" in text and "0 pairs swapped back: keypoint AP 1.000, +0.000" in text
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["split"] is None
    assert written["keypoints"]["AP"] == pytest.approx(1.0)
    assert written["joints"]["nose"] == {"labelled": 4, "found": 4, "mean_error": 0.0, "median_error": 0.0, "hit": 1.0}
    assert written["joints"]["right_eye"]["labelled"] == written["twins"][0]["compared"] == 0
    assert written["swapped_back"]["AP_gain"] == 0
    with pytest.raises(UserError, match="give one of them"):
        api.evaluate(annotations=str(annotations))
    with pytest.raises(UserError, match="--data_dir"):
        api.evaluate(annotations=str(annotations), model="x")
    with pytest.raises(UserError, match="--decoder=reference"):
        api.evaluate(annotations=str(annotations), results=str(results), decoder="reference")
    with pytest.raises(UserError, match="--split=train: is a split of records, and --data_dir is not given; name both"):
        api.evaluate(annotations=annotations, results=results, split="train")
    for wrong in ([0.1, 0.2], [0.0]):
        with pytest.raises(UserError, match=r"--sigmas=0\S*: 3 keypoints need 3 numbers above 0, or one for all"):
            api.evaluate(annotations=annotations, results=results, sigmas=wrong)


def test_a_category_is_chosen_for_results_and_assumed_sigmas_are_told(tmp_path: Path) -> None:
    content = ground_truth()
    content["categories"] = [CATEGORY | {"name": "deer", "keypoints": ["nose", "antler_l", "antler_r"]}]
    content["categories"] += [content["categories"][0] | {"id": 8, "name": "elk"}]
    content["annotations"][0]["category_id"] = 8
    (tmp_path / "gt.json").write_text(json.dumps(content))
    results = [{**a, "score": 1.0, "category_id": 7} for a in content["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    files: dict[str, Any] = {"annotations": str(tmp_path / "gt.json"), "results": str(tmp_path / "results.json")}
    with pytest.raises(UserError, match=r"\(deer, elk\); --category=all joins"):
        api.evaluate(**files)
    text = str(api.evaluate(**files, category="all"))
    assert "4 annotated 'all'" in text
    assert "AP 1.000" in text and "OKS sigma 0.107 is assumed" in text and "antler_l, antler_r" in text
    assert "OKS sigma" not in str(api.evaluate(**files, category="all", sigmas=[0.05]))
    with pytest.raises(UserError, match=r"named 'dog' among \['deer', 'elk'\]; name one of these, or take another file"):
        api.evaluate(**files, category="dog")
    for category in content["categories"]:
        category.pop("keypoints")
    (tmp_path / "gt.json").write_text(json.dumps(content))
    for chosen in (None, "deer"):  # --keypoints is no flag of an evaluation
        with pytest.raises(UserError, match=r"person_keypoints_\*\.json\), or name the records with --data_dir, which have"):
            api.evaluate(**files, category=chosen)
    with pytest.raises(UserError, match="--category=all: --data_dir has the category"):
        api.evaluate(**files, category="all", data_dir=str(tmp_path))


def test_results_of_a_split_of_records(
    record_folder: RecordFolder, annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records limit the images, and give the keypoint set: sigmas and twins that the JSON does not have."""
    pairs, sigmas = [("nose", "left_eye")], (0.5, 0.5, 0.5)
    other = record_folder.skeleton.from_category(CATEGORY, flip_pairs=pairs, sigmas=sigmas)
    monkeypatch.setattr("model.api.open_record_folder", lambda folder: dataclasses.replace(record_folder, skeleton=other))
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{**a, "score": 1.0} for a in ground_truth()["annotations"]]))
    api.evaluate(annotations=str(annotations), results=str(results), data_dir="records", output_dir=str(tmp_path))
    written = json.loads((tmp_path / "evaluation-val.json").read_text())
    assert written["counts"]["images"] == 3 and written["counts"]["results"] == 3
    assert [pair["joints"] for pair in written["twins"]] == [["nose", "left_eye"]]


def test_another_keypoint_set_is_refused(record_folder: RecordFolder, annotations: Path) -> None:
    other = dict(read_ground_truth(annotations).category) | {"keypoints": ["nose", "left_ear", "right_ear"]}
    predictor = Predictor(
        TINY, record_folder.skeleton.from_category(other), knowing(record_folder).answer, lambda h, w: (128, 192)
    )
    with pytest.raises(UserError, match=r"left_eye.*left_ear"):
        evaluate(predictor, record_folder, "val", annotations)


def test_mean_pose(annotations: Path) -> None:
    truth = read_ground_truth(annotations)
    # Always at (10, 10) and (20, 20) of a box of 60 × 80; the third is never labelled.
    np.testing.assert_allclose(mean_pose(truth), [[1 / 6, 1 / 8], [2 / 6, 2 / 8], [0.5, 0.5]])
    assert mean_pose_baseline(annotations, annotations, truth.skeleton()) == pytest.approx(1.0)
