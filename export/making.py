"""Makes the artifacts of an export, one format after the other, in a temporary place."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from export import client_notes, onnx_model, saved_model, tflite
from export.compare import ConversionError
from export.formats import FORMATS, Artifact, Format, sha256_of
from export.sample_images import Fit, Sample
from export.tflite_quantized import MissingError, quantize
from model.checkpoint_files import chosen_checkpoint
from model.checkpoint_names import Weights, Which, model_dir_of
from model.inference.serving import ServingModule
from model.matterport.network import MaskRCNN
from model.model_dir import has_average, load_any, load_note
from model.training_data import training_data
from pipeline.files import write_json

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Source:
    """The model that is exported."""

    module: ServingModule
    weights: dict[str, Any]  # where they come from

    @property
    def notes(self) -> dict[str, Any]:
        """What a client of pixels must know, and what made the export."""
        model = self.module.model
        return {
            **client_notes.notes_for_pixels(model.config, model.skeleton),
            "versions": saved_model.versions(self.weights),
        }


def open_source(named: str | Path, data_licence: str | None, which: Which = "newest", asked: Weights | None = None) -> Source:
    """Opens a model directory, or one of its checkpoints. Raises: UserError, if it holds no model, or a damaged one."""
    model = load_any(named, which, weights=asked)
    model_dir, checkpoint = model_dir_of(Path(named)), chosen_checkpoint(Path(named), which)
    weights: dict[str, Any] = {
        "model_dir": model_dir.resolve().name,
        "checkpoint": Path(checkpoint).name if checkpoint else None,
    }
    if checkpoint and has_average(checkpoint):
        weights["weights"] = asked or "average"
    if checkpoint:
        parts = sorted(Path(checkpoint).parent.glob(f"{Path(checkpoint).name}.*"))
        weights["sha256"] = {part.name: sha256_of(part) for part in parts}
    started_from = load_note(model_dir)  # their licence travels with weights that began as somebody else's
    weights |= {"started_from": started_from} if started_from is not None else {}
    trained_on = training_data(model_dir)
    weights |= {"trained_on": trained_on} if trained_on else {}
    weights |= {"data_licence": data_licence} if data_licence else {}
    return Source(ServingModule(model), weights)


@dataclasses.dataclass(frozen=True)
class Making:
    """What all artifacts of an export are made with.

    Attributes:
      output_dir, name, version: where they will be published, and under which names.
      fit, static_shapes: of the TFLite files.
      ranges: images for int8, of the TFLite files' size.
      temporary: a folder to write to.
      missing: the formats that could not be made, and why; filled while they are made.
      refused: the formats whose artifact fails or is below its bar, and by which number; filled while they are examined.
    """

    source: Source
    output_dir: Path
    name: str
    version: int
    fit: Fit
    static_shapes: bool
    ranges: Sample
    temporary: Path
    report: Report
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)

    def artifacts(self, wanted: Sequence[str]) -> Iterator[Artifact]:
        """Makes one format after the other; those that this machine cannot make go to `missing`, failures to `refused`."""
        for kind in wanted:
            form = FORMATS[kind]
            path = self.temporary / f"{self.name}{form.ending or '.' + kind}"
            final = self.output_dir / f"{self.name}{form.ending}"
            try:
                if kind == "saved_model":
                    self.report("SavedModel: tracing and saving")
                    saved_model.write_saved_model(self.source.module, path, self.source.weights, self.name)
                    yield Artifact(kind, path, final / str(self.version))
                elif form.is_tflite:
                    path.write_bytes(self._tflite(form))
                    sidecar = self._sidecar(path, final, form)
                    write_json(path.with_suffix(".json"), sidecar)
                    yield Artifact(kind, path, final, sidecar)
                elif kind == "onnx":
                    self.report("ONNX: converting (a large model takes minutes, and r50_fpn up to 9 GB of memory)")
                    path.write_bytes(onnx_model.convert(self.source.module, self.source.notes))
                    yield Artifact(kind, path, final)
                else:
                    self._tensorrt(path)
                    yield Artifact(kind, path, final / str(self.version + ("saved_model" in wanted)))
            except MissingError as reason:
                self.missing[kind] = str(reason)
                self.report(f"{form.title}: not made: {reason}")
            except ConversionError as reason:
                self.refuse(kind, reason)

    def refuse(self, kind: str, reason: ConversionError) -> None:
        """Notes that an artifact gets no name, and reports it; the others go on."""
        self.refused[kind] = str(reason)
        self.report(f"refused: {reason}")

    def _tflite(self, form: Format) -> bytes:
        """Raises: MissingError, if a package is missing, or the model is one that has no such form."""
        if form.runtime == "tflite_parts":
            return self._tflite_parts()
        if form.runtime == "tflite_sizes":
            return self._tflite_sizes()
        if form.quantised is None:
            return self._float_tflite
        ranges = f", ranges from {self.ranges.origin}" if form.has_ranges else ""
        self.report(f"{form.title}: quantising{ranges}")
        return quantize(self._float_tflite, form.quantised, self.ranges.images, tflite.SIGNATURE)

    @functools.cached_property
    def _float_tflite(self) -> bytes:
        """The file that the smaller ones are made of, too."""
        self.report(f"TFLite: converting for images of {self.fit.height}×{self.fit.width}")
        model = self.source.module.model
        content = tflite.convert(model, self.fit.height, self.fit.width, self.temporary, static_shapes=self.static_shapes)
        tflite.check_file(content, model)
        return content

    def _tflite_parts(self) -> bytes:
        model = self.source.module.model
        if isinstance(model, MaskRCNN):
            raise MissingError("is not there for the old network; export a model of this project's own network")
        self.report(f"TFLite in two parts: converting for images of {self.fit.height}×{self.fit.width}")
        content = tflite.convert_parts(model, self.fit.height, self.fit.width, self.temporary)
        tflite.check_file(content, model)
        return content

    def _tflite_sizes(self) -> bytes:
        model, fit = self.source.module.model, self.fit
        if fit.height == fit.width:
            raise MissingError(
                f"{fit.height}×{fit.width} is a square, which is its own portrait; give --tflite_width another value"
            )
        shown = ", ".join(f"{height}×{width}" for height, width in tflite.sizes(fit.height, fit.width).values())
        self.report(f"{FORMATS['tflite_sizes'].title}: converting for images of {shown}")
        content = tflite.convert_sizes(model, fit.height, fit.width, self.temporary)
        tflite.check_file(content, model)
        return content

    def _sidecar(self, path: Path, final: Path, form: Format) -> dict[str, Any]:
        signatures: dict[str, Any] = {"signature": tflite.SIGNATURE}
        if form.runtime == "tflite_parts":
            signatures = {"signatures": list(tflite.PARTS)}
        if form.runtime == "tflite_sizes":
            signatures = client_notes.sizes_notes(tflite.sizes(self.fit.height, self.fit.width))
        return {
            "file": final.name,
            "sha256": sha256_of(path),
            **client_notes.letterbox_notes(self.fit.height, self.fit.width),
            **signatures,
            **self.source.notes,
        }

    def _tensorrt(self, path: Path) -> None:
        """Calls the converter, a program of its own. Raises: MissingError, if it refuses."""
        program = Path(__file__).with_name("convert_tensorrt.py")
        self.report("TF-TRT: asking export/convert_tensorrt.py")
        ended = subprocess.run([sys.executable, str(program), "--check"], capture_output=True, text=True)
        if ended.returncode == 0:
            plain = self.temporary / "for_tensorrt"
            saved_model.write_saved_model(self.source.module, plain, self.source.weights, self.name)
            arguments = [f"--saved_model={plain}", f"--output_dir={path}"]
            ended = subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True)
        if ended.returncode:
            said = ended.stderr.strip().splitlines() or ["it ended without a word"]
            raise MissingError(said[-1].removeprefix("error: "))
