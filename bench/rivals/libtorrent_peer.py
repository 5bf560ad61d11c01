#!/usr/bin/env python3
"""Downloads one torrent with libtorrent's own defaults, and seeds on until it is ended.

Usage: libtorrent_peer.py TORRENT SAVE_FOLDER ADDRESS:PORT
Peers come from the torrent's tracker; without discovery and uTP.
"""
import sys
import time

try:
    import libtorrent as lt
except ImportError:
    sys.exit("libtorrent is missing: python3 -m pip install libtorrent (--python that python)")

torrent, folder, listen = sys.argv[1:4]
session = lt.session(
    {
        "listen_interfaces": listen,
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        "alert_mask": 0,
    }
)
parameters = lt.add_torrent_params()
parameters.ti = lt.torrent_info(torrent)
parameters.save_path = folder
parameters.flags &= ~lt.torrent_flags.auto_managed
parameters.flags &= ~lt.torrent_flags.paused
session.add_torrent(parameters)
while True:
    time.sleep(3600)
