"""Draws a dozen images of a COCO data set with their annotations on one sheet: what a newcomer sees first of the demo.

python -m scripts.first_look --annotations=demo_output/data/annotations/person_keypoints_val.json \
  --images=demo_output/data/val --output_file=demo_output/first-look.png

It needs no TensorFlow. Of records, a conversion and pipeline.inspect_records draw the same kind of sheet.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from pipeline import command

if TYPE_CHECKING:  # draws, and so imports matplotlib, which --help can do without
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.coco import CocoImage
    from pipeline.inspection.sheet import Tile
    from pipeline.skeleton import Skeleton

FLAGS = flags.FlagValues()
flags.DEFINE_string("annotations", None, "The COCO JSON. Required.", flag_values=FLAGS)
flags.DEFINE_string("images", None, "The folder of its images. Required.", flag_values=FLAGS)
flags.DEFINE_string("output_file", None, "The PNG file to write. Required.", flag_values=FLAGS)
flags.mark_flags_as_required(["annotations", "images", "output_file"], flag_values=FLAGS)

SHOWN = 12


def main(_: list[str]) -> None:
    path = Path(FLAGS.output_file)
    shown = write_first_look(Path(FLAGS.annotations), Path(FLAGS.images), path)
    command.say(f"written: {path}: {command.counted(shown, 'image')} with what the annotations say of them")


def write_first_look(annotations: Path, image_folder: Path, path: Path) -> int:
    """Writes a sheet of `SHOWN` images, spread evenly over those with people; of all images if none has people.

    Returns:
      How many images it shows.

    Raises:
      UserError: the JSON is none of COCO's, or an image is missing.
    """
    from pipeline.coco import read_coco
    from pipeline.inspection import sheet

    coco = read_coco(annotations)
    images = [image for image in coco.images if image.persons] or list(coco.images)
    count = min(SHOWN, len(images))
    chosen = [images[place * len(images) // count] for place in range(count)]
    for image in chosen:
        if not (image_folder / image.file_name).is_file():
            raise command.UserError(f"--images={image_folder}: has no {image.file_name}, which {annotations} names")
    tiles = [_tile(image_folder / image.file_name, image, coco.skeleton) for image in chosen]
    title = f"{count} of {len(coco.images):,} images of {annotations.name}"
    sheet.write_sheet(sheet.compose([tiles], title, sheet.PEOPLE_SIGNS, width=1280, row_height=240), path)
    return count


def _tile(path: Path, image: CocoImage, skeleton: Skeleton) -> Tile:
    from pipeline.inspection.sheet import Tile

    crowds = sum(person.is_crowd for person in image.persons)
    keypoints = sum(person.num_labelled for person in image.persons)
    what = [command.counted(len(image.persons) - crowds, "person"), command.counted(crowds, "crowd") if crowds else ""]
    caption = (path.name, ", ".join([*filter(None, what), command.counted(keypoints, "keypoint")]))
    return Tile(image.width / image.height, lambda height, width: _drawn(path, image, skeleton, height, width), caption)


def _drawn(path: Path, image: CocoImage, skeleton: Skeleton, height: int, width: int) -> NDArray[np.uint8]:
    """The image at some size with its people and crowds."""
    import numpy as np
    from PIL import Image

    from pipeline.drawing import Drawn, draw_crowds, draw_people
    from pipeline.inspection.sheet import DRAWN_LINE

    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    scale = np.array([width / image.width, height / image.height])
    boxes = np.array([person.box for person in image.persons]).reshape(-1, 4) * np.tile(scale, 2)
    points = np.array([person.keypoints for person in image.persons]).reshape(-1, skeleton.num_keypoints, 3)
    crowd = np.array([person.is_crowd for person in image.persons], bool)
    people = Drawn(boxes[~crowd], points[~crowd] * np.array([*scale, 1.0]))
    return draw_people(draw_crowds(pixels, boxes[crowd], DRAWN_LINE), people, skeleton, DRAWN_LINE)


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
