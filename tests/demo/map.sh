#!/bin/bash
# Shows who calls whom in a shop of 12 services, on a real Kubernetes on this machine. KEEP=1 leaves the lab up.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/demo/in_lab.sh

# With Helm: the plain manifest has no collector.
install_podtap() {
  lab load target/lab/podtap-image.tar
  kubectl apply -f deploy/namespace.yaml >/dev/null
  target/lab/bin/helm upgrade --install podtap deploy/chart/podtap --namespace podtap-system --take-ownership \
    --kubeconfig target/lab/kubeconfig --set "image.pullPolicy=Never,image.tag=$(cat target/lab/podtap-image.tag)" \
    --set collector.enabled=true --wait --timeout 120s >/dev/null
}

has_all_calls() { [ "$(curl -sf "http://127.0.0.1:$port/map?format=list" | grep -c '^  - .* in namespace boutique$')" -ge 16 ]; }
is_forwarding() { port=$(sed -n 's/^Forwarding from 127.0.0.1:\([0-9]*\) .*/\1/p' target/demo-forward.log | head -1); [ "$port" ]; }

map_shop() {
  local port
  kubectl create namespace boutique --dry-run=client -o yaml | kubectl apply -f - >/dev/null
  kubectl wait -n boutique --for=create serviceaccount/default --timeout=60s >/dev/null

  say "3. Tap all pods of the namespace, and start the shop"
  show cat examples/tap-who-calls-whom.yaml
  show kubectl apply -n boutique -f examples/tap-who-calls-whom.yaml
  kubectl apply -n boutique -f tests/demo/boutique.yaml >/dev/null
  show kubectl rollout status -n boutique deployment/frontend --timeout=120s

  say "4. Who calls whom"
  kubectl port-forward -n podtap-system service/otterize-network-mapper :9090 >target/demo-forward.log 2>&1 &
  capture=$!
  wait_for "a port is forwarded" is_forwarding
  PATIENCE=60 wait_for "all calls were seen" has_all_calls
  show curl -s "http://127.0.0.1:$port/map?format=list"
  # The page shows the same, and more; the demo does not need it.
  if command -v chromium >/dev/null && tests/demo/picture.sh "http://127.0.0.1:$port/" target/demo-map.png; then
    say "5. The collector's page: target/demo-map.png"
    echo "Others see it in their browser: kubectl port-forward -n podtap-system service/otterize-network-mapper 9090"
  fi
  kill "$capture" && wait "$capture" 2>/dev/null || true
  capture=
  kubectl delete namespace boutique --wait=false >/dev/null
}

say "Who calls whom in a shop of 12 services, on a real two-node Kubernetes on this machine"
plan packages "installs the Debian packages that are missing" \
  programs "builds PodTap and the lab from source" \
  kubernetes "builds Kubernetes, etcd and Helm from their Go modules" \
  boot "boots a control plane and two nodes" \
  dns "builds CoreDNS from its Go module, and deploys it" \
  install "installs PodTap with its collector" \
  map "taps a shop, and shows who calls whom"
echo "The first run builds everything and takes some minutes; later runs take seconds."

say "1. A real two-node Kubernetes with CoreDNS"
step packages tests/prerequisites.sh demo-map
step programs programs
step kubernetes lab binaries
step boot lab up --nodes 2
step dns lab dns
say "2. PodTap and its collector"
step install install_podtap
step map map_shop
say "Done: 12 services and their 16 calls (${SECONDS} s)."
