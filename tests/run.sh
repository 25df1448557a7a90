#!/bin/bash
# Every tier, those with the fewest requirements first; `make test` calls it. A lab that is up already is used and left up.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
log=target/test.log
mkdir -p target
: >"$log"

step() { # name, command...
  printf '\n=== %s (%d s)\n' "$1" $((SECONDS - started))
  shift
  "$@" 2>&1 | tee -a "$log"
}

# The state of the machine that a run may not change; it is compared at the end.
machine() {
  ip -o link | cut -d: -f2 | sort
  ip netns list
  for device in $(ls /sys/class/net); do tc qdisc show dev "$device"; done
  # Only mounts with this checkout's path: those of containers and of other checkouts' labs may change meanwhile.
  grep -F "$PWD" /proc/self/mounts || true
  sysctl -n fs.inotify.max_user_instances vm.overcommit_memory kernel.panic kernel.panic_on_oops
}

lab_was_up=false
[ -x target/lab/bin/lab ] && target/lab/bin/lab status 2>/dev/null | grep Ready >/dev/null && lab_was_up=true
image=
finish() {
  [ -z "$image" ] || kill -- "-$image" 2>/dev/null || true
  $lab_was_up || { [ -x target/lab/bin/lab ] && target/lab/bin/lab down >>"$log" 2>&1; } || true
}
trap finish EXIT

step prerequisites tests/prerequisites.sh
machine >target/machine.before
if [ "${CI:-}" = true ]; then
  for check in lint doc deny cli-check; do step $check make --no-print-directory $check; done
fi
step repo make --no-print-directory repo
# The release build for the e2e tier takes minutes, mostly on one core. At idle priority, it takes nothing from tiers that mostly wait.
setsid chrt --idle 0 make --no-print-directory image >target/image.log 2>&1 &
image=$!
step dataplane make --no-print-directory dataplane
# The tests that depend most on the kernel; `make kernels` runs the whole tier.
step kernels make --no-print-directory kernels TESTS="kernels:: bpf_load replacing_programs programs:: fidelity::every clamped::nothing_is_lost clamped::the_pods probes::lost"
wait "$image" || { tail -n 40 target/image.log; exit 1; }
image=
step e2e make --no-print-directory e2e
if ! $lab_was_up; then
  step "lab down" make --no-print-directory lab-down
  machine >target/machine.after
  # Only the cgroups of this checkout's lab.
  name=$(target/lab/bin/lab status | grep -o 'podtap-[0-9a-f]*')
  find /sys/fs/cgroup -maxdepth 2 -type d -name "$name" >>target/machine.after
  diff target/machine.before target/machine.after || { echo "the run changed the machine (above)"; exit 1; }
fi

printf '\n=== summary (%d s)\n' $((SECONDS - started))
grep -E '^test result:' "$log"
awk '/^test result:/ { for (i = 1; i < NF; i++) { if ($(i+1) ~ /^passed/) p += $i; if ($(i+1) ~ /^failed/) f += $i; if ($(i+1) ~ /^ignored/) s += $i } }
     END { printf "%d passed, %d failed, %d skipped\n", p, f, s }' "$log"
