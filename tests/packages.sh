#!/bin/bash
# What archives of kubectl-podtap contain besides the program: whether man(1) takes the manual pages, and krew the manifest.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
target/debug/kubectl-podtap man "$folder/man"
verbs=$(target/debug/kubectl-podtap --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]\+\) .*/\1/p')
for verb in '' $verbs; do
  # "help" explains the others.
  [ "$verb" != help ] || continue
  page=$folder/man/kubectl-podtap${verb:+-$verb}.1
  [ -f "$page" ] || { echo "there is no manual page of $verb" >&2; exit 1; }
  # As lintian(1) reads pages.
  warnings=$(LC_ALL=C.UTF-8 MANROFFSEQ='' MANWIDTH=80 man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>&1 >/dev/null)
  [ -z "$warnings" ] || { echo "$warnings" >&2; exit 1; }
done
# The digests are of another file: this is about the manifest.
digest=$(sha256sum LICENSE | cut -d' ' -f1)
for platform in linux_amd64.tar.gz linux_arm64.tar.gz windows_amd64.zip; do
  echo "$digest  kubectl-podtap_v1.2.3_$platform"
done >"$folder/sums"
deploy/cli/krew.sh v1.2.3 <"$folder/sums" >"$folder/podtap.yaml"
target/lab/bin/validate-krew-manifest -manifest "$folder/podtap.yaml" -skip-install
if deploy/cli/krew.sh v1.2.4 <"$folder/sums" 2>/dev/null; then
  echo "krew.sh takes digests of other archives" >&2
  exit 1
fi
