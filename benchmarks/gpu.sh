#!/usr/bin/env bash
# The tests marked `gpu` and the benchmarks of cost and memory, on a machine with a CUDA device. It uses the Python that
# has torch there (PYTHON, python3 where unset) and needs no network: what that Python lacks lies in build/gpu-needs,
# which the same command fetches on a machine that has a network (for Python PYTHON_VERSION, 3.12 where unset).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
needs=build/gpu-needs

if [ ! -d $needs ]; then
    platforms=$(printf -- '--platform manylinux%s_x86_64 ' 2014 _2_17 _2_27 _2_28)
    # shellcheck disable=SC2086
    $python -m pip install -qq --disable-pip-version-check --no-deps --only-binary=:all: --target $needs -c constraints.txt \
        --python-version "${PYTHON_VERSION:-3.12}" --implementation cp $platforms google-crc32c \
        || { rm -rf $needs; echo "no network: going on with what $python has" >&2; }
fi

export PYTHONPATH=$PWD:$needs CUBLAS_WORKSPACE_CONFIG=:4096:8 GRADLAB_TEST_DEVICE=cuda
if ! $python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    echo "$python has no torch that sees a CUDA device. Run this again on a machine that has one, $needs with it." >&2
    exit 3
fi
if ! $python -c 'import google_crc32c'; then
    echo "google-crc32c is missing. Run this on a machine with a network first, and bring $needs along." >&2
    exit 3
fi
$python -m pytest -m gpu -rs
$python benchmarks/memory.py --device cuda
$python benchmarks/overhead.py --device cuda --seconds 30
