"""The rendered data set: exact annotations, every case that COCO knows, the same bytes again."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.command import UserError
from pipeline.skeleton import COCO_SIGMAS, Skeleton
from pipeline.synthetic import dataset
from pipeline.synthetic.dataset import Arguments, write_dataset
from pipeline.synthetic.looks import random_look
from pipeline.synthetic.people import Figure, draw_figure, visible_from
from pipeline.synthetic.poses import KEYPOINTS, PERSON_CATEGORY, Pose, random_pose
from pipeline.synthetic.rendering import Layer, annotate, render_image

WIDTH, HEIGHT, IMAGES = 320, 240, 120
SKELETON = Skeleton.from_category(PERSON_CATEGORY)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output: Path = tmp_path_factory.mktemp("synthetic")
    write_dataset(output, Arguments(IMAGES, 3, "train", WIDTH, HEIGHT), num_workers=1)
    return output


@pytest.fixture(scope="module")
def coco(folder: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(folder / "annotations" / "person_keypoints_train.json"))


@pytest.fixture(scope="module")
def people(coco: COCO) -> list[dict[str, Any]]:
    return list(coco.dataset["annotations"])


def labelled(annotation: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(annotation["keypoints"], dtype=np.float64).reshape(-1, 3)


def test_category_is_coco_s() -> None:
    assert set(KEYPOINTS) == set(COCO_SIGMAS)
    assert SKELETON.num_keypoints == 17 and len(SKELETON.limbs) == 19
    assert SKELETON.keypoints[0] == "nose" and SKELETON.flip[:3] == (0, 2, 1)


# ---- the files -------------------------------------------------------------------------------------------------------


def test_images_are_there_and_of_the_size_in_the_json(folder: Path, coco: COCO) -> None:
    assert len(coco.dataset["images"]) == IMAGES
    assert {p.name for p in (folder / "train").iterdir()} == {image["file_name"] for image in coco.dataset["images"]}
    with Image.open(folder / "train" / coco.dataset["images"][0]["file_name"]) as image:
        assert image.format == "JPEG" and image.mode == "RGB" and image.size == (WIDTH, HEIGHT)


def test_ids_are_unique_and_start_at_1(people: list[dict[str, Any]]) -> None:
    assert [a["id"] for a in people] == list(range(1, len(people) + 1))


def test_same_bytes_for_any_number_of_workers_and_images(folder: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, Arguments(36, 3, "train", WIDTH, HEIGHT), num_workers=2)
    name = Path("annotations") / "person_keypoints_train.json"
    few, many = (json.loads((output / name).read_text()) for output in (tmp_path, folder))
    assert few["images"] == many["images"][:36]
    assert few["annotations"] == [a for a in many["annotations"] if a["image_id"] <= 36]
    for image in few["images"]:
        assert (tmp_path / "train" / image["file_name"]).read_bytes() == (folder / "train" / image["file_name"]).read_bytes()


def test_other_seed_other_split_other_index_give_other_images() -> None:
    keys = [(0, "train", 0), (1, "train", 0), (0, "val", 0), (0, "train", 1)]
    assert len({render_image(*key, width=160, height=120).jpeg for key in keys}) == 4
    assert render_image(*keys[0], width=160, height=120) == render_image(*keys[0], width=160, height=120)


# ---- the annotations -------------------------------------------------------------------------------------------------


def test_box_and_area_are_those_of_the_mask(coco: COCO, people: list[dict[str, Any]]) -> None:
    for annotation in people:
        mask = coco.annToMask(annotation)
        assert mask.shape == (HEIGHT, WIDTH)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, w, h = annotation["bbox"]
        assert (x, y, x + w, y + h) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert annotation["area"] == mask.sum() > 0


def test_masks_do_not_overlap(coco: COCO) -> None:
    for image_id in coco.getImgIds():
        encoded = [coco.annToRLE(a) for a in coco.imgToAnns[image_id]]
        if encoded:
            assert coco_mask.area(coco_mask.merge(encoded)) == sum(coco_mask.area(encoded))


def test_keypoints_are_counted_inside_the_image_and_zero_where_not_labelled(people: list[dict[str, Any]]) -> None:
    for annotation in people:
        points = labelled(annotation)
        assert points.shape == (SKELETON.num_keypoints, 3) and set(points[:, 2]) <= {0, 1, 2}
        assert annotation["num_keypoints"] == (points[:, 2] > 0).sum()
        assert (points[points[:, 2] == 0] == 0).all()
        assert (points[:, 0] < WIDTH).all() and (points[:, 1] < HEIGHT).all() and (points >= 0).all()
        assert (np.round(points, 2) == points).all()


def test_visible_points_lie_on_the_person(coco: COCO, people: list[dict[str, Any]]) -> None:
    """To within a pixel: a mask's pixel is set when half of it or more is covered."""
    for annotation in people:
        mask = np.pad(coco.annToMask(annotation), 1)
        for x, y, visibility in labelled(annotation):
            if visibility == 2:
                assert mask[int(y) : int(y) + 3, int(x) : int(x) + 3].any()


def test_every_case_of_coco_occurs(coco: COCO, people: list[dict[str, Any]]) -> None:
    persons = [a for a in people if not a["iscrowd"]]
    visibility = np.concatenate([labelled(a)[:, 2] for a in persons if a["num_keypoints"]])
    assert (visibility == 1).mean() > 0.05 and (visibility == 2).mean() > 0.6
    crowds = [a for a in people if a["iscrowd"]]
    assert crowds and all(a["num_keypoints"] == 0 and isinstance(a["segmentation"]["counts"], list) for a in crowds)
    assert any(a["num_keypoints"] == 0 for a in persons)
    assert 0.01 < np.mean([not coco.imgToAnns[i] for i in coco.getImgIds()]) < 0.15
    x0, y0, w, h = np.array([a["bbox"] for a in persons]).T
    cut = (x0 == 0) | (y0 == 0) | (x0 + w == WIDTH) | (y0 + h == HEIGHT)
    assert 0.05 < cut.mean() < 0.5
    whole = h[~cut & np.array([a["num_keypoints"] > 14 for a in persons])]
    assert whole.max() >= 4 * whole.min()
    assert 1.5 < len(persons) / IMAGES < 3


def test_a_mean_pose_in_the_true_boxes_scores_next_to_nothing(coco: COCO, people: list[dict[str, Any]]) -> None:
    persons = [a for a in people if a["num_keypoints"]]
    points = np.array([labelled(a) for a in persons])  # [P, K, 3]
    boxes = np.array([a["bbox"] for a in persons])[:, None]  # [P, 1, 4]
    inside = np.where(points[..., 2:] > 0, (points[..., :2] - boxes[..., :2]) / boxes[..., 2:], np.nan)
    guess = np.nanmean(inside, axis=0) * boxes[..., 2:] + boxes[..., :2]
    answers = [
        {"image_id": a["image_id"], "category_id": 1, "score": 1.0, "keypoints": np.insert(g, 2, 1.0, axis=1).ravel().tolist()}
        for a, g in zip(persons, guess, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(answers), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] < 0.2


# ---- geometry --------------------------------------------------------------------------------------------------------


def figure_of(seed: int, *, yaw: float, scale: float = 180.0) -> Figure:
    rng = np.random.default_rng(seed)
    return draw_figure(random_pose(rng, calm=True, yaw=yaw), random_look(rng), scale)


def shows_front(pose: Pose) -> bool:
    """Whether the chest's front looks towards the camera."""
    return bool(pose.torso[2, 2] > 0)


@pytest.mark.parametrize("seed", range(5))
def test_left_is_on_the_right_of_the_image_from_the_front_and_not_from_behind(seed: int) -> None:
    place = {name: k for k, name in enumerate(KEYPOINTS)}
    for yaw, sign in ((0, 1), (180, -1)):
        figure = figure_of(seed, yaw=yaw)
        for joint in ("shoulder", "hip", "ear"):
            left, right = (figure.keypoints[place[f"{side}_{joint}"]] for side in ("left", "right"))
            assert sign * (left[0] - right[0]) > 0
        assert shows_front(figure.pose) == (yaw == 0)
        face = visible_from(figure.facing)[:3]  # nose and eyes
        assert (face == 2).all() if yaw == 0 else (face < 2).all()


def test_left_limbs_are_warm_and_right_ones_cold() -> None:
    rng = np.random.default_rng(0)
    for look in (random_look(rng) for _ in range(50)):
        for limbs in (look.arms, look.legs):
            assert all(red > blue for red, _, blue in limbs["left"])
            assert all(blue > red for red, _, blue in limbs["right"])
            for upper, lower in limbs.values():  # so that the joint between them shows
                assert abs(max(upper) - max(lower)) > 30


def test_most_people_show_their_front() -> None:
    rng = np.random.default_rng(0)
    assert 0.65 < np.mean([shows_front(random_pose(rng)) for _ in range(600)]) < 0.82


def test_what_an_object_covers_is_hidden() -> None:
    figure = figure_of(1, yaw=0)
    person = Layer(((figure, np.array([160.0, 120.0])),), "person")
    _, (free,) = annotate([person], WIDTH, HEIGHT)
    knee = labelled(free)[KEYPOINTS.index("left_knee"), 1]
    curtain = np.array([[0.0, knee - 8], [WIDTH, knee - 8], [WIDTH, HEIGHT], [0.0, HEIGHT]])
    _, (covered,) = annotate([person, Layer((), "object", ((curtain, (90, 90, 90)),))], WIDTH, HEIGHT)
    before, after = labelled(free), labelled(covered)
    below = before[:, 1] > knee - 8
    assert below.sum() >= 4 and (before[below, 2] == 2).all() and (after[below, 2] < 2).all()
    assert (after[~below] == before[~below]).all()
    # A hidden point keeps its true place near the visible part; far from it nobody would guess it.
    guessed = after[:, 2] == 1
    assert (after[guessed & below, :2] == before[guessed & below, :2]).all()
    assert covered["bbox"][1] + covered["bbox"][3] == pytest.approx(knee - 8, abs=1)
    assert covered["area"] < free["area"]


def test_who_is_hidden_by_somebody_else_is_hidden_and_left_out_when_nothing_is_seen() -> None:
    small, large = figure_of(2, yaw=0, scale=50.0), figure_of(3, yaw=180)
    behind, before = (Layer(((figure, np.array([160.0, y])),), "person") for figure, y in ((small, 95.0), (large, 120.0)))
    kept, found = annotate([behind, before], WIDTH, HEIGHT)
    assert kept == [before] and len(found) == 1
    kept, found = annotate([before, behind], WIDTH, HEIGHT)
    assert len(kept) == 2
    hips = [KEYPOINTS.index(name) for name in ("left_hip", "right_hip", "left_shoulder", "right_shoulder")]
    assert (labelled(found[1])[hips, 2] == 2).all()


def test_a_torso_hides_the_arm_behind_it() -> None:
    """Half turned people hide the far arm: the points are labelled as hidden, at the joint's true place."""
    hidden = 0
    for seed in range(12):
        figure = figure_of(seed, yaw=80)  # faces the right of the image, the right arm is near
        _, (found,) = annotate([Layer(((figure, np.array([160.0, 120.0])),), "person")], WIDTH, HEIGHT)
        left = labelled(found)[KEYPOINTS.index("left_elbow")]
        hidden += int(left[2] == 1)
        assert np.allclose(left[:2], figure.keypoints[KEYPOINTS.index("left_elbow")] + [160, 120], atol=0.01)
    assert hidden >= 4


# ---- running again, and errors ---------------------------------------------------------------------------------------


def arguments(count: int = 2, seed: int = 0, split: str = "val") -> Arguments:
    return Arguments(count, seed, split, 128, 96)


def test_a_finished_split_is_reused_and_never_replaced_unasked(tmp_path: Path) -> None:
    first = write_dataset(tmp_path, arguments(3), num_workers=1)
    assert not first.reused and write_dataset(tmp_path, arguments(3), num_workers=1).reused
    before = first.annotations.read_bytes()
    with pytest.raises(UserError, match=r"num_images=3 \(now 2\).*--overwrite"):
        write_dataset(tmp_path, arguments(2), num_workers=1)
    assert first.annotations.read_bytes() == before
    other = write_dataset(tmp_path, arguments(1, split="train"), num_workers=1)
    assert other.images == 1 and first.annotations.read_bytes() == before
    assert write_dataset(tmp_path, arguments(2), num_workers=1, overwrite=True).images == 2
    assert len(list(first.image_folder.iterdir())) == 2


def test_a_deleted_image_comes_back(tmp_path: Path) -> None:
    done = write_dataset(tmp_path, arguments(3), num_workers=1)
    victim = sorted(done.image_folder.iterdir())[1]
    before = victim.read_bytes()
    victim.unlink()
    assert not write_dataset(tmp_path, arguments(3), num_workers=1).reused
    assert victim.read_bytes() == before


def test_files_of_others_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "holiday.png").touch()
    with pytest.raises(UserError, match="holds files"):
        write_dataset(tmp_path, arguments(), num_workers=1, overwrite=True)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "person_keypoints_train.json").write_text('{"info": {}}')
    with pytest.raises(UserError, match="was not written by"):
        write_dataset(tmp_path, arguments(split="train"), num_workers=1, overwrite=True)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "render_image", stop)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, arguments(), num_workers=1)
    assert [p for p in tmp_path.rglob("*") if p.is_file() or "val" in p.name] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_images=0", "--seed=0"], "--num_images=0"),
        (["--num_images=2", "--seed=-1"], "--seed=-1"),
        (["--num_images=2", "--seed=0", "--split=a/b"], "--split='a/b'"),
        (["--num_images=2", "--seed=0", "--height=20"], "--height=20"),
        (["--num_images=2", "--seed=0", "--num_workers=0"], "--num_workers=0"),
        (["--num_images=2", "--seed=0", "--widht=200"], "did you mean --width?"),
        (["--num_images=many", "--seed=0"], "many"),
        (["--seed=0"], "--num_images"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path: Path, flags: list[str], message: str) -> None:
    done = _command("--output_dir", str(tmp_path / "out"), *flags)
    assert done.returncode != 0 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_command_says_what_it_wrote_and_that_it_is_finished(tmp_path: Path) -> None:
    flags = ["--output_dir", str(tmp_path), "--num_images=2", "--seed=0", "--split=val", "--num_workers=1"]
    first, second = _command(*flags), _command(*flags)
    assert first.returncode == second.returncode == 0
    assert first.stdout.startswith("rendered: 2 images") and str(tmp_path / "annotations") in first.stdout
    assert f"images       {tmp_path / 'val'}/\n" in first.stdout
    assert second.stdout.startswith("found finished")


def test_help_answers_at_once() -> None:
    start = time.monotonic()
    done = _command("--help")
    assert done.returncode == 0 and "--num_images" in done.stdout and time.monotonic() - start < 3


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.synthetic", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
