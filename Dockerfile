# docker build --build-arg VERSION=0.1.0 --tag pdrouter:0.1.0 .
FROM python:3.12-slim AS build
WORKDIR /src
# With --build-arg CONSTRAINTS=tokenizer, the image can count tokens (PDROUTER_TOKENIZERS); with
# CONSTRAINTS=tracing, it can export traces (OTEL_*).
ARG CONSTRAINTS=runtime
COPY constraints/build.txt constraints/$CONSTRAINTS.txt constraints/
RUN python -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r constraints/build.txt
# Without pip: nothing is installed into the image later.
RUN python -m venv --without-pip /opt/pdrouter \
 && /opt/build/bin/pip --python /opt/pdrouter/bin/python install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r constraints/$CONSTRAINTS.txt
COPY pyproject.toml README.md LICENSE ./
COPY pdrouter pdrouter
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /src/wheels . \
 && /opt/build/bin/pip --python /opt/pdrouter/bin/python install --no-cache-dir --no-index --no-deps /src/wheels/*.whl

FROM python:3.12-slim
ARG VERSION=unknown
LABEL org.opencontainers.image.title="pdrouter" \
      org.opencontainers.image.description="Envoy ext_proc server that routes LLM requests to prefill/decode disaggregated engines" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/pdrouter /opt/pdrouter
ENV PATH=/opt/pdrouter/bin:$PATH \
    PYTHONUNBUFFERED=1
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
EXPOSE 50052 8080
# For Docker; Kubernetes has probes of its own.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["python", "-c", "import grpc; from grpc_health.v1 import health_pb2, health_pb2_grpc; health = health_pb2_grpc.HealthStub(grpc.insecure_channel('127.0.0.1:50052')); raise SystemExit(health.Check(health_pb2.HealthCheckRequest(), timeout=4).status != health_pb2.HealthCheckResponse.SERVING)"]
ENTRYPOINT ["pdrouter"]
CMD ["serve", "--kubernetes"]
