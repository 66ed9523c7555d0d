# Makes (once) the environment .venv beside this repository from requirements.lock, and puts it on PATH.
# Sourced by the other scripts; needs Python 3.11 or 3.12 with venv and pip, nothing else.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${VENV:-.venv}"
lock_sum="$(sha256sum requirements.lock | cut -d' ' -f1)"
if [ "$(cat "$venv/lock.sha256" 2>/dev/null || true)" != "$lock_sum" ]; then
  python="${PYTHON:-}"
  for candidate in python3.12 python3.11 python3; do
    if [ -z "$python" ] && command -v "$candidate" >/dev/null \
      && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      python="$candidate"
    fi
  done
  if [ -z "$python" ]; then
    echo "setup: no Python 3.11 or 3.12 with venv was found; install one, or name it: PYTHON=/path/to/python3.11" >&2
    exit 1
  fi
  echo "setup: environment $venv with $("$python" --version), packages of requirements.lock (about 1 GB to download, once)"
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --disable-pip-version-check --progress-bar off --quiet --require-hashes -r requirements.lock
  echo "$lock_sum" > "$venv/lock.sha256"
fi
export PATH="$(cd "$venv" && pwd)/bin:$PATH" # (a folder elsewhere, too)
echo "setup: environment $venv is ready"
