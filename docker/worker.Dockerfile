# Workers and the dispatcher: they compute. CPU by default; for CUDA:
#   docker build -f docker/worker.Dockerfile --build-arg TORCH_ARGS= -t dpfl-worker:cuda .
FROM python:3.11.14-slim-trixie AS build
# What PyTorch's install page gives for a CPU build; empty takes the default build, on x86 the one with CUDA.
ARG TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /srv/dpfl
# hadolint ignore=SC2086
RUN python -m venv /opt/dpfl && /opt/dpfl/bin/pip install ${TORCH_ARGS} torch==2.13.0
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY cli cli
COPY engines engines
COPY migrations migrations
COPY modelling modelling
COPY workers workers
COPY locales locales
# The sources stay where the catalogs are found beside them; only the dependencies go into the environment.
RUN /opt/dpfl/bin/pip install -c constraints.txt -e '.[worker,client]' \
    && /opt/dpfl/bin/python -m compileall -q /opt/dpfl/lib /srv/dpfl

FROM python:3.11.14-slim-trixie
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin dpfl \
    && install -d -o dpfl -g dpfl -m 0700 /var/lib/dpfl
COPY --from=build /opt/dpfl /opt/dpfl
COPY --from=build /srv/dpfl /srv/dpfl
# The root file system may be read-only: nothing is written but /tmp and /var/lib/dpfl. One thread a process.
ENV PATH=/opt/dpfl/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp HF_HUB_OFFLINE=1 \
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE DPFL_QUEUE=cpu \
    BLOB_URL=file:///var/lib/dpfl/blobs
WORKDIR /srv/dpfl
USER 10001:10001
VOLUME /var/lib/dpfl
# Healthy while the process that computes, a child of the worker, is there. Remote control is off by design.
HEALTHCHECK --interval=15s --timeout=5s --start-period=150s --retries=3 \
    CMD ["python", "-c", "import sys; sys.exit(not open('/proc/1/task/1/children').read().strip())"]
CMD ["sh", "-c", "exec python -m celery -A workers.main worker -Q \"$DPFL_QUEUE\" --pool=prefork --concurrency=1 --loglevel=INFO --without-gossip --without-mingle --without-heartbeat"]
