#!/bin/bash
# Measures two versions in turn, one round each, and prints what PodTap leaves of an untapped pod with each of them. The result is also in
# target/bench/compare.json.
#   compare.sh checkouts DIR ROUNDS ROWS     this checkout and the one in DIR, each with its own image, chart and API, in its own lab
#   compare.sh images A,B ROUNDS ROWS        two images, archives as of `make image`, with this checkout's chart, in its lab
set -euo pipefail
cd "$(dirname "$0")/../.."
mode=$1 what=$2 rounds=$3 rows=$4
results=target/bench/compare
rm -rf "$results" && mkdir -p "$results"

quietly() { "$@" >"$results/install.log" 2>&1 || { tail -20 "$results/install.log"; exit 1; }; }

# The tag of an image archive.
tag() { tar -xOf "$1" manifest.json | jq -r '.[0].RepoTags[0]' | sed 's/.*://'; }

declare -A versions
case $mode in
  checkouts)
    versions=([here]=$PWD [there]=$what)
    names=(here there)
    for checkout in "${versions[@]}"; do
      echo "installing $checkout"
      quietly make -C "$checkout" --no-print-directory install
    done
    ;;
  images)
    IFS=, read -r first second <<<"$what"
    [ -n "$second" ] || { echo "IMAGES=A,B names two archives" >&2; exit 2; }
    versions=([first]=$first [second]=$second)
    names=(first second)
    quietly make --no-print-directory install
    for image in "${versions[@]}"; do quietly target/lab/bin/lab load "$image"; done
    ;;
esac

measure() { # name, round
  local checkout=$PWD
  if [ "$mode" = checkouts ]; then
    checkout=${versions[$1]}
  else
    quietly target/lab/bin/helm upgrade podtap deploy/chart/podtap --namespace podtap-system --kubeconfig target/lab/kubeconfig \
      --set "image.pullPolicy=Never,image.tag=$(tag "${versions[$1]}")" --wait --timeout 120s
  fi
  (cd "$checkout" && cargo run -q -p podtap-tests --bin bench --locked -- --rows "$rows" --rounds 1) >"$results/$1-$2.log" 2>&1
  for family in ${rows//,/ }; do
    # Not every family is a table.
    [ -f "$checkout/target/bench/$family.json" ] && cp "$checkout/target/bench/$family.json" "$results/$1-$2-$family.json"
  done
  true
}

for round in $(seq "$rounds"); do
  # In turn, so that neither always runs after the other.
  order=("${names[@]}")
  [ $((round % 2)) -eq 0 ] && order=("${names[1]}" "${names[0]}")
  for name in "${order[@]}"; do
    echo "round $round of $rounds: $name, ${versions[$name]}"
    measure "$name" "$round"
  done
done

# Of every row and round: the ratio of the column PodTap to the column untapped.
jq -n '[inputs | input_filename as $file | ($file | capture(".*/(?<name>[a-z]+)-(?<round>[0-9]+)-(?<family>[a-z_]+).json$")) as $run
        | .rows[] | . as $row | .columns | to_entries[] | select(.key | startswith("PodTap"))
        | {row: ($run.family + ": " + $row.what + ", " + .key), name: $run.name, ratio: .value.of_untapped.median} | select(.ratio != null)]
  | group_by(.row) | map({row: .[0].row} + (group_by(.name) | map({(.[0].name): ([.[].ratio] | sort)}) | add))' \
  "$results"/*-[0-9]*-*.json >target/bench/compare.json
jq -r --arg a "${names[0]}" --arg b "${names[1]}" \
  'def median: .[length / 2 | floor]; def show: if . == null then "-" else "\(median * 100 | round / 100) [\(.[0] * 100 | round / 100) .. \(.[-1] * 100 | round / 100)]" end;
  "of untapped | \($a) | \($b)", (.[] | "\(.row) | \(.[$a] | show) | \(.[$b] | show)")' target/bench/compare.json | column -t -s '|'
