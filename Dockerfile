# A server with its bundled checkpoints. Its steps are deploy/docker/*, which run outside Docker too.
#
#   docker build -t deqlm --build-arg REVISION=$(git rev-parse --short=12 HEAD) .
#   docker build -t deqlm:cuda --build-arg ACCELERATOR=cuda .
#
# Wheels of torch differ by accelerator: TORCH_INDEX=URL chooses the index they come from. What came
# is looked at: a wheel for the other accelerator ends the build.
ARG PYTHON=3.12
ARG ACCELERATOR=cpu

FROM python:${PYTHON}-slim AS build
ARG ACCELERATOR
ARG TORCH_INDEX=
ARG REVISION=
WORKDIR /src
# The compiler makes the kernels for CPUs; it stays in this stage, so its version need not be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 \
 && rm -rf /var/lib/apt/lists/*
COPY requirements requirements
COPY deploy/docker deploy/docker
RUN TORCH_INDEX="$TORCH_INDEX" deploy/docker/dependencies /opt/deqlm
COPY . .
RUN DEQLM_REVISION="$REVISION" deploy/docker/package /opt/deqlm

FROM python:${PYTHON}-slim AS base
ARG ACCELERATOR
# The kernels' threads; pip would only be in the way of whoever looks what is installed.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && python -m pip uninstall --yes --root-user-action=ignore pip \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin deqlm \
 && install --directory --owner=deqlm --group=deqlm /state
COPY --from=build /opt/deqlm /opt/deqlm
RUN --mount=type=bind,from=build,source=/src/deploy/docker,target=/steps \
    /steps/verify /opt/deqlm "$ACCELERATOR"
# All of the container's own network; who publishes a port says who reaches it.
ENV PATH=/opt/deqlm/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    DEQLM_HOST=0.0.0.0 \
    DEQLM_METRICS_HOST=0.0.0.0 \
    DEQLM_INSECURE=true
# Nothing is written but what --session-store sqlite:/state/sessions.db keeps: --read-only, with
# --tmpfs /tmp, is enough.
VOLUME /state
USER 10001:10001
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --start-interval=2s \
    CMD ["deqlm", "health", "--timeout-s", "5"]
ENTRYPOINT ["deqlm", "serve"]

FROM base AS cpu

FROM base AS cuda
ENV DEQLM_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# hadolint ignore=DL3006
FROM ${ACCELERATOR}
