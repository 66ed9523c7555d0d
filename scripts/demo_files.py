"""Where the demo puts what: one place for the commands that write and the report that reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

MODEL_NAME = "keypoint_rcnn"


@dataclasses.dataclass(frozen=True)
class DemoFiles:
    """Paths below one output folder."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    def annotations(self, split: str) -> Path:
        return self.data / "annotations" / f"person_keypoints_{split}.json"

    def images(self, split: str) -> Path:
        return self.data / split

    @property
    def first_look(self) -> Path:
        """A sheet of some val images with their annotations."""
        return self.root / "first-look.png"

    @property
    def records(self) -> Path:
        return self.root / "records"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def metrics(self) -> Path:
        return self.model / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def figures_of_val(self) -> Path:
        return self.evaluation / "evaluation-val.json"

    @property
    def exported(self) -> Path:
        return self.root / "exported"

    @property
    def saved_model(self) -> Path:
        return self.exported / MODEL_NAME / "1"

    @property
    def tflite(self) -> Path:
        return self.exported / f"{MODEL_NAME}.tflite"

    @property
    def export_report(self) -> Path:
        """What `export.export_model` measured of each artifact, as JSON."""
        return self.exported / "export-report.json"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def summary(self) -> Path:
        """The report's figures as JSON."""
        return self.root / "report.json"
