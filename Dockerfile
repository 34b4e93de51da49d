# The mpsearch service in one image:   docker build -t mpsearch .
#
# CPU build of torch by default; for CUDA:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t mpsearch:cuda .
# An empty TORCH_INDEX takes torch from the package index that pip is set up with.

ARG BASE=python:3.11-slim

FROM ${BASE} AS build
# What of mpsearch the image holds; see the extras in pyproject.toml.
ARG EXTRAS=torch,api,postgres,plots,examples,evolve,vision,onnx,yaml
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Version of torch; empty: the one in constraints.txt.
ARG TORCH_VERSION=
# Folder or page with more wheels, for building without a network.
ARG PIP_FIND_LINKS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/mpsearch
ENV PATH=/opt/mpsearch/bin:$PATH
WORKDIR /src
COPY constraints.txt docker/pins.py ./
# Torch first and alone: it is the largest layer and changes least.
RUN python pins.py "${TORCH_VERSION}" < constraints.txt > pins.txt \
 && python -m pip install --constraint pins.txt ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch
COPY pyproject.toml README.md LICENSE ./
COPY mpsearch mpsearch
COPY solvers solvers
COPY api api
RUN python -m pip install --constraint pins.txt ".[${EXTRAS}]" dumb-init==1.2.5.post1 \
 && rm -rf /opt/mpsearch/lib/python3*/site-packages/torch/test \
      /opt/mpsearch/lib/python3*/site-packages/torch/include \
 && find /opt/mpsearch/lib -type d -name tests -prune -exec rm -rf {} + \
 && python -m pip uninstall --quiet --yes pip \
 && mkdir /data

FROM ${BASE}
LABEL org.opencontainers.image.title="mpsearch" \
      org.opencontainers.image.description="Mixed-precision bit-allocation search service" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/mpsearch /opt/mpsearch
# The only place that is written to, beside /tmp: both may be volumes under a read-only root.
COPY --from=build --chown=10001:10001 /data /data
COPY docker/smoke.sh /opt/mpsearch/bin/mpsearch-smoke
ENV PATH=/opt/mpsearch/bin:$PATH \
    MPSEARCH_DATA_DIR=/data \
    MPSEARCH_LOG_FORMAT=json \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
# dumb-init passes signals on and reaps what jobs leave behind, as process 1 must.
ENTRYPOINT ["dumb-init", "--", "mpsearch"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
