"""A conversion that is killed again and again: what has a final name is whole, and the last run ends with the same bytes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig

IMAGES, SHARDS, KILLS = 3000, 150, 10
CONFIG = ConversionConfig(dataset_name="killed", num_shards=SHARDS, short_edges=(64, 96))
ROOT = Path(__file__).parents[3]


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "summary-train.json"}


def shards_of(output: Path) -> set[Path]:
    return set(output.glob("killed-train.tfrecord-*"))


def wait_for_a_shard(output: Path, alive: Callable[[], bool]) -> None:
    before, deadline = shards_of(output), time.monotonic() + 300
    while shards_of(output) == before:
        assert alive() and time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.campaign
@pytest.mark.timeout(900)  # on a machine that may be busy
def test_killed_ten_times_at_random_it_ends_with_the_same_bytes(forty_images: Path, tmp_path: Path) -> None:
    content = json.loads((forty_images / "a.json").read_text())
    files = [image["file_name"] for image in content["images"]]
    person = content["annotations"][0]
    content["images"] = [{"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64} for i in range(IMAGES)]
    content["annotations"] = [person | {"id": i, "image_id": i} for i in range(IMAGES)]
    annotations, images, output = tmp_path / "a.json", tmp_path / "images", tmp_path / "out"
    annotations.write_text(json.dumps(content))
    images.mkdir()
    for i in range(IMAGES):
        (images / f"{i}.jpg").symlink_to(forty_images / "images" / files[i % len(files)])
    convert(annotations, images, tmp_path / "whole", "train", CONFIG)
    whole = content_of(tmp_path / "whole")

    chance = random.Random(0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.writing.conversion"])  # importing TensorFlow takes longer than all the rest

    def check_what_a_kill_left() -> None:
        left = content_of(output)
        assert "pipeline.json" not in left
        for name in left.keys() - {".lock"}:
            assert left[name] == whole[name]

    for number in range(KILLS - 1):
        process = context.Process(target=convert, args=(annotations, images, output, "train", CONFIG))
        process.start()
        if number % 3:
            wait_for_a_shard(output, process.is_alive)
        time.sleep(chance.uniform(0, 0.15))
        assert process.is_alive()
        process.kill()
        process.join()
        if output.exists():
            check_what_a_kill_left()

    flags = ["--direct_running_mode=multi_processing", "--direct_num_workers=2", "--dataset_name=killed"]
    flags += [f"--num_shards={SHARDS}", "--short_edges=64,96"]
    arguments = [f"--annotations={annotations}", f"--images={images}", f"--output_dir={output}", *flags]
    with (tmp_path / "log").open("wb") as log:
        group = subprocess.Popen(
            [sys.executable, "-m", "pipeline.make_tfrecords", *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for_a_shard(output, lambda: group.poll() is None)
        time.sleep(chance.uniform(0, 0.15))
        assert group.poll() is None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group.pid, signal.SIGKILL)
        group.wait()
    check_what_a_kill_left()

    assert 0 < len(shards_of(output)) < SHARDS
    assert convert(annotations, images, output, "train", CONFIG).converted < IMAGES
    assert content_of(output) == whole
