//! `scratch [-c name=value]… command [argument…]`: runs a command beside a scratch cluster, which it finds through
//! PGHOST and PGUSER. Its exit status is the command's.

use std::process::{Command, ExitCode};

use pg_zdd_cluster::{Cluster, Result};

fn main() -> Result<ExitCode> {
    let mut conf = Vec::new();
    let mut args = std::env::args().skip(1).peekable();
    while args.next_if_eq("-c").is_some() {
        let setting = args.next().unwrap_or_default();
        let (name, value) = setting.split_once('=').ok_or("-c wants name=value")?;
        conf.push((name.to_owned(), value.to_owned()));
    }
    let program = args.next().ok_or("usage: scratch [-c name=value]… command [argument…]")?;
    let conf: Vec<(&str, &str)> = conf.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let cluster = Cluster::start(&conf)?;
    let status = Command::new(&program)
        .args(args)
        .env("PGHOST", cluster.socket_dir())
        .env("PGUSER", "postgres")
        .status()
        .map_err(|e| format!("{program}: {e}"))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
