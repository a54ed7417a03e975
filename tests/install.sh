#!/usr/bin/env bash
# Installs the Debian packages that are named and missing, and says so. Used by tests/run.sh and
# examples/standalone/quickstart.sh: `tests/install.sh command=package …`.
set -euo pipefail

missing=()
for pair in "$@"; do
    command=${pair%%=*}
    package=${pair#*=}
    # Some servers are not in PATH.
    if ! command -v "$command" >/dev/null 2>&1 && ! compgen -G "/usr/lib/*/*/bin/$command" >/dev/null; then
        if [[ " ${missing[*]} " != *" $package "* ]]; then missing+=("$package"); fi
    fi
done
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi

echo "installing: ${missing[*]}"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "this system has no apt-get; install these yourself, then run this again: ${missing[*]}" >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "not root, and no sudo; run as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
"${as_root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
