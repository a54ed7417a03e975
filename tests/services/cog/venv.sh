#!/usr/bin/env bash
# Prepares a Python environment with a real cog, once for all runs, and prints where it is.
#
#   tests/services/cog/venv.sh DIR
set -euo pipefail

version=0.23.1
dir=${1:?directory}/cog-$version

if [ ! -e "$dir/ready" ]; then
    rm -rf "$dir"
    python3 -m venv "$dir" >&2
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check "cog==$version" "coglet==$version" >&2
    # Last, so that one that was broken off is made anew.
    touch "$dir/ready"
fi
cd "$dir"
pwd
