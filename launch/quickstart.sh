#!/usr/bin/env bash
# Trains the tiny policy that ships with the package on images that ship with it, in minutes on two
# CPU cores. Arguments go to the training command:
#   bash launch/quickstart.sh
#   bash launch/quickstart.sh --config.seed=1 --workdir=runs/quickstart_seed1
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
exec "$venv/bin/python" -m speciarl_jax.train \
  --config=configs/quickstart.py --workdir=runs/quickstart "$@"
