#!/usr/bin/env python3
"""Seeds one torrent with libtorrent's own settings for it: high_performance_seed.

Usage: libtorrent_seed.py TORRENT SAVE_FOLDER ADDRESS:PORT
Content is not checked (seed_mode), as with the other targets. Needs the package libtorrent.
"""
import sys
import time

try:
    import libtorrent as lt
except ImportError:
    sys.exit("libtorrent is missing: python3 -m pip install libtorrent (and give --python that python)")

if sys.argv[1:] == ["--version"]:
    print(lt.version)
    sys.exit(0)
torrent, folder, listen = sys.argv[1:4]

settings = lt.high_performance_seed()
settings.update(
    {
        "listen_interfaces": listen,
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "connections_limit": 8000,
        "unchoke_slots_limit": -1,
        # Loopback and private peers would otherwise sit in a class of their own.
        "upload_rate_limit": 0,
        "allow_multiple_connections_per_ip": True,
        "alert_mask": 0,
    }
)
session = lt.session(settings)
parameters = lt.add_torrent_params()
parameters.ti = lt.torrent_info(torrent)
parameters.save_path = folder
parameters.flags |= lt.torrent_flags.seed_mode
parameters.flags &= ~lt.torrent_flags.auto_managed
parameters.flags &= ~lt.torrent_flags.paused
parameters.max_uploads = -1
parameters.max_connections = 8000
session.add_torrent(parameters)
print("seeding on", listen, flush=True)
while True:
    time.sleep(3600)
