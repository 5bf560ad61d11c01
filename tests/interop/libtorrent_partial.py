"""Seeds some pieces of a torrent with libtorrent and never fetches the others.

usage: libtorrent_partial.py TORRENT CONTENT_PARENT FOLDER ADDRESS:PORT PART PARTS

Of the content under CONTENT_PARENT it takes piece PART and every PARTS-th after it; the files in
FOLDER hold zeros for all others. It prints `ready` once its own check has found just these.
"""

import sys
import time

import libtorrent as lt

from copy_pieces import copy_pieces


def main() -> None:
    torrent, source, target, listen = sys.argv[1:5]
    part, parts = map(int, sys.argv[5:7])
    session = lt.session(
        {
            "listen_interfaces": listen,
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "enable_incoming_utp": False,
            "enable_outgoing_utp": False,
        }
    )
    parameters = lt.add_torrent_params()
    parameters.ti = lt.torrent_info(torrent)
    pieces = parameters.ti.num_pieces()
    wanted = set(range(part, pieces, parts))
    copy_pieces(parameters.ti, source, target, wanted)
    parameters.save_path = target
    parameters.piece_priorities = [4 if piece in wanted else 0 for piece in range(pieces)]
    parameters.flags |= lt.torrent_flags.disable_pex
    handle = session.add_torrent(parameters)
    while not handle.status().is_finished:
        time.sleep(0.05)
    had = {piece for piece, has in enumerate(handle.status().pieces) if has}
    assert had == wanted, f"has {len(had)} pieces instead of {len(wanted)}"
    print("ready", flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
