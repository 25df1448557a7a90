#!/bin/bash
# The dataplane tier on Debian's stock kernel, emulated by qemu without acceleration, so that it runs wherever the other tiers do.
# Arguments are passed to the test program, for example: tests/vm/run.sh destinations
#
# The guest's root is the machine's own, read-only through 9p, with a RAM disk over it: it has the programs that the tests call, and
# keeps no changes.
set -euo pipefail
cd "$(dirname "$0")/../.."
state=$PWD/target/kernels
mkdir -p "$state"

# The kernel is only unpacked, not installed.
if [ ! -e "$state/kernel/boot" ]; then
  fetch() {
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: //p' | head -1)
    [ -n "$package" ] && echo "fetching $package" && (cd "$state" && apt-get download -q "$package" 2>/dev/null)
  }
  # The package lists may be outdated or missing.
  fetch || { apt-get update -q >/dev/null && fetch; }
  (cd "$state" && dpkg -x "$package"_*.deb kernel)
  depmod -b "$state/kernel" "$(ls "$state/kernel/lib/modules")"
fi
version=$(ls "$state/kernel/lib/modules")

# The test program, built by cargo if necessary.
program=$(cargo test -q -p podtap-tests --test dataplane --locked --no-run --message-format json |
  jq -r 'select(.executable != null and .target.name == "dataplane").executable')

rm -rf "$state/initramfs" && mkdir -p "$state/initramfs"/{bin,modules,proc,sys,dev,machine,ram,root}
cp "$(command -v busybox)" "$state/initramfs/bin/"
install -m 755 tests/vm/init "$state/initramfs/init"
number=100
for module in virtio_pci 9pnet_virtio 9p overlay; do
  modprobe -S "$version" -d "$state/kernel" --show-depends "$module"
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r file; do
  cp "$file" "$state/initramfs/modules/$((number++)).ko"
done
# One word per line, because all of them would not fit on the kernel's command line.
printf '%s\n' "$PWD" "$state/kernel/lib/modules/$version" "$program" --test-threads=2 "$@" >"$state/initramfs/run"
(cd "$state/initramfs" && find . | busybox cpio -o -H newc 2>/dev/null) >"$state/initramfs.cpio"

status=$state/status
rm -f "$status"
timeout "${KERNELS_TIMEOUT:-1500}" qemu-system-x86_64 -accel tcg,thread=multi -smp 2 -m 2048 -nographic -no-reboot -nic none \
  -serial mon:stdio -serial "file:$status" \
  -kernel "$state/kernel/boot/vmlinuz-$version" -initrd "$state/initramfs.cpio" -append "console=ttyS0 quiet panic=-1" \
  -virtfs local,path=/,mount_tag=machine,security_model=none,readonly=on,multidevs=remap </dev/null | sed -u 's/\r//'
[ "$(tr -d '\r\n' <"$status")" = 0 ] || { echo "the tests failed on $version, or did not end" >&2; exit 1; }
