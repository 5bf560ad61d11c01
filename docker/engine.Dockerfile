# The engine and nothing else: no shell, no package manager, no other program.
#
# `docker/build` fills the build context: rootfs/ (the binary, the C library that it was linked with,
# CA certificates) and state/ (an empty folder). No image is pulled.
FROM scratch
COPY rootfs/ /
# uid and gid of `seedring` in rootfs/etc/passwd. A new volume takes its owner from here.
COPY --chown=10001:10001 state/ /var/lib/seedring/
USER 10001:10001
WORKDIR /var/lib/seedring
VOLUME ["/var/lib/seedring"]
EXPOSE 6881/tcp 6969/tcp
# SIGTERM stops in order: peers, trackers (`stopped`, with the last totals), state.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/seedring"]
CMD ["run", "/etc/seedring/seedring.yaml"]
