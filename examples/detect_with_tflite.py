"""Finds people with an exported TFLite file; needs ai-edge-litert, NumPy and Pillow, and nothing of this project.

python detect_with_tflite.py --model=exported/keypoint_rcnn.tflite photograph.jpg [more.png ...]

The .json that was exported beside the file tells how images are resized and what the keypoints are called. Boxes and keypoints
are in pixels of the image as a viewer shows it: a rotation that the file stores (EXIF) is applied.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

TURNS = {  # by EXIF's orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read(path: str) -> Image.Image:
    """The image as a viewer shows it, RGB; 16-bit greys keep their upper 8 bits, as when the model was trained."""
    image: Image.Image = Image.open(path)
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # a malformed EXIF block, of which there are many, has no orientation
        orientation = 1
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def resize(image: Image.Image, width: int, height: int, rule: str) -> npt.NDArray[np.uint8]:
    """Bilinear as the model's family does it: Detectron2's is Pillow's, the others take no mean of what lies between."""
    if rule == "detectron2":
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    pixels = np.asarray(image).astype(np.float32)
    for axis, size in ((0, height), (1, width)):
        place = np.clip((np.arange(size) + 0.5) * pixels.shape[axis] / size - 0.5, 0, pixels.shape[axis] - 1)
        low = np.floor(place).astype(int)
        share = np.expand_dims(place - low, (1, 2) if axis == 0 else (0, 2)).astype(np.float32)
        high = np.minimum(low + 1, pixels.shape[axis] - 1)
        pixels = np.take(pixels, low, axis) * (1 - share) + np.take(pixels, high, axis) * share
    return (pixels + 0.5).astype(np.uint8)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="the .tflite file, with its .json beside it")
parser.add_argument("--min_score", type=float, default=0.5, help="people below this score are left out (default: 0.5)")
parser.add_argument("images", nargs="+", help="JPEG or PNG files")
arguments = parser.parse_args()

about = json.loads(Path(arguments.model).with_suffix(".json").read_text())
names, data = about["skeleton"]["keypoints"], about["config"]["data"]
interpreter = Interpreter(model_path=arguments.model)
detect = interpreter.get_signature_runner("serve_images")
_, height, width, _ = detect.get_input_details()["images"]["shape"]
for path in arguments.images:
    # The file takes images of one size: make this one as large as it fits, at the top left, black elsewhere.
    image = read(path)
    scale = min(height / image.height, width / image.width)
    size = (max(1, min(width, int(image.width * scale + 0.5))), max(1, min(height, int(image.height * scale + 0.5))))
    canvas = np.zeros((1, height, width, 3), np.uint8)
    canvas[0, : size[1], : size[0]] = resize(image, *size, data["resize"])
    found = detect(images=canvas)

    back = np.array([image.width / size[0], image.height / size[1]])  # to pixels of the image
    offset = data["keypoint_offset"]  # taken off already, in pixels of the canvas; due in those of the image
    people = []
    for d in range(int(found["num_detections"][0])):  # best score first
        if found["scores"][0, d] >= arguments.min_score:
            box = np.clip(found["boxes"][0, d].reshape(2, 2) * back, 0, image.size).reshape(4)  # x0, y0, x1, y1
            points = (found["keypoints"][0, d] + offset) * back - offset
            scored = np.concatenate([points, found["keypoint_scores"][0, d, :, None]], axis=1)  # x, y, score
            people.append(
                {
                    "score": float(found["scores"][0, d]),
                    "box": box.tolist(),
                    "keypoints": dict(zip(names, scored.tolist(), strict=True)),
                }
            )
    print(json.dumps({"image": path, "people": people}))
