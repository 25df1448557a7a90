#!/bin/bash
# Writes target/dist: kubectl-podtap for each platform with its manual pages and the licence, the digests of these archives, and the
# manifest for krew. The same commit and compiler make the same bytes.
#
# macOS is missing: linking for it takes Apple's SDK. So is Windows on arm64: Debian has no mingw-w64 for it.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/prerequisites.sh archives
dist=target/dist
version=v$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH TZ=UTC
declare -A target_of=([linux_amd64]=x86_64-unknown-linux-musl [linux_arm64]=aarch64-unknown-linux-musl [windows_amd64]=x86_64-pc-windows-gnu)
# For the C and assembly of ring. Rust brings libc and the linker for musl.
export CC_x86_64_unknown_linux_musl=gcc CC_aarch64_unknown_linux_musl=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld
# No path of this machine in the programs, and no time in those for Windows.
RUSTFLAGS="--remap-path-prefix=$PWD=podtap --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"

pages=$dist/man
rm -rf "$dist"
cargo build -q -p kubectl-podtap --locked
target/debug/kubectl-podtap man "$pages"
for platform in linux_amd64 linux_arm64 windows_amd64; do
  target=${target_of[$platform]} flags=$RUSTFLAGS extension=
  if [[ $platform = windows_* ]]; then flags+=" -Clink-arg=-Wl,--no-insert-timestamp" extension=.exe; fi
  echo "building $platform"
  rustup target add "$target" 2>/dev/null || { echo "there is no standard library for $target: rustup target add $target" >&2; exit 1; }
  RUSTFLAGS=$flags cargo build -q --release -p kubectl-podtap --locked --target "$target"
  name=kubectl-podtap_${version}_$platform
  folder=$dist/$name
  mkdir -p "$folder/man"
  cp "target/$target/release/kubectl-podtap$extension" LICENSE "$folder"
  cp "$pages"/* "$folder/man"
  chmod -R u=rwX,go=rX "$folder"
  find "$folder" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
  if [[ $platform = windows_* ]]; then
    (cd "$folder" && find . -type f | LC_ALL=C sort | zip -q -X -@ "../$name.zip")
  else
    tar -C "$folder" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -c . | gzip -9n >"$dist/$name.tar.gz"
  fi
  rm -r "$folder"
done
rm -r "$pages"
(cd "$dist" && sha256sum -- *.tar.gz *.zip >SHA256SUMS)
deploy/cli/krew.sh "$version" <"$dist/SHA256SUMS" >"$dist/podtap.yaml"
ls -l "$dist"
