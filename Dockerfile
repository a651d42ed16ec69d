# syntax=docker/dockerfile:1
#
#   docker build -t rankslice .
#   docker run --rm -v /checkpoints:/data rankslice rankslice inspect /data/CKPT
#   docker run --rm -v /checkpoints:/data rankslice mpirun -n 4 rankslice load /data/CKPT --ep 4
#
# Under Slurm, srun --mpi=pmix (pyxis, or Apptainer: launch/container/rankslice.def) starts the ranks, whose Open MPI brings its
# own PMIx, and the host's PMIx has to be of the same or a neighbouring major version.
#
# Without GPUs. For those, build the preset cuda in a first stage that has nvcc, and start it with --gpus all. The second
# stage needs no CUDA, and NCCL only where the first found it.

ARG DEBIAN=debian:12-slim

FROM ${DEBIAN} AS build
WORKDIR /rankslice
# First what seldom changes, so that it is not installed again for each change of the sources.
COPY launch/setup.sh launch/setup.sh
COPY tests/requirements.txt tests/requirements.txt
RUN launch/setup.sh
COPY . .
RUN cmake --preset release -DRANKSLICE_TESTS=OFF \
    && cmake --build --preset release

FROM ${DEBIAN}
COPY launch/setup.sh /tmp/launch/setup.sh
RUN /tmp/launch/setup.sh --runtime \
    && rm -rf /var/lib/apt/lists/* /tmp/launch \
    && useradd --uid 1000 --create-home rankslice
COPY --from=build /rankslice/build/release/bin/rankslice /usr/local/bin/rankslice
COPY launch/mpirun.sh launch/rank.sh /usr/local/share/rankslice/launch/
COPY LICENSE /usr/share/doc/rankslice/LICENSE
# Containers seldom allow the ranks of a host to read each other's memory, and Open MPI is loud about it.
ENV OMPI_MCA_btl_vader_single_copy_mechanism=none \
    OMPI_MCA_rmaps_base_oversubscribe=1
USER 1000
WORKDIR /home/rankslice
CMD ["rankslice", "--help"]
