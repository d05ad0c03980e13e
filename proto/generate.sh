#!/bin/sh
# Writes the Python code of the protocol: proto/generate.sh [folder, by default the repository].
# Run it after every change of a .proto file; a test compares what it writes with what is committed.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root}
exec "${PYTHON:-python}" -m grpc_tools.protoc --proto_path="$root/proto" \
  --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
  featurestore/serving/v1/serving.proto
