#!/bin/bash
# Installs the Debian packages whose commands the build and the tests call: with `build` only what the build needs, with `demo`,
# `demo-map`, `archives` or `interop` also what that demo, deploy/cli/archives.sh or tests/interop calls. The lab installs its own.
set -euo pipefail

declare -A package_of=(
  [ip]=iproute2 [tc]=iproute2 [ethtool]=ethtool [tcpdump]=tcpdump [tshark]=tshark [iperf3]=iperf3
  [setpriv]=util-linux [unshare]=util-linux [nsenter]=util-linux [cc]=gcc [jq]=jq [conntrack]=conntrack [curl]=curl
  [ping]=iputils-ping [strace]=strace [nft]=nftables [clang]=clang [softflowd]=softflowd [nfdump]=nfdump [mergecap]=wireshark-common
  [qemu-system-x86_64]=qemu-system-x86 [depmod]=kmod [busybox]=busybox-static [bpftool]=bpftool
  [chromium]=chromium [chromedriver]=chromium-driver
)
fonts=/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf
case "${1:-}" in
  archives) package_of=([cc]=gcc [clang]=clang [aarch64-linux-gnu-gcc]=gcc-aarch64-linux-gnu [x86_64-w64-mingw32-gcc]=gcc-mingw-w64-x86-64 [zip]=zip) ;;
  build) package_of=([cc]=gcc [clang]=clang) ;;
  demo) package_of=([cc]=gcc [clang]=clang [tcpdump]=tcpdump [tshark]=tshark [nsenter]=util-linux [curl]=curl) ;;
  interop) package_of=([cc]=gcc [make]=make [flex]=flex [bison]=bison [dpkg-source]=dpkg-dev) ;;
  demo-map) package_of=([cc]=gcc [clang]=clang [curl]=curl [chromium]=chromium) ;;
esac
# Prometheus is unpacked below target/ and not installed: the package would start a daemon.
prometheus=$(dirname "$0")/../target/prometheus
case "${1:-}" in
  archives | build | demo | interop) prometheus= ;;
  *) { command -v prometheus && command -v promtool; } >/dev/null && prometheus= ;;
esac
unpack_prometheus() {
  [ -n "$prometheus" ] && [ ! -x "$prometheus/usr/bin/promtool" ] || return 0
  command -v apt-get >/dev/null || { echo "missing: prometheus and promtool" >&2; exit 1; }
  echo "unpacking prometheus"
  mkdir -p "$prometheus"
  (
    cd "$prometheus"
    apt-get download prometheus >download.log 2>&1 \
      || { [ "$(id -u)" -eq 0 ] && apt-get update -q && apt-get download prometheus; } >>download.log 2>&1 \
      || { tail -20 download.log >&2; echo "could not run: apt-get download prometheus" >&2; exit 1; }
    dpkg -x prometheus_*.deb .
    rm prometheus_*.deb
  )
}
missing=()
# A browser without fonts shows no text.
[ -z "${package_of[chromium]:-}" ] || [ -f "$fonts" ] || missing+=(fonts-dejavu-core)
# An archive and no command: the operator contains libpcap.
[ -f "$(cc -print-file-name=libpcap.a 2>/dev/null)" ] || missing+=(libpcap-dev)
# Headers and no command.
[ "${1:-}" != archives ] || [ -f /usr/aarch64-linux-gnu/include/stdint.h ] || missing+=(libc6-dev-arm64-cross)
for command in "${!package_of[@]}"; do
  command -v "$command" >/dev/null || missing+=("${package_of[$command]}")
done
[ ${#missing[@]} -eq 0 ] && { unpack_prometheus; exit 0; }

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
install="apt-get install -y --no-install-recommends ${missing[*]}"
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "missing: ${missing[*]}. Install with: $install" >&2
  exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ apt-get update -q && $install; } >"$log" 2>&1 || { tail -20 "$log" >&2; echo "could not run: $install" >&2; exit 1; }
unpack_prometheus
