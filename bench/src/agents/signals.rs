//! Owns: being asked to end (SIGINT, SIGTERM). Never: decides what that means.
//! Flow: signal -> its own thread -> what the process has said to do.

use std::thread;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Calls `then` with the signal's name, each time one comes.
pub fn on_end(then: impl Fn(&str) + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("a thread for signals")?;
    let listen = move || {
        runtime.block_on(async {
            let (Ok(mut terminate), Ok(mut interrupt)) =
                (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
            else {
                eprintln!("signals can't be listened for: they end this process at once");
                return;
            };
            loop {
                tokio::select! {
                    _ = terminate.recv() => then("SIGTERM"),
                    _ = interrupt.recv() => then("SIGINT"),
                }
            }
        });
    };
    thread::Builder::new().name("signals".into()).spawn(listen)?;
    Ok(())
}
