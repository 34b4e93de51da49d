#!/usr/bin/env bash
# Environments of their own for tools whose pins clash with ours, or that bring much along:
# tests/export_environments.sh [--all]
# Each sees the packages of .venv (torch is not installed again) and has its own tool on top. The
# tests of mpsearch/export and mpsearch_api/blobs find them here, or wherever
# MPSEARCH_TEST_<TOOL>_PYTHON points.
set -euo pipefail
cd "$(dirname "$0")/.."
base=.venv/bin/python
packages=$($base -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')

make_environment() { # name, then what pip installs
  local folder=.venv/export/$1
  shift
  [ -e "$folder/.installed" ] && return
  $base -m venv "$folder"
  local own
  own=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  # addsitedir, so that editable installs of .venv are seen, too
  echo "import site; site.addsitedir('$packages')" > "$own/zz_shared.pth"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
  touch "$folder/.installed"
}

make_environment modelopt nvidia-modelopt==0.47.0
make_environment auto-round auto-round==0.16.1
make_environment compressed-tensors compressed-tensors==0.20.0
# s3fs asks for the very version of fsspec that constraints.txt has: move them together.
make_environment object-stores s3fs==2026.9.0 gcsfs==2026.10.1 'moto[server]==5.2.5' \
  gcp-storage-emulator==2026.7.19

# Pins a torch of its own, several gigabytes: only when asked for.
[ "${1:-}" != --all ] || make_environment llm-compressor llmcompressor==0.14.0.1
