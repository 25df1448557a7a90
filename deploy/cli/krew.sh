#!/bin/bash
# Prints the manifest of a release for krew: krew.sh VERSION <SHA256SUMS
set -euo pipefail
cd "$(dirname "$0")"
sums=$(cat)
manifest=$(sed "s/VERSION/$1/g" krew.yaml)
while read -r archive; do
  digest=$(awk -v archive="$archive" '$2 == archive { print $1 }' <<<"$sums")
  [ -n "$digest" ] || { echo "no digest of $archive" >&2; exit 1; }
  manifest=${manifest/DIGEST/$digest}
done < <(sed -n 's|^ *uri: .*/||p' <<<"$manifest")
printf '%s\n' "$manifest"
