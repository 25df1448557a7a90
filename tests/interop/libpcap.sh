#!/bin/bash
# Builds libpcap with rpcap, and tcpdump with it, from Debian's source packages, and a peer of active mode: in target/interop/libpcap. What
# is there stays. Debian's own libpcap has no rpcap.
set -euo pipefail
cd "$(dirname "$0")/../.."
peer=$PWD/tests/interop/active.c
mkdir -p target/interop/libpcap
cd target/interop/libpcap

# Runs a command whose output is shown if it fails.
run() {
  "$@" >>build.log 2>&1 || { tail -20 build.log >&2; echo "could not run: $*" >&2; exit 1; }
}

if [ ! -x tcpdump ]; then
  rm -rf -- * && mkdir sources lists
  # The machine's own mirror, with sources instead of packages.
  for list in /etc/apt/sources.list.d/*.sources; do
    grep -q '/debian$' "$list" && sed 's/^Types:.*/Types: deb-src/' "$list" >sources/debian.sources
  done
  [ ! -s /etc/apt/sources.list ] || sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >sources/debian.list
  apt=(apt-get -q -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$PWD/sources" -o Dir::State::lists="$PWD/lists")
  run "${apt[@]}" update
  run "${apt[@]}" source libpcap tcpdump
  cd libpcap-*/
  run ./configure --enable-remote --disable-shared --disable-bluetooth --disable-usb --disable-dbus --disable-rdma --without-libnl
  # rpcap over TLS is not tested, and there is no option.
  sed -i '/define HAVE_OPENSSL/d' config.h
  run make libpcap.a
  # It finds the libpcap beside it.
  cd ../tcpdump-*/
  run ./configure --without-crypto --without-smi --without-cap-ng
  run make tcpdump
  cp tcpdump ..
  cd ..
fi
if [ ! -e active ] || [ "$peer" -nt active ]; then
  cc -Wall -Wextra -Werror -O1 -I libpcap-*/ -o active "$peer" libpcap-*/libpcap.a
fi
