# The package with everything, on the CPU. Build: docker build -t dmnn-convert .
# Use: docker run --rm -v "$PWD:/data" dmnn-convert --arch resnet101
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
WORKDIR /src
COPY . .
RUN pip wheel --no-deps -w /wheels .

FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
# An index of CPU builds saves gigabytes: --build-arg TORCH_INDEX=URL
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY --from=build /wheels /wheels
RUN wheel=$(echo /wheels/*.whl) && pip install --no-cache-dir "$wheel[all]" && rm -r /wheels
RUN useradd --create-home user
USER user
WORKDIR /data
ENTRYPOINT ["dmnn-convert"]
CMD ["--help"]
