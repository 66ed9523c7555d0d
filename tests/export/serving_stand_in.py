"""Stands for TensorFlow Serving, which no package registry has: its protocols over a SavedModel, a few requests at a time.

  python serving_stand_in.py rest FOLDER/NAME/VERSION
  python serving_stand_in.py grpc FOLDER/NAME/VERSION [largest request in bytes]

The first needs TensorFlow, the second also tensorflow-serving-api: its PredictionService is the one that clients are written
for. Prints the port that it listens on (of the loopback), and ends with its standard input.
"""

from __future__ import annotations

import base64
import http.server
import json
import sys
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import tensorflow as tf


class Model:
    """A SavedModel under its name; `predict` raises KeyError for what is not there."""

    def __init__(self, path: Path) -> None:
        self.name = path.parent.name
        self.loaded = tf.saved_model.load(str(path))

    def predict(self, name: str, signature: str, inputs: dict[str, tf.Tensor]) -> dict[str, Any]:
        if name != self.name:
            raise KeyError(f"Servable not found for request: Latest({name})")
        if signature not in self.loaded.signatures:
            raise KeyError(f'Serving signature name: "{signature}" not found in signature def')
        return {key: value.numpy() for key, value in self.loaded.signatures[signature](**inputs).items()}


def rest(model: Model) -> int:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = self.path.removeprefix("/v1/models/").removesuffix(":predict")
            try:
                # Row format: a signature of one input takes its values without a name; "b64" marks bytes.
                images = tf.constant([base64.b64decode(row["b64"]) for row in request["instances"]])
                outputs = model.predict(name, request.get("signature_name", "serving_default"), {"image_bytes": images})
            except KeyError as error:
                return self.answer(404, {"error": str(error.args[0])})
            except tf.errors.InvalidArgumentError as error:
                return self.answer(400, {"error": error.message})
            rows = [{key: value[i].tolist() for key, value in outputs.items()} for i in range(len(request["instances"]))]
            return self.answer(200, {"predictions": rows})

        def answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def grpc(model: Model, largest: int) -> tuple[Any, int]:
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
            inputs = {key: tf.constant(tf.make_ndarray(tensor)) for key, tensor in request.inputs.items()}
            try:
                outputs = model.predict(request.model_spec.name, request.model_spec.signature_name, inputs)
            except KeyError as error:
                context.abort(grpc.StatusCode.NOT_FOUND, str(error.args[0]))
            except tf.errors.InvalidArgumentError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
            response = predict_pb2.PredictResponse()
            for key, value in outputs.items():
                response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
            return response

    options = [("grpc.max_receive_message_length", largest)]
    server = grpc.server(futures.ThreadPoolExecutor(2), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


if __name__ == "__main__":
    loaded = Model(Path(sys.argv[2]))
    if sys.argv[1] == "rest":
        listening = rest(loaded)
    else:
        kept, listening = grpc(loaded, int(sys.argv[3]) if len(sys.argv) > 3 else -1)
    print(listening, flush=True)
    sys.stdin.read()
