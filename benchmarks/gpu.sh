#!/bin/sh
# Measure training, encoding and evaluation on a GPU, in under 10 minutes.
#
#     sh benchmarks/gpu.sh            # needs a GPU; exit code 2 without one
#     sh benchmarks/gpu.sh --cpu      # a tiny size, to test the script itself
#
# It needs PyTorch and this checkout, neither Flower nor Ray nor a network; where
# pydantic, tomli-w, platformdirs, psutil or rich lack, install those five.
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
