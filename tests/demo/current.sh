#!/bin/bash
# Taps a web server on the cluster of the current kubeconfig context. Asks first (YES=1 agrees), installs PodTap if it is missing, and
# removes what it created. With KEEP=1, a PodTap that it has installed stays.
#
# IMAGE         PodTap's image, if nodes have it or can pull it. Otherwise it is built, and loaded if this script knows how to.
# DEMO_IMAGE    the image of the web server and its client, with a shell, httpd and wget
# SENSOR_IMAGE  the image of the pod that receives the frames, with a shell and tcpdump
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p target/lab
. tests/demo/steps.sh
times=target/demo-times.current
namespace=podtap-demo
installed=false
made=false
demo_image=${DEMO_IMAGE:-docker.io/library/busybox:1.37}
sensor_image=${SENSOR_IMAGE:-docker.io/nicolaka/netshoot:v0.13}
command -v kubectl >/dev/null || { echo "kubectl is not installed." >&2; exit 1; }
context=$(kubectl config current-context 2>/dev/null) || { echo "kubectl has no current context: kubectl config use-context NAME sets one." >&2; exit 1; }
# All commands use the context that was shown, even if the current context changes meanwhile.
kubectl() { command kubectl --context "$context" "$@"; }
server=$(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}')
kubectl version --request-timeout=10s >/dev/null || { echo "The cluster of the context $context ($server) does not answer." >&2; exit 1; }

finish() {
  status=$?
  [ -n "${capture:-}" ] && kill "$capture" 2>/dev/null || true
  clean_up || status=1
  [ $status -eq 0 ] || echo "The demo failed." >&2
  exit $status
}

# Taps before PodTap, because the controller removes them.
clean_up() {
  if $made; then
    kubectl delete namespace $namespace --timeout=120s
  fi
  if $installed && { [ "${KEEP:-}" = 1 ] || [ -n "$(kubectl get podtaps --all-namespaces -o name 2>/dev/null)" ]; }; then
    say "PodTap stays installed, because of KEEP=1 or because there are taps. See docs/install.md for how to uninstall it."
  elif $installed; then
    say "Uninstall PodTap, once its nodes are clean (about a minute)"
    for _ in {1..120}; do
      [ -n "$(kubectl get nodetaps -o name)" ] || break
      sleep 1
    done
    manifest | kubectl delete --ignore-not-found -f - >/dev/null
  fi
}

version=$(sed -n 's/^appVersion: //p' deploy/chart/podtap/Chart.yaml)
manifest() { sed "s|podtap.dev/podtap:$version|${IMAGE:-podtap.dev/podtap:$version}|" deploy/install.yaml; }

# Loads a local image into the nodes, if the cluster is of a kind that supports it.
load() { # archive
  local nodes
  case $context in
    kind-*) kind load image-archive "$1" --name "${context#kind-}" ;;
    k3d-*) k3d image import "$1" --cluster "${context#k3d-}" ;;
    *)
      nodes=$(kubectl get nodes -o jsonpath='{.items[*].metadata.name} {.items[0].status.nodeInfo.kubeletVersion}')
      if command -v minikube >/dev/null && minikube profile list -o json 2>/dev/null | grep -q "\"Name\":\"$context\""; then
        minikube image load "$1" --profile "$context"
      elif command -v k3s >/dev/null && [[ $nodes == "$(hostname) v"*+k3s* ]]; then
        k3s ctr images import "$1"
      else
        return 1
      fi
      ;;
  esac
}

install_podtap() {
  if [ -z "${IMAGE:-}" ]; then
    make --no-print-directory image
    load target/podtap-image.tar || {
      cat >&2 <<END
This cluster is not one of kind, k3d, minikube, or k3s on this machine, so its nodes do not have PodTap's image yet. Either
  load target/podtap-image.tar into every node (docs/install.md), and then: IMAGE=podtap.dev/podtap:$version make demo CLUSTER=current
  or push it to a registry that the nodes can pull from, and then:         IMAGE=REGISTRY/podtap:$version make demo CLUSTER=current
END
      return 1
    }
  fi
  installed=true
  manifest | kubectl apply --server-side -f - >/dev/null
  kubectl wait --for=condition=Established crd/podtaps.podtap.dev --timeout=30s >/dev/null
  kubectl rollout status -n podtap-system deployment/podtap-controller --timeout=180s
}

# The scheduler chooses the nodes: for the client and the sensor others than the web server's, if there are any.
pods() {
  local apart='affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 100, podAffinityTerm: {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}}]}}'
  cat <<END
apiVersion: v1
kind: Pod
metadata: { name: web, labels: { app: web } }
spec:
  nodeSelector: { kubernetes.io/os: linux }
  terminationGracePeriodSeconds: 0
  containers:
    - { name: web, image: "$demo_image", command: [sh, -c, "mkdir /w; echo 'Hello from the tapped pod.' > /w/index.html; httpd -f -h /w -p 80"] }
---
apiVersion: v1
kind: Pod
metadata: { name: client, labels: { app: client } }
spec:
  nodeSelector: { kubernetes.io/os: linux }
  terminationGracePeriodSeconds: 0
  $apart
  containers:
    - { name: client, image: "$demo_image", command: [sleep, "3600"] }
---
apiVersion: v1
kind: Pod
metadata: { name: sensor, labels: { app: sensor } }
spec:
  nodeSelector: { kubernetes.io/os: linux }
  terminationGracePeriodSeconds: 0
  $apart
  containers:
    # Some runtimes do not grant the capability that capturing needs.
    - { name: sensor, image: "$sensor_image", command: [sleep, "3600"], securityContext: { capabilities: { add: [NET_RAW] } } }
END
}

frames_received() { kubectl exec -n $namespace sensor -- cat /sys/class/net/tap0/statistics/rx_packets; }
is_listening() { grep -q 'listening on' target/demo-tcpdump.log; }
has_both_ends_closed() { [ "$(grep -c 'Flags \[F' target/demo-frames.txt)" -ge 2 ]; }
# Four to open the connection, request, response and their acknowledgements, and three to close it: at least eight.
has_received_a_connection() { [ $(($(frames_received) - before)) -ge 8 ]; }

request() { show kubectl exec -n $namespace client -- wget -q -O - "http://$address/"; }

tap_web_server() {
  local address before
  say "2. A web server, a client, and a sensor for the mirrored frames"
  made=true
  kubectl create namespace $namespace >/dev/null
  kubectl label namespace $namespace pod-security.kubernetes.io/enforce=privileged >/dev/null
  pods | kubectl apply -n $namespace -f -
  kubectl wait -n $namespace --for=condition=Ready pod --all --timeout=120s >/dev/null ||
    { kubectl get pods -n $namespace -o wide >&2; echo "DEMO_IMAGE and SENSOR_IMAGE set other images, if nodes cannot pull these." >&2; return 1; }
  kubectl get pods -n $namespace -o wide
  address=$(kubectl get pod -n $namespace web -o jsonpath='{.status.podIP}')
  # A URL has an IPv6 address in brackets.
  [[ $address != *:* ]] || address="[$address]"

  say '3. Tap it: mirror every frame of app=web to the interface "tap0" in the sensor'
  show cat tests/demo/tap-to-sensor.yaml
  show kubectl apply -n $namespace -f tests/demo/tap-to-sensor.yaml
  show kubectl wait -n $namespace --for=condition=Ready podtap/web --timeout=120s
  show kubectl get podtap -n $namespace -o wide

  say '4. One request from the client, and what the sensor sees of it on "tap0"'
  if kubectl exec -n $namespace sensor -- sh -c 'command -v tcpdump' >/dev/null 2>&1; then
    kubectl exec -n $namespace sensor -- tcpdump -l -nn -i tap0 tcp port 80 >target/demo-frames.txt 2>target/demo-tcpdump.log &
    capture=$!
    wait_for "tcpdump listens" is_listening || { cat target/demo-tcpdump.log >&2; return 1; }
    request
    wait_for "both ends of the connection are closed" has_both_ends_closed
    kill "$capture" && wait "$capture" 2>/dev/null || true
    capture=
    cat target/demo-frames.txt
    grep -q 'HTTP: GET / ' target/demo-frames.txt && grep -q 'HTTP: HTTP/1.* 200 OK' target/demo-frames.txt ||
      { echo "the request or its response is missing" >&2; return 1; }
  else
    echo "The image $sensor_image has no tcpdump to decode frames. The counter of the interface shows that they arrive:"
    before=$(frames_received)
    request
    wait_for "the frames of a connection arrive" has_received_a_connection
    show kubectl exec -n $namespace sensor -- cat /sys/class/net/tap0/statistics/rx_packets
    echo "$(($(frames_received) - before)) of these frames arrived since the request."
  fi

  say "5. Delete the tap"
  show kubectl delete -n $namespace podtap web
  if kubectl exec -n $namespace sensor -- ls /sys/class/net | grep -qw tap0; then
    echo "tap0 is left behind in the sensor" >&2
    return 1
  fi
  echo "tap0 is gone from the sensor. The web server was not restarted: $(kubectl get pod -n $namespace web -o jsonpath='{.status.containerStatuses[0].restartCount}') restarts."
}

has_podtap=$(kubectl get deployments --all-namespaces -l app.kubernetes.io/name=podtap,app.kubernetes.io/component=controller -o name)
say "Tap a web server on the cluster of the context \"$context\" ($server)"
if [ -n "$has_podtap" ]; then
  at_the_end="The installed PodTap is not changed."
else
  at_the_end="PodTap is uninstalled as well, unless KEEP=1 is set."
  plan install "$([ -n "${IMAGE:-}" ] && echo "installs PodTap from $IMAGE" || echo "builds PodTap's image and installs PodTap")"
  if kubectl get namespace podtap-system >/dev/null 2>&1; then
    echo "The namespace podtap-system exists, but has no controller: remove what an earlier installation has left behind first." >&2
    exit 1
  fi
fi
plan tap "creates the namespace $namespace with three pods, and taps one"
echo "At the end the namespace is deleted. $at_the_end"
if [ "${YES:-}" != 1 ]; then
  [ -t 0 ] || { echo "There is no terminal to ask on. Set YES=1 to agree." >&2; exit 1; }
  read -r -p "Continue with \"$context\"? [y/N] " answer
  [[ $answer == [yY]* ]] || exit 1
fi
kubectl get namespace $namespace >/dev/null 2>&1 && { echo "The namespace $namespace exists. If an earlier run has left it behind: kubectl delete namespace $namespace" >&2; exit 1; }
trap finish EXIT
if [ -z "$has_podtap" ]; then
  say "1. Install PodTap"
  step install install_podtap
fi
step tap tap_web_server
say "Done: the web server was tapped, one request was seen, and the tap is gone."
