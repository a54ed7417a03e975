#!/usr/bin/env bash
# From nothing to a video: ./quickstart.sh "a prompt" [--script "what is said"] [any option of `vidgen generate`]
#
# Installs ffmpeg and a voice if they are missing, builds, starts a server on a free port, asks it
# for the video over HTTP, prints where video and thumbnail lie, and stops the server.
#   VIDGEN_DATA  where the server keeps its data   (default: target/quickstart in the repository)
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
fail() { say "quickstart: $*"; exit 1; }

[ $# -ge 1 ] || fail 'say what the video shall show, e.g. ./quickstart.sh "a paper boat on a rainy street"'
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
command -v cargo >/dev/null || fail "cargo was not found: install Rust from https://rustup.rs"

# --- tools ---
"$repo/tests/install.sh" cc=build-essential ffmpeg=ffmpeg ffprobe=ffmpeg espeak-ng=espeak-ng >&2

# --- build: the development profile, since it is there several times sooner and ffmpeg does the work ---
say "building, if there is something to build (a few minutes the first time)"
cargo build --quiet --locked --manifest-path "$repo/Cargo.toml" --package standalone
target=$(cargo metadata --manifest-path "$repo/Cargo.toml" --no-deps --format-version 1 |
  sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
vidgen=$target/debug/vidgen

# --- server ---
data=${VIDGEN_DATA:-$repo/target/quickstart}
mkdir -p "$data"
data=$(cd "$data" && pwd)
out=$(mktemp "$data/server.XXXXXX")
env -u PUBLIC_URL PORT=0 HOST=127.0.0.1 DATABASE_URL="sqlite:$data/vidgen.db" MEDIA_DIR="$data/media" \
  "$vidgen" all >"$out" 2>"$data/server.log" &
server=$!
client=
stop() {
  [ -z "$client" ] || kill "$client" 2>/dev/null || true
  kill "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  rm -f "$out"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

url=
for _ in $(seq 150); do
  url=$(sed -n 's/^listening on //p' "$out")
  [ -z "$url" ] || break
  kill -0 "$server" 2>/dev/null || { tail -n 5 "$data/server.log" >&2; fail "the server did not start"; }
  sleep 0.1
done
[ -n "$url" ] || fail "the server did not listen within 15 s; see $data/server.log"
say "server at $url"

# --- the video ---
# In the background, since bash looks at signals only between commands and while it waits.
"$vidgen" generate --server "$url" "$@" &
client=$!
status=0
wait "$client" || status=$?
client=
exit "$status"
