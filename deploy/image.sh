#!/bin/bash
# target/podtap-image.tar: static release binaries and nothing else. IMAGE names it otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^appVersion: //p' deploy/chart/podtap/Chart.yaml)
host=$(rustc -vV | sed -n 's/^host: //p')
# The target is named although it is the host's: else the flags would reach build scripts and derive macros too.
RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$host" -p podtap-operator -p tap-helper
built=target/$host/release
target/lab/bin/lab image "${IMAGE:-podtap.dev/podtap:$version}" target/podtap-image.tar \
  --entrypoint '["/podtap-operator"]' --user 65532:65532 \
  podtap-operator="$built/podtap-operator" tap-helper="$built/tap-helper"
echo "target/podtap-image.tar: $(du -h --apparent-size target/podtap-image.tar | cut -f1)"
