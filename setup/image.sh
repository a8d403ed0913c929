#!/bin/bash
# Build the image `cpu` of the Dockerfile as root, without a container engine and without a registry
# of images: buildah runs the Dockerfile, and a Debian with Python that mmdebstrap makes stands where
# Docker Hub's python:slim does. What is said after the name goes to `buildah build`.
#   setup/image.sh [NAME [OPTION...]]
set -euo pipefail
cd "$(dirname "$0")/.."
setup/apt.sh image
NAME=${1:-vauban:cpu}
BASE=localhost/vauban-python
SUITE=bookworm # its Python is 3.11, which the tritonserver on PyPI has a stub for
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}

if ! buildah inspect --type image "$BASE" >/dev/null 2>&1; then
    made=$(mktemp --suffix=.tar)
    trap 'rm -f "$made"' EXIT
    mmdebstrap --quiet --variant=minbase \
        --include=ca-certificates,python3,python3-pip,python3-venv,libpython3.11 \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --customize-hook='ln -s python3 "$1/usr/bin/python"' \
        --customize-hook='rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED' \
        "$SUITE" "$made"
    empty=$(buildah from scratch)
    buildah add --quiet "$empty" "$made" / >/dev/null
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$empty"
    buildah commit --quiet --rm "$empty" "$BASE" >/dev/null
fi
buildah build --format docker --layers=false --target cpu --tag "$NAME" \
    --build-arg "PYTHON_IMAGE=$BASE" "${@:2}" .
