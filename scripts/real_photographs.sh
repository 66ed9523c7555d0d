#!/usr/bin/env bash
# The whole path on real photographs, if the sample of COCO is there; `--help` says more.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m scripts.real_photographs "$@"
