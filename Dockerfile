# syntax=docker/dockerfile:1.7
#
#   docker build -t nemo-magic:0.1.0 .                          the image for the cluster (hours: it compiles three libraries)
#   docker build -t nemo-magic:current --target current .       backend=megatron on vLLM's image: wheels only (minutes)
#   docker build -t nemo-magic:ready --target ready-made .      on NVIDIA's NeMo container (minutes)
#
# docs/container.md explains every pin and how to use the image. Packages are pinned in requirements/gpu.txt.

# --- pins -------------------------------------------------------------------------------------------------------------
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:24.07-py3
ARG PYTHON_VERSION=3.10
ARG APEX_COMMIT=810ffae374a2b9cb4b5c5e28eaeca7d7998fca0c
ARG TE_COMMIT=7d576ed25266a17a7b651f2c12e8498f67e0baea
ARG TRTLLM_VERSION=0.13.0
ARG TRTLLM_COMMIT=201135e58aa525af7e523d091d4c9584229524bc
ARG NEMO_VERSION=2.1.0
ARG NEMO_COMMIT=633cb602777bffefbe12066b0c915c87e7b469e9
ARG NEMO_FIX_COMMIT=d27dd28b4186f6ecd9f46f1c5679a5eef9bad14e
ARG NEMO_FIX_UPSTREAM_COMMIT=ee543c24d84e7e84f6b2a868d7f15c71b4c57a03
ARG MEGATRON_VERSION=0.10.0
ARG MEGATRON_COMMIT=d15cec53beb283e7127b7d594e1c46b8a0719b6d
ARG ALIGNER_VERSION=0.7.0
ARG ALIGNER_COMMIT=0d72d2829d34c07cd8685348c0f37f6b6b7e5834
ARG MAGIC_VERSION=0.1.0
ARG READY_MADE_IMAGE=nvcr.io/nvidia/nemo:25.02
ARG CURRENT_IMAGE=vllm/vllm-openai:v0.32.0
# --- not pins: build settings, and the revision of this repository -----------------------------------------------------
# Architectures for TensorRT-LLM and apex: H100 and H200. Separate several by semicolons: "80;90" and "8.0;9.0".
ARG CUDA_ARCHS=90
ARG TORCH_CUDA_ARCH_LIST=9.0
# Parallel compilers; each takes up to 8 GB.
ARG MAX_JOBS=8
ARG REVISION=unknown

# --- check that the pins are complete and everything they name exists, before anything is compiled --------------------
FROM ${BASE_IMAGE} AS preflight
SHELL ["/bin/bash", "-eu", "-o", "pipefail", "-c"]
ARG BASE_IMAGE PYTHON_VERSION APEX_COMMIT TE_COMMIT TRTLLM_VERSION TRTLLM_COMMIT NEMO_VERSION NEMO_COMMIT NEMO_FIX_COMMIT \
    NEMO_FIX_UPSTREAM_COMMIT MEGATRON_VERSION MEGATRON_COMMIT ALIGNER_VERSION ALIGNER_COMMIT MAGIC_VERSION
COPY docker/check_pins.py requirements/gpu.txt pyproject.toml /opt/pins/
RUN python /opt/pins/check_pins.py sources

# --- sources: commits, not histories ----------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS sources
SHELL ["/bin/bash", "-eu", "-o", "pipefail", "-c"]
# This copy makes every later stage wait for the check of the pins.
COPY --from=preflight /opt/pins/pins.env /opt/pins/
COPY docker/checkout.sh /usr/local/bin/checkout
WORKDIR /src

FROM sources AS aligner-source
ARG ALIGNER_COMMIT
RUN checkout aligner NeMo-Aligner https://github.com/NVIDIA/NeMo-Aligner.git "${ALIGNER_COMMIT}" \
    && rm -rf NeMo-Aligner/.git

FROM sources AS megatron-source
ARG MEGATRON_COMMIT
RUN checkout megatron Megatron-LM https://github.com/NVIDIA/Megatron-LM.git "${MEGATRON_COMMIT}" \
    && rm -rf Megatron-LM/.git

FROM sources AS nemo-source
ARG NEMO_COMMIT NEMO_FIX_COMMIT NEMO_FIX_UPSTREAM_COMMIT
RUN checkout nemo NeMo https://github.com/NVIDIA/NeMo.git "${NEMO_COMMIT}"
WORKDIR /src/NeMo
# The commits of pull request 11497: those of its head that the main branch of that day does not have. Git needs the names.
RUN git config user.name build && git config user.email build@localhost \
    && git fetch --quiet --filter=blob:none --unshallow origin "${NEMO_FIX_COMMIT}" "${NEMO_FIX_UPSTREAM_COMMIT}" \
    && git cherry-pick --allow-empty "$(git merge-base "${NEMO_FIX_UPSTREAM_COMMIT}" "${NEMO_FIX_COMMIT}")..${NEMO_FIX_COMMIT}" \
    && git rev-parse "${NEMO_FIX_COMMIT}" > /built/nemo_fix.commit \
    && rm -rf .git

FROM sources AS trtllm-source
ARG TRTLLM_VERSION TRTLLM_COMMIT
# Parts of TensorRT-LLM are static libraries in git-lfs; the git-lfs version is that of the base image's Ubuntu.
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && apt-get install -y --no-install-recommends 'git-lfs=3.0.2-*' && git lfs install --system
RUN checkout trtllm TensorRT-LLM https://github.com/NVIDIA/TensorRT-LLM.git "${TRTLLM_COMMIT}" \
    "refs/tags/v${TRTLLM_VERSION}"
# NeMo-Aligner's patch: load an engine from memory, and keep the device that Megatron chose.
COPY --from=aligner-source /src/NeMo-Aligner/setup/trtllm.patch /src/
RUN patch --directory=TensorRT-LLM --strip=1 --input=/src/trtllm.patch

# --- wheels -----------------------------------------------------------------------------------------------------------
FROM sources AS apex
ARG APEX_COMMIT TORCH_CUDA_ARCH_LIST MAX_JOBS
RUN checkout apex apex https://github.com/NVIDIA/apex.git "${APEX_COMMIT}"
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --no-build-isolation --wheel-dir /wheels --config-settings \
    "--build-option=--cpp_ext --cuda_ext --fast_layer_norm --distributed_adam --deprecated_fused_adam" ./apex

FROM sources AS te
ARG TE_COMMIT MAX_JOBS
RUN checkout te TransformerEngine https://github.com/NVIDIA/TransformerEngine.git "${TE_COMMIT}"
# This commit always compiles for 70, 80, 89 and 90.
RUN --mount=type=cache,target=/root/.cache/pip \
    NVTE_FRAMEWORK=pytorch NVTE_WITH_USERBUFFERS=1 MPI_HOME=/usr/local/mpi \
    pip wheel --no-deps --no-build-isolation --wheel-dir /wheels ./TransformerEngine

# Replaces the base image's TensorRT with the version that TensorRT-LLM needs; the final image is based on this stage.
FROM ${BASE_IMAGE} AS tensorrt
SHELL ["/bin/bash", "-eu", "-o", "pipefail", "-c"]
RUN --mount=type=bind,from=trtllm-source,source=/src/TensorRT-LLM/docker/common,target=/mnt/common \
    ENV=/etc/bash.bashrc bash /mnt/common/install_tensorrt.sh
# Without a driver (during the build) libcuda comes from the compatibility package; with one, the driver's is found first.
ENV LD_LIBRARY_PATH=${LD_LIBRARY_PATH}:/usr/local/tensorrt/lib:/usr/local/cuda-12/compat/lib.real

FROM tensorrt AS trtllm
ARG CUDA_ARCHS MAX_JOBS
SHELL ["/bin/bash", "-eu", "-o", "pipefail", "-c"]
COPY --from=trtllm-source /src/TensorRT-LLM /src/TensorRT-LLM
COPY --from=trtllm-source /built /built
WORKDIR /src/TensorRT-LLM
RUN --mount=type=cache,target=/root/.cache/pip \
    python scripts/build_wheel.py --trt_root /usr/local/tensorrt --job_count "${MAX_JOBS}" \
    --cuda_architectures "${CUDA_ARCHS//;/-real;}-real" --python_bindings \
    && mkdir /wheels && mv build/tensorrt_llm-*.whl /wheels/

# --- the light image: NVIDIA's container and our package. Its versions are not the pinned ones: docs/container.md -----
FROM ${READY_MADE_IMAGE} AS ready-made
SHELL ["/bin/bash", "-eu", "-o", "pipefail", "-c"]
ARG READY_MADE_IMAGE MAGIC_VERSION REVISION
# Our wheel is built with the lock's setuptools. It is installed under the container's own constraints: installed packages
# stay, missing ones are added.
RUN --mount=type=bind,target=/mnt/source,rw --mount=type=cache,target=/root/.cache/pip --mount=type=tmpfs,target=/wheels \
    PIP_CONSTRAINT=/mnt/source/requirements/gpu.txt pip wheel --no-deps --wheel-dir /wheels /mnt/source \
    && pip install /wheels/nemo_magic-*.whl \
    && python -c "import nemo_aligner" && nemo-magic --help
LABEL org.opencontainers.image.title="nemo-magic (on NeMo)" \
      org.opencontainers.image.version="${MAGIC_VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${READY_MADE_IMAGE}"
RUN useradd --create-home --user-group --shell /bin/bash --uid 1200 magic \
    && install --directory --owner=magic --group=magic /workspace/magic
USER 1200:1200
WORKDIR /workspace/magic
CMD ["nemo-magic", "--help"]

# --- the current lane: vLLM's own image, which has torch, and our extra `cuda`. Its versions are pinned in pyproject.toml -
FROM ${CURRENT_IMAGE} AS current
SHELL ["/bin/bash", "-eu", "-o", "pipefail", "-c"]
ARG CURRENT_IMAGE MAGIC_VERSION REVISION
# Nothing is compiled: every dependency is a wheel, but one that is pure Python and published as source only. What the image has
# in the version asked for stays. Slurm's scripts call `python`.
RUN --mount=type=bind,target=/mnt/source,rw --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip install --only-binary=:all: --no-binary=antlr4-python3-runtime "/mnt/source[cuda]" \
    && ln -sf "$(command -v python3)" /usr/local/bin/python \
    && python -c "import torch, megatron.core, nemo_magic" && nemo-magic --help
LABEL org.opencontainers.image.title="nemo-magic (current)" \
      org.opencontainers.image.version="${MAGIC_VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${CURRENT_IMAGE}"
RUN useradd --create-home --user-group --shell /bin/bash --uid 1200 magic \
    && install --directory --owner=magic --group=magic /workspace/magic
USER 1200:1200
WORKDIR /workspace/magic
ENV PYTHONUNBUFFERED=1
# The base image's serves a model.
ENTRYPOINT []
CMD ["nemo-magic", "--help"]

# --- the image --------------------------------------------------------------------------------------------------------
FROM tensorrt AS magic
SHELL ["/bin/bash", "-eu", "-o", "pipefail", "-c"]
ARG BASE_IMAGE MAGIC_VERSION REVISION
# The wheels and the lock replace these packages; the base image's constraints pin the old ones. The base image's triton is
# called pytorch-triton, so its files would otherwise remain beside the lock's triton.
RUN pip uninstall --yes apex transformer-engine pytorch-triton
COPY requirements/gpu.txt requirements/gpu_hashes.txt /opt/pins/
# As a constraint the lock also pins the setuptools that builds source distributions.
RUN --mount=type=cache,target=/root/.cache/pip \
    PIP_CONSTRAINT=/opt/pins/gpu.txt pip install --no-deps --require-hashes -r /opt/pins/gpu_hashes.txt
RUN --mount=type=bind,from=apex,source=/wheels,target=/mnt/apex \
    --mount=type=bind,from=te,source=/wheels,target=/mnt/te \
    --mount=type=bind,from=trtllm,source=/wheels,target=/mnt/trtllm \
    PIP_CONSTRAINT="" pip install --no-deps --no-index --no-cache-dir /mnt/apex/*.whl /mnt/te/*.whl /mnt/trtllm/*.whl
COPY --from=nemo-source /src/NeMo /opt/NeMo
COPY --from=megatron-source /src/Megatron-LM /opt/Megatron-LM
COPY --from=aligner-source /src/NeMo-Aligner /opt/NeMo-Aligner
# Editable installs, as in NeMo-Aligner's own image. The helpers are compiled now, because the user cannot write here later.
RUN make --directory=/opt/NeMo/nemo/collections/nlp/data/language_modeling/megatron \
    && PIP_CONSTRAINT="" pip install --no-deps --no-build-isolation --no-cache-dir \
    -e /opt/Megatron-LM -e /opt/NeMo -e /opt/NeMo-Aligner
RUN --mount=type=bind,target=/mnt/source,rw \
    PIP_CONSTRAINT="" pip install --no-deps --no-build-isolation --no-cache-dir /mnt/source
COPY docker/check_pins.py /opt/pins/
COPY --from=preflight /opt/pins/pins.env /opt/pins/
COPY --from=apex /built /opt/pins/built
COPY --from=te /built /opt/pins/built
COPY --from=trtllm /built /opt/pins/built
COPY --from=nemo-source /built /opt/pins/built
COPY --from=megatron-source /built /opt/pins/built
COPY --from=aligner-source /built /opt/pins/built
RUN useradd --create-home --user-group --shell /bin/bash --uid 1200 magic \
    && install --directory --owner=magic --group=magic /workspace/magic
USER 1200:1200
WORKDIR /workspace/magic
# Slurm's log gets output at once.
ENV PYTHONUNBUFFERED=1
# Runs as the image's user, so that a file only root may read fails here.
RUN python /opt/pins/check_pins.py installed
LABEL org.opencontainers.image.title="nemo-magic" \
      org.opencontainers.image.description="Co-evolving attacker and defender training (MAGIC) on NeMo-Aligner and Megatron-core" \
      org.opencontainers.image.version="${MAGIC_VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
# The base image's entry point: it reports the driver's capabilities and runs the command.
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh"]
CMD ["nemo-magic", "--help"]
