# A server. Wheels of torch differ by accelerator: --build-arg TORCH_INDEX=URL chooses an index.
FROM python:3.12-slim AS build
ARG TORCH_INDEX=
WORKDIR /src
# The compiler makes the kernels for CPUs; it stays in this stage.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
COPY requirements requirements
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/lock.txt \
 && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r requirements/torch.txt
COPY . .
RUN pip install --no-cache-dir --no-build-isolation --no-deps .

FROM python:3.12-slim
RUN useradd --create-home deqlm
COPY --from=build /venv /venv
# The bundled checkpoint is looked for beside the packages; a volume on /models holds others.
COPY models* /venv/lib/python3.12/site-packages/models/
USER deqlm
# All of the container's own network; who publishes a port says who reaches it.
ENV PATH=/venv/bin:$PATH DEQLM_HOST=0.0.0.0 DEQLM_METRICS_HOST=0.0.0.0 DEQLM_INSECURE=true
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=120s CMD ["python", "-c", \
 "from client.sync import Client; Client(timeout_s=3).wait_ready()"]
ENTRYPOINT ["deqlm", "serve"]
