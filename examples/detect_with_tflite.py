"""Finds people with an exported TFLite file; needs ai-edge-litert, NumPy and Pillow, and nothing of this project.

python detect_with_tflite.py --model=exported/keypoint_rcnn.tflite photograph.jpg [more.png ...]
"""

import argparse
import json

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="the .tflite file")
parser.add_argument("--min_score", type=float, default=0.5)
parser.add_argument("images", nargs="+", help="JPEG or PNG files")
arguments = parser.parse_args()

interpreter = Interpreter(model_path=arguments.model)
detect = interpreter.get_signature_runner("serve_images")
_, height, width, _ = detect.get_input_details()["images"]["shape"]
for path in arguments.images:
    # The file takes images of one size: make this one as large as it fits, at the top left, black elsewhere.
    image = Image.open(path).convert("RGB")
    scale = min(width / image.width, height / image.height)
    size = (max(1, min(width, int(image.width * scale + 0.5))), max(1, min(height, int(image.height * scale + 0.5))))
    canvas = np.zeros((1, height, width, 3), np.uint8)
    canvas[0, : size[1], : size[0]] = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    found = detect(images=canvas)

    back = np.array([image.width / size[0], image.height / size[1]])  # to pixels of the image
    people = []
    for d in range(int(found["num_detections"][0])):  # best score first
        if found["scores"][0, d] >= arguments.min_score:
            box = np.clip((found["boxes"][0, d].reshape(2, 2) * back), 0, image.size).reshape(4)  # x0, y0, x1, y1
            points = np.concatenate([found["keypoints"][0, d] * back, found["keypoint_scores"][0, d, :, None]], axis=1)
            people.append({"score": float(found["scores"][0, d]), "box": box.tolist(), "keypoints": points.tolist()})
    print(json.dumps({"image": path, "people": people}))
