"""The sheet that the demo begins with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.command import UserError
from pipeline.synthetic.dataset import Arguments, write_dataset
from scripts.first_look import write_first_look


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first_look")
    write_dataset(folder, Arguments(num_images=5, seed=0, split="val", width=128, height=96), num_workers=1)
    return folder


def test_every_image_with_people_is_shown(rendered: Path, tmp_path: Path) -> None:
    annotations = rendered / "annotations" / "person_keypoints_val.json"
    with_people = {person["image_id"] for person in json.loads(annotations.read_text())["annotations"]}
    sheet = tmp_path / "new" / "sheet.png"
    assert write_first_look(annotations, rendered / "val", sheet) == len(with_people)
    with Image.open(sheet) as opened:
        assert opened.width == 1280 and len(opened.getcolors(1 << 24) or ()) > 1000  # people, not a blank page


def test_an_image_that_is_missing_is_named(rendered: Path, tmp_path: Path) -> None:
    annotations = rendered / "annotations" / "person_keypoints_val.json"
    with pytest.raises(UserError, match=r"has no 0000\d+\.jpg"):
        write_first_look(annotations, tmp_path, tmp_path / "sheet.png")


def test_it_imports_no_tensorflow(rendered: Path, tmp_path: Path) -> None:
    """It is there within seconds: TensorFlow's import alone takes five."""
    code = (
        "import sys; from pathlib import Path; from scripts.first_look import write_first_look; "
        "write_first_look(*map(Path, sys.argv[1:])); print('tensorflow' in sys.modules)"
    )
    arguments = (rendered / "annotations" / "person_keypoints_val.json", rendered / "val", tmp_path / "sheet.png")
    command = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(command, check=True, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.stdout.split()[-1] == "False"
