from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pipeline import files
from pipeline.anchors import AnchorConfig
from pipeline.command import Progress, UserError
from pipeline.data_config import DataConfig
from pipeline.loading.batches import training_batches
from pipeline.record_folder import open_record_folder
from pipeline.writing import conversion, shard_writer
from pipeline.writing.beam_job import beam_options
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig
from pipeline.writing.metadata import ConversionResult, summary_table

CONFIG = ConversionConfig(dataset_name="small", short_edges=(64, 96), num_shards=4)
Convert = Callable[..., ConversionResult]
ROOT = Path(__file__).parents[3]
QUIET = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}  # as a terminal has it


@pytest.fixture(scope="module")
def source(forty_images: Path) -> Path:
    return forty_images


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set that the source gives, converted without interruption."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    convert(source / "a.json", source / "images", folder, "train", CONFIG)
    return folder


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Convert:
    """Converts the source to tmp_path/out, or as told."""

    def convert_source(
        output: str = "out",
        split: str = "train",
        config: ConversionConfig = CONFIG,
        *,
        annotations: Path | None = None,
        **rest: Any,
    ) -> ConversionResult:
        return convert(annotations or source / "a.json", source / "images", tmp_path / output, split, config, **rest)

    return convert_source


def content_of(folder: Path) -> dict[str, bytes]:
    """All files but the one with timings."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "summary-train.json"}


def changed(source: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = json.loads((source / "a.json").read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_all_images_are_there_once_in_an_order_of_their_own(run: Convert, tmp_path: Path) -> None:
    result = run()
    data = open_record_folder(tmp_path / "out")
    rows = data.index("train")
    assert sorted(rows["image_id"]) == list(range(1, 41)) and list(rows["image_id"]) != sorted(rows["image_id"])
    assert np.bincount(rows["shard"]).tolist() == [10, 10, 10, 10]
    assert [path.name for path in data.shards("train")] == [f"small-train.tfrecord-{i:05d}-of-00004" for i in range(4)]
    assert result.converted == 40
    summary = result.summary
    assert (summary["images"], summary["persons"], summary["labelled_keypoints"], summary["images_skipped"]) == (40, 32, 64, 0)
    assert summary["record_bytes"] == sum(path.stat().st_size for path in data.shards("train"))
    assert data.splits["train"]["summary"] == summary
    assert not [path for path in (tmp_path / "out").iterdir() if "unfinished" in path.name or path.name.startswith(".")]


def test_the_bytes_are_a_function_of_the_content(run: Convert, source: Path, finished: Path, tmp_path: Path) -> None:
    def shuffle(content: dict[str, Any]) -> None:
        for key in ("images", "annotations"):
            random.Random(1).shuffle(content[key])

    run(annotations=changed(source, tmp_path / "b.json", shuffle))
    assert content_of(tmp_path / "out") == content_of(finished)


@pytest.mark.slow
def test_worker_processes_write_the_same_bytes_and_show_how_far_they_are(
    run: Convert, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "SECONDS_BETWEEN_LINES", 0.0)
    run(beam_flags=["--direct_running_mode=multi_processing", "--direct_num_workers=2"])
    assert content_of(tmp_path / "out") == content_of(finished)
    printed, errors = capfd.readouterr()
    assert re.search(r"^convert train: 40/40, \d+\.\d images/s, 0 s left$", printed, re.MULTILINE)
    assert not errors  # Beam's workers would say a dozen things of themselves


def test_the_default_number_of_shards_depends_on_the_number_of_images(
    run: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "IMAGES_PER_SHARD", 10)
    config = ConversionConfig(short_edges=(64,))
    run(config=config)
    assert len(open_record_folder(tmp_path / "out").shards("train")) == 4
    run("few", config=ConversionConfig(short_edges=(64,), limit=3))
    few = open_record_folder(tmp_path / "few")
    assert len(few.shards("train")) == 1
    np.testing.assert_array_equal(
        few.index("train")["image_id"], open_record_folder(tmp_path / "out").index("train")["image_id"][:3]
    )


def test_a_finished_split_is_left_alone(run: Convert, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = run()
    assert again.converted == 0 and again.summary["images"] == 40
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_a_second_split_joins_without_touching_the_first(run: Convert, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    before = content_of(tmp_path / "out")
    run(split="val", config=dataclasses.replace(CONFIG, num_shards=1, limit=5))
    after = content_of(tmp_path / "out")
    for name in before.keys() - {"pipeline.json", "dataset_info.json", "features.json"}:
        assert after[name] == before[name]
    data = open_record_folder(tmp_path / "out")
    assert sorted(data.splits) == ["train", "val"] and len(data.index("val")) == 5 and len(data.index("train")) == 40


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"num_shards": 3}, "num_shards 4, now it is 3"),
        ({"limit": 7}, "limit 0, now it is 7"),
        ({"short_edges": (64,)}, "short_edges"),
        ({"anchors": AnchorConfig(sizes=(16, 32, 64, 128, 256))}, "anchors"),
        ({"dataset_name": "other"}, "other"),
        ({"sigmas": (0.1, 0.2, 0.3)}, "skeleton"),
    ],
)
def test_other_arguments_are_refused(run: Convert, finished: Path, tmp_path: Path, changes: dict[str, Any], names: str) -> None:
    shutil.copytree(finished, tmp_path / "out")
    with pytest.raises(UserError, match=names):
        run(config=dataclasses.replace(CONFIG, **changes))
    assert content_of(tmp_path / "out") == content_of(finished)


def test_overwrite_replaces_a_split_and_leaves_nothing_of_it(run: Convert, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    other = dataclasses.replace(CONFIG, num_shards=3, short_edges=(64,), sigmas=(0.1, 0.2, 0.3))
    run(config=other, overwrite=True)
    run("anew", config=other)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "anew")


@pytest.mark.parametrize("key", ["index", "file"])
def test_overwrite_removes_nothing_outside(run: Convert, finished: Path, tmp_path: Path, key: str) -> None:
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "precious").write_text("kept")
    path = tmp_path / "out" / "pipeline.json"
    content = json.loads(path.read_text())
    split = content["splits"]["train"]
    (split if key == "index" else split["shards"][0])[key] = "../precious"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"pipeline.json: damaged .*\.\./precious"):
        run(overwrite=True)
    assert (tmp_path / "precious").read_text() == "kept" and (tmp_path / "out" / "index-train.npy").exists()


def test_a_second_split_of_another_kind_is_refused(run: Convert, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    with pytest.raises(UserError, match="split train"):
        run(split="val", config=dataclasses.replace(CONFIG, short_edges=(64,)), overwrite=True)
    assert sorted(open_record_folder(tmp_path / "out").splits) == ["train"]


def test_other_annotations_are_refused(run: Convert, source: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")

    def move(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"][0] += 1

    with pytest.raises(UserError, match="input_sha256"):
        run(annotations=changed(source, tmp_path / "b.json", move))


def without_beam(settings: shard_writer.ShardSettings, numbers: list[int], options: object) -> None:
    for number in numbers:
        shard_writer.write_shard(settings, number)


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("step", range(1, 19))
def test_interrupted_at_any_rename_it_goes_on_and_ends_with_the_same_bytes(
    run: Convert, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    calls = 0

    def publish_until(written: Path, final: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise Killed
        published(written, final)

    published = files.publish
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.files.publish", publish_until)
        patch.setattr(conversion, "run_job", without_beam)  # whose threads outlive an exception of this kind
        with pytest.raises(Killed):
            run()
    with pytest.raises(UserError, match=r"no pipeline\.json"):
        open_record_folder(tmp_path / "out")
    run()
    assert content_of(tmp_path / "out") == content_of(finished)


def test_ctrl_c_stops_before_the_next_image(
    run: Convert, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(settings: shard_writer.ShardSettings, numbers: list[int], options: object) -> None:
        without_beam(settings, numbers[:1], options)
        signal.raise_signal(signal.SIGINT)
        without_beam(settings, numbers[1:], options)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "run_job", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert len(list((tmp_path / "out").glob("small-*"))) == 1
    assert run().converted == 30
    assert content_of(tmp_path / "out") == content_of(finished)


def test_only_missing_shards_are_written_again(run: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "run_job", lambda settings, numbers, options: without_beam(settings, numbers[1:2], options))
        with pytest.raises(UserError, match="start again"):
            run()
    with pytest.raises(UserError, match=r"unfinished split 'train'.* num_shards 4, now it is 2"):
        run(config=dataclasses.replace(CONFIG, num_shards=2))
    assert run().converted == 30


def test_overwrite_gives_up_an_unfinished_conversion(
    run: Convert, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "run_job", lambda settings, numbers, options: without_beam(settings, numbers[1:], options))
        with pytest.raises(UserError, match="start again"):
            run(config=dataclasses.replace(CONFIG, dataset_name="other", num_shards=2))
    run(overwrite=True)
    assert content_of(tmp_path / "out") == content_of(finished)


@pytest.mark.parametrize("content", ["", "[]", "[", "{}"])
def test_damaged_notes_of_an_unfinished_conversion_cost_no_more_than_its_shards(
    run: Convert, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "run_job", lambda settings, numbers, options: without_beam(settings, numbers[:2], options))
        with pytest.raises(UserError, match="start again"):
            run()
    work = tmp_path / "out" / "unfinished-train"
    (work / "facts-00001.json").write_text(content)
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    assert run().converted == 30
    assert content_of(tmp_path / "out") == content_of(finished)

    (tmp_path / "other" / "unfinished-train" / "arguments.json").write_text(content)
    with pytest.raises(UserError, match=r"unfinished split 'train'.* was begun or made with .* null"):
        run("other")
    run("other", overwrite=True)
    assert content_of(tmp_path / "other") == content_of(finished)


@pytest.mark.campaign
def test_killed_by_the_system_it_goes_on(run: Convert, source: Path, finished: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.make_tfrecords", f"--annotations={source / 'a.json'}", "--short_edges=64,96"]
    command += [f"--images={source / 'images'}", f"--output_dir={tmp_path / 'out'}", "--num_shards=4", "--dataset_name=small"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/small-train.tfrecord-00000*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run()
    assert content_of(tmp_path / "out") == content_of(finished)


def test_two_conversions_cannot_write_to_one_folder(run: Convert, tmp_path: Path) -> None:
    with files.only_writer(tmp_path / "out", "conversion"), pytest.raises(UserError, match="another conversion"):
        run()
    run()


def break_three(content: dict[str, Any]) -> None:
    content["images"][0]["file_name"] = "absent.jpg"
    content["images"][1]["width"] = 65
    content["annotations"][2]["bbox"] = [1, 2]  # of image 3


def test_a_image_that_cannot_be_used_stops_the_conversion(run: Convert, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image 3, .*3\.jpg: annotation 103: bbox has 2 numbers"):
        run(annotations=changed(source, tmp_path / "b.json", break_three))

    def lose(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = "absent.jpg"

    with pytest.raises(UserError, match=r"image 1, .*absent\.jpg: no such file.*--on_error=skip"):
        run("other", annotations=changed(source, tmp_path / "c.json", lose))
    assert not (tmp_path / "other" / "pipeline.json").exists()


def test_or_is_left_out_and_listed(run: Convert, source: Path, tmp_path: Path) -> None:
    annotations = changed(source, tmp_path / "b.json", break_three)
    result = run(annotations=annotations, on_error="skip")
    assert (result.summary["images"], result.summary["images_skipped"]) == (37, 3)
    errors = [json.loads(line) for line in (tmp_path / "out" / "errors-train.jsonl").read_text().splitlines()]
    assert {error["image_id"]: error["reason"].split()[0] for error in errors} == {1: "no", 2: "64×48", 3: "annotation"}
    assert not set(open_record_folder(tmp_path / "out").index("train")["image_id"]) & {1, 2, 3}
    kinds = {"N×N pixels, the annotations say N×N": 1, "annotation N: bbox has N numbers, N are needed": 1, "no such file": 1}
    assert result.skipped == kinds

    saved = json.loads((tmp_path / "out" / "summary-train.json").read_text())
    assert {key: saved[key] for key in result.summary} == result.summary and saved["skipped_by_reason"] == kinds
    assert saved["images_converted_by_last_run"] == 40 and saved["images_per_second"] > 0
    table = [line.split() for line in summary_table(result, str(tmp_path / "out"), "train").splitlines()]
    for line in (
        ["images", "37"],
        ["images", "skipped", "3"],
        ["of", "these", "1", "no", "such", "file"],
        ["persons", str(saved["persons"])],
        ["labelled", "keypoints", str(saved["labelled_keypoints"])],
        ["crowds", "0"],
        ["boxes", "clipped", str(saved["boxes_clipped"])],
        ["boxes", "without", "area", "0"],
        ["record", "bytes", f"{saved['record_bytes']:,}"],
    ):
        assert line in table, line
    again = run(annotations=annotations, on_error="skip")
    assert again.skipped == kinds and json.loads((tmp_path / "out" / "summary-train.json").read_text()) == saved


def test_a_split_of_nothing_says_where_to_look(source: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    result = convert(source / "a.json", tmp_path / "images", tmp_path / "out", "train", CONFIG, on_error="skip")
    assert result.summary["images"] == 0 and result.skipped == {"no such file": 40}
    assert "no image was left: if --images is the reason" in summary_table(result, str(tmp_path / "out"), "train")


def test_a_full_disk_is_named_and_nothing_half_written_has_a_final_name(
    run: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(written: Path, final: str, *, upload_as: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.storage.publish", full)
        with pytest.raises(UserError, match="No space left on device"):
            run()
    assert not list((tmp_path / "out").glob("small-*")) and not list((tmp_path / "out").rglob("records-*"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="GB are free"):
        run("other")


@pytest.mark.parametrize("writes", [*range(0, 24, 3)])
def test_a_disk_that_fills_and_stays_full_is_named_and_costs_nothing(
    run: Convert, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Whatever file the disk has no room for: images, records, facts, the reason why, index, metadata, summary."""
    calls = 0

    def full(written: Path, final: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > writes:
            raise OSError(28, "No space left on device", str(final))
        published(written, final)

    published = files.publish
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.files.publish", full)
        try:
            run()
        except UserError as error:
            assert "No space left on device" in str(error) and str(tmp_path / "out") in str(error)
        except OSError as error:  # which a command tells with its path
            assert error.strerror == "No space left on device" and error.filename.startswith(str(tmp_path / "out"))
        else:
            assert calls <= writes
    run()
    assert content_of(tmp_path / "out") == content_of(finished)


def test_a_file_system_that_takes_no_more_is_named(run: Convert, source: Path, finished: Path, tmp_path: Path) -> None:
    """A limit of the system, which TensorFlow's writer meets in the middle of a shard."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY));"
        "from pipeline import command, make_tfrecords as m; command.run(m.main, m.FLAGS, '', passes_unknown_flags=True)"
    )
    arguments = [f"--annotations={source / 'a.json'}", f"--images={source / 'images'}", f"--output_dir={tmp_path / 'out'}"]
    arguments += ["--short_edges=64,96", "--num_shards=4", "--dataset_name=small"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=QUIET, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert re.search(r"small-train\.tfrecord-\d+-of-00004: cannot be written \(.*File too large.*make room", done.stderr)
    assert not list((tmp_path / "out").glob("small-*")) and not list((tmp_path / "out").rglob("records-*"))
    run()
    assert content_of(tmp_path / "out") == content_of(finished)


def test_an_empty_annotation_file_gives_an_empty_split(run: Convert, source: Path, tmp_path: Path) -> None:
    result = run(annotations=changed(source, tmp_path / "b.json", lambda c: c.update(images=[], annotations=[])), split="test")
    assert result.summary["images"] == 0
    data = open_record_folder(tmp_path / "out")
    assert len(data.index("test")) == 0 and sum(path.stat().st_size for path in data.shards("test")) == 0


def test_tensorflow_datasets_reads_it(run: Convert, source: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    run(split="val", config=dataclasses.replace(CONFIG, num_shards=1, limit=5))
    builder = tfds.builder_from_directory(tmp_path / "out")
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 40, "val": 5}
    examples = list(tfds.as_numpy(builder.as_dataset(split="train")))
    assert len(examples) == 40
    for example in examples:
        number = int(example["image/source_id"])
        pixels = np.asarray(Image.open(source / "images" / f"{number}.jpg"), np.int16)
        assert np.abs(example["image/encoded"] - pixels).mean() < 8  # TFDS's decoder is not the accurate one
        boxes = 1 if number % 5 else 0
        assert example["image/object/bbox/xmin"].shape == (boxes,) and example["image/object/keypoint/x"].shape == (3 * boxes,)
        if boxes:
            np.testing.assert_allclose(example["image/object/bbox/xmin"] * 64, number, rtol=1e-5)
            np.testing.assert_allclose(example["image/object/keypoint/x"] * 64, [number + 1, 0, number + 2], rtol=1e-5)
    assert len(list(builder.as_dataset(split="train[:25%]"))) == 10


def test_records_can_do_without_anchors(run: Convert, tmp_path: Path) -> None:
    run(config=dataclasses.replace(CONFIG, short_edges=()))
    data = open_record_folder(tmp_path / "out")
    config = DataConfig(short_edges=(64,), max_edge=96, num_canvases=1, anchors="online", require_keypoints=False)
    batches = list(training_batches(data, "train", config, global_batch_size=40, seed=0, num_steps=1))
    assert (batches[0]["image_id"] > 0).numpy().all()
    with pytest.raises(UserError, match=r"its records have short edges \[\], training asks for \[64\]"):
        training_batches(data, "train", DataConfig(short_edges=(64,)), global_batch_size=2, seed=0)
    for example in tfds.builder_from_directory(tmp_path / "out").as_dataset(split="train"):
        assert example["anchors/positive"].nrows() == 0


def test_bad_inputs(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "bad_inputs"
    convert(
        folder / "annotations.json", folder / "images", tmp_path, "bad", ConversionConfig(short_edges=(64,)), on_error="skip"
    )
    errors = {
        error["image_id"]: error["reason"]
        for error in map(json.loads, (tmp_path / "errors-bad.jsonl").read_text().splitlines())
    }
    expected = dict.fromkeys((2, 3, 4, 5, 6, 9), "truncated")
    expected |= {
        8: "empty",
        10: "no such file",
        21: "annotations say",
        22: "annotations say",
        23: "height 0",
    }
    expected |= {26: "differ", 27: "no file_name", 28: "leads out", 29: "50 numbers", 30: "54 numbers", 33: "nan", 34: "inf"}
    expected |= {36: "visibilities", 46: "nan", 47: "3 numbers", 48: "None", 49: "bbox holds '", 54: "category_id"}
    assert errors.keys() == expected.keys()
    for number, reason in expected.items():
        assert reason in errors[number], number
    rows = open_record_folder(tmp_path).index("bad")
    assert len(rows) == 61 - len(expected)
    summary = open_record_folder(tmp_path).splits["bad"]["summary"]
    assert summary["images_rotated"] == 1 and summary["boxes_made_around_points"] == 4 and summary["keypoints_outside"] == 3
    assert summary["boxes_without_area"] == 0 and summary["sizes_read_off_images"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nonsense=3"], "--nonsense: no flag"),
        (["--nonsense"], "--nonsense: no flag"),
        (["--runner=Foo"], "--runner=Foo: no runner"),
        (["--direct_num_workers=x"], "invalid int value"),
        (["junk"], "'junk'"),
        (["--runner=FnApiRunner", "junk"], "'junk'"),
    ],
)
def test_flags_that_beam_does_not_know_are_errors(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        beam_options(flags)


def test_beam_runs_in_this_process_unless_told_otherwise() -> None:
    assert beam_options([]).get_all_options()["runner"] == "FnApiRunner"
    options = beam_options(["--runner=BundleBasedDirectRunner", "--direct_num_workers", "2"]).get_all_options()
    assert (options["runner"], options["direct_num_workers"]) == ("BundleBasedDirectRunner", 2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dataset_name": "a/b"},
        {"num_shards": 0},
        {"short_edges": (800, 800)},
        {"short_edges": (2000,)},
        {"max_edge": 100_000},
        {"limit": -1},
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        ConversionConfig(**arguments)
    assert "\n" not in str(caught.value)


def test_a_wrong_split_or_folder_is_refused(run: Convert, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--split=\.\./x: must be"):
        run(split="../x")
    with pytest.raises(UserError, match="absent: no such folder"):
        convert(source / "a.json", tmp_path / "absent", tmp_path / "out", "train", CONFIG)
    assert not (tmp_path / "out").exists()
