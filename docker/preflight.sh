#!/bin/sh
# Reports what this host lacks for `docker compose up`, and the remedy; prints nothing if nothing is missing.
# `make up` runs it after the build. COMPOSE_FILE, in the environment or .env, selects the compose files.
set -u
cd "$(dirname "$0")/.."

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

docker version >/dev/null 2>&1 || die \
    "This user cannot reach a Docker engine." \
    "Install Docker Engine 25 or newer and start it, or join the group docker: https://docs.docker.com/engine/install/"
docker compose version >/dev/null 2>&1 || die \
    "docker compose (version 2.24 or newer) is missing: https://docs.docker.com/compose/install/"
config=$(docker compose config 2>&1) || die "$config" "The settings above, from .env or the environment, are invalid."

# Only a program that uses the GPU, as the worker will, shows whether it is available.
case $config in
*"driver: nvidia"*) ;;
*) exit 0 ;;
esac
output=$(docker compose run --rm --no-deps --quiet-pull --entrypoint python worker -c '
import torch
print(torch.cuda.get_device_name(0))' 2>&1) && exit 0
last=$(printf '%s\n' "$output" | tail -n 1)
case $output in
*"could not select device driver"*)
    die "Docker has no access to NVIDIA GPUs on this host: the NVIDIA Container Toolkit is missing." \
        "  Install it: https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html" \
        "  then: sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker" \
        "Or serve without a GPU: COMPOSE_FILE=docker-compose.yml:docker-compose.cpu.yml in .env, then make up."
    ;;
*"unknown device"* | *"device not found"* | *"No CUDA GPUs"*)
    die "$last" "This host has no GPU ${CONVMLP_GPU:-0} (CONVMLP_GPU in .env); nvidia-smi -L lists its GPUs."
    ;;
*)
    die "$last" "The worker cannot use the GPU. See nvidia-smi on the host; the driver must be new enough for CUDA 13 (580)."
    ;;
esac
