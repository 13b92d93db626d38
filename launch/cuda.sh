# shellcheck shell=bash
# Sourced by the scripts beside it: sets ACCELERATOR to the CUDA version for JAX on this machine.
# CUDA (12 or 13) chooses it; by default the newest that the driver supports.
if [ -z "${CUDA:-}" ]; then
  if ! driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader)"; then
    echo "nvidia-smi finds no GPU; on a machine with one, install NVIDIA's driver first" >&2
    exit 1
  fi
  # CUDA 13 needs driver 580 or newer.
  driver="${driver%%.*}"
  CUDA=$((driver >= 580 ? 13 : 12))
fi
export ACCELERATOR="cuda$CUDA"
