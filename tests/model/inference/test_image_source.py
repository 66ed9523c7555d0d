"""Images from folders below, globs, zips and object stores; what of them is written."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from model.inference.image_folder import predict_files, summary_text
from model.inference.image_names import annotated, numbered, read_image_names
from model.inference.image_source import find_images
from pipeline.command import UserError
from tests.model.inference.test_image_folder import PREDICTOR
from tests.pipeline.test_storage import MemoryFileSystem


class AlbumFileSystem(MemoryFileSystem):
    """An object store of its own."""

    objects: ClassVar[dict[str, bytes]] = {}

    @classmethod
    def scheme(cls) -> str:
        return "album"


def jpeg(width: int = 60) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 40), (90, 90, 90)).save(file, "JPEG")
    return file.getvalue()


NAMES = ("a.jpg", "below/b_7.jpg", "below/deep/a.jpg", "below/.hidden.jpg", "notes.txt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(jpeg())
    return tmp_path / "in"


@pytest.fixture
def archive(folder: Path) -> Path:
    path = folder.parent / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in (*NAMES, "__MACOSX/._a.jpg"):
            file.writestr(name, jpeg() if "b_7" not in name else b"\xff\xd8 broken")
    return path


def names_of(given: str, *, subfolders: bool = False) -> list[str]:
    return [one.file_name for one in find_images(given, subfolders=subfolders)[0]]


def test_what_each_input_names(folder: Path, archive: Path) -> None:
    below = ["a.jpg", "below/b_7.jpg", "below/deep/a.jpg"]
    assert names_of(str(folder)) == ["a.jpg"]
    assert names_of(str(folder), subfolders=True) == below
    assert names_of(f"{folder}/**/*.jpg") == below
    assert names_of(f"{folder}/*/b*.jpg") == ["below/b_7.jpg"]
    assert names_of(str(archive)) == below
    assert names_of(str(folder / "a.jpg")) == ["a.jpg"]
    _, notes = find_images(str(folder), subfolders=True)
    assert notes == [
        "passed over: 1 hidden files: below/.hidden.jpg",
        "passed over: 1 files whose names do not end in .jpg, .jpeg, .png: notes.txt",
    ]
    for given in (f"{folder}/*.png", str(folder / "nowhere"), f"{folder}/below/*/*.txt"):
        with pytest.raises(UserError, match=r"--input=.*: (matches no image|no such file)"):
            find_images(given)


def test_an_object_store(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    objects = {f"album://bucket/in/{name}": jpeg() for name in NAMES}
    monkeypatch.setattr(AlbumFileSystem, "objects", objects)
    assert names_of("album://bucket/in") == names_of("album://bucket/in/") == ["a.jpg"]
    assert names_of("album://bucket/in", subfolders=True) == ["a.jpg", "below/b_7.jpg", "below/deep/a.jpg"]
    assert names_of("album://bucket/in/below/*.jpg") == ["b_7.jpg"]
    images, _ = numbered(find_images("album://bucket/in/a.jpg")[0])
    summary = predict_files(PREDICTOR, images, tmp_path / "out")
    assert (summary.images, summary.people) == (1, 1) and (tmp_path / "out" / "pictures" / "a.jpg").exists()
    with pytest.raises(UserError, match=r"no images there"):
        find_images("album://bucket/other")
    with pytest.raises(UserError, match=r"Beam has no filesystem for nowhere://"):
        find_images("nowhere://bucket/in")


def test_a_zip_with_a_bad_image(archive: Path, tmp_path: Path) -> None:
    """The bad one is named, the others are done; drawings of one name in two folders do not meet."""
    images, _ = numbered(find_images(str(archive))[0])
    summary = predict_files(PREDICTOR, images, tmp_path / "out")
    assert (summary.images, summary.people) == (2, 2)
    assert len(summary.unreadable) == 1 and "images.zip/below/b_7.jpg" in summary.unreadable[0]
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [entry["file_name"] for entry in entries] == ["a.jpg", "below/deep/a.jpg"]
    drawn = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.jpg")}
    assert drawn == {"pictures/a.jpg", "pictures/below/deep/a.jpg"}
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"images.zip: not a whole zip file"):
        find_images(str(archive))


def test_annotations_find_their_images_in_a_zip(archive: Path, tmp_path: Path) -> None:
    images = [{"id": 5, "file_name": "deep/a.jpg"}, {"id": 9, "file_name": "a.jpg"}, {"id": 11, "file_name": "gone.jpg"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images}))
    found, _ = annotated(archive, find_images(str(archive))[0], read_image_names(tmp_path / "a.json"), "a.json")
    assert [(one.image_id, one.file_name) for one in found][-1] == (9, "a.jpg")


def test_people_are_cut_out(folder: Path, tmp_path: Path) -> None:
    images, _ = numbered(find_images(str(folder))[0])
    summary = predict_files(PREDICTOR, images, tmp_path / "out", draw=False, crop=True)
    assert "1 cut out person" in summary_text(summary)
    assert Image.open(tmp_path / "out" / "crops" / "a_1.jpg").size == (26, 20)  # the box 4, 5 to 30, 25
    assert not (tmp_path / "out" / "pictures").exists()
    summary = predict_files(PREDICTOR, images, tmp_path / "out", draw=False)
    assert not (tmp_path / "out" / "crops").exists() and "removed: 1 drawings" in summary_text(summary)


def test_names_and_thickness() -> None:
    from model.inference.drawing_style import DrawingStyle

    (people,) = PREDICTOR([np.full((120, 200, 3), 90, np.uint8)])
    pixels = np.full((120, 200, 3), 90, np.uint8)
    plain, thick, named, numbered_one = (
        (DrawingStyle(*style).draw(pixels, people, labels) != 90).any(-1).sum()
        for style, labels in (
            ((None, None, False), None),
            ((5, None, False), None),
            ((None, None, True), None),
            ((None, 20, False), ["#12"]),
        )
    )
    assert thick > 2 * plain and named > plain + 100 and numbered_one > plain + 100
