#!/usr/bin/env bash
# The main job from rendered images to an exported model and report.html; `--help` lists what can be changed.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m scripts.demo "$@"
