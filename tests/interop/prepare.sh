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

# libpcap with rpcap.
libpcap() { tests/interop/libpcap.sh; }

# A collector of IPFIX from its Go module, in target/interop/goflow2.
goflow2() {
  version=v2.2.6
  [ -x "$folder/goflow2/$version/goflow2" ] && return
  require go golang-go
  echo "building goflow2"
  GOTOOLCHAIN=${GOTOOLCHAIN:-auto} CGO_ENABLED=0 GOBIN=$PWD/$folder/goflow2/$version \
    go install -trimpath -ldflags='-s -w' "github.com/netsampler/goflow2/v2/cmd/goflow2@$version"
  ln -sfn "$version/goflow2" "$folder/goflow2/goflow2"
}

# The OTLP receiver of the OpenTelemetry collector from its Go modules, in target/interop/otel.
otel() {
  require go golang-go
  echo "building the receiver of OpenTelemetry"
  # Go builds what has changed; one that is too old for the modules fetches the version that they name.
  (cd tests/interop/otel && GOTOOLCHAIN=${GOTOOLCHAIN:-auto} CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -ldflags='-s -w' -o "$OLDPWD/$folder/otel/otel" .)
}

# DuckDB and ClickHouse from PyPI, in target/interop/history.
history() {
  cmp -s tests/interop/history/requirements.txt "$folder/history/requirements.txt" && return
  python3 -m venv --help >/dev/null 2>&1 || { echo "missing: venv of Python. Install with: apt-get install -y python3-venv" >&2; exit 1; }
  echo "installing DuckDB and chdb"
  rm -rf "$folder/history"
  python3 -m venv "$folder/history"
  "$folder/history/bin/pip" install --quiet --disable-pip-version-check -r tests/interop/history/requirements.txt
  cp tests/interop/history/requirements.txt "$folder/history/requirements.txt"
}

# A broker and its tools from Maven, in target/interop/kafka.
kafka() {
  require java default-jre-headless
  cmp -s tests/interop/kafka/pom.xml "$folder/kafka/pom.xml" && return
  require mvn maven
  echo "resolving Kafka"
  rm -rf "$folder/kafka"
  mvn --quiet --batch-mode --file tests/interop/kafka/pom.xml org.apache.maven.plugins:maven-dependency-plugin:3.6.0:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$PWD/$folder/kafka"
  cp tests/interop/kafka/pom.xml "$folder/kafka/pom.xml"
}

parts=("$@")
[ $# -gt 0 ] || parts=(libpcap goflow2 otel history kafka)
for part in "${parts[@]}"; do "$part"; done
