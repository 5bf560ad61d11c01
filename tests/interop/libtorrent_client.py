"""Fetches a .torrent or a magnet link with libtorrent, prints `complete` once everything is in its
files, and seeds on. What is there already is hashed first.

usage: libtorrent_client.py TORRENT|MAGNET FOLDER ADDRESS:PORT [BYTES_PER_S]

The caller limits the time and ends it with SIGTERM; it then prints what it has uploaded.
BYTES_PER_S limits its upload until SIGUSR1. DHT, LSD, UPnP and PEX are off, so peers come from the
tracker alone.
"""

import signal
import sys
import time

import libtorrent as lt

SETTINGS = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    # Limits are for local addresses, which all are here, too.
    "alert_mask": lt.alert.category_t.error_notification
    | lt.alert.category_t.status_notification
    | lt.alert.category_t.tracker_notification
    | lt.alert.category_t.connect_notification
    | lt.alert.category_t.peer_notification,
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
    if len(sys.argv) > 4:
        handle.set_upload_limit(int(sys.argv[4]))
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    signal.signal(signal.SIGUSR1, lambda *_: handle.set_upload_limit(0))
    flushing = complete = False
    while not stopped:
        for alert in session.pop_alerts():
            print(f"{type(alert).__name__}: {alert.message()}", flush=True)
            if isinstance(alert, (lt.save_resume_data_alert, lt.save_resume_data_failed_alert)):
                complete = True
                print("complete", flush=True)
        status = handle.status()
        if status.errc.value():
            print(f"error: {status.errc.message()}")
            return 1
        if not flushing and status.has_metadata and status.is_seeding:
            # What is in the disk queue must be in the files before they are compared.
            handle.flush_cache()
            handle.save_resume_data()
            flushing = True
        time.sleep(0.2 if complete else 0.05)
    print(f"uploaded {handle.status().total_payload_upload}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
