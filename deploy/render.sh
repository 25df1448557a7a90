#!/bin/bash
# deploy/install.yaml from the chart; with --stdout it is printed instead. HELM names the program.
set -euo pipefail
cd "$(dirname "$0")"
helm=${HELM:-../target/lab/bin/helm}
render() {
  cat namespace.yaml
  # The hook that cleans up before uninstalling is Helm's: docs/install.md says what to do without it.
  "$helm" template podtap chart/podtap --namespace podtap-system --no-hooks --kube-version 1.32.0 \
    | sed -e '/app.kubernetes.io\/managed-by: Helm/d' -e '/app.kubernetes.io\/instance: podtap/d'
}
if [ "${1:-}" = --stdout ]; then render; else render >install.yaml; fi
