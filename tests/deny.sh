#!/bin/bash
# Runs cargo-deny with the settings in deny.toml: tests/deny.sh [CHECK...]
#
# Without arguments, all checks except advisories: their database is a git repository, which is not reachable everywhere this
# runs, and a new advisory would fail an unchanged commit. .github/workflows/advisories.yml runs that check.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
# Next to the lab's programs: built once per machine, not once per clone.
root=${XDG_CACHE_HOME:-$HOME/.cache}/podtap/tools/cargo-deny-$version
if [ ! -x "$root/bin/cargo-deny" ]; then
  echo "building cargo-deny $version (once per machine)"
  # Unoptimised, since it runs for seconds; moved into place only when complete.
  partial=$root.$$
  trap 'rm -rf "$partial"' EXIT
  CARGO_PROFILE_DEV_DEBUG=false cargo install -q --locked --debug --root "$partial" --target-dir "$partial/target" --version "=$version" cargo-deny
  rm -rf "$partial/target" "$root"
  mv "$partial" "$root"
fi
[ $# -gt 0 ] || set -- bans licenses sources
"$root/bin/cargo-deny" --locked check --hide-inclusion-graph "$@"
