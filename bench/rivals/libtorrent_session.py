"""What the scripts for libtorrent share: the package, a session without discovery, a torrent in it.

It lies beside each script that imports it; scripts say what is otherwise.
"""
import sys

try:
    import libtorrent as lt
except ImportError:
    sys.exit("libtorrent is missing: python3 -m pip install libtorrent (--python that python)")

# Peers come from the torrent's tracker, or connect.
WITHOUT_DISCOVERY = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "alert_mask": 0,
}
WITHOUT_UTP = {"enable_incoming_utp": False, "enable_outgoing_utp": False}
# What tells that work is done, or cannot be.
ALERTS = {
    "alert_mask": lt.alert.category_t.status_notification
    | lt.alert.category_t.storage_notification
    | lt.alert.category_t.error_notification
}


def session(listen, *more, settings=None):
    """A session that listens at ADDRESS:PORT; `more`: settings, the last one counts."""
    settings = {} if settings is None else settings
    settings.update({"listen_interfaces": listen, **WITHOUT_DISCOVERY})
    for each in more:
        settings.update(each)
    return lt.session(settings)


def torrent(path, folder, seeds=False):
    """Parameters of a torrent that begins at once; `seeds`: taken as complete, unhashed."""
    parameters = lt.add_torrent_params()
    parameters.ti = lt.torrent_info(path)
    parameters.save_path = folder
    if seeds:
        parameters.flags |= lt.torrent_flags.seed_mode
    parameters.flags &= ~lt.torrent_flags.auto_managed
    parameters.flags &= ~lt.torrent_flags.paused
    return parameters
