# The training client of one silo. CPU by default; for CUDA:
#   docker build -f docker/client.Dockerfile --build-arg TORCH_ARGS= -t dpfl-client:cuda .
#   docker run --read-only --tmpfs /tmp -v "$PWD/silo:/data" dpfl-client --help
FROM python:3.11.14-slim-trixie AS build
# What PyTorch's install page gives for a CPU build; empty takes the default build, on x86 the one with CUDA.
ARG TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /srv/dpfl
# hadolint ignore=SC2086
RUN python -m venv /opt/dpfl && /opt/dpfl/bin/pip install ${TORCH_ARGS} torch==2.13.0
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app/__init__.py app/__init__.py
COPY app/core app/core
COPY cli cli
COPY client client
COPY engines engines
COPY modelling modelling
COPY locales locales
# The sources stay where the catalogs are found beside them; only the dependencies go into the environment.
RUN /opt/dpfl/bin/pip install -c constraints.txt -e '.[client]' \
    && /opt/dpfl/bin/python -m compileall -q /opt/dpfl/lib /srv/dpfl

FROM python:3.11.14-slim-trixie
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin dpfl \
    && install -d -o dpfl -g dpfl -m 0700 /data
COPY --from=build /opt/dpfl /opt/dpfl
COPY --from=build /srv/dpfl /srv/dpfl
# The root file system may be read-only: nothing is written but /tmp and /data. The data sets' ledgers are in
# /data/dpfl: in /tmp, where HOME is, they would end with the container, and the budget would begin again. The
# local key is in /data/config unless DPFL_CLIENT_KEY is set, which keeps it apart from what it opens.
ENV PATH=/opt/dpfl/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp XDG_DATA_HOME=/data \
    XDG_CONFIG_HOME=/data/config \
    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
WORKDIR /data
USER 10001:10001
VOLUME /data
# A command that runs to its end: its exit code says how it went.
HEALTHCHECK NONE
ENTRYPOINT ["dpfl", "client"]
CMD ["--help"]
