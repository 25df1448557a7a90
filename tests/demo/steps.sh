# Sourced by all demos: printing, waiting, and recording how long each step takes.
times=target/demo-times # one line for each step: its name, and the seconds that it took last time

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }

# plan NAME TEXT...: the steps to come, with how long each took last time.
plan() {
  local seconds
  while [ $# -gt 0 ]; do
    seconds=$(sed -n "s/^$1 //p" "$times" 2>/dev/null || true)
    printf '  %-12s %-62s %s\n' "$1" "$2" "${seconds:+$seconds s last time}"
    shift 2
  done
}

# step NAME COMMAND...: runs one of them, and records how long it took.
step() {
  local name=$1 began=$EPOCHREALTIME others
  shift
  "$@"
  others=$(grep -v "^$name " "$times" 2>/dev/null || true)
  { [ -z "$others" ] || echo "$others"; awk -v a="$began" -v b="$EPOCHREALTIME" "BEGIN { printf \"$name %.1f\n\", b - a }"; } >"$times"
}

# wait_for WHAT COMMAND...: until the command succeeds, for ten seconds at most, or PATIENCE.
wait_for() {
  local what=$1 tenths
  shift
  for ((tenths = 0; tenths < 10 * ${PATIENCE:-10}; tenths++)); do
    if "$@"; then return; fi
    sleep 0.1
  done
  echo "not within ${PATIENCE:-10} s: $what" >&2
  return 1
}
