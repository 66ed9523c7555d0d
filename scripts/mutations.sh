#!/usr/bin/env bash
# The campaign of damaged inputs; `--help` says more.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m scripts.mutations "$@"
