#!/bin/bash
# picture.sh ADDRESS FILE: what Chromium shows at an address, as a PNG file of 1280 by 800 pixels.
set -euo pipefail
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
# Time passes as fast as it can, but not while requests are not answered. A map that is large is laid out by a worker, which may be too late.
timeout 60 chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-dev-shm-usage \
  --disable-background-networking --disable-component-update --disable-sync --user-data-dir="$profile" \
  --window-size=1280,800 --force-color-profile=srgb --virtual-time-budget=4000 --screenshot="$2" "$1" >"$profile/log" 2>&1 \
  && [ -s "$2" ] || { tail -5 "$profile/log" >&2; exit 1; }
