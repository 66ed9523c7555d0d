#!/usr/bin/env bash
# Makes (once) environments of what this project is measured against or tested with, in .venv-benchmarks/ (KEYPOINT_ENVIRONMENTS names
# another folder). Arguments name those that are wanted: `torch` (torch and torchvision, 5 GB), `tf_models` (tf-models-official,
# 3.3 GB), both by default; `jax` (0.4 GB), `tensorflow_2_17` (the last TensorFlow with TF-TRT, and tensorflow-serving-api, 2 GB), `openvino`
# (0.3 GB), `tensorrt_rtx` (0.4 GB), `tflite_runtime` (the TFLite interpreter of 2023, Python 3.11 alone, 0.1 GB), `java` (the libraries of TensorFlow for Java, with Maven; 0.5 GB).
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh"
[ $# -gt 0 ] || set -- torch tf_models
for name in "$@"; do
  if [ "$name" = java ]; then
    folder="${KEYPOINT_ENVIRONMENTS:-.venv-benchmarks}/java"
    mvn --batch-mode --quiet -f examples/serving/java/pom.xml dependency:copy-dependencies -DoutputDirectory="$(realpath -m "$folder")"
    echo "environments: $folder is ready"
    continue
  fi
  lock="benchmarks/environments/$name.txt" folder="${KEYPOINT_ENVIRONMENTS:-.venv-benchmarks}/$name"
  if [ ! -f "$lock" ]; then
    echo "environments: $name is not known; known are $(cd benchmarks/environments && echo *.txt | sed 's/\.txt//g') java" >&2
    exit 1
  fi
  sum="$(sha256sum "$lock" | cut -d' ' -f1)"
  if [ "$(cat "$folder/lock.sha256" 2>/dev/null || true)" != "$sum" ]; then
    echo "environments: $folder from $lock (large, once)"
    rm -rf "$folder"
    python -m venv "$folder"
    "$folder/bin/pip" install --disable-pip-version-check --progress-bar off --quiet --require-hashes -r "$lock"
    echo "$sum" > "$folder/lock.sha256"
  fi
  echo "environments: $folder is ready"
done
