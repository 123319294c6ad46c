#!/usr/bin/env bash
# Everything that needs a CUDA card, part by part, each under ten minutes.
#
#   benchmarks/gpu.sh                       all parts that are not done yet
#   benchmarks/gpu.sh tests shapes          these parts alone
#   benchmarks/gpu.sh --again shapes        this part once more
#   benchmarks/gpu.sh --out DIR             markers, logs and checkpoints go there (default: runs/gpu)
#   benchmarks/gpu.sh --list                names of all parts
#
# A part that has ended well leaves DIR/PART.done and is then skipped; one that failed or ran past its time runs again
# in the next call (Atari goes on from its checkpoint). It needs no network: peers are measured where their environments
# (benchmarks/.venvs) have been made before. Results that name the card go to benchmarks/results, or to RLCORE_RESULTS.
# The exit code is 0 when every part asked for is done, 1 when one is not, 2 for a wrong argument.
set -u
cd "$(dirname "$0")/.." || exit 1

PARTS=(
    tests speed-4 speed-64 speed-a2c speed-trpo shapes time-to-solve
    profile-4096 profile-65536 envpool atari-pong atari-breakout
)
LIMIT=${RLCORE_GPU_LIMIT:-590} # seconds for a part
PYTHON=${PYTHON:-python}
OUT=runs/gpu
AGAIN=()
CHOSEN=()

# What a part runs.
run_part() {
    case $1 in
        tests) "$PYTHON" -m pytest -m cuda ;;
        speed-4) speed ppo ;;
        speed-64) speed ppo --num-envs 64 ;;
        speed-a2c) speed a2c ;;
        speed-trpo) speed trpo ;;
        shapes) "$PYTHON" benchmarks/shapes.py --device cuda --num-envs 4096 16384 65536 --repetitions 2 ;;
        time-to-solve) "$PYTHON" benchmarks/time_to_solve.py --device cuda ;;
        profile-4096) "$PYTHON" benchmarks/gpu_profile.py --num-envs 4096 ;;
        profile-65536) "$PYTHON" benchmarks/gpu_profile.py --num-envs 65536 --num-steps 16 ;;
        envpool)
            "$PYTHON" benchmarks/gpu_profile.py --env-id ALE/Pong-v5 --backend envpool --num-envs 64 --compile auto ;;
        atari-pong) "$PYTHON" benchmarks/atari_gpu.py --games Pong --minutes 6 --folder "$OUT/atari" ;;
        atari-breakout) "$PYTHON" benchmarks/atari_gpu.py --games Breakout --minutes 6 --folder "$OUT/atari" ;;
    esac
}

speed() { # ALGO FLAGS...
    local words
    read -ra words <<<"$(techniques "$1")"
    "$PYTHON" benchmarks/speed.py --device cuda --algo "$@" --repetitions 3 --techniques "${words[@]}"
}

# What a part lacks here; nothing where it can run.
lacking() {
    case $1 in
        envpool) has_module envpool || echo "envpool is not installed" ;;
        atari-*) has_module ale_py || echo "ale-py is not installed" ;;
    esac
}

has_module() { "$PYTHON" -c "import $1" >/dev/null 2>&1; }

# rlcore's techniques for an agent, and the peers that are here; rejax only where its JAX finds the card.
techniques() {
    local names="python python-native compiled-host compiled"
    local sb3=benchmarks/.venvs/sb3/bin/python rejax=benchmarks/.venvs/rejax/bin/python
    if [ "$1" != trpo ] && [ -x "$sb3" ]; then names+=" sb3"; fi
    if [ "$1" = ppo ] && [ -x "$rejax" ]; then
        "$rejax" -c "import jax; assert jax.default_backend() == 'gpu'" 2>/dev/null && names+=" rejax"
    fi
    echo "$names"
}

is_part() {
    local part
    for part in "${PARTS[@]}"; do [ "$part" = "$1" ] && return 0; done
    return 1
}

wrong() {
    echo "gpu.sh: $1" >&2
    exit 2
}

check_part() { is_part "$1" || wrong "'$1' is not a part; there are: ${PARTS[*]}"; }

while [ $# -gt 0 ]; do
    case $1 in
        --out) [ $# -gt 1 ] || wrong "--out needs a folder"; OUT=$2; shift ;;
        --again) [ $# -gt 1 ] || wrong "--again needs the name of a part"; check_part "$2"; AGAIN+=("$2"); shift ;;
        --list) printf '%s\n' "${PARTS[@]}"; exit 0 ;;
        --part-in-this-process) run_part "$2"; exit ;; # gpu.sh calls itself so, for timeout to end a part
        -h | --help) sed -n '2,/^set -u/s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) wrong "'$1' is not an option; there are --out, --again, --list, --help" ;;
        *) check_part "$1"; CHOSEN+=("$1") ;;
    esac
    shift
done
if [ ${#CHOSEN[@]} -eq 0 ]; then
    if [ ${#AGAIN[@]} -gt 0 ]; then CHOSEN=("${AGAIN[@]}"); else CHOSEN=("${PARTS[@]}"); fi
fi

export PYTHON OUT PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
find_card="import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
card=$("$PYTHON" -c "$find_card" 2>/dev/null | tail -n 1) # the last line, since importing may print others
if [ -z "$card" ]; then
    echo "There is no CUDA device here, so nothing can be measured. Unmeasured:"
    printf '  %s\n' "${PARTS[@]}"
    exit 1
fi
mkdir -p "$OUT" || exit 1
echo "On $card, at most $LIMIT s a part; logs in $OUT"

declare -A WHY=() # of parts that are not done
for part in ${AGAIN[@]+"${AGAIN[@]}"}; do
    rm -f "$OUT/$part.done"
    case $part in # atari_gpu.py has markers of its own
        atari-pong) rm -f "$OUT/atari/Pong.done" "$OUT/atari/Pong.pt" ;;
        atari-breakout) rm -f "$OUT/atari/Breakout.done" "$OUT/atari/Breakout.pt" ;;
    esac
done
for part in "${CHOSEN[@]}"; do
    log=$OUT/$part.log
    if [ -e "$OUT/$part.done" ]; then
        echo "$part: done before ($(cat "$OUT/$part.done"))"
        continue
    fi
    reason=$(lacking "$part")
    if [ -n "$reason" ]; then
        WHY[$part]=$reason
        echo "$part: $reason"
        continue
    fi
    echo "$part: begins $(date '+%H:%M:%S')"
    echo "$part on $card, $(date '+%Y-%m-%d %H:%M:%S')" >"$log"
    SECONDS=0
    timeout -k 10 "$LIMIT" bash benchmarks/gpu.sh --out "$OUT" --part-in-this-process "$part" >>"$log" 2>&1
    code=$?
    if [ $code -eq 0 ]; then
        echo "$card, $(date '+%Y-%m-%d'), $SECONDS s" >"$OUT/$part.done"
        echo "$part: done in $SECONDS s"
    else
        last=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1)
        if [ $code -eq 124 ] || [ $code -eq 137 ]; then
            WHY[$part]="ended after $LIMIT s; its last line: $last"
        else
            WHY[$part]="failed with code $code: $last"
        fi
        echo "$part: ${WHY[$part]}"
    fi
done

echo
echo "Done:"
for part in "${PARTS[@]}"; do
    [ -e "$OUT/$part.done" ] && echo "  $part ($(cat "$OUT/$part.done"))"
done
echo "Unmeasured:"
for part in "${PARTS[@]}"; do
    [ -e "$OUT/$part.done" ] || echo "  $part: ${WHY[$part]:-not asked for in this call}"
done
for part in "${CHOSEN[@]}"; do
    [ -e "$OUT/$part.done" ] || exit 1
done
