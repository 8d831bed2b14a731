#!/usr/bin/env bash
# Trains what the rows of layer_skip, video_speed and video_acceptance are about, and measures them, on one GPU to four:
# the video pair has the first and the deep language model the second. From three on, that model is also trained without
# sub-layer dropout, on a GPU that would wait for the pair.
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

lengths() {
  local failed=0
  PROMPTS=3 CLIPS=128x112 rows "$1-4k" "$1" || failed=1
  PROMPTS=2 CLIPS=512x112 rows "$1-16k" "$1" || failed=1
  return $failed
}

skips() { # NAME LABEL SETTINGS
  local name=$1 label=$2 packages
  shift 2
  packages=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  step "$name" fit --config lm/deep.yaml --data.paths "['$packages/**/*.py']" --name "$name" "$@" &&
    step "layer_skip-$name" python3 -m benchmarks.decoding.layer_skip --model "runs/$name/latest/model" --label "$label" \
      --temperatures 0 0.65 0.68 0.7 --trials 120 --finalists 8 --runs 3
}

trained() { [[ -e $folder/qwen-long.done && -e $folder/qwen-draft-long.done ]]; }

# what runs on a GPU of its own where there are four, one after the other where there is one
lane_0() { train_pair && lengths 32B-3B; }

lane_1() { skips deep "sub-layer dropout 0.85"; }

lane_2() {
  local failed=0
  if ((${#gpus[@]} > 2)); then
    skips deep-plain "no sub-layer dropout" --model.sublayer_dropout 0 || failed=1
  fi
  pair_is_there && lengths 32B-7B || failed=1
  return $failed
}

lane_3() {
  pair_is_there || return 1
  local failed=0
  rows chains chains || failed=1
  lengths 7B-3B || failed=1
  return $failed
}

pair_is_there() {
  until trained || [[ -e $folder/given_up ]]; do sleep 1; done
  trained
}

queue() { # GPU: its lanes
  local failed=0
  export CUDA_VISIBLE_DEVICES=${gpus[$1]}
  for ((lane = $1; lane < 4; lane += ${#gpus[@]})); do
    lane_$lane || failed=1
    if ((lane == 0)) && ! trained; then touch "$folder/given_up"; fi
  done
  return $failed
}

rm -f "$folder/given_up"
visible=${CUDA_VISIBLE_DEVICES-$(python3 -c 'import torch; print(*range(torch.cuda.device_count()), sep=",")')}
IFS=, read -ra gpus <<<"$visible"
gpus=("${gpus[@]:0:4}")
if ((${#gpus[@]} == 0)); then
  echo "there is no GPU to train on: CUDA_VISIBLE_DEVICES is empty, or torch sees none; give it at least one" >&2
  exit 2
fi
status=0 queues=()
for place in "${!gpus[@]}"; do
  queue "$place" &
  queues+=($!)
done
for one in "${queues[@]}"; do wait "$one" || status=1; done
exit $status
