#!/bin/bash
# `make bench COMPARE=DIR`: this checkout and the one in DIR, each with its own image and API in its own lab, measured in turn, one
# round each. Prints what PodTap leaves of an untapped pod, here and there, and writes it to target/bench/compare.json.
set -euo pipefail
cd "$(dirname "$0")/../.."
there=$1 rounds=$2 rows=$3
shift 3
results=target/bench/compare
rm -rf "$results" && mkdir -p "$results"

for checkout in "$PWD" "$there"; do
  echo "installing $checkout"
  make -C "$checkout" --no-print-directory install >"$results/install.log" 2>&1 || { tail -20 "$results/install.log"; exit 1; }
done

measure() { # name, checkout, round
  (cd "$2" && cargo run -q -p podtap-tests --bin bench --locked -- --rows "$rows" --rounds 1 "${@:4}") >"$results/$1-$3.log" 2>&1
  for family in ${rows//,/ }; do
    # Not every family is a table.
    [ -f "$2/target/bench/$family.json" ] && cp "$2/target/bench/$family.json" "$results/$1-$3-$family.json"
  done
  true
}

for round in $(seq "$rounds"); do
  # In turn, so that neither always runs after the other.
  order=(here there)
  [ $((round % 2)) -eq 0 ] && order=(there here)
  for name in "${order[@]}"; do
    [ "$name" = here ] && checkout=$PWD || checkout=$there
    echo "round $round of $rounds: $name"
    measure "$name" "$checkout" "$round" "$@"
  done
done

# Of every row and round: the ratio of the column PodTap to the column untapped.
jq -n '[inputs | input_filename as $file | ($file | capture(".*/(?<name>here|there)-(?<round>[0-9]+)-(?<family>[a-z]+).json$")) as $run
        | .rows[] | . as $row | .columns | to_entries[] | select(.key | startswith("PodTap"))
        | {row: ($run.family + ": " + $row.what + ", " + .key), name: $run.name, ratio: .value.of_untapped.median} | select(.ratio != null)]
  | group_by(.row) | map({row: .[0].row} + (group_by(.name) | map({(.[0].name): ([.[].ratio] | sort)}) | add))' \
  "$results"/*-[0-9]*-*.json >target/bench/compare.json
jq -r 'def median: .[length / 2 | floor]; def show: if . == null then "-" else "\(median * 100 | round / 100) [\(.[0] * 100 | round / 100) .. \(.[-1] * 100 | round / 100)]" end;
  "of untapped | here | there", (.[] | "\(.row) | \(.here | show) | \(.there | show)")' target/bench/compare.json | column -t -s '|'
