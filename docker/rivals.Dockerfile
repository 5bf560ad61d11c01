# The other clients, engine and load generator in one Debian: for `seedring-bench run`, which starts
# them in turn, and for Compose, which starts one. `docker/build rivals` makes BASE, PROGRAMS, and
# the folder extra: programs that are no packages, as many of them as there are.
ARG PROGRAMS=seedring-programs
ARG BASE=debian:bookworm-slim
FROM ${PROGRAMS} AS programs

FROM ${BASE}
RUN export DEBIAN_FRONTEND=noninteractive \
    && apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends aria2 iperf3 iproute2 python3 \
        linux-perf nginx-light qbittorrent-nox rtorrent transmission-cli transmission-daemon \
        util-linux \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
# A wheel is a zip file; pip itself would be another 100 MB.
COPY wheels/ /tmp/wheels/
RUN python3 -m zipfile -e /tmp/wheels/*.whl /usr/local/lib/python3.11/dist-packages \
    && rm -r /tmp/wheels && python3 -c 'import libtorrent'
COPY . /rivals/
COPY extra/ /usr/local/bin/
COPY --from=programs /engine/seedring /bench/seedring-bench /usr/local/bin/
# Where the image of the bench alone has them: Compose and Swarm run either.
RUN ln -s /usr/local/bin/seedring /usr/local/bin/seedring-bench / \
    && useradd --uid 10001 --home-dir /work seedring && install -d -m 777 /work \
    && rm -r /rivals/wheels /rivals/extra
USER 10001:10001
WORKDIR /work
CMD ["seedring-bench", "--help"]
