#!/bin/bash
# Installs the systems that the tests of tests/interop send to, below target/interop; those that are there already are kept.
# `prepare.sh PART` is for one of them.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=target/interop
mkdir -p "$folder"

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

for part in "${@:-history}"; do "$part"; done
