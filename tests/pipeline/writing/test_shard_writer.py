"""What an engine may do to a shard's writer: repeat it, run it twice at once, leave it behind, put it on another machine."""

from __future__ import annotations

import dataclasses
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.coco import CocoImage, Person
from pipeline.command import UserError
from pipeline.writing import conversion
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig
from pipeline.writing.image_files import LocatedImage, ZipMember
from pipeline.writing.shard_writer import (
    MachineError,
    ShardSettings,
    _read_noted,
    finished_shards,
    noted_images,
    start_run,
    stop_reason,
    write_shard,
)

CONFIG = ConversionConfig(dataset_name="small", short_edges=(64,), num_shards=2)


@pytest.fixture
def begun(forty_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardSettings:
    """The settings of a conversion to tmp_path/out whose workers have not begun."""
    caught: list[ShardSettings] = []
    monkeypatch.setattr(conversion, "run_job", lambda settings, numbers, options: caught.append(settings))
    with pytest.raises(UserError, match="2 shards that were not written"):
        convert(forty_images / "a.json", forty_images / "images", tmp_path / "out", "train", CONFIG)
    return caught[0]


@pytest.fixture(scope="module")
def whole(forty_images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "out"
    convert(forty_images / "a.json", forty_images / "images", folder, "train", CONFIG)
    return {path.name: path.read_bytes() for path in folder.glob("small-*")}


def shards(settings: ShardSettings) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(settings.output).glob("small-*")}


def test_attempts_at_the_same_time_do_not_disturb_each_other(begun: ShardSettings, whole: dict[str, bytes]) -> None:
    for _ in range(10):
        with ThreadPoolExecutor(6) as pool:
            for attempt in [pool.submit(write_shard, begun, number) for number in (0, 1, 0, 1, 1, 0)]:
                attempt.result()
        assert shards(begun) == whole
        for name in whole:
            Path(begun.output, name).unlink()
    assert not list(Path(begun.work).glob("records-*")) and not list(Path(begun.work).glob("stop-*"))


def test_a_finished_shard_is_not_written_again(begun: ShardSettings) -> None:
    write_shard(begun, 0)
    (path,) = Path(begun.output).glob("small-*")
    before = path.stat()
    write_shard(begun, 0)
    assert path.stat() == before


def test_a_worker_of_an_earlier_run_writes_nothing(begun: ShardSettings, whole: dict[str, bytes]) -> None:
    later = dataclasses.replace(begun, run="later")
    start_run(later)
    write_shard(begun, 0)
    assert not shards(begun)
    for number in range(2):
        write_shard(later, number)
    assert shards(later) == whole


def test_a_worker_that_does_not_see_the_places_says_so(begun: ShardSettings, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"/absent is not there on .+; give places that every worker sees"):
        write_shard(dataclasses.replace(begun, images="/absent"), 0)
    elsewhere = dataclasses.replace(begun, output=str(tmp_path / "x"), work=str(tmp_path / "x" / "unfinished-train"))
    with pytest.raises(MachineError, match=r"/x is not the main process's folder on .+; give places"):
        write_shard(elsewhere, 0)
    assert not shards(begun)


def test_the_images_of_a_shard_are_noted_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    persons = [Person(i, (0.1, 1e-300, 3.7, 4.0), 1 / 3, i == 1, rng.normal(size=(5, 3)) * 1e9) for i in range(2)]
    shard: list[LocatedImage] = [
        (CocoImage(2**40, "Füße/\udcff\x1b.jpg", 480, 640, tuple(persons)), None),
        (CocoImage(2, "b.jpg", 1, 2, ()), ZipMember(3, 4, 5, 6, True)),
        (CocoImage(3, "", 0, 0, (), "no file_name in the image entry"), "no such file in the zip"),
    ]
    (tmp_path / "images-00000").write_text(noted_images(shard))
    read = _read_noted(str(tmp_path / "images-00000"))
    for (entry, member), (entry_read, member_read) in zip(shard, read, strict=True):
        assert member == member_read
        for field in ("id", "file_name", "height", "width", "error"):
            assert getattr(entry, field) == getattr(entry_read, field)
        for person, person_read in zip(entry.persons, entry_read.persons, strict=True):
            assert (person.keypoints == person_read.keypoints).all() and person_read.keypoints.dtype == np.float64
            for field in ("id", "box", "area", "is_crowd"):
                assert getattr(person, field) == getattr(person_read, field)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Hostile()), b"", b"{}", b"[1]", b'[{"entry": {"persons": [1]}, "member": null}]', b'[{"entry": {}}]'],
)
def test_nothing_in_the_work_folder_is_unpickled_and_damage_stops_the_run_in_one_line(
    begun: ShardSettings, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(begun.images_path(0)).write_bytes(content)
    write_shard(begun, 0)
    reason = stop_reason(begun)
    assert reason is not None and "images-00000: is damaged" in reason and "start again" in reason and "\n" not in reason
    assert "unpickled" not in capsys.readouterr().out and not shards(begun)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../precious"},
        {"records": 3},
        {"index": [[1, 2]]},
        {"index": [[-1] * 8] * 20},
        {"index": [["a"] * 8] * 20},
        {"index": [[10**30] * 8] * 20},
        {"sha256": "0"},
        {"errors": {"a": 1}},
        {"errors": [1]},
        {"counts": {"persons": "many"}},
        {"counts": []},
    ],
    ids=str,
)
def test_a_shard_whose_facts_are_damaged_is_written_again(begun: ShardSettings, change: dict[str, object]) -> None:
    write_shard(begun, 0)
    path = Path(begun.facts_path(0))
    assert list(finished_shards(begun, [0, 1])) == [0]
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert not finished_shards(begun, [0, 1])
