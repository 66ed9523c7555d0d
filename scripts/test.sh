#!/usr/bin/env bash
# Runs the tests, as many at a time as there are cores, at most four; arguments go to pytest, which then runs them one by one.
# Tests on photographs read the folder that KEYPOINT_SHARED names, or are skipped.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ $# -eq 0 ]; then
  set -- --numprocesses=auto --maxprocesses=4 --dist=loadfile # a file's tests share their fixtures
fi
exec python -m pytest "$@"
