"""What annotation tools, phones and exporters really write: each case converts to the right record, or is told in one line."""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from pipeline import command, image, make_tfrecords, records
from pipeline.coco import CocoImage, Person
from pipeline.command import UserError
from pipeline.drawing import sides
from pipeline.record_folder import RecordFolder, open_record_folder
from pipeline.writing import conversion, shard_writer
from pipeline.writing.checked_image import ImageError, ImageRules, check_image
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig
from pipeline.writing.metadata import ConversionResult, summary_table

SETTINGS = {"short_edges": (64,)}
CATEGORY = {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [1, 3]]}
Convert = Callable[..., tuple[ConversionResult, RecordFolder]]


@pytest.fixture(autouse=True)
def without_beam(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_job(settings: shard_writer.ShardSettings, numbers: list[int], options: object) -> None:
        for number in numbers:
            shard_writer.write_shard(settings, number)

    monkeypatch.setattr(conversion, "run_job", run_job)


@pytest.fixture
def converted(shared_data: Path, tmp_path: Path) -> Convert:
    """Converts one of the field cases."""

    def convert_case(case: str, **settings: Any) -> tuple[ConversionResult, RecordFolder]:
        folder = shared_data / "field_cases" / case
        images = folder / "images" if (folder / "images").is_dir() else folder / "images.zip"
        config = ConversionConfig(**SETTINGS | settings)
        result = convert(folder / "annotations.json", images, tmp_path / "out", "train", config)
        return result, open_record_folder(tmp_path / "out")

    return convert_case


def examples(folder: RecordFolder, split: str = "train") -> list[dict[str, Any]]:
    return [records.parse(r) for r in tf.data.TFRecordDataset([str(path) for path in folder.shards(split)])]


def boxes(example: dict[str, Any]) -> NDArray[np.float64]:
    """[P, 4], in pixels."""
    height, width = int(example["image/height"]), int(example["image/width"])
    corners = [example[f"image/object/bbox/{side}"].numpy() for side in ("xmin", "ymin", "xmax", "ymax")]
    return np.asarray(np.stack(corners, axis=1) * [width, height, width, height])


def pixels(example: dict[str, Any]) -> NDArray[np.uint8]:
    decoded: NDArray[np.uint8] = image.decode(example["image/encoded"]).numpy()
    return decoded


EXPECTED_BOX = [10, 20, 70, 70]
PLAIN = [
    "area_one",
    "keypoints_nested",
    "name_decomposed",
    "sides_hyphen",
    "sides_inside",
    "sides_letter",
    "sides_prefix",
    "sides_spaces",
    "sides_suffix",
    "size_missing",
    "skeleton_from_zero",
    "skeleton_of_another_set",
    "windows_separators",
    "zip_dot_slash",
]


@pytest.mark.parametrize("case", PLAIN)
def test_the_one_person_arrives(converted: Convert, case: str) -> None:
    result, folder = converted(case)
    (example,) = examples(folder)
    np.testing.assert_allclose(boxes(example), [EXPECTED_BOX], atol=1e-4)
    np.testing.assert_allclose(example["image/object/keypoint/x"] * 200, [30, 40, 20], atol=1e-4)
    np.testing.assert_allclose(example["image/object/keypoint/y"] * 100, [30, 25, 25], atol=1e-4)
    assert example["image/object/keypoint/visibility"].numpy().tolist() == [2, 2, 2]
    assert folder.skeleton.flip == (0, 2, 1) and sides(folder.skeleton) == ("middle", "left", "right")
    assert any(note.startswith("mirror twins: ") and " - " in note for note in result.notes)
    assert result.summary["images"] == result.summary["persons"] == 1
    assert result.summary["sizes_read_off_images"] == (case == "size_missing")


def test_an_area_of_one_is_kept(converted: Convert) -> None:
    assert examples(converted("area_one")[1])[0]["image/object/area"].numpy().tolist() == [1.0]


def test_limbs_that_do_not_fit_are_told(converted: Convert) -> None:
    result, folder = converted("skeleton_of_another_set")
    assert folder.skeleton.limbs == ()
    assert any("2 of 2 limbs are left out of drawings, such as [16, 14]" in note for note in result.notes)


def test_limbs_counted_from_zero_are_recognised(converted: Convert) -> None:
    result, folder = converted("skeleton_from_zero")
    assert folder.skeleton.limbs == ((0, 1), (0, 2))
    assert any("from 0" in note for note in result.notes)


def test_a_malformed_exif_block_does_not_matter_when_an_image_is_turned(converted: Convert) -> None:
    result, folder = converted("exif_malformed_and_turned")
    (example,) = examples(folder)
    assert result.summary["images_rotated"] == 1 and pixels(example).shape == (200, 100, 3)
    assert Image.open(io.BytesIO(example["image/encoded"].numpy())).info.get("exif") is None
    np.testing.assert_allclose(boxes(example), [EXPECTED_BOX], atol=1e-4)


def test_a_phones_photograph_is_turned_as_a_viewer_shows_it(converted: Convert) -> None:
    result, folder = converted("phone_upright")
    (example,) = examples(folder)
    (x0, y0, x1, y1) = boxes(example)[0].round().astype(int)
    inside = pixels(example)[y0:y1, x0:x1]
    assert result.summary["images_rotated"] == 1 and inside[..., 0].mean() > 180 and inside[..., 1].mean() < 60


def test_a_labelled_object_without_a_box_of_its_own_gets_one(converted: Convert) -> None:
    result, folder = converted("one_point_zero_box")
    (example,) = examples(folder)
    expected = np.array([[114.5, 14, 146.5, 46], [44.5, 15, 146.5, 47], EXPECTED_BOX], np.float64)
    np.testing.assert_allclose(boxes(example), expected, atol=1e-4)
    np.testing.assert_allclose(example["image/object/area"], [32 * 32, 102 * 32, 1800])
    assert result.summary["persons"] == 3 and result.summary["boxes_made_around_points"] == 2


def test_cocos_names_bring_cocos_sigmas(converted: Convert) -> None:
    from pipeline.skeleton import COCO_PERSON

    result, folder = converted("coco_names_written_otherwise")
    assert folder.skeleton.sigmas == COCO_PERSON.sigmas and folder.skeleton.flip == COCO_PERSON.flip
    assert len(result.notes) == 1  # the twins


@pytest.mark.parametrize(("category", "persons"), [("all", 2), ("antelope,zebra", 2), ("zebra", 1)])
def test_categories_of_one_keypoint_set_are_joined_or_chosen(converted: Convert, category: str, persons: int) -> None:
    result, folder = converted("categories_with_one_keypoint_set", category=category)
    assert result.summary["persons"] == persons and folder.skeleton.category == category
    assert result.summary["annotations_of_other_categories"] == 2 - persons


def test_categories_are_not_joined_unasked(converted: Convert) -> None:
    with pytest.raises(UserError, match=r"\(antelope, zebra\); --category=all joins them"):
        converted("categories_with_one_keypoint_set")
    with pytest.raises(UserError, match=r"\(body: 3 keypoints, hand: 2 keypoints\); --category=NAME takes one"):
        converted("categories_with_two_keypoint_sets")


@pytest.mark.parametrize(("category", "points"), [("body", 3), ("hand", 2)])
def test_one_of_two_keypoint_sets_is_chosen(converted: Convert, category: str, points: int) -> None:
    result, folder = converted("categories_with_two_keypoint_sets", category=category)
    assert folder.skeleton.num_keypoints == points and result.summary["labelled_keypoints"] == points


def test_ids_as_text_are_numbers(converted: Convert) -> None:
    result, folder = converted("image_id_as_text")
    assert examples(folder)[0]["image/object/id"].numpy().tolist() == [1, 2]
    assert result.summary["ids_as_text"] == 1 and result.summary["annotations_of_no_image"] == 0


def test_names_that_are_missing_can_be_given(converted: Convert) -> None:
    with pytest.raises(UserError, match="or give the keypoints' names with --keypoints"):
        converted("names_missing")
    result, folder = converted("names_missing", keypoints=("top", "a_left", "a_right"), sigmas=(0.05,))
    assert folder.skeleton.keypoints == ("top", "a_left", "a_right") and folder.skeleton.flip == (0, 2, 1)
    assert folder.skeleton.sigmas == (0.05,) * 3 and result.summary["labelled_keypoints"] == 3


def test_names_of_the_file_are_not_overruled(converted: Convert) -> None:
    with pytest.raises(UserError, match=r"--keypoints: .* has names of its own"):
        converted("sides_letter", keypoints=("a", "b", "c"))


def test_an_unlabelled_point_may_hold_null(converted: Convert) -> None:
    (example,) = examples(converted("unlabelled_as_null")[1])
    assert example["image/object/keypoint/visibility"].numpy().tolist() == [2, 2, 0]
    assert example["image/object/keypoint/x"].numpy()[2] == 0


def test_file_names_stay_as_they_are(converted: Convert) -> None:
    names = {example["image/filename"].numpy() for example in examples(converted("file_names_without_digits")[1])}
    assert names == {b"frame_a.jpg", b"frame_b.jpg"}


# Others of these kinds.

TALL = np.zeros((60, 40, 3), np.uint8)  # upright
TALL[:20, :, 0] = 220  # the upper third is red
TALL[40:, :20, 2] = 220


def stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The pixels that a viewer turns into `upright`."""
    undo = {6: 8, 8: 6}.get(orientation, orientation)
    return image.upright(upright, undo)


def encoded(array: NDArray[Any], orientation: int = 1, file_format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"exif": exif} if orientation != 1 else {}
    options |= {"quality": 95, "subsampling": 0} if file_format == "JPEG" else {}
    file = io.BytesIO()
    Image.fromarray(array).save(file, file_format, **options)
    return file.getvalue()


def data_set(folder: Path, files: Mapping[str, bytes | None], sizes: dict[str, tuple[int, int]], **changes: Any) -> Path:
    """A COCO file of images by name, one person in each; sizes are height, width."""
    (folder / "images").mkdir(exist_ok=True)
    images, annotations = [], []
    for number, (name, content) in enumerate(files.items(), start=1):
        if content is not None:
            (folder / "images" / name).write_bytes(content)
        height, width = sizes.get(name, (60, 40))
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        person = {"id": number, "image_id": number, "category_id": 1, "bbox": [0, 0, 20, 10], "area": 100, "iscrowd": 0}
        annotations.append(person | {"keypoints": [5, 5, 2, 10, 5, 2, 0, 0, 0]})
    whole = {"images": images, "annotations": annotations, "categories": [CATEGORY]} | changes
    (folder / "a.json").write_text(json.dumps(whole))
    return folder / "a.json"


def convert_all(
    folder: Path, *, on_error: str = "fail", images: Path | None = None, **settings: Any
) -> tuple[ConversionResult, RecordFolder]:
    config = ConversionConfig(**SETTINGS | settings)
    skip: Any = on_error
    result = convert(folder / "a.json", images or folder / "images", folder / "out", "train", config, on_error=skip)
    return result, open_record_folder(folder / "out")


def by_name(folder: RecordFolder) -> dict[str, dict[str, Any]]:
    return {example["image/filename"].numpy().decode(errors="surrogateescape"): example for example in examples(folder)}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_turned_images_keep_their_pixels_and_format(tmp_path: Path, orientation: int, file_format: str) -> None:
    data_set(tmp_path, {"a": encoded(stored(TALL, orientation), orientation, file_format)}, {})
    (example,) = examples(convert_all(tmp_path)[1])
    assert example["image/format"].numpy().decode() == file_format.lower()
    assert np.abs(pixels(example).astype(int) - TALL).mean() < (3 if file_format == "JPEG" else 0.01)
    assert image.stored_orientation(example["image/encoded"].numpy()) == 1


def test_sixteen_bit_greys_stay_right_when_turned(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    data_set(tmp_path, {"a.png": encoded(grey, 6, "PNG"), "b.png": encoded(grey, 1, "PNG")}, {"b.png": (40, 60)})
    turned, plain = (pixels(example) for _, example in sorted(by_name(convert_all(tmp_path)[1]).items()))
    np.testing.assert_array_equal(turned, image.upright(plain, 6))
    assert 120 < turned.mean() < 135


@pytest.mark.parametrize("votes", [(2, 1), (1, 2), (1, 1), (0, 0)])
def test_ambiguous_rotations_follow_the_other_images(tmp_path: Path, votes: tuple[int, int]) -> None:
    square = np.ascontiguousarray(TALL[:40])
    files = {"half.jpg": encoded(stored(TALL, 3), 3), "mirror.png": encoded(stored(TALL, 2), 2, "PNG")}
    files |= {"square.jpg": encoded(stored(square, 6), 6), "plain.jpg": encoded(TALL)}
    sizes = {"square.jpg": (40, 40)}
    for number in range(votes[0]):
        files[f"upright{number}.jpg"] = encoded(stored(TALL, 6), 6)
    for number in range(votes[1]):
        files[f"stored{number}.jpg"] = encoded(stored(TALL, 6), 6)
        sizes[f"stored{number}.jpg"] = (40, 60)
    data_set(tmp_path, dict(files), sizes)
    result, folder = convert_all(tmp_path, num_shards=3)
    found = by_name(folder)
    turned = votes[0] > votes[1]
    for name, upright in (("half.jpg", TALL), ("mirror.png", TALL), ("square.jpg", square)):
        close = np.abs(pixels(found[name]).astype(int) - upright).mean() < 5
        assert close == turned, name
    assert result.summary["images_rotated"] == votes[0] + 3 * turned and result.summary["rotations_ambiguous"] == 3
    (note,) = [note for note in result.notes if "fits their size both ways" in note]
    assert note.startswith("3 images") and (": it is applied" in note) == turned
    listed = [json.loads(line) for line in (tmp_path / "out" / "ambiguous-train.jsonl").read_text().splitlines()]
    assert {(entry["file"], entry["turned"]) for entry in listed} == {
        (name, turned) for name in ("half.jpg", "mirror.png", "square.jpg")
    }


def random_exif(rng: random.Random) -> bytes:
    """A block that is right in parts: entries of any tag, type, count and place, or plain noise."""
    order = rng.choice(["<", ">"])
    entries = b""
    for _ in range(rng.randrange(6)):
        tag = rng.choice([0x0112, 0x010F, 0x8769, 0x8825, 0x011A, rng.randrange(65536)])
        entries += struct.pack(f"{order}HHI", tag, rng.randrange(16), rng.choice([0, 1, 2, rng.randrange(2**32)])) + rng.choice(
            [struct.pack(f"{order}HH", rng.randrange(12), 0), rng.randbytes(4)]
        )
        if rng.random() < 0.4:
            entries += struct.pack(f"{order}HHIHH", 0x0112, 3, 1, rng.randrange(1, 9), 0)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", rng.choice([8, 8, 8, rng.randrange(2**32)]))
    block = head + struct.pack(f"{order}H", rng.choice([len(entries) // 12, rng.randrange(65536)])) + entries
    block += rng.randbytes(rng.randrange(60))
    return rng.choice([block, block, block[: rng.randrange(len(block))], rng.randbytes(40)])


def test_no_exif_block_ends_anything() -> None:
    """6,000 random blocks in JPEGs and PNGs: the image is taken, turned or refused with a reason, and never anything else."""
    rng = random.Random(0)
    plain = {name: encoded(np.ascontiguousarray(TALL[::4, ::4]), 1, name) for name in ("JPEG", "PNG")}
    outcomes = {"turned": 0, "stored": 0, "refused": 0}
    for number in range(6000):
        block = random_exif(rng)
        if number % 2:
            segment = b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block
            content = plain["JPEG"][:2] + segment + plain["JPEG"][2:]
        else:
            chunk = b"eXIf" + block
            content = plain["PNG"][:33] + struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk))
            content += plain["PNG"][33:]
        size = [(15, 10), (10, 15)][number % 3 == 0]
        try:
            checked = check_image(content, CocoImage(1, "a", *size, ()), ImageRules(turn_ambiguous=number % 5 == 0))
        except ImageError as error:
            assert "pixels, the annotations say" in str(error)
            outcomes["refused"] += 1
            continue
        outcomes["turned" if checked.turned else "stored"] += 1
        if checked.turned:
            assert checked.content != content and b"Exif" not in checked.content and b"eXIf" not in checked.content
        else:
            assert checked.content == content
    assert min(outcomes.values()) > 100, outcomes


def test_whatever_an_image_raises_is_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = encoded(TALL)
    data_set(tmp_path, dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), good), {})

    def check(content: bytes, entry: CocoImage, rules: ImageRules) -> Any:
        if entry.id == 2:
            raise struct.error("required argument\nis not an integer")
        return check_image(content, entry, rules)

    monkeypatch.setattr(shard_writer, "check_image", check)
    with pytest.raises(UserError, match=r"image 2, .*b\.jpg: error: required argument is not an integer; put it right"):
        convert_all(tmp_path)
    result, _ = convert_all(tmp_path, on_error="skip")
    assert result.summary["images"] == 2 and result.summary["images_skipped"] == 1


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    return image.PNG_SIGNATURE + b"".join(parts)


HEADER = (b"IHDR", struct.pack(">IIBBBBB", 40, 60, 8, 2, 0, 0, 0))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png(HEADER, (b"IEND", b"")), "a PNG without image data"),
        (png(HEADER, (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")), "truncated or no image"),
        (png(HEADER, (b"IDAT", b"noise"), (b"IEND", b"")), "truncated or no image"),
        (png(HEADER)[:20], "truncated or no image"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "a HEIC file; JPEG and PNG are read"),
        (b"RIFF\x1a\0\0\0WEBPVP8L\r\0\0\0/\0\0\0\x10\x07\x10\x11\x11\x88\x88\xfe\x07\0", "a WEBP file; JPEG and PNG are read"),
        (b"\xff\xd8\xff", "truncated or no image"),
    ],
)
def test_files_without_an_image_are_refused_with_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    data_set(tmp_path, {"a.png": content, "b.jpg": encoded(TALL)}, {})
    result, _ = convert_all(tmp_path, on_error="skip")
    assert result.summary["images"] == 1 and reason in next(iter(result.skipped))


def test_a_png_with_large_text_is_taken(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 5_000_000, zip=True)
    text.add_text("parameters", "y" * 3_000_000)
    file = io.BytesIO()
    Image.fromarray(TALL).save(file, "PNG", pnginfo=text)
    data_set(tmp_path, {"a.png": file.getvalue()}, {})
    (example,) = examples(convert_all(tmp_path)[1])
    assert example["image/encoded"].numpy() == file.getvalue()
    np.testing.assert_array_equal(pixels(example), TALL)


@pytest.mark.parametrize("name", ["\udcff.jpg", "\ud800.jpg", "a\nb\x1b[31m.jpg", "ü.jpg", "a" * 300 + ".jpg", "%s{x}.jpg"])
def test_no_file_name_ends_the_job(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = name not in ("\ud800.jpg",) and len(name) < 200
    data_set(tmp_path, {name: encoded(TALL) if there else None, "sound.jpg": encoded(TALL)}, {})
    result, folder = convert_all(tmp_path, on_error="skip")
    assert result.summary["images"] == 1 + there
    print(summary_table(result, "out", "train"))
    assert "\x1b" not in capsys.readouterr().out
    if there:
        assert by_name(folder).keys() == {name, "sound.jpg"}
    data_set(tmp_path, {name: None}, {})
    (tmp_path / "images" / name).unlink() if there else None
    with pytest.raises(UserError) as caught:
        convert(tmp_path / "a.json", tmp_path / "images", tmp_path / "other", "train", ConversionConfig(short_edges=(64,)))
    str(caught.value).encode()


FORMS = ["sub\\1ü.jpg", "./sub/1ü.jpg", "sub//1ü.jpg", ".\\sub\\.\\1ü.jpg", "sub/1u\u0308.jpg"]


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("where", ["folder", "zip", "zip without its flag"])
def test_a_file_is_found_however_its_name_is_written(tmp_path: Path, name: str, on_disk: Any, where: str) -> None:
    data_set(tmp_path, {name: None}, {})
    real = unicodedata.normalize(on_disk, "sub/1ü.jpg")
    images = tmp_path / "images"
    if where == "folder":
        (images / "sub").mkdir()
        (images / real).write_bytes(encoded(TALL))
    else:
        images = tmp_path / "images.zip"
        with zipfile.ZipFile(images, "w") as archive:
            archive.writestr(real, encoded(TALL))
        if where != "zip":
            clear_utf8_flags(images)
    _, folder = convert_all(tmp_path, images=images)
    assert by_name(folder).keys() == {name}


def clear_utf8_flags(path: Path) -> None:
    """Rewrites a zip as programs do that write UTF-8 without saying so."""
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + place + 1] &= ~0x08
            start = content.find(signature, start + 1)
    path.write_bytes(content)


def test_a_smaller_image_takes_its_annotations_along(tmp_path: Path) -> None:
    large = np.repeat(np.repeat(TALL, 5, axis=0), 5, axis=1)  # 300 × 200
    person = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 200, 100], "area": 15000.0}
    person["keypoints"] = [100, 50, 2, 200, 100, 1, 0, 0, 0]
    others = [person | {"id": number, "image_id": number} for number in (2, 3)]
    files = {"a.jpg": encoded(large), "b.png": encoded(large, 1, "PNG"), "c.jpg": encoded(stored(large, 6), 6)}
    data_set(tmp_path, dict(files), dict.fromkeys(files, (300, 200)), annotations=[person, *others])
    result, folder = convert_all(tmp_path, shrink_larger_than=15_000)
    assert result.summary["images_shrunk"] == 3 and result.summary["images_rotated"] == 1
    for name, example in by_name(folder).items():
        height, width = int(example["image/height"]), int(example["image/width"])
        assert (height, width) == (150, 100) == pixels(example).shape[:2], name
        np.testing.assert_allclose(boxes(example), [[0, 0, 100, 50]], atol=1e-4)
        np.testing.assert_allclose(example["image/object/keypoint/x"] * width, [50, 100, 0], atol=1e-4)
        assert example["image/object/area"].numpy() == pytest.approx(15000 / 4)
        assert pixels(example)[10:40].mean(axis=(0, 1))[0] > 200 > 60 > pixels(example)[60:90].mean(), name
    again, _ = convert_all(tmp_path, shrink_larger_than=15_000)
    assert again.converted == 0
    with pytest.raises(UserError, match="shrink_larger_than 15000, now it is 20000"):
        convert_all(tmp_path, shrink_larger_than=20_000)


def test_the_limit_of_pixels_is_a_flag(tmp_path: Path) -> None:
    large = np.zeros((300, 200, 3), np.uint8)
    data_set(
        tmp_path, {"a.jpg": encoded(large), "b.png": encoded(large, 1, "PNG")}, dict.fromkeys(("a.jpg", "b.png"), (300, 200))
    )
    with pytest.raises(UserError, match=r"200×300 pixels in the header, at most 50000 .*--max_pixels .*--shrink_larger_than"):
        convert_all(tmp_path, max_pixels=50_000)
    result, _ = convert_all(tmp_path, max_pixels=60_000)
    assert result.summary["images"] == 2


def test_a_photograph_of_108_megapixels_is_shrunk_without_a_librarys_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    huge = io.BytesIO()
    Image.new("L", (12_000, 9_000), 90).save(huge, "JPEG", quality=30)
    data_set(tmp_path, {"a.jpg": huge.getvalue()}, {"a.jpg": (9_000, 12_000)})
    with pytest.raises(UserError, match="12000×9000 pixels in the header, at most 67108864 are decoded"):
        convert_all(tmp_path)
    _, folder = convert_all(tmp_path, shrink_larger_than=1_000_000)
    (example,) = examples(folder)
    assert pixels(example).shape == (866, 1154, 3) and abs(pixels(example).mean() - 90) < 2
    assert not [warning for warning in recwarn if "Bomb" in warning.category.__name__]


def decodes(content: bytes) -> bool:
    try:
        image.decode(tf.constant(content))
    except tf.errors.OpError:
        return False
    return True


@pytest.mark.parametrize("kind", ["plain", "progressive", "grey"])
def test_what_the_conversion_takes_training_decodes(kind: str) -> None:
    """JPEGs with a byte changed, mostly in their headers: the conversion refuses all that training's decoder refuses."""
    rng = random.Random(1)
    coarse = np.random.default_rng(0).integers(0, 255, (9, 12, 3)).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((120, 90), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.convert("L" if kind == "grey" else "RGB").save(file, "JPEG", progressive=kind == "progressive")
    refused = 0
    for number in range(1500):
        content = bytearray(file.getvalue())
        content[rng.randrange(2, min(700, len(content)) if number % 3 else len(content))] = rng.randrange(256)
        try:
            entry = CocoImage(1, "a", *(90, 120), ())
            taken = check_image(bytes(content), entry).content == content
        except ImageError:
            refused += 1
            continue
        assert taken and decodes(bytes(content))
    assert refused > 100


def test_decoders_write_nothing_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bogus = bytearray(encoded(TALL))
    bogus[bogus.index(b"\xff\xc4") + 5] = 255  # more codes of one bit than there can be: libjpeg prints a line
    data_set(tmp_path, {"a.jpg": bytes(bogus), "b.jpg": encoded(TALL), "c.jpg": encoded(TALL)[:-40] + b"\xff\xd9"}, {})
    capfd.readouterr()
    with pytest.raises(tf.errors.InvalidArgumentError):
        image.decode(tf.constant(bytes(bogus)))
    assert "Bogus Huffman table" in capfd.readouterr().err
    result, _ = convert_all(tmp_path, on_error="skip")
    assert result.summary["images_skipped"] == 1
    assert capfd.readouterr().err == ""


def test_a_split_of_which_nothing_is_left_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data_set(tmp_path, {"a.jpg": None, "b.jpg": None}, {})
    arguments = [f"--annotations={tmp_path / 'a.json'}", f"--images={tmp_path / 'images'}", f"--output_dir={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["make_tfrecords", *arguments, "--on_error=skip", "--short_edges=64"])
    with pytest.raises(SystemExit) as exit_:
        command.run(make_tfrecords.main, make_tfrecords.FLAGS, make_tfrecords.__doc__, passes_unknown_flags=True)
    for name in make_tfrecords.FLAGS:
        make_tfrecords.FLAGS[name].unparse()
    captured = capsys.readouterr()
    assert exit_.value.code == 1
    assert (
        captured.err.count("\n") == 1
        and "no image was converted: all 2 were left out, 2 of them with the reason" in captured.err
    )
    assert "no such file" in captured.err and "--images=" in captured.err


def test_a_person_is_scaled_as_a_whole() -> None:
    person = Person(1, (0.0, 0.0, 30.0, 15.0), 300.0, False, np.array([[30.0, 15.0, 2.0]]))
    checked = check_image(encoded(TALL), CocoImage(1, "a", 60, 40, (person,)), ImageRules(shrink_larger_than=600))
    (smaller,) = checked.entry.persons
    assert (checked.entry.height, checked.entry.width) == (30, 20)
    assert smaller.box == (0, 0, 15, 7.5) and smaller.area == 75 and smaller.keypoints.tolist() == [[15, 7.5, 2]]
