"""Fetches a .torrent or a magnet link with libtorrent and ends with 0 once it has everything.

usage: libtorrent_leech.py TORRENT|MAGNET FOLDER ADDRESS:PORT

The caller limits the time. DHT, LSD, UPnP and PEX are off, so peers come from the tracker alone.
"""

import sys
import time

import libtorrent as lt

SETTINGS = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "alert_mask": lt.alert.category_t.error_notification
    | lt.alert.category_t.status_notification
    | lt.alert.category_t.tracker_notification
    | lt.alert.category_t.connect_notification,
}


def main() -> int:
    source, folder, listen = sys.argv[1:4]
    session = lt.session({**SETTINGS, "listen_interfaces": listen})
    if source.startswith("magnet:"):
        parameters = lt.parse_magnet_uri(source)
    else:
        parameters = lt.add_torrent_params()
        parameters.ti = lt.torrent_info(source)
    parameters.save_path = folder
    parameters.flags |= lt.torrent_flags.disable_pex
    handle = session.add_torrent(parameters)
    while True:
        for alert in session.pop_alerts():
            print(f"{type(alert).__name__}: {alert.message()}", flush=True)
        status = handle.status()
        if status.errc.value():
            print(f"error: {status.errc.message()}")
            return 1
        if status.has_metadata and status.is_seeding:
            break
        time.sleep(0.05)
    # What is in the disk queue must be in the files before they are compared.
    handle.flush_cache()
    handle.save_resume_data()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for alert in session.pop_alerts():
            print(f"{type(alert).__name__}: {alert.message()}", flush=True)
            if isinstance(alert, (lt.save_resume_data_alert, lt.save_resume_data_failed_alert)):
                return 0
        time.sleep(0.02)
    print("error: the cache was not flushed")
    return 1


if __name__ == "__main__":
    sys.exit(main())
