"""Records of a dozen rendered images, for trainings of a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.config import Config
from model.training.loop import Run, train
from model.training.strategies import make_strategy
from pipeline.record_folder import RecordFolder, open_record_folder
from pipeline.synthetic import dataset
from pipeline.writing.conversion import convert
from pipeline.writing.conversion_config import ConversionConfig


@pytest.fixture(scope="session")
def record_folder(tmp_path_factory: pytest.TempPathFactory) -> RecordFolder:
    folder = tmp_path_factory.mktemp("synthetic")
    rendered = dataset.write_dataset(folder, dataset.Arguments(12, 5, "train", 160, 128), num_workers=1)
    config = ConversionConfig(short_edges=(96, 128), max_edge=192)
    convert(rendered.annotations, rendered.image_folder, folder / "records", "train", config)
    return open_record_folder(folder / "records")


@pytest.fixture(scope="session")
def trained_in_one_go(small_config: Config, record_folder: RecordFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model directory of the small model's four steps on one device. Not to be changed."""
    run = Run(tmp_path_factory.mktemp("trained") / "run", log_every=1)
    train(small_config, record_folder, "train", run, make_strategy("one_device"))
    return run.model_dir
