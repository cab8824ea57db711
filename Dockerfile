# syntax=docker/dockerfile:1
# `docker build -t schnell-server .` installs PyTorch's CUDA build, which also runs without a GPU. For CPUs only,
# `--build-arg TORCH_INDEX_URL=<PyTorch's index of CPU builds>` makes a far smaller image.

FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv && /opt/venv/bin/python -m pip install --quiet pip==26.2
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN if [ -n "$TORCH_INDEX_URL" ]; then \
        /opt/venv/bin/python -m pip install --index-url "$TORCH_INDEX_URL" --constraint constraints.txt torch; \
    fi
RUN /opt/venv/bin/python -m pip install --group serve --constraint constraints.txt
WORKDIR /app
COPY pyproject.toml LICENSE ./
COPY kernels kernels
COPY model model
COPY server server
# The root file system may be read-only, so the byte code is made here.
RUN /opt/venv/bin/python -m compileall -q /app

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="schnell-server" \
      org.opencontainers.image.description="A high-throughput HTTP inference server for FLUX.1 [schnell]" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 flux && useradd --uid 10001 --gid flux --no-create-home --shell /usr/sbin/nologin flux \
    && install --directory --owner=10001 --group=10001 /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
WORKDIR /app
# Nothing is written outside of /tmp and /data, which keeps jobs, their pictures and what steps cost. Since
# 0.0.0.0 is not loopback, a container needs a file of API keys, or FLUX_INSECURE_NO_AUTH=true where its port is
# published only to those who may use it.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    TRITON_CACHE_DIR=/tmp/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor \
    HF_HUB_OFFLINE=1 \
    FLUX_DATA_DIR=/data \
    FLUX_HOST=0.0.0.0 \
    FLUX_PORT=8000
USER 10001:10001
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=4s --start-period=120s --retries=3 \
    CMD ["python", "-m", "server.health"]
ENTRYPOINT ["python", "-m", "server"]
