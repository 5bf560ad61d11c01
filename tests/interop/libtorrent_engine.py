#!/usr/bin/env python3
"""libtorrent in the place of a downloading engine: SEEDRING_BIN=tests/interop/libtorrent_engine.py

usage: libtorrent_engine.py run CONFIG | list --json --state-dir DIR | recheck TORRENT ...
       libtorrent_engine.py download FILE --to DIR ...

It reads as much of a configuration as the download tests write, says in state_dir what `list`
would say, and keeps what it has in a table like the engine's, after it was flushed. What fails with
it too is the harness's fault. Not in its power: magnet links, being told to hash again, the state
of a full disk.
"""

import json
import os
import re
import signal
import sqlite3
import sys
import time

if os.environ.get("SEEDRING_PYTHON") not in (None, sys.executable):
    python = os.environ["SEEDRING_PYTHON"]
    os.execv(python, [python, *sys.argv])

import libtorrent as lt  # noqa: E402

SETTINGS = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "peer_fingerprint": "-SR0000-",
    "alert_mask": lt.alert.category_t.all_categories,
}


def option(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


class Torrent:
    def __init__(self, session: lt.session, state: str, path: str, content: str) -> None:
        self.info = lt.torrent_info(path)
        self.state = state
        self.resume = os.path.join(state, f"{self.info.info_hash()}.resume")
        parameters = lt.add_torrent_params()
        if os.path.exists(self.resume):
            with open(self.resume, "rb") as file:
                parameters = lt.read_resume_data(file.read())
        parameters.ti = self.info
        parameters.save_path = content
        parameters.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
        parameters.flags |= lt.torrent_flags.disable_pex
        self.handle = session.add_torrent(parameters)

    def saved(self, parameters: lt.add_torrent_params) -> None:
        with open(self.resume + ".new", "wb") as file:
            file.write(lt.write_resume_data_buf(parameters))
        os.replace(self.resume + ".new", self.resume)
        bits = bytearray((len(parameters.have_pieces) + 7) // 8)
        for piece, had in enumerate(parameters.have_pieces):
            bits[piece // 8] |= (0x80 >> piece % 8) if had else 0
        path = os.path.join(self.state, "state.sqlite")
        with sqlite3.connect(path) as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS torrents (info_hash BLOB PRIMARY KEY, verified BLOB)"
            )
            row = (bytes.fromhex(str(self.info.info_hash())), bytes(bits))
            database.execute("INSERT OR REPLACE INTO torrents VALUES (?, ?)", row)

    def report(self) -> dict:
        status = self.handle.status()
        state = "seeding" if status.is_seeding else "downloading"
        if "checking" in str(status.state):
            state = "verifying"
        if status.errc.value():
            state = "halted"
        return {
            "info_hash": str(self.info.info_hash()),
            "name": self.info.name(),
            "state": state,
            "detail": status.errc.message() if status.errc.value() else None,
            "missing_bytes": status.total_wanted - status.total_wanted_done,
        }


def serve(listen: str, state: str, entries: list, until_complete: bool) -> None:
    os.makedirs(state, exist_ok=True)
    session = lt.session({**SETTINGS, "listen_interfaces": listen})
    torrents = [Torrent(session, state, path, content) for path, content in entries]
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    save_at = 0.0
    while not stopped:
        for alert in session.pop_alerts():
            if isinstance(alert, lt.save_resume_data_alert):
                for torrent in torrents:
                    if torrent.handle == alert.handle:
                        torrent.saved(alert.params)
        if time.monotonic() > save_at:
            save_at = time.monotonic() + 0.5
            for torrent in torrents:
                torrent.handle.save_resume_data(lt.save_resume_flags_t.flush_disk_cache)
        reports = [torrent.report() for torrent in torrents]
        path = os.path.join(state, "list.json")
        with open(path + ".new", "w") as file:
            json.dump({"torrents": reports}, file)
        os.replace(path + ".new", path)
        if until_complete and all(report["state"] == "seeding" for report in reports):
            for torrent in torrents:
                torrent.handle.flush_cache()
            time.sleep(1)
            for torrent in torrents:
                # It may be older than the last piece; without it all is hashed again.
                if os.path.exists(torrent.resume):
                    os.remove(torrent.resume)
            return
        time.sleep(0.05)


def run(path: str) -> None:
    with open(path) as file:
        text = file.read()

    def values(key: str) -> list:
        found = re.findall(rf"^[ -]*{key}: *(.*)$", text, re.MULTILINE)
        return [json.loads(value) if value.startswith(('"', "[")) else value for value in found]

    base = (values("base_dir") or ["."])[0]
    state = os.path.join(base, values("state_dir")[0])
    entries = list(zip(values("- files"), values("content")))
    serve(values("listen")[0][0], state, entries, until_complete=False)


def main() -> int:
    command = sys.argv[1]
    if command == "run":
        run(sys.argv[2])
        return 0
    if command == "download":
        serve(option("--listen"), option("--state-dir"), [(sys.argv[2], option("--to"))], True)
        return 0
    if command == "list":
        with open(os.path.join(option("--state-dir"), "list.json")) as file:
            print(file.read())
        return 0
    print(f"the stand-in has no command {command}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
