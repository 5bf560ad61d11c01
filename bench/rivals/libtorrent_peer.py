#!/usr/bin/env python3
"""Downloads one torrent with libtorrent's own defaults, and seeds on until it is ended.

Usage: libtorrent_peer.py TORRENT SAVE_FOLDER ADDRESS:PORT
Peers come from the torrent's tracker; without discovery and uTP.
"""
import sys
import time

from libtorrent_session import WITHOUT_UTP, session, torrent

path, folder, listen = sys.argv[1:4]
ours = session(listen, WITHOUT_UTP)
ours.add_torrent(torrent(path, folder))
while True:
    time.sleep(3600)
