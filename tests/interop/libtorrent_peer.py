"""One peer of a swarm, with libtorrent: says whom it is connected to, and who named them.

usage: libtorrent_peer.py TORRENT FOLDER ADDRESS:PORT [--download RATE] [--no-trackers] [--no-pex]
                          [--connect ADDRESS:PORT]...

Seeds what is in FOLDER, or downloads into it at RATE bytes a second. Prints a line
`peers ADDRESS:PORT=SOURCE,SOURCE ...` whenever they change; a source is one of tracker, pex,
incoming, other.
"""

import argparse
import time

import libtorrent as lt

SOURCES = {"tracker": 1, "dht": 2, "pex": 4, "lsd": 8, "resume": 16, "incoming": 32}


def sources(bits: int) -> str:
    names = [name for name, bit in SOURCES.items() if int(bits) & bit]
    return ",".join(names) or "other"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("torrent")
    parser.add_argument("folder")
    parser.add_argument("listen")
    parser.add_argument("--download", type=int, default=0)
    parser.add_argument("--no-trackers", action="store_true")
    parser.add_argument("--no-pex", action="store_true")
    parser.add_argument("--connect", action="append", default=[])
    arguments = parser.parse_args()
    session = lt.session(
        {
            "listen_interfaces": arguments.listen,
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "enable_incoming_utp": False,
            "enable_outgoing_utp": False,
        }
    )
    parameters = lt.add_torrent_params()
    parameters.ti = lt.torrent_info(arguments.torrent)
    parameters.save_path = arguments.folder
    if arguments.no_trackers:
        parameters.trackers = []
        parameters.flags |= lt.torrent_flags.override_trackers
    if arguments.no_pex:
        parameters.flags |= lt.torrent_flags.disable_pex
    handle = session.add_torrent(parameters)
    if arguments.download:
        handle.set_download_limit(arguments.download)
    while "checking" in str(handle.status().state):
        time.sleep(0.05)
    print("ready", flush=True)
    said = None
    while True:
        for address in arguments.connect:
            host, port = address.rsplit(":", 1)
            if not any(peer.ip == (host, int(port)) for peer in handle.get_peer_info()):
                handle.connect_peer((host, int(port)))
        peers = [
            f"{peer.ip[0]}:{peer.ip[1]}={sources(peer.source)}"
            for peer in handle.get_peer_info()
            if not int(peer.flags) & (lt.peer_info.connecting | lt.peer_info.handshake)
        ]
        line = "peers " + " ".join(sorted(peers))
        if line != said:
            said = line
            print(line, flush=True)
        time.sleep(0.5)


if __name__ == "__main__":
    main()
