"""Finds people with an exported SavedModel; needs TensorFlow and nothing of this project.

python detect_with_saved_model.py --model=exported/keypoint_rcnn/1 photograph.jpg [more.png ...]

Boxes and keypoints are in pixels of the image as a viewer shows it: the model applies a rotation that the file stores (EXIF).
"""

import argparse
import json
from pathlib import Path

import tensorflow as tf

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="the folder of one version, which holds saved_model.pb")
parser.add_argument("--min_score", type=float, default=0.5, help="people below this score are left out (default: 0.5)")
parser.add_argument("images", nargs="+", help="JPEG or PNG files")
arguments = parser.parse_args()

model = tf.saved_model.load(arguments.model)
names = json.loads((Path(arguments.model) / "assets" / "skeleton.json").read_text())["keypoints"]

# Images of any sizes go together; boxes and keypoints come back in pixels of each.
found = model.signatures["serving_default"](image_bytes=tf.constant([Path(p).read_bytes() for p in arguments.images]))
for i, path in enumerate(arguments.images):
    people = []
    for d in range(found["num_detections"][i]):  # best score first
        if found["scores"][i, d] >= arguments.min_score:
            points = zip(
                found["keypoints"][i, d].numpy().tolist(), found["keypoint_scores"][i, d].numpy().tolist(), strict=True
            )
            people.append(
                {
                    "score": float(found["scores"][i, d]),
                    "box": found["boxes"][i, d].numpy().tolist(),  # x0, y0, x1, y1
                    "keypoints": {name: [*xy, score] for name, (xy, score) in zip(names, points, strict=True)},
                }
            )
    print(json.dumps({"image": path, "people": people}))
