#!/usr/bin/env bash
# Runs the tests; arguments go to pytest. Tests on photographs read the folder that KEYPOINT_SHARED names, or are skipped.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m pytest "$@"
