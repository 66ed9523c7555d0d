"""The formats of an export, and what an artifact of one is while it is made, examined and published."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.asking import Runtime
from export.tflite_quantized import Kind
from pipeline.command import UserError

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Format:
    """A value of `--formats`.

    Attributes:
      title: for people.
      ending: of the file behind the export's name; empty for a folder.
      runtime: what runs it.
      exact: whether it computes as the model does, so that its answers must be equal; else they must be alike.
      quantised: the kind of `tflite_quantized.quantize`, or None.
    """

    title: str
    ending: str
    runtime: Runtime
    exact: bool
    quantised: Kind | None = None

    @property
    def is_tflite(self) -> bool:
        return self.runtime.startswith("tflite")

    @property
    def has_ranges(self) -> bool:
        """Whether its arithmetic in int8 needs ranges that were seen on images."""
        return self.quantised in ("int8", "int8_all")


FORMATS: Mapping[str, Format] = {
    "saved_model": Format("SavedModel", "", "saved_model", True),
    "tflite": Format("TFLite", ".tflite", "tflite", True),
    "tflite_float16": Format("TFLite float16", ".float16.tflite", "tflite", False, "float16"),
    "tflite_dynamic": Format("TFLite dynamic int8", ".dynamic.tflite", "tflite", False, "dynamic"),
    "tflite_int8": Format("TFLite int8", ".int8.tflite", "tflite", False, "int8"),
    "tflite_int8_all": Format("TFLite int8 everywhere", ".int8_all.tflite", "tflite", False, "int8_all"),
    "tflite_parts": Format("TFLite in two parts", ".parts.tflite", "tflite_parts", True),
    "tflite_sizes": Format("TFLite of three sizes", ".sizes.tflite", "tflite_sizes", True),
    "onnx": Format("ONNX", ".onnx", "onnx", True),
    "tf_trt": Format("TF-TRT", "", "saved_model", False),
}
# The fast one, the one for delegates, and the one that has landscape, portrait and square: made only if they are named.
EXTRAS = ("tflite_int8_all", "tflite_parts", "tflite_sizes")
OF_ALL = tuple(name for name in FORMATS if name not in EXTRAS)


@dataclasses.dataclass
class Artifact:
    """One file or folder of an export.

    Attributes:
      name: its format, a key of `FORMATS`.
      path: where it lies now.
      final: where it will be published.
      sidecar: what a client must know, for a file that holds no notes of its own.
    """

    name: str
    path: Path
    final: Path
    sidecar: dict[str, Any] | None = None

    @property
    def format(self) -> Format:
        return FORMATS[self.name]

    @property
    def shown(self) -> str:
        """The file's name, or the version of a folder with its name: relative to the folder of the export."""
        return f"{self.final.parent.name}/{self.final.name}" if self.path.is_dir() else self.final.name

    def files(self) -> list[Path]:
        return sorted(p for p in self.path.rglob("*") if p.is_file()) if self.path.is_dir() else [self.path]

    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files())

    def sha256(self) -> str:
        """The sha256 of the file; for a folder, that of the lines `<sha256>  <name>` of its files, sorted by name."""
        if self.path.is_file():
            return sha256_of(self.path)
        lines = [f"{sha256_of(file)}  {file.relative_to(self.path).as_posix()}\n" for file in self.files()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def chosen(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats that `--formats` names, in the order in which they are made; "all" is every one of `OF_ALL`.

    Raises:
      UserError: a name that is no format, or none.
    """
    known = [*FORMATS, ALL]
    if not formats or not set(formats) <= set(known):
        raise UserError(f"--formats={','.join(formats)}: must be one or more of {','.join(known)}")
    wanted = set(formats) - {ALL} | (set(OF_ALL) if ALL in formats else set())
    return tuple(name for name in FORMATS if name in wanted)
