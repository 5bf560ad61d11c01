#!/usr/bin/env python3
"""Downloads one torrent with libtorrent; ends when it is complete, verified and written.

Usage: libtorrent_download.py TORRENT SAVE_FOLDER ADDRESS:PORT
libtorrent's own defaults, without discovery and uTP: peers come from the torrent's tracker.
"""
import sys

try:
    import libtorrent as lt
except ImportError:
    sys.exit("libtorrent is missing: python3 -m pip install libtorrent (--python that python)")

torrent, folder, listen = sys.argv[1:4]
category = lt.alert.category_t
session = lt.session(
    {
        "listen_interfaces": listen,
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        "alert_mask": category.status_notification
        | category.storage_notification
        | category.error_notification,
    }
)
parameters = lt.add_torrent_params()
parameters.ti = lt.torrent_info(torrent)
parameters.save_path = folder
parameters.flags &= ~lt.torrent_flags.auto_managed
parameters.flags &= ~lt.torrent_flags.paused
handle = session.add_torrent(parameters)
while True:
    session.wait_for_alert(1000)
    for alert in session.pop_alerts():
        if isinstance(alert, lt.torrent_finished_alert):
            handle.flush_cache()
        elif isinstance(alert, lt.cache_flushed_alert) and handle.status().is_seeding:
            sys.exit(0)
        elif isinstance(alert, (lt.torrent_error_alert, lt.file_error_alert)):
            sys.exit(alert.message())
