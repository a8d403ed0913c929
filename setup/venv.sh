#!/bin/bash
# Make .venv with uv in it; one that works is kept. Missing Debian packages are installed first.
# PYTHON names the interpreter; default: python3 if its version suits, else a python3.x that does.
set -euo pipefail
cd "$(dirname "$0")/.."
UV='uv>=0.9,<1'

die() {
    echo "make: $*" >&2
    exit 1
}

suits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

setup/apt.sh base

if suits .venv/bin/python; then
    .venv/bin/pip install -q "$UV"
    exit
fi
for python in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    suits "$python" && break
    python=
done
[[ -n $python ]] || die "no Python 3.11, 3.12 or 3.13 found; name one: make PYTHON=/path/to/python"
"$python" -m venv --clear .venv ||
    die "$python -m venv failed; on Debian and Ubuntu, install the package python3.x-venv of it"
.venv/bin/pip install -q "$UV"
