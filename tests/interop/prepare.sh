#!/bin/bash
# Installs the systems that the tests of tests/interop send to, below target/interop; those that are there already are kept.
# `prepare.sh PART` is for one of them.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=target/interop
mkdir -p "$folder"

require() { # command, Debian package
  command -v "$1" >/dev/null && return
  install="apt-get install -y --no-install-recommends $2"
  [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || { echo "missing: $1. Install with: $install" >&2; exit 1; }
  echo "installing $2"
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive $install; } >"$folder/install.log" 2>&1 || { tail -20 "$folder/install.log" >&2; exit 1; }
}

# The OTLP receiver of the OpenTelemetry collector from its Go modules, in target/interop/otel.
otel() {
  require go golang-go
  echo "building the receiver of OpenTelemetry"
  # Go builds what has changed; one that is too old for the modules fetches the version that they name.
  (cd tests/interop/otel && GOTOOLCHAIN=${GOTOOLCHAIN:-auto} CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -ldflags='-s -w' -o "$OLDPWD/$folder/otel/otel" .)
}

for part in "${@:-otel}"; do "$part"; done
