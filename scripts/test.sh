#!/usr/bin/env bash
# Runs the tests except the campaigns, as many at a time as there are cores, at most four; with --campaigns only those. Other
# arguments go to pytest, which then runs the tests one by one.
# Tests on photographs read the folder that KEYPOINT_SHARED names, or are skipped.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# A file's tests share their fixtures; the files that take longest begin (tests/conftest.py).
at_once=(--numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder)
case "$*" in
  "") set -- "${at_once[@]}" -m "not campaign" ;;
  --campaigns) set -- "${at_once[@]}" -m campaign ;;
esac
exec python -m pytest "$@"
