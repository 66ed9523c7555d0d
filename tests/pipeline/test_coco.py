from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.coco import CocoData, read_coco
from pipeline.command import UserError

CATEGORY = {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [1, 3]]}


def annotation(number: int, image: int = 1, **changes: Any) -> dict[str, Any]:
    entry = {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [10.0, 20.0, 30.0, 40.0],
        "area": 500.0,
        "iscrowd": 0,
        "keypoints": [12, 22, 2, 14.5, 24, 1, 99, 99, 0],
        "segmentation": [[1, 2, 3, 4, 5, 6]],
        **changes,
    }
    return {key: value for key, value in entry.items() if value is not None}


def image(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.jpg", "height": 100, "width": 200, **changes}


def read(folder: Path, images: list[Any], annotations: list[Any], categories: list[Any] | None = None) -> CocoData:
    path = folder / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories or [CATEGORY]}))
    return read_coco(path)


def test_persons_are_typed_and_sorted(tmp_path: Path) -> None:
    data = read(tmp_path, [image(2), image(1)], [annotation(9), annotation(7, iscrowd=1, keypoints=[0] * 9)])
    assert [p.id for p in data.images] == [1, 2]
    assert data.skeleton.keypoints == ("nose", "left_eye", "right_eye") and data.category_id == 1
    crowd, person = data.images[0].persons
    assert (crowd.id, crowd.is_crowd, person.id, person.is_crowd) == (7, True, 9, False)
    assert person.box == (10, 20, 40, 60) and person.area == 500 and person.num_labelled == 2
    np.testing.assert_array_equal(person.keypoints, [[12, 22, 2], [14.5, 24, 1], [0, 0, 0]])
    assert data.images[1].persons == () and not any(data.counts.values())


def test_what_is_certain_is_put_right_and_counted(tmp_path: Path) -> None:
    data = read(
        tmp_path,
        [image(), image(), image(2)],
        [
            annotation(1, bbox=[-5, 90, 30, 40]),
            annotation(2, bbox=[10, 10, 0, 5], keypoints=None),
            annotation(3, bbox=[10, 10, -4, 5], keypoints=[0, 0, 0] * 3),
            annotation(4, bbox=[300, 10, 5, 5], keypoints=[300, 10, 2] * 3),
            annotation(5, keypoints=[-1, 5, 2, 200, 100, 1, 201, 5, 2]),
            annotation(6),
            annotation(6),
            annotation(6, bbox=[1, 1, 5, 5]),
            annotation(7, image=3),
            annotation(8, category_id=99),
            annotation(9, keypoints=None, area=None, iscrowd=None),
            annotation(10, keypoints=[]),
        ],
    )
    persons = {person.id: person for person in data.images[0].persons}
    assert [person.id for person in data.images[0].persons] == [1, 5, 6, 6, 9, 10]
    assert persons[1].box == (0, 90, 25, 100)
    np.testing.assert_array_equal(persons[5].keypoints, [[0, 0, 0], [200, 100, 1], [0, 0, 0]])
    assert persons[9].area == 1200 and persons[9].num_labelled == 0 and persons[10].num_labelled == 0
    assert data.counts == {
        "images_twice": 1,
        "sizes_read_off_images": 0,
        "annotations_twice": 1,
        "annotation_ids_twice": 1,
        "annotations_of_no_image": 1,
        "annotations_of_other_categories": 1,
        "ids_as_text": 0,
        "boxes_clipped": 1,
        "boxes_made_around_points": 0,
        "boxes_without_area": 3,
        "keypoints_outside": 2,
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bbox": [1, 2, float("nan"), 4]}, "bbox holds nan"),
        ({"bbox": [1, 2, 3]}, "bbox has 3 numbers"),
        ({"bbox": [], "keypoints": [0] * 9, "num_keypoints": 0}, "neither a bbox nor a labelled keypoint"),
        ({"bbox": ["1", 2, 3, 4]}, "holds '1'"),
        ({"keypoints": [1, 2, 2]}, "keypoints has 3 numbers, 9 are needed"),
        ({"keypoints": [1, float("inf"), 2] + [0] * 6}, "keypoints holds inf"),
        ({"keypoints": [1, 2, 3] + [0] * 6}, "visibilities"),
        ({"category_id": None}, "category_id"),
        ({"iscrowd": 2}, "iscrowd 2"),
        ({"area": "big"}, "area holds 'big'"),
        ({"area": -5}, "area -5.0 is below 0"),
        ({"area": 1e39}, "area holds 1e+39, which is no finite number of 32 bits"),
        ({"bbox": [10**400, 2, 3, 4]}, "bbox holds 1000"),
    ],
)
def test_an_uncertain_annotation_makes_an_error_of_its_image(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    data = read(tmp_path, [image(1), image(2)], [annotation(5), annotation(6, **changes), annotation(7, image=2)])
    wrong, right = data.images
    assert reason in wrong.error and "annotation 6" in wrong.error and wrong.persons == ()
    assert right.error == "" and len(right.persons) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"file_name": None}, "no file_name"),
        ({"file_name": "../a.jpg"}, "leads out"),
        ({"file_name": "/a.jpg"}, "leads out"),
        ({"file_name": "b\\..\\..\\a.jpg"}, "leads out"),
        ({"file_name": "C:\\a.jpg"}, "leads out"),
        ({"height": 0}, "height 0"),
        ({"width": None}, "no width and height in the image entry"),
        ({"width": "wide"}, "width 'wide'"),
        ({"width": 20.5}, "width 20.5"),
    ],
)
def test_an_unusable_image_entry_is_an_error(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    assert reason in read(tmp_path, [image(1, **changes)], [annotation(1)]).images[0].error


def test_image_entries_that_differ_are_an_error(tmp_path: Path) -> None:
    for entries in ([image(), image(file_name="b.jpg")], [image(file_name="b.jpg"), image()]):
        assert "differ" in read(tmp_path, entries, []).images[0].error


def test_nothing_depends_on_the_order_of_the_file(tmp_path: Path) -> None:
    images = [image(i) for i in range(1, 6)] + [image(2)]
    annotations = [annotation(i, image=1 + i % 5) for i in range(20)] + [annotation(3, image=4, area=7.0), annotation(5)]
    first = read(tmp_path, images, annotations)
    for seed in range(5):
        random.Random(seed).shuffle(images)
        random.Random(seed).shuffle(annotations)
        again = read(tmp_path, images, annotations)
        assert again.sha256() == first.sha256() and again.counts == first.counts
    assert read(tmp_path, images, annotations[1:]).sha256() != first.sha256()


def test_the_category_is_the_one_with_keypoints(tmp_path: Path) -> None:
    dog = {"id": 2, "name": "dog", "keypoints": ["left_ear", "right_ear"]}
    assert read(tmp_path, [], [], [{"id": 7, "name": "car"}, dict(CATEGORY, id=5)]).category_id == 5
    assert read(tmp_path, [], [], [dog, CATEGORY]).skeleton.category == "person"
    with pytest.raises(UserError, match="0 categories with keypoints among"):
        read(tmp_path, [], [], [{"id": 1, "name": "person"}])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut", "not JSON"),
        ("empty", "not JSON"),
        ("list", "a list"),
        ("no_annotations", "no list of 'annotations'"),
        ("no_categories", "no list of 'categories'"),
        ("no_keypoint_names", "0 categories with keypoints"),
        ("no_images", None),
        ("bom", None),
    ],
)
def test_broken_files(shared_data: Path, name: str, message: str | None) -> None:
    path = shared_data / "bad_inputs" / "broken_json" / f"{name}.json"
    if message is None:
        assert len(read_coco(path).images) == (name == "bom")
    else:
        with pytest.raises(UserError, match=message) as caught:
            read_coco(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [-1, 2**63, "one", "1.5", str(2**63), 1.5, True, None, float("nan"), [1]])
def test_an_id_that_no_record_can_hold_is_refused(tmp_path: Path, number: Any) -> None:
    with pytest.raises(UserError, match=r"a\.json: image id .* is not an integer from 0 up"):
        read(tmp_path, [image() | {"id": number}], [])
    if number != -1:
        with pytest.raises(UserError, match=r"a\.json: annotation id .* of image 1 is not an integer"):
            read(tmp_path, [image()], [annotation(1) | {"id": number}])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: no such"):
        read_coco(tmp_path / "absent.json")


def test_numbers_as_text_are_numbers(tmp_path: Path) -> None:
    data = read(
        tmp_path,
        [image("1", width="200", height=" 100 "), image(2)],  # type: ignore[arg-type]
        [annotation("7", image="1", category_id="1"), annotation(8), annotation(9, image=2.0)],  # type: ignore[arg-type]
    )
    assert [[person.id for person in entry.persons] for entry in data.images] == [[7, 8], [9]]
    assert (data.images[0].height, data.images[0].width) == (100, 200) and data.counts["ids_as_text"] == 3


@pytest.mark.parametrize(
    ("bbox", "points", "box"),
    [
        ([50, 30, 0, 0], [[50, 30, 2]], (34, 14, 66, 46)),  # 16 pixels at least on every side
        ([190, 30, 0, 0], [[190, 30, 1]], (174, 14, 200, 46)),  # clipped
        ([60, 31, 100, 0], [[60, 31, 2], [160, 31, 2]], (44, 15, 176, 47)),
        ([0, 0, -5, 10], [[10, 20, 2], [190, 60, 2]], (0, 2, 200, 78)),  # a tenth of 180
        ([300, 0, 20, 20], [[50, 30, 2], [300, 10, 2]], (34, 14, 66, 46)),  # only the point in the image counts
        (None, [[50, 30, 2]], (34, 14, 66, 46)),
        ([], [[50, 30, 2]], (34, 14, 66, 46)),
    ],
)
def test_a_labelled_object_without_area_gets_a_box_around_its_points(
    tmp_path: Path, bbox: list[float] | None, points: list[list[float]], box: tuple[float, ...]
) -> None:
    points += [[0, 0, 0]] * (3 - len(points))
    data = read(tmp_path, [image()], [annotation(1, bbox=bbox, keypoints=points, area=0)])
    (person,) = data.images[0].persons
    assert person.box == box and person.area == (box[2] - box[0]) * (box[3] - box[1])
    assert data.counts["boxes_made_around_points"] == 1 and data.counts["boxes_without_area"] == 0


@pytest.mark.parametrize(
    "keypoints",
    [
        [[12, 22, 2], [14.5, 24, 1], [99, 99, 0]],
        [12, 22, 2, 14.5, 24, 1, None, None, 0],
        [12, 22, 2, 14.5, 24, 1, float("nan"), float("nan"), 0.0],
        [12, 22, 2, 14.5, 24, 1, float("inf"), "", 0],
        [[12, 22, 2], [14.5, 24, 1], [None, None, None]],
        [[12, 22, 2], [14.5, 24, 1], None],
        [[12, 22, 2], [14.5, 24, 1], []],
        [12, 22, 2, 14.5, 24, 1] + [float("nan")] * 3,
    ],
)
def test_a_point_that_is_not_labelled_may_hold_anything(tmp_path: Path, keypoints: list[Any]) -> None:
    (person,) = read(tmp_path, [image()], [annotation(1, keypoints=keypoints)]).images[0].persons
    np.testing.assert_array_equal(person.keypoints, [[12, 22, 2], [14.5, 24, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    "keypoints", [[None, 22, 2] + [0] * 6, [12, 22, None] + [0] * 6, [12, 22, "2"] + [0] * 6, [[12, 22], [1, 2], [0, 0]]]
)
def test_a_labelled_point_without_numbers_is_an_error(tmp_path: Path, keypoints: list[Any]) -> None:
    assert "annotation 1: keypoints" in read(tmp_path, [image()], [annotation(1, keypoints=keypoints)]).images[0].error


@pytest.mark.parametrize("other", ["a.jpg", "./a.jpg", ".\\a.jpg", "./././a.jpg"])
def test_images_that_name_one_file_are_errors(tmp_path: Path, other: str) -> None:
    images = [image(1, file_name="a.jpg"), image(2, file_name=other), image(3)]
    first, second, third = read(tmp_path, images, [annotation(1), annotation(2, image=2)]).images
    assert "image 2 names the same file" in first.error and "image 1 names the same file" in second.error and not third.error
    assert not any(entry.error for entry in read(tmp_path, images, [annotation(1, image=3)]).images)


def test_a_compressed_file_is_recognised_by_its_content(tmp_path: Path) -> None:
    content = json.dumps({"images": [image()], "annotations": [annotation(1)], "categories": [CATEGORY]}).encode()
    plain = read(tmp_path, [image()], [annotation(1)])
    (tmp_path / "packed.json").write_bytes(gzip.compress(content))
    assert read_coco(tmp_path / "packed.json").sha256() == plain.sha256()
    (tmp_path / "packed.json").write_bytes(gzip.compress(content)[:-30])
    with pytest.raises(UserError, match="compressed with gzip and damaged"):
        read_coco(tmp_path / "packed.json")


DOG = {"id": 2, "name": "dog", "keypoints": CATEGORY["keypoints"]}
HAND = {"id": 3, "name": "hand", "keypoints": ["wrist", "thumb"]}
NAMELESS = {"id": 4, "name": "face"}


@pytest.mark.parametrize(
    ("categories", "category", "keypoints", "name", "ids"),
    [
        ([CATEGORY, DOG], None, None, "person", {1}),
        ([CATEGORY, DOG], "dog", None, "dog", {2}),
        ([CATEGORY, DOG], "dog,person", None, "dog,person", {1, 2}),
        ([CATEGORY, DOG, NAMELESS], "all", None, "all", {1, 2}),
        ([CATEGORY, HAND], "hand", None, "hand", {3}),
        ([NAMELESS], None, ("a", "b"), "face", {4}),
        ([CATEGORY, NAMELESS], "face", ("a", "b"), "face", {4}),
        ([dict(DOG, id="2")], None, None, "dog", {2}),
        ([dict(DOG, name="a,b"), CATEGORY], "a,b", None, "a,b", {2}),
        ([dict(DOG, name=None)], None, None, "person", {2}),
        ([dict(DOG, name=None)], "person", None, "person", {2}),  # as an evaluation with records asks for it
        ([{"id": 2, "keypoints": DOG["keypoints"]}], "person", None, "person", {2}),
    ],
)
def test_categories_are_chosen(
    tmp_path: Path, categories: list[Any], category: str | None, keypoints: tuple[str, ...] | None, name: str, ids: set[int]
) -> None:
    path = tmp_path / "a.json"
    persons = [annotation(i, category_id=i, keypoints=None) for i in range(1, 5)]
    path.write_text(json.dumps({"images": [image()], "annotations": persons, "categories": categories}))
    data = read_coco(path, category=category, keypoints=keypoints)
    assert data.skeleton.category == name and data.category_id == min(ids)
    assert {person.id for person in data.images[0].persons} == ids
    assert data.counts["annotations_of_other_categories"] == 4 - len(ids)


@pytest.mark.parametrize(
    ("categories", "category", "message"),
    [
        ([dict(DOG, name="cat", id=1), DOG], None, r"2 categories with the same keypoints \(cat, dog\); --category=all joins"),
        ([DOG, HAND], None, r"different keypoint sets \(dog: 3 keypoints, hand: 2 keypoints\); --category=NAME takes one"),
        ([CATEGORY, HAND], "all", "different keypoint sets"),
        ([CATEGORY, DOG], "cat", r"0 categories named 'cat' among \['person', 'dog'\]"),
        ([CATEGORY, DOG], "person,cat", "0 categories named 'person,cat'"),
        ([NAMELESS], None, "0 categories with keypoints among .*--keypoints"),
        ([NAMELESS], "face", "has no keypoint names.*--keypoints"),
        ([dict(DOG, id=None)], None, "'dog' has the id None; a name and a whole number are needed"),
        ([dict(DOG, name=3)], None, "category 3 has the id 2; a name and a whole number are needed"),
        ([dict(DOG, keypoints=5)], None, r"a\.json: category 'dog': keypoints 5: a list of names"),
        (
            [dict(DOG, keypoints=["a", "a"])],
            None,
            r"a\.json: keypoints \['a', 'a'\]: there must be at least one name, and each",
        ),
    ],
)
def test_a_choice_that_cannot_be_made_is_one_line(
    tmp_path: Path, categories: list[Any], category: str | None, message: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    with pytest.raises(UserError, match=message) as caught:
        read_coco(path, category=category)
    assert "\n" not in str(caught.value)


UNKNOWN: list[dict[str, Any]] = [
    {},
    {"height": None, "width": None},
    {"height": "", "width": None},
    {"height": float("nan"), "width": ""},
]


@pytest.mark.parametrize(
    ("boxes", "stored", "size"),
    [
        ([[150, 10, 40, 40]], (100, 200, False), (100, 200)),
        ([[10, 150, 40, 40]], (100, 200, True), (200, 100)),  # fits upright only
        ([[150, 10, 40, 40]], (100, 200, True), (100, 200)),  # fits as stored only
        ([[10, 10, 40, 40]], (100, 200, True), (100, 200)),  # fits both ways
        ([[10, 10, 40, 40], [10, 150, 40, 40]], (100, 200, True), (200, 100)),  # another image shows the frame
    ],
)
def test_a_missing_size_is_that_of_the_image_in_the_annotations_frame(
    tmp_path: Path, boxes: list[list[float]], stored: tuple[int, int, bool], size: tuple[int, int]
) -> None:
    path = tmp_path / "a.json"
    images = [{"id": number, "file_name": f"{number}.jpg", **UNKNOWN[number]} for number in range(len(boxes) + 1)]
    persons = [annotation(number, image=number, bbox=box, keypoints=None) for number, box in enumerate(boxes)]
    path.write_text(json.dumps({"images": images, "annotations": persons, "categories": [CATEGORY]}))

    def measure(names: Sequence[str]) -> dict[str, tuple[int, int, bool] | str]:
        return dict.fromkeys(names[:-1], stored) | {names[-1]: "no such file"}

    data = read_coco(path, measure=measure)
    assert [(entry.height, entry.width) for entry in data.images] == [size] * len(boxes) + [(0, 0)]
    assert data.images[-1].error == "no such file" and data.counts["sizes_read_off_images"] == len(boxes)
    assert data.sha256() == read_coco(path).sha256()  # a function of the JSON alone
    assert all("no width and height" in entry.error for entry in read_coco(path).images)
