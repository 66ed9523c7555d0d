#!/usr/bin/env bash
# Format, lint and types: everything that must be clean before a change goes in. `--fix` formats and mends what can be mended.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ "${1:-}" = "--fix" ]; then
  ruff format .
  ruff check --fix .
fi
status=0
ruff format --check . || status=1
ruff check . || status=1
# Namespace packages: tests/ mirrors the folders, so file names come twice.
mypy --explicit-package-bases pipeline model export scripts examples benchmarks tests || status=1
exit "$status"
