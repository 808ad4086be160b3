# Two targets: `gpu` (the default) for production, `cpu` for trying Fathom out.
#   docker build -t fathom .                          docker run --gpus all -p 8000:8000 fathom
#   docker build -t fathom-cpu --target cpu .       docker run -p 8000:8000 fathom-cpu
# Own checkpoints: docker run --gpus all -p 8000:8000 -v /models:/models fathom serve my=/models/my --host 0.0.0.0

# --- gpu: kernels are compiled where the compiler is, then copied to where it is not ---
# The CUDA major version must be the one that the pinned torch is built for, else no kernel compiles.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS gpu-build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv python3-dev git ninja-build \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/fathom
ENV PATH=/opt/fathom/bin:$PATH
WORKDIR /src
COPY pyproject.toml constraints.txt LICENSE README.md fathom.py ./
COPY models models
COPY server server
COPY evals evals
COPY loadtest loadtest
# Compiling flash-attn takes some GiB of memory for each job.
ARG MAX_JOBS=4
# flash-attn, mamba-ssm and causal-conv1d compile against the torch that is installed: it comes first.
RUN pip install --no-cache-dir -c constraints.txt torch setuptools wheel packaging ninja \
 && pip install --no-cache-dir -c constraints.txt --no-build-isolation '.[gpu]'

FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04 AS gpu-base
# Triton compiles a small launcher for each kernel when it first runs: it needs a C compiler and Python's headers.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-dev gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
COPY --from=gpu-build /opt/fathom /opt/fathom

# --- cpu ---
FROM python:3.11-slim AS cpu-base
# With the package index of torch's CPU-only builds the image stays small; without it the usual build is taken.
ARG TORCH_INDEX=
RUN python -m venv /opt/fathom
ENV PATH=/opt/fathom/bin:$PATH
WORKDIR /src
COPY pyproject.toml constraints.txt LICENSE README.md fathom.py ./
COPY models models
COPY server server
COPY evals evals
COPY loadtest loadtest
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch \
 && pip install --no-cache-dir -c constraints.txt '.[cpu]'

FROM cpu-base AS cpu
ENV PATH=/opt/fathom/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 10001 fathom
USER fathom
WORKDIR /home/fathom
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
  CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["fathom"]
CMD ["serve", "embedded:transformer", "embedded:mamba", "--host", "0.0.0.0"]

FROM gpu-base AS gpu
ENV PATH=/opt/fathom/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 10001 fathom
USER fathom
WORKDIR /home/fathom
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
  CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["fathom"]
CMD ["serve", "embedded:transformer", "embedded:mamba", "--host", "0.0.0.0"]
