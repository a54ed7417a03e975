#!/usr/bin/env bash
# Every check there is: format, lints, docs, packages, and every test, against servers that this
# script starts on private ports and stops again. What is missing is installed, and named.
# A service that cannot be had fails the run; nothing is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

tests/install.sh cc=build-essential ffmpeg=ffmpeg espeak-ng=espeak-ng redis-server=redis-server \
    redis-cli=redis-tools postgres=postgresql python3=python3 curl=curl
# Debian's python3 cannot make environments without this; there is no command of that name.
python3 -c 'import ensurepip' 2>/dev/null || tests/install.sh ensurepip=python3-venv

began=$SECONDS
step() { printf '\n== %s (after %ss)\n' "$*" "$((SECONDS - began))"; }

step "services"
services=$(mktemp -d)
trap 'tests/services/private.sh stop "$services"; rm -rf "$services"' EXIT
tests/services/private.sh start "$services"
# shellcheck source=/dev/null
. "$services/env"
VIDGEN_TEST_COG_VENV=$(tests/services/cog/venv.sh "${CARGO_TARGET_DIR:-target}")
export VIDGEN_TEST_COG_VENV VIDGEN_REQUIRE_SERVICES=1

# Not RUSTFLAGS: other flags than everyday's would build every dependency once more.
export RUSTDOCFLAGS="-D warnings"

step "format"
cargo fmt --all --check

step "lints"
lint() { cargo clippy --locked "$@" -- -D warnings; }
lint --workspace --all-targets --all-features
# Each feature alone, and none: what a host may choose must build.
for features in "" net conformance; do lint -q -p vidgen-core --no-default-features --features "$features"; done
for features in "" local replicate fal elevenlabs openai comfyui cog runway lab; do lint -q -p vidgen-providers --no-default-features --features "$features"; done
for features in "" sqlite object fs; do lint -q -p vidgen-store --no-default-features --features "$features"; done

step "docs"
cargo doc --workspace --all-features --no-deps

step "tests"
# The end-to-end tests run the real binaries.
cargo build --workspace --all-features --bins
cargo test --workspace --all-features

step "packages"
cargo package --allow-dirty -p vidgen-core -p vidgen-providers -p vidgen-store -p vidgen-http

step "done: everything passed"
