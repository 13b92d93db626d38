#!/usr/bin/env bash
# Serves a judge with vLLM on this machine, waits until it answers, and trains next to it. Restarts
# training when that can help (launch/restart.sh), and stops the judge when training ends. Arguments
# go to the training command:
#   JUDGE=Qwen/Qwen3-30B-A3B-Instruct-2507-FP8 JUDGE_DEVICES=7 \
#     bash launch/judge_vllm.sh --config=configs/base.py --workdir=runs/judged
# Without arguments it only serves the judge. `--dry_run` as the first argument prints the commands.
# Environment variables:
#   JUDGE            checkpoint folder or name
#   JUDGE_DEVICES    GPUs of the judge ("0" or "0,1"), 0
#   TRAIN_DEVICES    GPUs of the training; by default all others (of CUDA_VISIBLE_DEVICES, if set)
#   JUDGE_PORT       8000
#   JUDGE_MEMORY     largest share of a GPU's memory for the judge, 0.9
#   VLLM             command of a vLLM that is installed in its own environment, "vllm"
#   CUDA, MAX_RESTARTS, VENV, PYTHON   as for launch/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
: "${JUDGE:?set JUDGE to the checkpoint of the judge}"
# Verdicts are cached by this name: another checkpoint must have another one.
name="${JUDGE%/}"
port="${JUDGE_PORT:-8000}"
devices="${JUDGE_DEVICES:-0}"
vllm="${VLLM:-vllm}"
[ -n "$dry_run" ] || command -v "$vllm" > /dev/null || {
  echo "there is no command '$vllm'; install vLLM (python -m venv; pip install vllm) and set VLLM" >&2
  exit 1
}
# All pairs share the text of the prompt, which prefix caching reads once; replies are short.
serve=("$vllm" serve "$JUDGE" --served-model-name "$name" --host 127.0.0.1 --port "$port"
  --tensor-parallel-size "$(tr ',' '\n' <<< "$devices" | wc -l)"
  --gpu-memory-utilization "${JUDGE_MEMORY:-0.9}" --max-model-len 4096 --enable-prefix-caching)
if [ "$#" -gt 0 ]; then
  source launch/cuda.sh
  if [ -z "${TRAIN_DEVICES:-}" ]; then
    all="${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader)}"
    TRAIN_DEVICES="$(tr ', ' '\n' <<< "$all" | grep -vxF -e "$(tr ',' '\n' <<< "$devices")" \
      | sed '/^$/d' | paste -sd, -)" || true
  fi
  if [ -z "$TRAIN_DEVICES" ]; then
    echo "the judge has all GPUs ($devices): name fewer in JUDGE_DEVICES; to share one, set" \
      "TRAIN_DEVICES, a smaller JUDGE_MEMORY, and XLA_PYTHON_CLIENT_MEM_FRACTION" >&2
    exit 1
  fi
fi
train=(env CUDA_VISIBLE_DEVICES="${TRAIN_DEVICES:-}"
  bash launch/restart.sh --max_restarts="${MAX_RESTARTS:-20}"
  "${VENV:-.venv}/bin/python" -m speciarl_jax.train
  --config.verifier.name=http_judge --config.verifier.http_judge.model="$name"
  --config.verifier.http_judge.server.url="http://127.0.0.1:$port/v1" "$@")
if [ -n "$dry_run" ]; then
  run env CUDA_VISIBLE_DEVICES="$devices" "${serve[@]}"
  if [ "$#" -gt 0 ]; then
    echo "ACCELERATOR=$ACCELERATOR source launch/environment.sh"
    run "${train[@]}"
  fi
  exit
fi
CUDA_VISIBLE_DEVICES="$devices" "${serve[@]}" &
judge=$!
trap 'kill "$judge" 2> /dev/null || true; wait "$judge" 2> /dev/null || true' EXIT
until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; do
  kill -0 "$judge" 2> /dev/null || { echo "the judge ended before it answered" >&2; exit 1; }
  sleep "${POLL:-5}"
done
if [ "$#" -eq 0 ]; then
  wait "$judge"
  exit
fi
source launch/environment.sh
# The judge runs until training has saved.
source launch/attend.sh
attended "${train[@]}"
