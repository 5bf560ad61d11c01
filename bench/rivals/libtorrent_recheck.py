#!/usr/bin/env python3
"""Rechecks one torrent with libtorrent (force_recheck), and prints what that took as JSON.

Usage: libtorrent_recheck.py TORRENT SAVE_FOLDER ADDRESS:PORT THREADS
Time and CPU run from force_recheck until the torrent is checked; starting Python is left out.
"""
import json
import resource
import sys
import time

from libtorrent_session import ALERTS, lt, session, torrent


def spent():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


path, folder, listen, threads = sys.argv[1:5]
ours = session(listen, ALERTS, {"hashing_threads": int(threads)})
# Taken as complete: the only recheck is the one that is measured.
handle = ours.add_torrent(torrent(path, folder, seeds=True))
# A recheck that is asked for before the torrent was taken is dropped without a word.
added = False
while not added:
    ours.wait_for_alert(1000)
    added = any(isinstance(alert, lt.torrent_checked_alert) for alert in ours.pop_alerts())
began, before = time.monotonic(), spent()
handle.force_recheck()
# Only what follows the beginning of the check counts: being added ends with the same alert.
is_checking = False
while True:
    ours.wait_for_alert(1000)
    for alert in ours.pop_alerts():
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
