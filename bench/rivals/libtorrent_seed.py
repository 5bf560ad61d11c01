#!/usr/bin/env python3
"""Seeds with libtorrent: its own settings for seeding (high_performance_seed), or its defaults.

Usage: libtorrent_seed.py [--tuned CONNECTIONS] ADDRESS:PORT SAVE_FOLDER LIST
LIST is a file with a .torrent's path on each line. Content is not checked (seed_mode), as with the
other targets. Without --tuned nothing is set but discovery off. Needs the package libtorrent.
"""
import sys
import time

from libtorrent_session import lt, session, torrent

arguments = sys.argv[1:]
if arguments == ["--version"]:
    print(lt.version)
    sys.exit(0)
connections = None
if arguments[0] == "--tuned":
    connections = int(arguments[1])
    arguments = arguments[2:]
listen, folder, listed = arguments

settings = lt.default_settings() if connections is None else lt.high_performance_seed()
tuned = {}
if connections is not None:
    tuned = {
        "connections_limit": connections,
        "unchoke_slots_limit": -1,
        # Loopback and private peers would otherwise sit in a class of their own.
        "upload_rate_limit": 0,
        "allow_multiple_connections_per_ip": True,
    }
ours = session(listen, tuned, settings=settings)
with open(listed, encoding="utf-8") as paths:
    torrents = [path for path in paths.read().split("\n") if path]
for path in torrents:
    parameters = torrent(path, folder, seeds=True)
    if connections is not None:
        parameters.max_uploads = -1
        parameters.max_connections = connections
    ours.async_add_torrent(parameters)
print("seeding on", listen, flush=True)
while True:
    time.sleep(3600)
