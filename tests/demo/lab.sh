#!/bin/bash
# Taps a web server on a real Kubernetes on this machine, as a user does. KEEP=1 leaves the lab up.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/demo/in_lab.sh

# The plain manifest (docs/install.md), because building Helm takes a minute that the demo can do without.
install_podtap() {
  local version
  version=$(sed -n 's/^appVersion: //p' deploy/chart/podtap/Chart.yaml)
  lab load target/lab/podtap-image.tar
  sed "s|podtap.dev/podtap:$version|podtap.dev/podtap:$(cat target/lab/podtap-image.tag)|" deploy/install.yaml |
    kubectl apply --server-side --force-conflicts -f - >/dev/null
  kubectl wait --for=condition=Established crd/podtaps.podtap.dev --timeout=30s >/dev/null
  kubectl rollout status -n podtap-system deployment/podtap-controller --timeout=120s
}

read_frames() { tshark -r target/demo.pcap -n "$@" 2>/dev/null; }
is_listening() { grep -q 'listening on' target/demo-tcpdump.log; }
both_ends_closed() { [ "$(read_frames -Y 'tcp.flags.fin == 1' | wc -l)" -ge 2 ]; }

# Before PodTap, so that the pods start while it is installed.
create_web_server() {
  kubectl create namespace shop --dry-run=client -o yaml | kubectl apply -f - >/dev/null
  # Pods need it, and the controller manager may still be starting.
  kubectl wait -n shop --for=create serviceaccount/default --timeout=60s >/dev/null
  show kubectl apply -n shop -f tests/demo/shop.yaml
}

tap_web_server() {
  local address requests responses uid pid left
  kubectl wait -n shop --for=condition=Ready pod --all --timeout=60s >/dev/null
  address=$(kubectl get pod -n shop web -o jsonpath='{.status.podIP}')

  say '3. Tap it: mirror every frame of app=web to the interface "mirror" on n2'
  show cat tests/demo/tap.yaml
  show kubectl apply -n shop -f tests/demo/tap.yaml
  show kubectl wait -n shop --for=condition=Ready podtap/web --timeout=60s
  show kubectl get podtap -n shop -o wide

  say '4. One request from the client, and what n2 sees of it on "mirror"'
  lab exec n2 -- tcpdump -q -i mirror -U -w - not arp >target/demo.pcap 2>target/demo-tcpdump.log &
  capture=$!
  wait_for "tcpdump listens" is_listening || { cat target/demo-tcpdump.log >&2; return 1; }
  show kubectl exec -n shop client -- wget -q -O - "http://$address/"
  wait_for "both ends of the connection are closed" both_ends_closed
  kill "$capture" && wait "$capture" 2>/dev/null || true
  capture=
  read_frames -d tcp.port==80,http
  requests=$(read_frames -Y http.request | wc -l)
  responses=$(read_frames -Y http.response | wc -l)
  [ "$requests" -eq 1 ] && [ "$responses" -eq 1 ] || { echo "expected one request and one response, got $requests and $responses" >&2; return 1; }

  say "5. Delete the tap, and look for traces of it on both nodes and in the pod"
  show kubectl delete -n shop podtap web
  left=$(for node in n1 n2; do lab exec $node -- ip -br link show type vxlan; done)
  left+=$(kubectl exec -n shop web -- ip link | grep -E 'ptap|vxlan' || true)
  uid=$(kubectl get pod -n shop web -o jsonpath='{.metadata.uid}')
  pid=$(grep -ls "${uid//-/[-_]}" /proc/[0-9]*/cgroup | head -1 | cut -d/ -f3)
  left+=$(nsenter -t "$pid" -n tc qdisc show | grep clsact || true)
  [ -z "$left" ] || { echo "left behind: $left" >&2; return 1; }
  echo "VXLAN devices: none. tc filters: none. The pod was not restarted: $(kubectl get pod -n shop web -o jsonpath='{.status.containerStatuses[0].restartCount}') restarts."
  kubectl delete namespace shop --wait=false >/dev/null
}

say "Tap a web server on a real two-node Kubernetes on this machine"
plan packages "installs the Debian packages that are missing" \
  programs "builds PodTap and the lab from source" \
  kubernetes "builds Kubernetes and etcd from their Go modules" \
  boot "boots a control plane and two nodes" \
  install "installs PodTap" \
  tap "taps a web server, shows one request, deletes the tap"
echo "The first run builds everything and takes some minutes; later runs take seconds."

say "1. A real two-node Kubernetes"
step packages tests/prerequisites.sh demo
step programs programs
step kubernetes lab binaries --no-helm
step boot lab up --nodes 2 --no-helm
say "2. A web server on n1 and a client on n2, and PodTap"
create_web_server
step install install_podtap
step tap tap_web_server
say "Done: the web server was tapped, one request was read, and the tap is gone (${SECONDS} s)."
