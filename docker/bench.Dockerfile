# The load generator, and the engine as its first target; nothing else. `docker/build bench` makes
# PROGRAMS first: nothing is pulled.
ARG PROGRAMS=seedring-programs
FROM ${PROGRAMS} AS programs

FROM scratch
COPY --from=programs /bench/ /
COPY --from=programs /engine/seedring /seedring
USER 10001:10001
# Content and reports; mount a volume over it.
WORKDIR /work
ENTRYPOINT ["/seedring-bench"]
CMD ["--help"]
