# What demos in the lab share; they are in the repository's root directory. The lab ends with the demo unless KEEP is 1.

mkdir -p target/lab
. tests/demo/steps.sh
kubectl() { target/lab/bin/kubectl --kubeconfig target/lab/kubeconfig "$@"; }
lab() { target/lab/bin/lab "$@"; }

finish() {
  status=$?
  [ -n "${capture:-}" ] && kill "$capture" 2>/dev/null || true
  if [ "${KEEP:-}" = 1 ]; then
    say "The lab stays up: export KUBECONFIG=$PWD/target/lab/kubeconfig PATH=$PWD/target/lab/bin:\$PATH; make lab-down ends it."
  elif [ -x target/lab/bin/lab ]; then
    lab down >target/demo-down.log 2>&1 || { cat target/demo-down.log; status=1; }
  fi
  [ $status -eq 0 ] || echo "The demo failed." >&2
  exit $status
}
trap finish EXIT

# A lab that is up already is used, and left up. `grep -q` would end before `lab status`, and fail the pipe.
if [ -x target/lab/bin/lab ] && lab status 2>/dev/null | grep Ready >/dev/null; then KEEP=1; fi

programs() {
  make --no-print-directory lab
  deploy/image.sh --lab
}
