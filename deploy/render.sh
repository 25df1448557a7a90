#!/bin/bash
# Copies crds/ into the chart, and renders the chart to deploy/install.yaml; with --stdout, renders it as it is to standard output. HELM
# overrides the helm binary.
set -euo pipefail
cd "$(dirname "$0")"
helm=${HELM:-../target/lab/bin/helm}
render() {
  cat namespace.yaml
  # Only Helm runs the uninstall hook. docs/install.md describes how to uninstall without it.
  "$helm" template podtap chart/podtap --namespace podtap-system --no-hooks --kube-version 1.32.0 \
    | sed -e '/app.kubernetes.io\/managed-by: Helm/d' -e '/app.kubernetes.io\/instance: podtap/d'
}
if [ "${1:-}" = --stdout ]; then render; exit; fi
# Copies, because tools that package or fetch charts drop symbolic links.
rm -f chart/podtap/definitions/*.yaml
cp ../crds/*.yaml chart/podtap/definitions/
render >install.yaml
