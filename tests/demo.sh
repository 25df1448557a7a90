#!/bin/bash
# The main job, as a user does it, on a real Kubernetes on this machine. KEEP=1 leaves the lab up.
set -euo pipefail
cd "$(dirname "$0")/.."
kubectl() { target/lab/bin/kubectl --kubeconfig target/lab/kubeconfig "$@"; }
lab() { target/lab/bin/lab "$@"; }
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }

finish() {
  status=$?
  if [ "${KEEP:-}" = 1 ]; then
    [ -n "${capture:-}" ] && kill "$capture" 2>/dev/null || true
    say "The lab is up: export KUBECONFIG=$PWD/target/lab/kubeconfig PATH=$PWD/target/lab/bin:\$PATH; make lab-down ends it."
  elif [ -x target/lab/bin/lab ]; then
    lab down >target/demo-down.log 2>&1 || { cat target/demo-down.log; status=1; }
  fi
  [ $status -eq 0 ] || echo "The demo failed." >&2
  exit $status
}
trap finish EXIT

# A lab that is up already is used, and left up.
if [ -x target/lab/bin/lab ] && lab status 2>/dev/null | grep -q Ready; then KEEP=1; fi

say "1. A real two-node Kubernetes, and PodTap installed in it"
tests/prerequisites.sh
make --no-print-directory install

say "2. A web server on n1, a client on n2, and nobody who looks"
kubectl create namespace shop --dry-run=client -o yaml | kubectl apply -f - >/dev/null
show kubectl apply -n shop -f tests/demo/shop.yaml
kubectl wait -n shop --for=condition=Ready pod --all --timeout=60s >/dev/null
address=$(kubectl get pod -n shop web -o jsonpath='{.status.podIP}')

say "3. Tap it: every frame of app=web to the interface \"mirror\" on n2"
show cat tests/demo/tap.yaml
show kubectl apply -n shop -f tests/demo/tap.yaml
show kubectl wait -n shop --for=condition=Ready podtap/web --timeout=60s
show kubectl get podtap -n shop -o wide

say "4. One request from the client; what n2 sees of it on \"mirror\""
frames=target/demo.pcap
rm -f "$frames"
lab exec n2 -- tcpdump -q -i mirror -U -w - not arp >"$frames" 2>target/demo-tcpdump.log &
capture=$!
for _ in $(seq 100); do grep -q 'listening on' target/demo-tcpdump.log && break; sleep 0.1; done
show kubectl exec -n shop client -- wget -q -O - "http://$address/"
read_frames() { tshark -r "$frames" -n "$@" 2>/dev/null; }
for _ in $(seq 100); do [ "$(read_frames -Y 'tcp.flags.fin == 1' | wc -l)" -ge 2 ] && break; sleep 0.1; done
kill "$capture" && wait "$capture" 2>/dev/null || true
capture=
read_frames -d tcp.port==80,http
requests=$(read_frames -Y http.request | wc -l)
responses=$(read_frames -Y http.response | wc -l)
[ "$requests" -eq 1 ] && [ "$responses" -eq 1 ] || { echo "wanted one request and one response, got $requests and $responses"; exit 1; }

say "5. Delete the tap; what is left of it on either node and in the pod"
show kubectl delete -n shop podtap web
uid=$(kubectl get pod -n shop web -o jsonpath='{.metadata.uid}')
left=""
for node in n1 n2; do
  left+=$(lab exec $node -- ip -br link show type vxlan)
done
left+=$(kubectl exec -n shop web -- ip link | grep -E 'ptap|vxlan' || true)
pid=$(grep -ls "${uid//-/[-_]}" /proc/[0-9]*/cgroup | head -1 | cut -d/ -f3)
left+=$(nsenter -t "$pid" -n tc qdisc show | grep clsact || true)
[ -z "$left" ] || { echo "left behind: $left"; exit 1; }
echo "VXLAN devices: none. tc filters: none. The pod was not restarted: $(kubectl get pod -n shop web -o jsonpath='{.status.containerStatuses[0].restartCount}') restarts."
kubectl delete namespace shop --wait=false >/dev/null
say "Done: tapped, read, and gone."
