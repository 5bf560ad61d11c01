# The engine and nothing else: no shell, no package manager, no other program.
#
# PROGRAMS is the local image that `docker/build` makes first: nothing is pulled.
ARG PROGRAMS=seedring-programs
FROM ${PROGRAMS} AS programs

FROM scratch
COPY --from=programs /engine/ /
# /config takes all that the engine writes: state, identity, the control socket.
# XDG_STATE_HOME: where `seed` and `download` keep their state.
ENV HOME=/config XDG_STATE_HOME=/config SEEDRING_CONTROL_SOCKET=/config/control.sock
# `seedring` in /etc/passwd. --user takes any other one.
USER 10001:10001
WORKDIR /config
VOLUME ["/config"]
EXPOSE 6881/tcp 6969/tcp
# SIGTERM stops in order: peers, trackers (`stopped`, with the last totals), state.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["/seedring", "health"]
ENTRYPOINT ["/seedring"]
CMD ["run", "/config/seedring.yaml"]
