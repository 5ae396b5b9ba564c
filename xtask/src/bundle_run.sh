#!/usr/bin/env bash
# Runs a bundle that `cargo xtask bundle` made, on a machine without Rust. It needs Linux, bash and a python3 with
# torch 2.11, and the checkout around it (tests read their data files from there).
set -uo pipefail

usage() {
  cat <<'TXT'
usage: .bundle/run.sh COMMAND

  verify [SECONDS]   whether kernels are right on a device, the most important first, all of it within SECONDS (400): instructions and
                     their rates, tests, compute-sanitizer, the wheel's tests, records. What found no time is named
  measure [SECONDS]  how fast they are, within SECONDS (400): benches, those of another commit and of other libraries, a profile
  test [FILTER]      all tests; FILTER as libtest takes it
  bench [ARGS]       all benches, or those of `cargo bench -p tercet -- ARGS`; the table of target/bench.json
  sanitize [FILTER]  tests whose name contains FILTER ("cuda") under compute-sanitizer's four tools
  train [ARGS]       tercet train ARGS
  encoders [SECONDS] [DIR]  tercet train with ResNet-152 and ResNet-50, SECONDS each (90), on generated signatures and on DIR

Environment:
  OUT           folder for the logs (.bundle/logs)
  TEST_THREADS  threads per test program (4)
  LIMIT         seconds per program, 0 for no limit (0)
  PYTHON        the Python that has torch (python3)

measure also takes the wheels in .bundle/peers, such as those of `pip download --no-deps -d .bundle/peers NAME`, and the bench of
another commit, from `cargo xtask bundle --before DIR`.
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
case $python in
  /*) ;;
  */*) python=$PWD/$python ;; # parts of this run elsewhere
esac

command=${1:-help}
[ $# -gt 0 ] && shift
case $command in
  verify | measure | test | bench | sanitize | train | encoders) ;;
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
  verify | measure | encoders)
    if [[ $# -gt 0 && ! $1 =~ ^[1-9][0-9]*$ ]]; then
      echo "run.sh: $command takes a number of seconds, got: $1" >&2
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
changed=0
left_out=0
passed_tests=0
bad=FAILED # the status of what does not pass

# note NAME STATUS DETAIL: a line of the summary. STATUS: ok, FAILED, "left out" for what did not run, or "changed" for other numbers
# than were recorded once, which somebody has to look at.
note() {
  summary+=("$(printf '%-44s %-8s %s' "$1" "$2" "$3")")
  case $2 in
    ok) ;;
    changed) changed=$((changed + 1)) ;;
    "left out") left_out=$((left_out + 1)) ;;
    *) failed=$((failed + 1)) ;;
  esac
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
    *) note "$label" "$bad" "exit status $status; ${result:-no result}" ;;
  esac
}

finish() {
  local what=$1 verdict
  {
    echo
    echo "---- $what on ${gpu:-no GPU}, commit $commit"
    printf '%s\n' "${summary[@]}"
    if [ "$failed" = 0 ]; then verdict="pass"; else verdict="$failed failed"; fi
    if [ "$passed_tests" -gt 0 ]; then verdict+=", $passed_tests tests passed"; fi
    if [ "$changed" -gt 0 ]; then verdict+=", $changed changed"; fi
    if [ "$left_out" -gt 0 ]; then verdict+=", $left_out parts left out"; fi
    echo "$verdict"
    if [ -z "$gpu" ]; then
      echo "no GPU was seen: nothing of this counts as a verification"
    elif [ "$passed_tests" -gt 0 ]; then
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

# toolkit NAME: the path of one of the CUDA toolkit's programs; nothing if there is none.
toolkit() {
  local place
  for place in "$(command -v "$1")" "${CUDA_HOME:-/nowhere}/bin/$1" "/usr/local/cuda/bin/$1" "/usr/local/cuda/$1/$1"; do
    if [ -x "$place" ]; then
      echo "$place"
      return
    fi
  done
}

# Cases whose results are recorded.
recorded=cuda_computes_what_it_did

# matching LABEL FILTER THREADS [WRAPPER...]: the tests whose names contain FILTER but not `skip`, of each program that has one.
matching() {
  local label=$1 filter=$2 count=$3 log=$logs/$1.log name folder found=0
  shift 3
  : >"$log"
  while IFS=$'\t' read -r name folder <&3; do
    # Some starts are slow, as under the sanitizer: only programs that have such a test.
    if in_package "$folder" "$bundle/bin/$name" --list "$filter" 2>/dev/null | grep -q ': test$'; then
      found=1
      # What they print of a device, such as its rates, is to be in the log.
      tests "$label $name" "$log" "$folder" "$@" "$bundle/bin/$name" --test-threads="$count" "$filter" --nocapture \
        ${skip:+--skip "$skip"}
    fi
  done 3< <(programs test)
  [ $found = 1 ] || note "$label" FAILED "no test's name contains '$filter'"
}

# sanitized TOOL FILTER: matching tests under one of compute-sanitizer's tools.
sanitized() {
  # With one allocation per tensor, a kernel that runs past a tensor's end is seen; in a cached block it is not.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 matching "$1" "$2" 1 "$(toolkit compute-sanitizer)" --tool "$1" --error-exitcode 99 \
    --target-processes all
}

run_sanitizer() {
  local filter=${1:-cuda} tool
  [ -n "$(toolkit compute-sanitizer)" ] ||
    die "compute-sanitizer was not found (PATH, CUDA_HOME, /usr/local/cuda): nothing was sanitized"
  [ -n "$gpu" ] || die "no GPU was seen: there is nothing to sanitize"
  for tool in memcheck racecheck initcheck synccheck; do
    sanitized "$tool" "$filter"
  done
  finish sanitize
}

# within NAME SECONDS: sets `limit` for a part of `verify` or `measure`; if no time is left, notes that, and fails.
within() {
  local left=$((end - SECONDS))
  if [ "$left" -lt 3 ]; then
    note "$1" "left out" "the $budget s were over"
    return 1
  fi
  limit=$(($2 < left ? $2 : left))
  echo
  echo "==== $1, $limit s at most; $left of $budget s are left"
}

# other NAME COMMAND...: a part that is no test program; COMMAND keeps to `limit`.
other() {
  local name=$1 start=$SECONDS status
  shift
  "$@" 2>&1 | tee "$logs/$name.log"
  status=${PIPESTATUS[0]}
  case $status in
    0) note "$name" ok "$((SECONDS - start)) s" ;;
    124) note "$name" FAILED "stopped after $limit s" ;;
    *) note "$name" FAILED "exit status $status" ;;
  esac
}

# unpacked FOLDER WHEEL...: the wheels' files, in a fresh folder.
unpacked() {
  local folder=$1 wheel
  shift
  rm -rf "$folder"
  for wheel in "$@"; do
    "$python" -m zipfile -e "$wheel" "$folder" || return 1
  done
}

# wheel_tests: the wheel's own tests that take a device.
wheel_tests() {
  local wheel folder=$bundle/installed
  wheel=$(find "$bundle" -maxdepth 1 -name '*.whl')
  [ -n "$wheel" ] || { note wheel "left out" "the bundle has no wheel"; return; }
  unpacked "$folder" "$wheel" || { note wheel FAILED "cannot be unpacked"; return; }
  (cd "$root/python/tests" && PYTHONPATH=$folder limited "$python" -m unittest -v test_cuda) 2>&1 | tee "$logs/wheel.log"
  local status=${PIPESTATUS[0]}
  if [ "$status" = 0 ]; then note wheel ok "$(tail -n 1 "$logs/wheel.log")"; else note wheel FAILED "exit status $status"; fi
}

# peers NAME ARGS...: a script of benches/peers, with the wheels of .bundle/peers.
peers() {
  local name=$1
  shift
  other "peers-$name" limited env PYTHONPATH="$bundle/peers/unpacked" "$python" "$root/benches/peers/$name.py" \
    --json "$logs/results.jsonl" "$@"
}

run_verify() {
  local budget=${1:-400} end=$((SECONDS + ${1:-400})) skip='' tool
  within conformance 30 && matching conformance conformance::device 1
  within rates 30 && matching rates rates:: 1
  within cuda 200 && skip=$recorded matching cuda cuda "$threads"
  within regression 30 && bad=changed matching regression $recorded 1
  for tool in memcheck racecheck synccheck initcheck; do
    within $tool 45 || continue
    if [ -n "$(toolkit compute-sanitizer)" ]; then
      TERCET_REWRITE_RECORDS=1 sanitized $tool $recorded # its findings count here, not the numbers
    else
      note $tool "left out" "no compute-sanitizer"
    fi
  done
  within wheel 60 && wheel_tests
  # Last: what is recorded has passed everything above. Devices differ, so a record is this device's own.
  if [ "$failed" = 0 ]; then
    within records 45 && {
      TERCET_REWRITE_RECORDS=1 matching records-conformance a_device_answers_as_defined 1
      TERCET_REWRITE_RECORDS=1 matching records $recorded 1
      mkdir -p "$logs/records" && find "$root/tests/data" -name '*.json' -newer "$logs/conformance.log" -exec cp {} "$logs/records" \;
    }
  else
    note records "left out" "something has failed"
  fi
  finish verify
}

run_measure() {
  local budget=${1:-400} end=$((SECONDS + ${1:-400})) bench name arguments wheels ncu
  bench=$(programs bench | head -n 1 | cut -f 1)
  rm -f "$logs/results.jsonl" "$logs/before.jsonl"
  within bench 120 && other bench in_package . "$bundle/bin/$bench" --bench on_device --json "$logs/results.jsonl"
  while IFS=$'\t' read -r name arguments <&3; do
    # shellcheck disable=SC2086
    within before 120 && other before in_package . "$bundle/bin/$name" --bench $arguments --json "$logs/before.jsonl"
  done 3< <(programs before)
  wheels=$(find "$bundle/peers" -maxdepth 1 -name '*.whl' 2>/dev/null)
  # shellcheck disable=SC2086
  if [ -n "$wheels" ]; then unpacked "$bundle/peers/unpacked" $wheels || note peers FAILED "cannot be unpacked"; fi
  # The sizes whose ratios the README states.
  within peers-mined 100 && peers mined 4096 8192 32768
  within peers-jax 60 && peers mined --jax 4096 8192 32768
  within peers-paired 45 && peers paired
  within profile 60 && {
    ncu=$(toolkit ncu)
    if [ -n "$ncu" ]; then
      other profile in_package . "$ncu" --set full --csv --page details --launch-count 24 \
        --kernel-name 'regex:batch_(hard_(negatives|triangle)|semi_hard_choose|all_sweep|contrastive_sweep)_' \
        "$bundle/bin/$bench" --bench on_device --profile
    else
      note profile "left out" "no ncu"
    fi
  }
  finish measure
}

run_encoders() {
  local most=${1:-90} all=(generated ${2+"$2"}) encoder folder data
  for encoder in resnet152 resnet50; do
    for data in "${all[@]}"; do
      folder=$logs/$encoder-$(basename "$data")
      limit=$((most * 2 + 60))
      set -- train --encoder $encoder --image-size 224 --precision bf16 --time-limit "$most" --out "$folder"
      [ "$data" = generated ] || set -- "$@" --data "$data"
      other "$(basename "$folder")" limited "$bundle/bin/tercet" "$@"
      [ ! -f "$folder/summary.json" ] || cat "$folder/summary.json"
    done
  done
  finish encoders
}

case $command in
  verify) run_verify "$@" ;;
  measure) run_measure "$@" ;;
  test) run_tests "$@" ;;
  bench) run_benches "$@" ;;
  sanitize) run_sanitizer "$@" ;;
  train) exec "$bundle/bin/tercet" train "$@" ;;
  encoders) run_encoders "$@" ;;
esac
