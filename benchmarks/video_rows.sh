#!/usr/bin/env bash
# The rows of benchmarks/video_speed.py and benchmarks/video_acceptance.py at full size, on one GPU or on two at once.
#   benchmarks/video_rows.sh TARGET DRAFT [CASE ...]
#   TARGET, DRAFT: exported models of a trained Qwen2.5-VL pair; CASE: names below, by default all of them
#   PROMPTS, RUNS and CLIPS set how many prompts and runs the shapes have (2 and 2), and on which clips;
#   PEER_RUNS=0 leaves out transformers, which takes minutes
set -euo pipefail
target=${1:?"name the folder of the trained target"}
draft=${2:?"name the folder of the trained draft"}
shift 2
known="32B-7B 32B-3B 7B-3B 7B-0.5B rules selectors chains"
cases=${*:-$known}

for name in $cases; do
  [[ " $known " == *" $name "* ]] || { echo "unknown case $name: take one of $known" >&2; exit 2; }
done

speed() {
  python3 -m benchmarks.video.speed --target "$target" --draft "$draft" --prompts "${PROMPTS:-2}" --runs "${RUNS:-2}" \
    --peer-runs "${PEER_RUNS:-1}" --clips ${CLIPS:-128x112 512x112} --target-shape "$1" --draft-shape "$2"
}
study() { python3 -m benchmarks.video.acceptance --target "$target" --draft "$draft" --videos 100 --frames 32 "$@"; }

measure() {
  case $1 in
    32B-7B) speed 32B 7B ;;
    32B-3B) speed 32B 3B ;;
    7B-3B) speed 7B 3B ;;
    7B-0.5B) speed 7B 0.5B ;;
    selectors) study --rules ;;
    rules) study --selectors ;;
    chains)
      for length in 24 32; do
        study --selectors --draft-length $length --rules strict "LVSpec 0.9, ratio 0.3" \
          "ratio 0.3 alone" "ratio 0.4 alone" "ratio 0.5 alone"
      done
      ;;
  esac
}

visible=${CUDA_VISIBLE_DEVICES-$(python3 -c 'import torch; print(*range(torch.cuda.device_count()), sep=",")')}
first=${visible%%,*}
second=${visible#*,}
second=${second%%,*}
ours=() others=()
for name in $cases; do
  # the largest target has a GPU for itself and the rules, where there are two
  if [[ $second == "$first" || $name == 32B-* || $name == rules ]]; then ours+=("$name"); else others+=("$name"); fi
done

run_on() {
  local gpu=$1 failed=0
  shift
  for name in "$@"; do
    CUDA_VISIBLE_DEVICES=$gpu measure "$name" || { echo "$name failed" >&2; failed=1; }
  done
  return $failed
}

status=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ((${#others[@]})); then run_on "$second" "${others[@]}" >"$log" 2>&1 & beside=$!; fi
if ((${#ours[@]})); then run_on "$first" "${ours[@]}" || status=1; fi
if ((${#others[@]})); then wait "$beside" || status=1; fi
cat "$log"
for name in video_speed video_acceptance; do
  file=benchmarks/results/$name.jsonl
  if [[ -f $file ]]; then echo "== $file"; cat "$file"; fi
done
exit $status
