#!/bin/bash
# Writes target/podtap-image.tar: static release binaries, and the notice of a library in them. IMAGE sets another name.
# With --lab: an image for the lab's nodes, built in a third of the time with the profile lab-image; PROFILE sets another one.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=release archive=target/podtap-image.tar
if [ "${1:-}" = --lab ]; then profile=${PROFILE:-lab-image} archive=target/lab/podtap-image.tar IMAGE=; fi
version=$(sed -n 's/^appVersion: //p' deploy/chart/podtap/Chart.yaml)
host=$(rustc -vV | sed -n 's/^host: //p')
# Naming the target, although it is the host's, keeps the flags from build scripts and derive macros.
build() { RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile "$profile" --locked --target "$host" "$@"; }
if [ "$profile" = lab-image ]; then
  # Together, which compiles what they share once.
  build -p podtap-controller -p podtap-agent -p podtap-collector -p podtap-exporter -p tap-helper
else
  build -p podtap-controller -p podtap-agent -p podtap-collector -p podtap-exporter
  # By itself: together with the others, features would be unified, and the privileged program would be built with theirs.
  build -p tap-helper
fi
built=target/$host/$profile
binaries=(podtap-controller podtap-agent podtap-collector podtap-exporter tap-helper)
if [ "${1:-}" = --lab ]; then
  # A tag of its own for each content, so that pods are replaced exactly when something has changed.
  version+=-$(cat "${binaries[@]/#/$built/}" | sha256sum | cut -c1-12)
  echo "$version" >target/lab/podtap-image.tag
fi
name=${IMAGE:-podtap.dev/podtap:$version}
# libpcap is linked into the controller, and its licence requires the notice to ship with it.
notice=/usr/share/doc/libpcap-dev/copyright
target/lab/bin/lab image "$name" "$archive" \
  --entrypoint '["/podtap-controller"]' --user 65532:65532 \
  $(for binary in "${binaries[@]}"; do echo "$binary=$built/$binary"; done) \
  $([ ! -f $notice ] || echo "licenses/libpcap=$notice")
echo "$archive: $name, $(du -h --apparent-size "$archive" | cut -f1)"
