#!/usr/bin/env bash
# Runs a bundle that `cargo xtask bundle` made, on a machine without Rust. It needs Linux, bash and a python3 with
# torch 2.11, and the checkout around it (tests read their data files from there).
set -uo pipefail

usage() {
  cat <<'TXT'
usage: .bundle/run.sh COMMAND

  test [FILTER]      all tests; FILTER as libtest takes it
  bench [ARGS]       all benches, or those of `cargo bench -p tercet -- ARGS`; the table of target/bench.json
  sanitize [FILTER]  tests whose name contains FILTER ("cuda") under compute-sanitizer's four tools
  train [ARGS]       tercet train ARGS

Environment:
  OUT           folder for the logs (.bundle/logs)
  TEST_THREADS  threads per test program (4)
  LIMIT         seconds per program, 0 for no limit (0)
  PYTHON        the Python that has torch (python3)
TXT
}

die() {
  echo "run.sh: $*" >&2
  exit 1
}

bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$bundle")
logs=${OUT:-$bundle/logs}
threads=${TEST_THREADS:-4}
limit=${LIMIT:-0}
python=${PYTHON:-python3}

command=${1:-help}
[ $# -gt 0 ] && shift
case $command in
  test | bench | sanitize | train) ;;
  help | -h | --help)
    usage
    exit 0
    ;;
  *)
    usage >&2
    echo "run.sh: unknown command: $command" >&2
    exit 2
    ;;
esac
case $command in
  test | sanitize)
    if [ $# -gt 1 ]; then
      echo "run.sh: $command takes one FILTER, got: $*" >&2
      exit 2
    fi
    ;;
esac

mkdir -p "$logs" || die "cannot make the folder for the logs: $logs"
logs=$(cd "$logs" && pwd)
[ -f "$root/Cargo.toml" ] || die "there is no checkout around the bundle: $root/Cargo.toml is missing"

# The libraries of Python's torch, found without running the programs first.
version=$("$python" -c 'import torch; print(torch.__version__)' 2>"$logs/python.txt") ||
  die "$python has no torch that can be imported: $(tail -n 1 "$logs/python.txt")"
rm -f "$logs/python.txt"
case $version in
  2.11.*) ;;
  *) die "$python has torch $version, and the bundle is linked to libtorch 2.11" ;;
esac
libraries=$("$python" -c 'import torch, os; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

# The programs come packed.
if [ ! -d "$bundle/bin" ] || [ "$bundle/bin.tar.xz" -nt "$bundle/bin" ]; then
  rm -rf "$bundle/bin"
  "$python" - "$bundle" <<'PY' || die "cannot unpack $bundle/bin.tar.xz"
import sys, tarfile
tarfile.open(sys.argv[1] + "/bin.tar.xz").extractall(sys.argv[1], filter="data")
PY
  touch "$bundle/bin"
fi

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
if [ -n "$gpu" ]; then
  export TERCET_REQUIRE_CUDA=1 # with a GPU here, a test that skips its CUDA part is a failure
fi
# Programs that tests start, and the mark by which a test sees that there is no cargo.
export CARGO_BIN_EXE_tercet="$bundle/bin/tercet" TERCET_BUNDLE=1
commit='' targets=''
# shellcheck disable=SC1091
. "$bundle/about"
echo "device: ${gpu:-none}; torch $version; commit $commit"

# The target among the bundle's whose code runs here: that of the very device, or the latest of its generation.
target() {
  local capability wanted here=unknown target
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. ')
  for target in $targets; do
    wanted=${target#sm_}
    case $wanted in
      "$capability" | "${capability}a")
        here=$target
        break
        ;;
      *a) ;;
      *) if [ "${wanted%?}" = "${capability%?}" ] && [ "$wanted" -le "$capability" ]; then here=$target; fi ;;
    esac
  done
  echo "$here"
}

programs() { awk -F '\t' -v kind="$1" '$1 == kind { print $2 "\t" $3 }' "$bundle/list.tsv"; }

limited() {
  if [ "$limit" -gt 0 ]; then timeout "$limit" "$@"; else "$@"; fi
}

# in_package FOLDER COMMAND...: as cargo runs tests and benches.
in_package() {
  (cd "$root/$1" && CARGO_MANIFEST_DIR="$root/$1" && export CARGO_MANIFEST_DIR && shift && limited "$@")
}

summary=()
failed=0
passed_tests=0

# note NAME STATUS DETAIL: a line of the summary.
note() {
  summary+=("$(printf '%-44s %-8s %s' "$1" "$2" "$3")")
  if [ "$2" != ok ]; then failed=$((failed + 1)); fi
}

# tests LABEL LOG FOLDER COMMAND...: runs one test program and notes what it says.
tests() {
  local label=$1 log=$2 folder=$3 status part result start=$SECONDS
  shift 3
  part=$(mktemp)
  echo "== $label" | tee -a "$log"
  in_package "$folder" "$@" 2>&1 | tee -a "$log" "$part"
  status=${PIPESTATUS[0]}
  result=$(grep -a '^test result:' "$part" | tail -n 1)
  rm -f "$part"
  # Both are asked: a program that dies after its tests, or before them, has not passed.
  local count
  count=$(sed -nE 's/^test result: .* ([0-9]+) passed.*/\1/p' <<<"$result")
  passed_tests=$((passed_tests + ${count:-0}))
  case $status in
    0) if [ -n "$result" ]; then note "$label" ok "$count passed, $((SECONDS - start)) s"; else note "$label" FAILED "ran no tests"; fi ;;
    124) note "$label" FAILED "stopped after $limit s" ;;
    *) note "$label" FAILED "exit status $status; ${result:-no result}" ;;
  esac
}

finish() {
  local what=$1 verdict
  {
    echo
    echo "---- $what on ${gpu:-no GPU}, commit $commit"
    printf '%s\n' "${summary[@]}"
    if [ "$failed" = 0 ]; then verdict="pass"; else verdict="$failed failed"; fi
    if [ "$what" != bench ]; then verdict+=", $passed_tests tests passed"; fi
    echo "$verdict"
    if [ -z "$gpu" ]; then
      echo "no GPU was seen: nothing of this counts as a verification"
    elif [ "$what" != bench ]; then
      echo "for docs/gpu-verification.md:"
      local target
      target=$(target)
      local hashes="hashes_$target"
      echo "| $(date +%F) | $gpu | $commit | $target | ${!hashes-} | $what | $verdict |"
    fi
  } | tee "$logs/$what-summary.txt"
  [ "$failed" = 0 ]
}

run_tests() {
  local log=$logs/test.log name folder
  : >"$log"
  while IFS=$'\t' read -r name folder <&3; do
    tests "$name" "$log" "$folder" "$bundle/bin/$name" --test-threads="$threads" "$@"
  done 3< <(programs test)
  [ "$passed_tests" -gt 0 ] || note "all tests" FAILED "no test ran"
  finish test
}

run_benches() {
  local log=$logs/bench.log name folder status start
  : >"$log"
  rm -f "$root/target/bench.json"
  while IFS=$'\t' read -r name folder <&3; do
    start=$SECONDS
    echo "== $name" | tee -a "$log"
    in_package "$folder" "$bundle/bin/$name" --bench "$@" 2>&1 | tee -a "$log"
    status=${PIPESTATUS[0]}
    if [ "$status" = 0 ]; then note "$name" ok "$((SECONDS - start)) s"; else note "$name" FAILED "exit status $status"; fi
  done 3< <(programs bench)
  [ ${#summary[@]} -gt 0 ] || note "all benches" FAILED "the bundle has none"
  if [ -f "$root/target/bench.json" ]; then
    cp "$root/target/bench.json" "$logs/bench.json"
    CARGO_MANIFEST_DIR="$root/xtask" "$bundle/bin/xtask" bench --table 2>&1 | tee -a "$log" ||
      note "table of target/bench.json" FAILED "see $log"
  else
    echo "no row for target/bench.json was measured" | tee -a "$log" # `on_device` and `growth` have none
  fi
  finish bench
}

run_sanitizer() {
  local filter=${1:-cuda} sanitizer="" place name folder tool matching
  for place in "$(command -v compute-sanitizer)" "${CUDA_HOME:-/nowhere}/bin/compute-sanitizer" \
    /usr/local/cuda/bin/compute-sanitizer /usr/local/cuda/compute-sanitizer/compute-sanitizer; do
    if [ -x "$place" ]; then
      sanitizer=$place
      break
    fi
  done
  [ -n "$sanitizer" ] || die "compute-sanitizer was not found (PATH, CUDA_HOME, /usr/local/cuda): nothing was sanitized"
  [ -n "$gpu" ] || die "no GPU was seen: there is nothing to sanitize"
  # With one allocation per tensor, a kernel that runs past a tensor's end is seen; in a cached block it is not.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck initcheck synccheck; do
    : >"$logs/$tool.log"
    while IFS=$'\t' read -r name folder <&3; do
      # A start under the sanitizer is slow: only programs that have a matching test.
      matching=$(in_package "$folder" "$bundle/bin/$name" --list "$filter" 2>/dev/null | grep -c ': test$')
      [ "$matching" -gt 0 ] || continue
      tests "$tool $name" "$logs/$tool.log" "$folder" "$sanitizer" --tool "$tool" --error-exitcode 99 \
        --target-processes all "$bundle/bin/$name" --test-threads=1 "$filter"
    done 3< <(programs test)
  done
  [ ${#summary[@]} -gt 0 ] || note "all tests" FAILED "no test's name contains '$filter'"
  finish sanitize
}

case $command in
  test) run_tests "$@" ;;
  bench) run_benches "$@" ;;
  sanitize) run_sanitizer "$@" ;;
  train) exec "$bundle/bin/tercet" train "$@" ;;
esac
