#!/usr/bin/env bash
# Makes (once) the environments of what this project is measured against, in .venv-benchmarks/. Arguments name those that are
# wanted: `torch` (torch and torchvision, 5 GB), `tf_models` (tf-models-official, 3.3 GB), both by default, and `jax` (0.4 GB).
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh"
[ $# -gt 0 ] || set -- torch tf_models
for name in "$@"; do
  lock="benchmarks/environments/$name.txt" folder=".venv-benchmarks/$name"
  if [ ! -f "$lock" ]; then
    echo "environments: $name is not known; known are torch, tf_models and jax" >&2
    exit 1
  fi
  sum="$(sha256sum "$lock" | cut -d' ' -f1)"
  if [ "$(cat "$folder/lock.sha256" 2>/dev/null || true)" != "$sum" ]; then
    echo "environments: $folder from $lock (several GB to download, once)"
    rm -rf "$folder"
    python -m venv "$folder"
    "$folder/bin/pip" install --disable-pip-version-check --progress-bar off --quiet --require-hashes -r "$lock"
    echo "$sum" > "$folder/lock.sha256"
  fi
  echo "environments: $folder is ready"
done
