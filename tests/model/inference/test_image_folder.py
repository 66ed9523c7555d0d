"""Folders of images in, predictions.json and drawings out."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from model.config import TINY
from model.inference.image_folder import image_files, look_into, predict_files, summary_text
from model.inference.image_input import image_size
from model.inference.image_names import NumberedImage, annotated, image_id_of, numbered, read_image_names
from model.inference.predictor import Answer, Predictor
from pipeline.command import UserError
from pipeline.skeleton import Skeleton

SKELETON = Skeleton("person", ("nose", "left_eye"), ((0, 1),), (0, 1), (0.1, 0.1))


def answer(images: object) -> Answer:
    """One person in images in landscape, nobody in others."""
    assert isinstance(images, list)
    wide = np.array([size[1] > size[0] for size in (image_size(p, "") for p in images)])
    number = len(images)
    return {
        "num_detections": wide.astype(np.int32),
        "boxes": np.tile(np.array([[[4, 5, 30, 25]]], np.float32), (number, 1, 1)),
        "scores": np.full((number, 1), 0.875, np.float32),
        "keypoints": np.full((number, 1, 2, 2), 10, np.float32),
        "keypoint_scores": np.full((number, 1, 2), 0.5, np.float32),
    }


CONFIG = dataclasses.replace(TINY, inference=dataclasses.replace(TINY.inference, category_id=7))
PREDICTOR = Predictor(CONFIG, SKELETON, answer, lambda height, width: (64, 64))


def test_a_folder(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, size in (("b_000012.jpg", (60, 40)), ("a.png", (60, 40)), ("c.JPEG", (40, 60))):
        Image.new("RGB", size, (90, 90, 90)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / "d.jpg").write_bytes(b"\xff\xd8 broken")
    summary = predict_files(PREDICTOR, image_files(folder), out)
    entries = json.loads((out / "predictions.json").read_text())
    assert [(e["file_name"], e["image_id"]) for e in entries] == [("a.png", 0), ("b_000012.jpg", 12)]
    assert {e["category_id"] for e in entries} == {7}
    assert entries[0]["bbox"] == [4.0, 5.0, 26.0, 20.0] and entries[0]["keypoints"] == [10.0, 10.0, 0.5] * 2
    assert (summary.images, summary.people, summary.empty) == (3, 2, 1)
    assert len(summary.unreadable) == 1 and "d.jpg" in summary.unreadable[0]
    assert sorted(p.name for p in (out / "pictures").iterdir()) == ["a.png", "b_000012.jpg", "c.JPEG"]
    drawn = np.asarray(Image.open(out / "pictures" / "a.png"))
    assert drawn.shape == (40, 60, 3) and (drawn[5, 10:25] != 90).any() and (drawn[30:] == 90).all()
    assert "2 people found in 3 images, nobody in 1 of them" in summary_text(summary)


def test_one_file_without_drawing(tmp_path: Path) -> None:
    Image.new("RGB", (40, 60)).save(tmp_path / "x.png")
    summary = predict_files(PREDICTOR, image_files(tmp_path / "x.png"), tmp_path / "out", draw=False)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []
    assert summary.drawings is None
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_drawings_never_replace_the_images(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "pictures"
    folder.mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(folder / "x.png")
    (tmp_path / "linked").symlink_to(folder)
    before = (folder / "x.png").read_bytes()
    for given in (folder, folder / "x.png", tmp_path / "linked"):
        with pytest.raises(UserError, match=r"would replace the images of --input; give another folder, or --nodraw"):
            predict_files(PREDICTOR, image_files(given), tmp_path / "mine")
    assert (folder / "x.png").read_bytes() == before and [p.name for p in (tmp_path / "mine").iterdir()] == ["pictures"]
    assert predict_files(PREDICTOR, image_files(folder), tmp_path / "mine", draw=False).people == 1


def test_nothing_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images in it"):
        image_files(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        image_files(tmp_path / "nothing")


def test_image_ids() -> None:
    assert image_id_of(Path("000000000139.jpg"), 3) == 139
    assert image_id_of(Path("frame7_42.png"), 3) == 42
    assert image_id_of(Path("7_days.png"), 3) == 3


def write_images(folder: Path, *names: str, size: tuple[int, int] = (60, 40)) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 90, 90)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["000000000139.jpg", "000000000785.jpg"], [139, 785]),
        (["cam1_000001.jpg", "cam2_000001.jpg"], [0, 1]),  # one number for both
        (["a3f.jpg", "b_1.jpg", "b_2.jpg"], [0, 1, 2]),
        (["frame.jpg", "x_0.jpg"], [0, 1]),  # a position that is another file's number
        (["17000000000000000001.jpg"], [0]),  # more than 2^53
    ],
)
def test_no_two_images_have_one_id(names: list[str], ids: list[int]) -> None:
    images, rule = numbered([Path(name) for name in names])
    assert [one.image_id for one in images] == ids
    assert ("position in the sorted folder, from 0: by" in rule) == (names[0] not in ("000000000139.jpg", "a3f.jpg"))


def test_ids_of_annotations(tmp_path: Path) -> None:
    """By file name: in the folder, in folders below it, or by the last part of the name; what does not meet is told."""
    folder = write_images(tmp_path / "in", "a.jpg", "1/x.jpg", "2/x.jpg", "ü.jpg", "c.jpg", "extra.jpg")
    files = ["a.jpg", "1/x.jpg", "2\\x.jpg", "u\u0308.jpg", "elsewhere/c.jpg", "gone.jpg", "../in/a.jpg"]
    sizes = {"height": 40, "width": 60}
    entries = [{"id": 7 * number, "file_name": name, **sizes} for number, name in enumerate(files, 1)]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": entries}))
    images, notes = annotated(folder, image_files(folder), read_image_names(path), "annotations.json")
    assert [(one.image_id, str(one.path.relative_to(folder))) for one in images] == [
        (7, "a.jpg"), (14, "1/x.jpg"), (21, "2/x.jpg"), (28, "ü.jpg"), (35, "c.jpg"),
    ]  # fmt: skip
    assert notes[0].startswith("2 of 7 images of annotations.json are not in") and "'gone.jpg'" in notes[0]
    assert notes[1].startswith("passed over: 1 of 4 images") and "'extra.jpg'" in notes[1]
    summary = predict_files(PREDICTOR, images, tmp_path / "out")
    people = json.loads(summary.predictions.read_text())
    assert [(p["image_id"], p["file_name"]) for p in people] == [(one.image_id, one.file_name) for one in images]
    assert (tmp_path / "out" / "pictures" / "2" / "x.jpg").is_file()
    one, notes = annotated(folder / "c.jpg", [folder / "c.jpg"], read_image_names(path), "annotations.json")
    assert [image.image_id for image in one] == [35] and not notes
    with pytest.raises(UserError, match="none of its 7 images is in --input="):
        annotated(tmp_path, [], read_image_names(path), "annotations.json")


def test_annotations_are_read_as_a_conversion_reads_them(tmp_path: Path) -> None:
    """Compressed, with ids that are numbers written otherwise, of images that all lie in folders below."""
    folder = write_images(tmp_path / "in", "1/x.jpg", "2/x.jpg", "3/x.jpg")
    entries = [{"id": image_id, "file_name": f"{k}/x.jpg"} for k, image_id in ((1, "7"), (2, 8.0), (3, " +9 "))]
    path = tmp_path / "annotations.json"
    path.write_bytes(gzip.compress(json.dumps({"images": entries}).encode("utf-16")))
    files, _ = look_into(folder, may_be_empty=True)
    images, notes = annotated(folder, files, read_image_names(path), "annotations.json")
    assert [(one.image_id, one.file_name) for one in images] == [(7, "1/x.jpg"), (8, "2/x.jpg"), (9, "3/x.jpg")] and not notes
    with pytest.raises(UserError, match="no images in it"):
        look_into(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"images": []}', '{"images": [{"id": 1}]}', '{"images": [3]}'])
def test_annotations_without_images(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json: "):
        read_image_names(tmp_path / "a.json")


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", "a.png", "below/b.png")
    for name in ("x.heic", "y.txt", ".DS_Store"):
        (folder / name).write_text("")
    (folder / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.jpg")
    files, notes = look_into(folder)
    assert [path.name for path in files] == ["a.png"]
    assert sorted(notes) == [
        "passed over: 1 folders (only the files of the folder itself are read): below",
        "passed over: 1 hidden files: .DS_Store",
        "passed over: 2 entries that are no files (broken links, FIFOs, devices): gone.jpg, pipe.jpg",
        "passed over: 2 files whose names do not end in .jpg, .jpeg, .png: x.heic, y.txt",
    ]
    summary = predict_files(PREDICTOR, files, tmp_path / "out", notes=notes)
    assert all(note in summary_text(summary) for note in notes)


def test_one_bad_file_is_named_and_the_others_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images(tmp_path / "in", "a.png", "z.png", "x" * 240 + ".png")
    with (folder / "giant.jpg").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    os.mkfifo(folder / "pipe.jpg")
    files = [*image_files(folder), folder / "pipe.jpg", folder / "removed.jpg"]  # as they are when their turn comes
    (folder / "empty.jpg").write_bytes(b"")
    summary = predict_files(PREDICTOR, [*files, folder / "empty.jpg", Path("/dev/zero")], tmp_path / "out")
    assert summary.images == summary.people == 3
    told = "\n".join(summary.unreadable)
    assert len(summary.unreadable) == 5 and "giant.jpg: cannot be read (1099511627776 bytes long" in told
    assert "pipe.jpg: cannot be read (a FIFO" in told and "/dev/zero: cannot be read (a device" in told
    assert "empty.jpg: not a JPEG or PNG image (0 bytes)" in told and "removed.jpg: cannot be read (No such file" in told
    assert "1 image not drawn, whose name is too long for a drawing" in summary_text(summary)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    """What was done is there after Ctrl-C, is not done again, and is whole after a kill amid a line."""
    folder, out = write_images(tmp_path / "in", *(f"{i:02}.png" for i in range(40))), tmp_path / "out"
    asked: list[int] = []

    def stopping(images: Any) -> Answer:
        asked.append(len(images))
        if sum(asked) > 32:
            raise KeyboardInterrupt
        return answer(images)

    predictor = dataclasses.replace(PREDICTOR, answer=stopping, identity="this")
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, image_files(folder), out)
    unfinished = out / "predictions.unfinished.jsonl"
    assert len(unfinished.read_text().splitlines()) == 1 + 32 and not (out / "predictions.json").exists()
    with unfinished.open("r+b") as file:
        file.truncate(unfinished.stat().st_size - 10)  # the last line is cut
    (folder / "03.png").write_bytes(b"broken since")
    asked = [-100]
    summary = predict_files(predictor, image_files(folder), out)
    assert (summary.reused, sum(asked)) == (30, 9 - 100) and not unfinished.exists()
    assert "30 images done by an earlier run" in summary_text(summary) and "03.png" in summary.unreadable[0]
    entries = json.loads((out / "predictions.json").read_text())
    assert [entry["image_id"] for entry in entries] == [i for i in range(40) if i != 3]
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []


def full_disk(path: Path, value: object) -> None:
    raise OSError(errno.ENOSPC, "full", str(path))


def test_a_stopped_run_of_another_model_begins_anew(tmp_path: Path) -> None:
    folder, out = write_images(tmp_path / "in", *(f"{i:02}.png" for i in range(3))), tmp_path / "out"
    out.mkdir()
    lines = [{"run": "another"}, {"file": "00.png", "size": 1, "time": 1, "best_score": None, "people": []}]
    (out / "predictions.unfinished.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert predict_files(dataclasses.replace(PREDICTOR, identity="this"), image_files(folder), out).reused == 0
    for threshold, name, reused in ((0.9, "this", 0), (0.5, "that", 0), (0.5, "", 0), (0.5, "this", 3)):
        predictor = dataclasses.replace(PREDICTOR, identity="this", score_threshold=0.5)
        with pytest.raises(OSError, match="full"), pytest.MonkeyPatch.context() as patch:
            patch.setattr("model.inference.image_folder.write_json", full_disk)
            predict_files(predictor, image_files(folder), out, draw=False)
        predictor = dataclasses.replace(predictor, identity=name, score_threshold=threshold)
        assert predict_files(predictor, image_files(folder), out, draw=False).reused == reused
    (out / "predictions.unfinished.jsonl").write_bytes(b"\xff\n[1]\n")
    assert predict_files(PREDICTOR, image_files(folder), out).people == 3


def test_nobody_found_says_the_best_score(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", "a.png")
    strict = dataclasses.replace(PREDICTOR, score_threshold=0.9)
    text = summary_text(predict_files(strict, image_files(folder), tmp_path / "out"))
    assert "0 people found in 1 image: the best score is 0.875, below --score_threshold=0.9" in text
    folder = write_images(tmp_path / "high", "a.png", size=(40, 60))
    text = summary_text(predict_files(strict, image_files(folder), tmp_path / "out"))
    assert "0 people found in 1 image: nothing has a score above the model's own least score" in text


def test_what_is_no_person_is_not_called_one(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", "a.png")
    hands = dataclasses.replace(PREDICTOR, skeleton=dataclasses.replace(SKELETON, category="hand"))
    text = summary_text(predict_files(hands, image_files(folder), tmp_path / "out"))
    assert "1 of the category 'hand' found in 1 image" in text and "person" not in text.replace(str(tmp_path), "")


def test_without_drawing_no_older_drawing_stays(tmp_path: Path) -> None:
    folder, out = write_images(tmp_path / "in", "a.png", "b.jpg"), tmp_path / "out"
    predict_files(PREDICTOR, image_files(folder), out)
    (out / "pictures" / "mine.txt").write_text("not ours")
    Image.new("RGB", (8, 8)).save(out / "pictures" / "mine.png")
    predict_files(PREDICTOR, [folder / "a.png"], out)
    assert sorted(p.name for p in (out / "pictures").iterdir()) == ["a.png", "mine.png", "mine.txt"]
    summary = predict_files(PREDICTOR, image_files(folder), out, draw=False)
    assert "removed: 1 drawings of an earlier run" in summary_text(summary)
    assert sorted(p.name for p in (out / "pictures").iterdir()) == ["mine.png", "mine.txt"]


def turned(path: Path, orientation: int, size: tuple[int, int] = (60, 40)) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:5, :5] = 255  # the stored upper left corner
    Image.fromarray(pixels).save(path, exif=exif, quality=100, subsampling=0)
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_seen_as_a_viewer_shows_them(tmp_path: Path, name: str, orientation: int) -> None:
    path = turned(tmp_path / name, orientation)
    seen: list[Any] = []

    def looking(images: Any) -> Answer:
        seen.extend(np.asarray(Image.open(io.BytesIO(content))) for content in images)
        return answer(images)

    predictor = dataclasses.replace(PREDICTOR, answer=looking)
    predict_files(predictor, [path], tmp_path / "out")
    shown = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_allclose(seen[0], shown, atol=1 if name == "a.jpg" else 0)
    drawn = Image.open(tmp_path / "out" / "pictures" / name)
    assert drawn.size == (shown.shape[1], shown.shape[0]) and drawn.getexif().get(0x0112) is None
    predictor.predict([path.read_bytes()], as_stored=True)
    np.testing.assert_allclose(seen[1], np.asarray(Image.open(path)), atol=1 if name == "a.jpg" else 0)


def test_images_annotated_as_stored_are_answered_as_stored(tmp_path: Path) -> None:
    path = turned(tmp_path / "a.png", 6)
    for size, width in (((40, 60), 60), ((60, 40), 40), (None, 40)):
        summary = predict_files(PREDICTOR, [NumberedImage(path, "a.png", 3, size)], tmp_path / "out")
        assert Image.open(tmp_path / "out" / "pictures" / "a.png").width == width
        assert ("1 image annotated as stored" in summary_text(summary)) == (size == (40, 60))


def test_the_photograph_of_a_phone(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "field_cases" / "phone_upright"
    images, _ = annotated(
        folder / "images", image_files(folder / "images"), read_image_names(folder / "annotations.json"), "annotations.json"
    )
    predict_files(PREDICTOR, images, tmp_path / "out")
    drawn = np.asarray(Image.open(tmp_path / "out" / "pictures" / "1.jpg"))
    assert drawn.shape == (200, 100, 3)  # as annotated: upright
    assert drawn[10:40, 40:90, 0].mean() > 190 and drawn[10:40, 40:90, 1:].mean() < 60  # red lies in the box
