"""Finds people through TensorFlow Serving, over REST or gRPC; needs nothing of this project.

python client.py --rest=http://localhost:8501 photograph.jpg [more.png ...]
python client.py --grpc=localhost:8500 photograph.jpg [more.png ...]

REST needs Python alone. gRPC needs `pip install tensorflow-serving-api`, which brings TensorFlow along. Boxes and keypoints are
in pixels of the image as a viewer shows it.
"""

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

REASONS = ("was read", "is neither a JPEG nor a PNG file", "has too many pixels", "is damaged")  # by `status`


def ask_rest(server: str, model: str, signature: str, images: list[bytes], seconds: float) -> list[dict[str, Any]]:
    """The answer to each image: what the signature's outputs hold of it."""
    instances = [{"b64": base64.b64encode(image).decode()} for image in images]
    request = urllib.request.Request(
        f"{server.rstrip('/')}/v1/models/{model}:predict",
        json.dumps({"signature_name": signature, "instances": instances}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            answers: list[dict[str, Any]] = json.load(response)["predictions"]
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        try:
            said = json.loads(said)["error"]
        except (ValueError, KeyError, TypeError):
            said = said or error.reason
        sys.exit(f"error: {server} refuses ({error.code}): {' '.join(said.split())}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: --rest={server}: does not answer ({error})")
    return answers


def ask_grpc(server: str, model: str, signature: str, images: list[bytes], seconds: float) -> list[dict[str, Any]]:
    """As `ask_rest`."""
    try:
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    except ImportError as error:
        sys.exit(f"error: --grpc needs {error.name}: pip install tensorflow-serving-api")
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(images, tf.string))
    # gRPC takes no answer above 4 MB unless it is told to, which is that to some 150 images of 100 people.
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server, unlimited) as channel:
        try:
            response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=seconds)
        except grpc.RpcError as error:
            sys.exit(f"error: --grpc={server}: {error.code().name} ({' '.join(str(error.details()).split())})")
    arrays = {name: tf.make_ndarray(tensor).tolist() for name, tensor in response.outputs.items()}
    return [{name: values[i] for name, values in arrays.items()} for i in range(len(images))]


def people_of(answer: dict[str, Any], min_score: float) -> list[dict[str, Any]]:
    """The people of one image's answer, best score first."""
    people = []
    for d in range(answer["num_detections"]):
        if answer["scores"][d] >= min_score:
            points = [[*xy, score] for xy, score in zip(answer["keypoints"][d], answer["keypoint_scores"][d], strict=True)]
            people.append({"score": answer["scores"][d], "box": answer["boxes"][d], "keypoints": points})
    return people


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--rest", help="such as http://localhost:8501")
    where.add_argument("--grpc", help="such as localhost:8500")
    parser.add_argument("--model", default="keypoint_rcnn", help="its name in models.config (default: keypoint_rcnn)")
    parser.add_argument(
        "--signature",
        default="serving_default",
        choices=["serving_default", "serving_tolerant"],
        help="serving_tolerant answers the other images if one cannot be read (default: serving_default)",
    )
    parser.add_argument("--min_score", type=float, default=0.5, help="people below this score are left out (default: 0.5)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for the answer (default: 60)")
    parser.add_argument("images", nargs="+", help="JPEG or PNG files")
    arguments = parser.parse_args()
    try:
        images = [Path(path).read_bytes() for path in arguments.images]
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    ask, server = (ask_rest, arguments.rest) if arguments.rest else (ask_grpc, arguments.grpc)
    answers = ask(server, arguments.model, arguments.signature, images, arguments.timeout)
    for path, answer in zip(arguments.images, answers, strict=True):
        line = {"image": path, "people": people_of(answer, arguments.min_score)}
        if answer.get("status"):
            line["problem"] = REASONS[answer["status"]]
        print(json.dumps(line))


if __name__ == "__main__":
    main()
