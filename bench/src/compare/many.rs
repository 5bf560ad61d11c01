use super::{Options, summary::Report};
pub fn run(_: &Options) -> anyhow::Result<Report> { anyhow::bail!("later") }
