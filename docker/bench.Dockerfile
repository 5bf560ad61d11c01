# The load generator and nothing else. `docker/build bench` makes PROGRAMS first: nothing is pulled.
ARG PROGRAMS=seedring-programs
FROM ${PROGRAMS} AS programs

FROM scratch
COPY --from=programs /bench/ /
USER 10001:10001
# Content and reports; mount a volume over it.
WORKDIR /work
ENTRYPOINT ["/seedring-bench"]
CMD ["--help"]
