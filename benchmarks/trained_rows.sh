#!/usr/bin/env bash
# Trains what the rows of layer_skip, video_speed and video_acceptance are about, and measures them. On two GPUs the
# video pair has the first and the deep language model the second, on one they follow each other.
#   benchmarks/trained_rows.sh [FOLDER]
#   FOLDER (runs/rows): a log for each step, and a mark when it is done; a second call begins with the first step undone
#   PEER_RUNS=1 lets transformers take part at the shapes, for minutes
set -uo pipefail
folder=${1:-runs/rows}
mkdir -p "$folder" || exit 2

fit() { python3 -m saccade.cli.main fit "$@"; }

step() {
  local name=$1 begun=$SECONDS
  shift
  [[ -e $folder/$name.done ]] && return 0
  if "$@" >"$folder/$name.log" 2>&1; then
    touch "$folder/$name.done"
    echo "$(date +%T) $name is done ($((SECONDS - begun)) s)"
  else
    echo "$(date +%T) $name failed: $(tail -n 1 "$folder/$name.log"); all of it is in $folder/$name.log" >&2
    return 1
  fi
}

train_video() {
  local name=$1 config=$2
  shift 2
  step "$name" fit --config "$config" --name "$name" &&
    step "$name-long" fit --config "$config" --config video/long.yaml --name "$name-long" \
      --model.path "runs/$name/latest/model" "$@"
}

train_pair() {
  train_video qwen video/qwen.yaml &
  local target=$! failed=0
  train_video qwen-draft video/qwen-draft.yaml --model.video_dropout 0.95 || failed=1
  wait $target || failed=1
  return $failed
}

rows() {
  local name=$1 of=$2
  RUNS=3 PEER_RUNS=${PEER_RUNS:-0} step "$name" bash benchmarks/video_rows.sh runs/qwen-long/latest/model \
    runs/qwen-draft-long/latest/model "$of"
}

shapes() {
  local failed=0
  for pair in 32B-3B 32B-7B 7B-3B; do
    PROMPTS=3 CLIPS=128x112 rows $pair-4k $pair || failed=1
    PROMPTS=2 CLIPS=512x112 rows $pair-16k $pair || failed=1
  done
  return $failed
}

train_deep() {
  local packages
  packages=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  step deep fit --config lm/deep.yaml --data.paths "['$packages/**/*.py']" --name deep
}

skips() {
  step layer_skip python3 -m benchmarks.layer_skip --model runs/deep/latest/model --label "sub-layer dropout 0.85" \
    --temperatures 0 0.6 0.7 --trials 120 --finalists 8 --runs 3
}

visible=${CUDA_VISIBLE_DEVICES-$(python3 -c 'import torch; print(*range(torch.cuda.device_count()), sep=",")')}
first=${visible%%,*}
second=${visible#*,}
second=${second%%,*}
status=0
if [[ $second == "$first" ]]; then
  if train_pair; then
    shapes || status=1
    rows chains chains || status=1
  else
    status=1
  fi
  { train_deep && skips; } || status=1
else
  { CUDA_VISIBLE_DEVICES=$first train_pair && CUDA_VISIBLE_DEVICES=$first shapes; } &
  videos=$!
  export CUDA_VISIBLE_DEVICES=$second
  { train_deep && skips; } || status=1
  trained() { [[ -e $folder/qwen-long.done && -e $folder/qwen-draft-long.done ]]; }
  until trained || ! kill -0 $videos 2>/dev/null; do sleep 1; done
  if trained; then rows chains chains || status=1; fi
  wait $videos || status=1
fi
exit $status
