#!/usr/bin/env bash
# README's commands, typed one after the other on the sample data; `--help` says more.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m scripts.type_readme "$@"
