from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import pytest

from pipeline.command import UserError
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig
from pipeline.writing.image_files import ZipMember, find_members, read_member

CONFIG = ConversionConfig(dataset_name="small", short_edges=(64,), num_shards=3)
CONTENT = bytes(range(40))
Files = dict[str, bytes]


def make_zip(path: Path, *files: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return str(path)


def found(location: str, *names: str) -> list[ZipMember | str]:
    members = find_members(location, names)
    return [members[name] for name in names]


def read(location: str, name: str) -> bytes:
    (member,) = found(location, name)
    assert isinstance(member, ZipMember), member
    with Path(location).open("rb") as archive:
        return read_member(archive, member)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", ["1.jpg", "train2017/1.jpg", "data/train2017/1.jpg", r"data\train2017\1.jpg"])
def test_a_file_is_found_in_whatever_folder(tmp_path: Path, name: str, compression: int) -> None:
    others = [("train2017/", b""), ("__MACOSX/train2017/._1.jpg", b"fork"), ("train2017/11.jpg", b"other")]
    location = make_zip(tmp_path / "a.zip", *others, (name, CONTENT), compression=compression)
    assert read(location, "1.jpg") == CONTENT
    if "/" in name:
        assert read(location, "train2017/1.jpg") == CONTENT
    assert read(location, "11.jpg") == b"other"


def test_of_several_only_the_very_name_will_do(tmp_path: Path) -> None:
    location = make_zip(tmp_path / "a.zip", ("a/1.jpg", b"a"), ("b/1.jpg", b"b"), ("c/2.jpg", b"c"), ("2.jpg", CONTENT))
    assert found(location, "1.jpg", "3.jpg") == [
        "2 files of this name in the zip (a/1.jpg, b/1.jpg)",
        "no such file in the zip",
    ]
    assert read(location, "a/1.jpg") == b"a" and read(location, "2.jpg") == CONTENT


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    location = make_zip(tmp_path / "a.zip", ("1.jpg", b"a"), ("1.jpg", b"b"))
    assert found(location, "1.jpg") == ["2 files of this name in the zip (1.jpg, 1.jpg)"]


def test_what_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    location = make_zip(tmp_path / "bzip2.zip", ("1.jpg", CONTENT), compression=zipfile.ZIP_BZIP2)
    assert found(location, "1.jpg") == ["compressed in the zip by method 12; stored and deflated files are read"]

    directory = b"PK\1\2"
    whole = Path(make_zip(tmp_path / "a.zip", ("1.jpg", CONTENT))).read_bytes()
    start = whole.index(directory)
    encrypted = tmp_path / "encrypted.zip"
    encrypted.write_bytes(whole[: start + 8] + b"\1" + whole[start + 9 :])
    assert found(str(encrypted), "1.jpg") == ["encrypted in the zip"]
    huge = tmp_path / "huge.zip"
    huge.write_bytes(whole[: start + 24] + b"\xf0\xff\xff\xff" + whole[start + 28 :])
    (reason,) = found(str(huge), "1.jpg")
    assert isinstance(reason, str) and reason.startswith("4294967280 bytes")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_is_noticed(tmp_path: Path, compression: int) -> None:
    location = make_zip(tmp_path / "a.zip", ("1.jpg", CONTENT), compression=compression)
    whole = Path(location).read_bytes()
    (member,) = found(location, "1.jpg")
    assert isinstance(member, ZipMember)
    noticed = 0
    for position in range(35, 35 + member.stored_bytes):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        try:
            assert read_member(io.BytesIO(damaged), member) == CONTENT  # (deflate says some things in several ways)
        except ValueError as error:
            assert "damaged in the zip" in str(error)
            noticed += 1
    assert noticed >= member.stored_bytes - 2
    with pytest.raises(ValueError, match="its header is not where the directory says"):
        read_member(io.BytesIO(whole), dataclasses.replace(member, offset=3))
    with pytest.raises(ValueError, match="damaged"):
        read_member(io.BytesIO(whole[:40]), member)


@pytest.mark.parametrize("content", [b"", b"text", None], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_zip_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.zip"
    whole = Path(make_zip(path, ("1.jpg", CONTENT * 100))).read_bytes()
    path.write_bytes(whole[:1000] if content is None else content)
    with pytest.raises(UserError, match=r"a\.zip: not a whole zip file \(.+\); fetch or copy it again"):
        find_members(str(path), ["1.jpg"])


@pytest.fixture
def zipped(forty_images: Path, tmp_path: Path) -> Path:
    path = tmp_path / "train2017.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, entry in enumerate(sorted((forty_images / "images").iterdir())):
            archive.write(entry, f"train2017/{entry.name}", zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)
    return path


def converted(forty_images: Path, images: Path, output: Path, **rest: str) -> Files:
    convert(forty_images / "a.json", images, output, "train", CONFIG, **rest)  # type: ignore[arg-type]
    return {path.name: path.read_bytes() for path in output.iterdir() if not path.name.startswith("summary")}


def test_a_zip_gives_the_bytes_of_its_folder(forty_images: Path, zipped: Path, tmp_path: Path) -> None:
    from_zip = converted(forty_images, zipped, tmp_path / "from_zip")
    assert from_zip == converted(forty_images, forty_images / "images", tmp_path / "from_folder")


def test_its_faults_are_those_of_images(forty_images: Path, zipped: Path, tmp_path: Path) -> None:
    whole = zipped.read_bytes()
    with zipfile.ZipFile(zipped) as archive:
        offset = archive.getinfo("train2017/7.jpg").header_offset
    zipped.write_bytes(whole[: offset + 100] + b"damage" + whole[offset + 106 :])
    with pytest.raises(UserError, match=r"image 7, .*train2017\.zip/7\.jpg: damaged in the zip: .*--on_error=skip"):
        converted(forty_images, zipped, tmp_path / "out")
    content = json.loads((forty_images / "a.json").read_text())
    content["images"][3]["file_name"] = "absent.jpg"
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"image 4, .*/absent\.jpg: no such file in the zip; "):
        converted(tmp_path, zipped, tmp_path / "other")
    files = converted(tmp_path, zipped, tmp_path / "skipped", on_error="skip")
    errors = {error["image_id"]: error["reason"] for error in map(json.loads, files["errors-train.jsonl"].splitlines())}
    assert errors.keys() == {4, 7} and errors[4] == "no such file in the zip" and errors[7].startswith("damaged in the zip")
