#!/usr/bin/env python3
"""Downloads one torrent with libtorrent; ends when it is complete, verified and written.

Usage: libtorrent_download.py TORRENT SAVE_FOLDER ADDRESS:PORT
libtorrent's own defaults, without discovery and uTP: peers come from the torrent's tracker.
"""
import sys

from libtorrent_session import ALERTS, WITHOUT_UTP, lt, session, torrent

path, folder, listen = sys.argv[1:4]
ours = session(listen, WITHOUT_UTP, ALERTS)
handle = ours.add_torrent(torrent(path, folder))
while True:
    ours.wait_for_alert(1000)
    for alert in ours.pop_alerts():
        if isinstance(alert, lt.torrent_finished_alert):
            handle.flush_cache()
        elif isinstance(alert, lt.cache_flushed_alert) and handle.status().is_seeding:
            sys.exit(0)
        elif isinstance(alert, (lt.torrent_error_alert, lt.file_error_alert)):
            sys.exit(alert.message())
