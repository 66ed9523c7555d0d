"""Records of a dozen rendered images, for trainings of a few steps."""

from __future__ import annotations

import pytest

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
