"""Conversion from and to an object store: a filesystem of Beam that keeps its objects in memory."""

from __future__ import annotations

import dataclasses
import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem

from pipeline import storage
from pipeline.command import UserError
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig
from pipeline.writing.image_files import REQUESTS_AT_ONCE

CONFIG = ConversionConfig(dataset_name="small", short_edges=(64,), num_shards=3)


class Killed(BaseException):
    """Stands for a process that ends here."""


class MemoryFileSystem(FileSystem):
    """An object store: no folders, an object appears when it is closed, a rename is a copy and a removal."""

    objects: ClassVar[dict[str, bytes]] = {}
    fail_to_open: ClassVar[str | None] = None
    renames_until_killed: ClassVar[int | None] = None
    open_now: ClassVar[int] = 0
    most_open: ClassVar[int] = 0
    fetched: ClassVar[int] = 0
    lock: ClassVar[Any] = threading.Lock()

    @classmethod
    def scheme(cls) -> str:
        return "memory"

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def mkdirs(self, path: str) -> None:
        raise NotImplementedError("there are no folders")

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for path, content in list(self.objects.items()):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(content))

    def create(self, path: str, mime_type: str = "", compression_type: str = "auto") -> io.BytesIO:
        assert compression_type == "uncompressed"
        return _Upload(path)

    def open(self, path: str, mime_type: str = "", compression_type: str = "auto") -> io.BufferedReader:
        assert compression_type == "uncompressed"
        if self.fail_to_open and self.fail_to_open in path:
            raise ConnectionResetError("connection reset by peer\nat some place")
        if path not in self.objects:
            raise BeamIOError("no object", {path: "404"})
        with self.lock:
            type(self).open_now += 1
            type(self).most_open = max(self.open_now, self.most_open)
        time.sleep(0.01)
        with self.lock:
            type(self).open_now -= 1
        return io.BufferedReader(_Download(self.objects[path]), 1 << 24)  # as Beam reads from S3

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, destination in zip(source_file_names, destination_file_names, strict=True):
            self.objects[destination] = self.objects[source]

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        if self.renames_until_killed is not None:
            type(self).renames_until_killed = self.renames_until_killed - 1
            if self.renames_until_killed < 0:
                raise Killed
        self.copy(source_file_names, destination_file_names)
        self.delete(source_file_names)

    def exists(self, path: str) -> bool:
        return path in self.objects

    def size(self, path: str) -> int:
        return len(self.objects[path])

    def last_updated(self, path: str) -> float:
        return 0.0

    def checksum(self, path: str) -> str:
        return str(hash(self.objects[path]))

    def metadata(self, path: str) -> FileMetadata:
        return FileMetadata(path, len(self.objects[path]))

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            del self.objects[path]


class _Download(io.RawIOBase):
    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._content.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        count = self._content.readinto(buffer)
        with MemoryFileSystem.lock:
            MemoryFileSystem.fetched += count
        return count


class _Upload(io.BytesIO):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            if not self.getvalue():
                raise TypeError("no parts", 400)  # as with Beam's S3
            MemoryFileSystem.objects[self._path] = self.getvalue()
        super().close()


@pytest.fixture
def store(forty_images: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The objects of a store that holds the small data set under memory://bucket/in."""
    objects = {"memory://bucket/in/a.json": (forty_images / "a.json").read_bytes()}
    for entry in (forty_images / "images").iterdir():
        objects[f"memory://bucket/in/images/{entry.name}"] = entry.read_bytes()
    for name, value in {
        "objects": objects,
        "fail_to_open": None,
        "renames_until_killed": None,
        "most_open": 0,
        "fetched": 0,
    }.items():
        monkeypatch.setattr(MemoryFileSystem, name, value)
    return objects


@pytest.fixture(scope="module")
def on_disk(forty_images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a conversion from and to a disk."""
    folder = tmp_path_factory.mktemp("on_disk") / "out"
    convert(forty_images / "a.json", forty_images / "images", folder, "train", CONFIG)
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("summary")}


def to_store(images: str = "memory://bucket/in/images", split: str = "train", **rest: Any) -> None:
    convert("memory://bucket/in/a.json", images, "memory://bucket/out", split, **{"config": CONFIG, **rest})


def written(store: dict[str, bytes]) -> dict[str, bytes]:
    start = "memory://bucket/out/"
    return {
        path.removeprefix(start): content
        for path, content in store.items()
        if path.startswith(start) and not path.startswith(f"{start}summary")
    }


def test_from_store_to_store_the_bytes_are_those_of_a_disk(store: dict[str, bytes], on_disk: dict[str, bytes]) -> None:
    to_store()
    assert written(store) == on_disk
    assert 4 < MemoryFileSystem.most_open <= REQUESTS_AT_ONCE
    before = dict(store)
    to_store()  # finished already
    assert store == before


def test_a_zip_in_a_store_is_read_in_place(store: dict[str, bytes], on_disk: dict[str, bytes]) -> None:
    file = io.BytesIO()
    entries = [path for path in store if path.endswith(".jpg")]
    with zipfile.ZipFile(file, "w") as archive:
        for path in entries:
            archive.writestr(f"train2017/{path.rpartition('/')[2]}", store.pop(path))
            archive.writestr(f"{path.rpartition('/')[2]}.txt", bytes(1 << 20))
    store["memory://bucket/in/train2017.zip"] = file.getvalue()
    to_store("memory://bucket/in/train2017.zip")
    assert written(store) == on_disk
    assert MemoryFileSystem.fetched < len(entries) * (1 << 19)  # and not all that lies between


def test_from_a_store_to_a_disk(store: dict[str, bytes], on_disk: dict[str, bytes], tmp_path: Path) -> None:
    convert("memory://bucket/in/a.json", "memory://bucket/in/images/", tmp_path / "out", "train", CONFIG)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if not path.name.startswith("summary")}
    assert files == on_disk


@pytest.mark.parametrize("renames", [0, 3, 5, 6, 7, 9, 11, 13, 15, 16])
def test_killed_at_any_rename_it_goes_on_and_ends_with_the_same_bytes(
    store: dict[str, bytes], on_disk: dict[str, bytes], renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.writing import conversion, shard_writer

    def without_beam(settings: shard_writer.ShardSettings, numbers: list[int], options: object) -> None:
        for number in numbers:
            shard_writer.write_shard(settings, number)

    monkeypatch.setattr(conversion, "run_job", without_beam)
    MemoryFileSystem.renames_until_killed = renames
    try:
        to_store()
        finished = True
    except Killed:
        finished = False
    # The metadata come after all that readers need; of all renames only that of the summary, with its timings, is later.
    assert finished == (renames > 15) and ("memory://bucket/out/pipeline.json" in store) == (renames > 14)
    MemoryFileSystem.renames_until_killed = None
    to_store()
    result = written(store)
    for name in [name for name in result if len(name.rpartition(".")[2]) == 32]:  # uploaded, never renamed: nobody reads it
        del result[name]
    assert result == on_disk


def test_another_split_joins_and_can_be_replaced(store: dict[str, bytes]) -> None:
    to_store()
    before = written(store)
    to_store(split="val", config=dataclasses.replace(CONFIG, num_shards=1, limit=5))
    with pytest.raises(UserError, match="num_shards 1, now it is 2"):
        to_store(split="val", config=dataclasses.replace(CONFIG, num_shards=2))
    to_store(split="val", config=dataclasses.replace(CONFIG, num_shards=2), overwrite=True)
    after = written(store)
    shared = {"pipeline.json", "dataset_info.json", "features.json"}
    assert {name: after[name] for name in before.keys() - shared} == {name: before[name] for name in before.keys() - shared}
    assert sorted(name for name in after if "val" in name) == [
        "index-val.npy",
        "small-val.tfrecord-00000-of-00002",
        "small-val.tfrecord-00001-of-00002",
    ]
    assert sorted(json.loads(after["pipeline.json"])["splits"]) == ["train", "val"]


def test_a_store_that_fails_costs_no_image(store: dict[str, bytes], on_disk: dict[str, bytes]) -> None:
    MemoryFileSystem.fail_to_open = "/17.jpg"
    with pytest.raises(UserError, match=r"17\.jpg in memory://bucket/in/images: connection reset by peer at some place; st"):
        to_store(on_error="skip")
    assert "pipeline.json" not in written(store)
    MemoryFileSystem.fail_to_open = None
    to_store(on_error="skip")
    assert written(store) == on_disk


def test_a_image_that_is_not_there_is_the_images_fault(store: dict[str, bytes]) -> None:
    del store["memory://bucket/in/images/17.jpg"]
    with pytest.raises(UserError, match=r"image 17, memory://bucket/in/images/17\.jpg: no such file; "):
        to_store()
    to_store(on_error="skip")
    assert json.loads(written(store)["errors-train.jsonl"])["image_id"] == 17


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("foo://bucket/x", "Beam has no filesystem for foo://; it has gs://, s3://"),
        ("gs://bucket/x", r"gs:// needs a client that is not installed; pip install 'apache-beam\[gcp\]'"),
        ("s3://bucket/x", r"s3:// needs a client that is not installed; pip install 'apache-beam\[aws\]'"),
        ("memory://bucket/nothing", "no images there"),
    ],
)
def test_a_place_that_cannot_be_reached_is_refused(
    store: dict[str, bytes], location: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_installed", lambda module: False)  # (whatever is installed here)
    before = dict(store)
    with pytest.raises(UserError, match=message) as caught:
        to_store(location)
    assert "\n" not in str(caught.value) and store == before
    if "memory" not in location:
        for annotations, output in ((location, "memory://bucket/out"), ("memory://bucket/in/a.json", location)):
            with pytest.raises(UserError, match=message):
                convert(annotations, "memory://bucket/in/images", output, "train", CONFIG)


def test_absent_annotations_are_named(store: dict[str, bytes]) -> None:
    with pytest.raises(UserError, match=r"memory://bucket/b\.json: no such annotation file"):
        convert("memory://bucket/b.json", "memory://bucket/in/images", "memory://bucket/out", "train", CONFIG)


def test_an_object_that_cannot_be_written_is_named(store: dict[str, bytes]) -> None:
    with pytest.raises(OSError, match="no parts") as caught:
        storage.write("memory://bucket/out/empty", b"")
    assert caught.value.filename == "memory://bucket/out/empty"
    with pytest.raises(UserError, match=r"memory://bucket/out/small-train.*: cannot be written \(no parts\)"):
        to_store(config=dataclasses.replace(CONFIG, num_shards=50))  # more than there are images
    assert "pipeline.json" not in written(store)


def test_a_failing_client_is_named(store: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: MemoryFileSystem, path: str) -> bool:
        raise BeamIOError("exists() operation failed", {path: PermissionError("no credentials")})

    monkeypatch.setattr(MemoryFileSystem, "exists", refuse)
    with pytest.raises(UserError, match=r"memory://bucket/.*: cannot be reached \(no credentials\)"):
        to_store()
