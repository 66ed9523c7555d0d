"""Writes docs/API.md, the functions and types for programs in Python, from their signatures and docstrings.

python -m scripts.api_page
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from pipeline import command

PAGE = Path(__file__).resolve().parents[1] / "docs" / "API.md"

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", str(PAGE), "File to write.", flag_values=FLAGS)

# What stays as it is from one release to the next: by chapter, the module, and in it the names, methods behind a dot.
CHAPTERS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "Find people": (
        ("model.inference.predictor", ("open_model", "Predictor", "Predictor.__call__", "Predictor.predict")),
        ("model.inference.people", ("People", "People.at_least", "People.to_coco", "People.draw", "Person", "Keypoint")),
    ),
    "Find people in files": (
        ("model.inference.image_folder", ("look_into", "predict_files", "Summary", "summary_text")),
        ("model.inference.image_names", ("numbered", "annotated", "read_image_names", "NumberedImage")),
        ("model.inference.image_source", ("find_images",)),
        ("model.inference.drawing_style", ("DrawingStyle",)),
    ),
    "Find people in clips and cameras": (
        ("model.inference.video", ("predict_clip", "ClipSummary")),
        ("model.inference.watching", ("watch",)),
        ("model.inference.tracking", ("Tracker", "Tracker.update")),
    ),
    "Look inside the network": (("model.network.keypoint_rcnn", ("KeypointRCNN.trace",)),),
    "Convert": (
        ("pipeline.writing.conversion", ("convert",)),
        ("pipeline.writing.conversion_config", ("ConversionConfig",)),
        ("pipeline.record_folder", ("open_record_folder", "RecordFolder")),
    ),
    "Import weights": (("model.weights.importing", ("import_model",)),),
    "Train": (("model.api", ("train",)),),
    "Evaluate": (
        ("model.api", ("evaluate", "EvaluationResult")),
        ("model.evaluation.evaluator", ("evaluate", "evaluate_results")),
        ("model.evaluation.figures_table", ("table",)),
    ),
    "Export": (("export.publish", ("export_model",)),),
}

_BEFORE = """\
# For programs in Python

<!-- Written by `python -m scripts.api_page` from the docstrings; a test fails where the two differ. -->

The commands are thin: each parses its flags and calls a function of this page. What stands here keeps its name and its
arguments within a major version; all else may change. Every wrong input that a person can give raises
`pipeline.command.UserError`, whose message is one line.

```python
import numpy as np
from PIL import Image

from model.inference.predictor import open_model

model = open_model("run", score_threshold=0.5)  # a model directory, a SavedModel or a .tflite file
people = model("photograph.jpg")  # or bytes, or pixels, uint8 [height, width, 3], or a list of them
for person in people:  # best score first; everything in pixels of the image as a viewer shows it
    print(person.score, person.box, {name: (point.x, point.y) for name, point in person.keypoints.items()})

entries = people.to_coco(image_id=139, file_name="photograph.jpg")  # COCO's results format
drawn = people.draw(np.asarray(Image.open("photograph.jpg").convert("RGB")))
Image.fromarray(drawn).save("drawn.png")
print(people.boxes.shape, people.keypoints.shape)  # [n, 4] and [n, K, 2]: the same as arrays
```
"""

_SECTIONS = ("Args", "Attributes", "Returns", "Raises")
_WIDTH = 100  # characters of a signature, beyond which each argument has a line of its own


def main(_: list[str]) -> None:
    command.load_tensorflow()
    from pipeline.files import write_file

    write_file(Path(FLAGS.output), page())
    print(f"written: {FLAGS.output}")


def page() -> str:
    """The whole page."""
    return _BEFORE + "".join(_chapter(title, modules) for title, modules in CHAPTERS.items())


def _chapter(title: str, modules: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    parts = [f"\n## {title}\n"]
    for module, names in modules:
        for name in names:
            value: Any = importlib.import_module(module)
            for part in name.split("."):
                value = getattr(value, part)
            heading = f"`{name if '.' in name else f'{module}.{name}'}`"
            parts.append(f"\n### {'A `Predictor`, called' if name == 'Predictor.__call__' else heading}\n")
            parts.append(f"\n```python\n{signature(name, value)}\n```\n\n{prose(inspect.getdoc(value) or '')}")
    return "".join(parts)


def signature(name: str, value: Any) -> str:
    """How it is called, on one line or with a line for each argument."""
    shown = inspect.signature(value)
    arguments: list[str] = []
    for argument in shown.parameters.values():
        if argument.kind is argument.KEYWORD_ONLY and "*" not in arguments and not any(a.startswith("*") for a in arguments):
            arguments.append("*")
        if argument.name != "self":
            arguments.append(_argument(argument))
    name = "predictor" if name == "Predictor.__call__" else name.rpartition(".")[2]
    answer = "" if isinstance(value, type) or shown.return_annotation is shown.empty else f" -> {shown.return_annotation}"
    line = f"{name}({', '.join(arguments)}){answer}"
    if len(line) <= _WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){answer}"


def _argument(argument: inspect.Parameter) -> str:
    stars = "*" if argument.kind is argument.VAR_POSITIONAL else "**" if argument.kind is argument.VAR_KEYWORD else ""
    default = "" if argument.default is argument.empty else f" = {argument.default!r}"
    if "<" in default:  # made anew for each call
        default = " = …"
    return f"{stars}{argument.name}: {argument.annotation}{default}"


def prose(docstring: str) -> str:
    """A docstring as Markdown: its sections become lists."""
    return "".join(_blocks(docstring.splitlines()))


def _blocks(lines: list[str]) -> Iterator[str]:
    section, entry = "", ""
    for line in [*lines, "END:"]:
        heading = line.removesuffix(":")
        if heading in (*_SECTIONS, "END"):
            if entry:
                yield f"- {entry}\n"
            section, entry = heading, ""
            if heading != "END":
                yield f"**{heading}**\n\n"
        elif not section:
            yield f"{line}\n"
        elif not line.strip():
            if entry:
                yield f"- {entry}\n"
            entry = ""
            yield "\n"
        elif line.startswith("  ") and not line.startswith("   ") and _begins(line, section):
            if entry:
                yield f"- {entry}\n"
            entry = (
                re.sub(r"^([\w*, ]+?):", lambda found: _named(found.group(1)), line.strip())
                if section != "Returns"
                else line.strip()
            )
        else:
            entry = f"{entry} {line.strip()}" if entry else line.strip()


def _begins(line: str, section: str) -> bool:
    """Whether a line begins an entry of a section, and does not go on with one."""
    return section != "Returns" and re.match(r"  [\w*, .]+: ", line) is not None


def _named(names: str) -> str:
    return ", ".join(f"`{name.strip()}`" for name in names.split(",")) + ":"


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
