# Three images from one file. `docker build --target vllm|triton|cpu .`
#
#   vllm     the guard in the official vLLM image (GPU)
#   triton   the guard's models in the official Triton image with the vLLM backend (GPU)
#   cpu      both servers on the CPU, with a stand-in model until one is mounted
#
# Policy and keys are mounted, read only, and named in the environment:
#   -v ./vauban:/etc/vauban:ro -e VAUBAN_POLICY=/etc/vauban/policy.yaml
#   -e VAUBAN_IDENTITY__KEYS_FILE=/etc/vauban/keys.json
# Without keys the servers listen on loopback, inside the container; with keys, Triton's is told
# where: `triton serve --address 0.0.0.0`.

ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.06-vllm-python-py3
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

# One wheel, built apart, so that no image holds build tools.
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY plugin plugin
COPY triton_models triton_models
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
# What goes into the wheel are the weights that were recorded when they were made.
RUN python -c "import hashlib, json, pathlib; \
at = pathlib.Path('plugin/vauban/data/encoder'); \
told = json.loads((at / 'config.json').read_text()); \
found = {n: hashlib.sha256((at / f).read_bytes()).hexdigest() \
         for n, f in (('weights_sha256', 'model.safetensors'), ('tokenizer_sha256', 'tokenizer.json'))}; \
assert all(found[n] == told[n] for n in found), found"

FROM ${VLLM_IMAGE} AS vllm
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl 'faiss-gpu>=1.15,<2' && rm -rf /wheels \
    && useradd --no-log-init --create-home --uid 10001 vauban
USER 10001
EXPOSE 8000
HEALTHCHECK --start-period=10m CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["vauban", "serve"]

FROM ${TRITON_IMAGE} AS triton
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl 'faiss-gpu>=1.15,<2' && rm -rf /wheels \
    && useradd --no-log-init --create-home --uid 10001 vauban \
    && install -d -o vauban /models
USER 10001
EXPOSE 8000 8001 8002
HEALTHCHECK --start-period=10m CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=5)"]
# `vauban triton render --out /models --llm vllm --model MODEL` first, or mount a repository.
ENTRYPOINT ["vauban", "triton", "serve", "--model-repository", "/models"]

FROM ${PYTHON_IMAGE} AS cpu
# Where the CPU build of torch comes from: its own index, or with `cpu` left out the usual one.
ARG TORCH_BACKEND=cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*
COPY setup/uv-overrides.txt /tmp/
COPY --from=wheel /wheels /wheels
RUN python -m venv /tmp/uv \
    && /tmp/uv/bin/pip install --no-cache-dir 'uv>=0.9,<1' \
    && export PATH="/opt/vauban/bin:/tmp/uv/bin:$PATH" UV_NO_CACHE=1 \
    && python -m venv --without-pip /opt/vauban \
    && uv pip install --python /opt/vauban/bin/python --overrides /tmp/uv-overrides.txt \
        ${TORCH_BACKEND:+--torch-backend=$TORCH_BACKEND} "vauban[cpu] @ file://$(ls /wheels/*.whl)" \
    && vauban triton install \
    && rm -rf /tmp/uv /wheels /tmp/uv-overrides.txt "$HOME/.cache" \
    && useradd --no-log-init --create-home --uid 10001 vauban
ENV PATH=/opt/vauban/bin:$PATH
USER 10001
WORKDIR /home/vauban
EXPOSE 8000 8001 8002
# Whichever of the two it is.
HEALTHCHECK --start-period=10m CMD ["python", "-c", "import contextlib, sys, urllib.request as u\nfor path in ('/health', '/v2/health/ready'):\n    with contextlib.suppress(OSError):\n        sys.exit(u.urlopen('http://127.0.0.1:8000' + path, timeout=5).status != 200)\nsys.exit(1)"]
ENTRYPOINT ["vauban"]
CMD ["triton", "serve"]
