"""Seeds one torrent with libtorrent, in the engine's place (SEEDRING_SEEDER=libtorrent).

usage: libtorrent_seed.py TORRENT CONTENT_PARENT ADDRESS:PORT
"""

import sys
import time

import libtorrent as lt


def main() -> None:
    torrent, parent, listen = sys.argv[1:4]
    session = lt.session(
        {
            "listen_interfaces": listen,
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            # Like the engine, TCP only.
            "enable_incoming_utp": False,
            "enable_outgoing_utp": False,
        }
    )
    parameters = lt.add_torrent_params()
    parameters.ti = lt.torrent_info(torrent)
    parameters.save_path = parent
    handle = session.add_torrent(parameters)
    while not handle.status().is_seeding:
        time.sleep(0.05)
    print(lt.make_magnet_uri(handle))
    print(torrent, flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
