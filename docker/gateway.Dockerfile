# The gateway: decides and records. No torch, no GPU. Build from the repository's root:
#   docker build -f docker/gateway.Dockerfile -t dpfl-gateway .
FROM python:3.11.14-slim-trixie AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /srv/dpfl
RUN python -m venv /opt/dpfl
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY cli cli
COPY migrations migrations
COPY locales locales
# The sources stay where the catalogs are found beside them; only the dependencies go into the environment.
RUN /opt/dpfl/bin/pip install -c constraints.txt -e . \
    && /opt/dpfl/bin/python -m compileall -q /opt/dpfl/lib /srv/dpfl

FROM python:3.11.14-slim-trixie
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin dpfl \
    && install -d -o dpfl -g dpfl -m 0700 /var/lib/dpfl
COPY --from=build /opt/dpfl /opt/dpfl
COPY --from=build /srv/dpfl /srv/dpfl
# The root file system may be read-only: nothing is written but /tmp and /var/lib/dpfl.
ENV PATH=/opt/dpfl/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp \
    DPFL_HOST=0.0.0.0 DPFL_PORT=8000 BLOB_URL=file:///var/lib/dpfl/blobs
WORKDIR /srv/dpfl
USER 10001:10001
VOLUME /var/lib/dpfl
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["python", "-m", "app"]
