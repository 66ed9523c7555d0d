"""What an engine may do to a shard's writer: repeat it, run it twice at once, leave it behind, put it on another machine."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.command import UserError
from pipeline.writing import conversion
from pipeline.writing.conversion import ConversionConfig, convert
from pipeline.writing.shard_writer import MachineError, ShardSettings, start_run, write_shard

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
