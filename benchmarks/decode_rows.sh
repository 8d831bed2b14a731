#!/usr/bin/env bash
# The rows of benchmarks/decode.py at full size on one GPU, a process each.
#   benchmarks/decode_rows.sh MODEL [CASE ...]      MODEL: folder of a trained Llama, Qwen2 or Qwen3; CASE: names below
set -euo pipefail
model=${1:?"name the folder of a trained model"}
shift
ours=("saccade Autoregressive")
peers=("transformers generate" "static cache")

measure() { python3 -m benchmarks.decoding.decode --model "$model" --device cuda --engine graph "$@"; }

for case in "${@:-7B 0.5B 32B 7B-32k 7B-batch-16}"; do
  for name in $case; do
    case $name in
      7B) measure --shape 7B --prompt-length 512 --prompts 1 --new-tokens 128 --runs 3 --tree --only "${ours[@]}" "${peers[@]}" ;;
      0.5B) measure --shape 0.5B --prompt-length 512 --prompts 1 --new-tokens 128 --runs 3 --tree --only "${ours[@]}" "${peers[@]}" ;;
      32B) measure --shape 32B --prompt-length 512 --prompts 1 --new-tokens 64 --runs 3 --only "${ours[@]}" ;;
      7B-32k) measure --shape 7B --prompt-length 32000 --prompts 1 --new-tokens 64 --runs 3 --only "${ours[@]}" ;;
      7B-batch-16) measure --shape 7B --prompt-length 2048 --prompts 16 --batch 16 --new-tokens 64 --runs 3 --only "${ours[@]}" ;;
      *) echo "unknown case $name: 7B, 0.5B, 32B, 7B-32k, 7B-batch-16" >&2; exit 2 ;;
    esac
  done
done
