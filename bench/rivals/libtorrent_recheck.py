#!/usr/bin/env python3
"""Rechecks one torrent with libtorrent (force_recheck), and prints what that took as JSON.

Usage: libtorrent_recheck.py TORRENT SAVE_FOLDER ADDRESS:PORT THREADS
Time and CPU run from force_recheck until the torrent is checked; starting Python is left out.
"""
import json
import resource
import sys
import time

try:
    import libtorrent as lt
except ImportError:
    sys.exit("libtorrent is missing: python3 -m pip install libtorrent (--python that python)")


def spent():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


torrent, folder, listen, threads = sys.argv[1:5]
category = lt.alert.category_t
session = lt.session(
    {
        "listen_interfaces": listen,
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "hashing_threads": int(threads),
        "alert_mask": category.status_notification
        | category.storage_notification
        | category.error_notification,
    }
)
parameters = lt.add_torrent_params()
parameters.ti = lt.torrent_info(torrent)
parameters.save_path = folder
# Taken as complete, unhashed: the only recheck is the one that is measured.
parameters.flags |= lt.torrent_flags.seed_mode
parameters.flags &= ~lt.torrent_flags.auto_managed
parameters.flags &= ~lt.torrent_flags.paused
handle = session.add_torrent(parameters)
# A recheck that is asked for before the torrent was taken is dropped without a word.
added = False
while not added:
    session.wait_for_alert(1000)
    added = any(isinstance(alert, lt.torrent_checked_alert) for alert in session.pop_alerts())
began, before = time.monotonic(), spent()
handle.force_recheck()
# Only what follows the beginning of the check counts: being added ends with the same alert.
is_checking = False
while True:
    session.wait_for_alert(1000)
    for alert in session.pop_alerts():
        if isinstance(alert, lt.state_changed_alert):
            is_checking |= alert.state == lt.torrent_status.states.checking_files
        elif isinstance(alert, lt.torrent_checked_alert) and is_checking:
            seconds, cpu = time.monotonic() - began, spent() - before
            if not handle.status().is_seeding:
                sys.exit("the content does not match the torrent")
            print(json.dumps({"seconds": seconds, "cpu_seconds": cpu}), flush=True)
            sys.exit(0)
        elif isinstance(alert, (lt.torrent_error_alert, lt.file_error_alert)):
            sys.exit(alert.message())
