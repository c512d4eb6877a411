//! One scratch cluster: initdb, start, connect, stop, crash.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use postgres::{Client, Config, NoTls};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::{Error, Result};

/// Settings of every scratch cluster. What the caller passes comes after them and wins.
/// fsync is off: a killed server loses nothing by it, only a killed machine would.
const DEFAULTS: &[(&str, &str)] = &[
    ("listen_addresses", ""),
    ("fsync", "off"),
    ("max_connections", "100"),
    ("max_wal_size", "2GB"),
    ("log_min_messages", "warning"),
    ("log_line_prefix", "%m [%p] %q%a "),
];

/// Which of these is the default depends on the version, and pg_upgrade wants the same on both sides.
const UPGRADABLE: &[&str] = &["--data-checksums"];

/// A path longer than this makes no unix socket (sun_path has 108 bytes, the socket's own name takes 16).
const MAX_SOCKET_DIR: usize = 80;

/// Stays behind this process by holding the other end of a pipe: whichever way the process ends, the pipe closes
/// and the server and its folder go.
const JANITOR: &str = r#"
    trap '' INT TERM HUP
    cat
    "$1/pg_ctl" stop -D "$2/data" -m immediate -w
    [ -n "$3" ] || rm -rf "$2"
"#;

/// How to stop a server, as in `pg_ctl stop -m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Smart,
    Fast,
    /// Without a shutdown checkpoint: the next start is a crash recovery.
    Immediate,
}

impl Stop {
    fn mode(self) -> &'static str {
        match self {
            Stop::Smart => "smart",
            Stop::Fast => "fast",
            Stop::Immediate => "immediate",
        }
    }
}

/// A server of its own. Dropping it stops it and removes its folder; with `PG_ZDD_KEEP` set, the folder stays.
pub struct Cluster {
    dir: PathBuf,
    bin: PathBuf,
    owner: Option<Owner>,
    /// The address space of each process of the server, in bytes.
    memory: Option<u64>,
    template: Mutex<Template>,
    janitor: Child,
}

/// The database that others are copies of: CREATE EXTENSION takes as long as CREATE DATABASE.
#[derive(Clone, Copy)]
enum Template {
    None,
    /// There is one database already, so there will be more.
    Wanted,
    Made,
}

/// Who runs the server when we are root, which the server refuses to run as.
#[derive(Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Cluster {
    /// Makes a cluster and starts it. `conf` are lines of postgresql.conf.
    pub fn start(conf: &[(&str, &str)]) -> Result<Cluster> {
        let cluster = Cluster::empty(bin_dir()?)?;
        cluster.init(&[])?;
        cluster.start_at_own_socket(conf)
    }

    fn init(&self, more: &[&str]) -> Result<()> {
        let mut init = self.server_tool("initdb");
        init.arg("-D").arg(self.pgdata()).args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "--no-instructions",
        ]);
        self.run(init.args(more))?;
        self.configure(DEFAULTS)
    }

    /// A server that `upgraded` can make a new one of: of the version of `PG_ZDD_UPGRADE_FROM`, a pg_config, if that is set.
    pub fn start_old(conf: &[(&str, &str)]) -> Result<Cluster> {
        let from = std::env::var_os("PG_ZDD_UPGRADE_FROM").filter(|given| !given.is_empty());
        let cluster = Cluster::empty(from.map_or_else(bin_dir, |pg_config| bin_dir_of(&pg_config))?)?;
        cluster.init(UPGRADABLE)?;
        cluster.start_at_own_socket(conf)
    }

    /// What pg_upgrade makes of this server, which must be stopped, and stays as it is; started with `conf`.
    pub fn upgraded(&self, conf: &[(&str, &str)]) -> Result<Cluster> {
        let new = Cluster::empty(bin_dir()?)?;
        new.init(UPGRADABLE)?;
        new.configure(conf)?;
        let mut upgrade = new.server_tool("pg_upgrade");
        upgrade.arg("-d").arg(self.pgdata()).arg("-D").arg(new.pgdata());
        upgrade.arg("-b").arg(&self.bin).arg("-B").arg(&new.bin);
        new.run(upgrade.arg("-s").arg(new.socket_dir()).args(["-U", "postgres", "--no-sync"]))?;
        new.start_at_own_socket(&[])
    }

    /// Makes a streaming standby of this server and starts it. It has this server's settings, but for `conf`. This server
    /// knows it by its `cluster_name`.
    pub fn standby(&self, conf: &[(&str, &str)]) -> Result<Cluster> {
        let standby = Cluster::empty(self.bin.clone())?;
        let mut copy = standby.server_tool("pg_basebackup");
        copy.arg("-D").arg(standby.pgdata()).arg("-h").arg(self.socket_dir());
        standby.run(copy.args(["-U", "postgres", "-R", "-X", "stream", "-c", "fast", "--no-sync"]))?;
        standby.start_at_own_socket(conf)
    }

    /// A folder, and who cleans it up.
    fn empty(bin: PathBuf) -> Result<Cluster> {
        let owner = if geteuid().is_root() { Some(Owner::of("postgres")?) } else { None };
        let dir = make_dir(owner)?;
        // The janitor comes first, so that a failure later leaves nothing behind either.
        let janitor = command("sh", owner, &dir)
            .args(["-c", JANITOR, "janitor"])
            .args([&bin, &dir])
            .arg(std::env::var_os("PG_ZDD_KEEP").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of the terminal's process group: Ctrl-C must not reach it.
            .process_group(0)
            .spawn()?;
        Ok(Cluster { dir, bin, owner, memory: None, template: Mutex::new(Template::None), janitor })
    }

    fn start_at_own_socket(self, conf: &[(&str, &str)]) -> Result<Cluster> {
        let socket_dir = self.socket_dir().to_string_lossy().into_owned();
        self.configure(&[("unix_socket_directories", &*socket_dir)])?;
        self.configure(conf)?;
        self.start_again()?;
        Ok(self)
    }

    /// Adds lines to postgresql.conf, which the next start reads. The last line for a setting wins.
    pub fn configure(&self, conf: &[(&str, &str)]) -> Result<()> {
        let lines: String =
            conf.iter().map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''"))).collect();
        let mut file = std::fs::OpenOptions::new().append(true).open(self.pgdata().join("postgresql.conf"))?;
        Ok(file.write_all(lines.as_bytes())?)
    }

    /// Makes the running server read its configuration anew.
    pub fn reload(&self) -> Result<()> {
        self.run(self.server_tool("pg_ctl").args(["reload", "-s", "-D"]).arg(self.pgdata()))
    }

    /// Makes a standby a server of its own, and waits until it takes writes.
    pub fn promote(&self) -> Result<()> {
        self.run(self.server_tool("pg_ctl").args(["promote", "-w", "-s", "-D"]).arg(self.pgdata()))
    }

    /// Starts the stopped server (and waits for the end of a recovery).
    pub fn start_again(&self) -> Result<()> {
        let mut start = match self.memory {
            None => self.server_tool("pg_ctl"),
            Some(bytes) => {
                let mut limited = command("sh", self.owner, &self.dir);
                limited.args(["-c", r#"ulimit -v "$0"; exec "$@""#, &(bytes / 1024).to_string()]);
                limited.arg(self.bin.join("pg_ctl"));
                limited
            }
        };
        start.args(["start", "-w", "-s", "-t", "120", "-D"]).arg(self.pgdata());
        start.arg("-l").arg(self.log());
        self.run(&mut start).map_err(|e| format!("{e}\n{}", self.log_tail(20)).into())
    }

    /// Limits the address space of each process of the server, in bytes, from the next start on.
    pub fn limit_memory(&mut self, bytes: u64) {
        self.memory = Some(bytes);
    }

    pub fn stop(&self, how: Stop) -> Result<()> {
        let mut stop = self.server_tool("pg_ctl");
        self.run(stop.args(["stop", "-w", "-s", "-m", how.mode(), "-D"]).arg(self.pgdata()))
    }

    pub fn restart(&self, how: Stop) -> Result<()> {
        self.stop(how)?;
        self.start_again()
    }

    /// SIGKILL to one backend: the postmaster ends all others and recovers from the WAL.
    pub fn kill9_backend(&self, pid: i32) -> Result<()> {
        kill(pid, Signal::KILL)
    }

    /// SIGTERM to one backend, as an administrator sends it.
    pub fn kill_backend(&self, pid: i32) -> Result<()> {
        kill(pid, Signal::TERM)
    }

    /// Stops one backend where it is, until it is thawed. None but this cluster's tests should wait for it.
    pub fn freeze_backend(&self, pid: i32) -> Result<()> {
        kill(pid, Signal::STOP)
    }

    pub fn thaw_backend(&self, pid: i32) -> Result<()> {
        kill(pid, Signal::CONT)
    }

    /// How to connect, for callers that want more than `connect`.
    pub fn config(&self, dbname: &str, user: &str, application_name: &str) -> Config {
        let mut config = Config::new();
        config.host_path(self.socket_dir()).dbname(dbname).user(user);
        config.application_name(application_name);
        config
    }

    pub fn connect(&self, dbname: &str, user: &str, application_name: &str) -> Result<Client> {
        let connected = self.config(dbname, user, application_name).connect(NoTls);
        connected.map_err(|e| crate::describe(&e).into())
    }

    /// A new database with pg_zdd in it, and a superuser's connection to it.
    pub fn create_database(&self, dbname: &str) -> Result<Client> {
        let mut setup = self.connect("postgres", "postgres", "setup")?;
        let mut template = self.template.lock().unwrap_or_else(PoisonError::into_inner);
        match *template {
            // Most clusters have only one.
            Template::None => {
                *template = Template::Wanted;
                drop(template);
                setup.batch_execute(&format!(r#"CREATE DATABASE "{dbname}""#))?;
                let mut client = self.connect(dbname, "postgres", "setup")?;
                client.batch_execute("CREATE EXTENSION pg_zdd").map_err(|e| -> Error { crate::describe(&e).into() })?;
                return Ok(client);
            }
            Template::Wanted => {
                setup.batch_execute("CREATE DATABASE with_zdd IS_TEMPLATE true")?;
                let made = self.connect("with_zdd", "postgres", "setup")?.batch_execute("CREATE EXTENSION pg_zdd");
                made.map_err(|e| -> Error { crate::describe(&e).into() })?;
                setup.batch_execute("ALTER DATABASE with_zdd ALLOW_CONNECTIONS false")?;
                *template = Template::Made;
            }
            Template::Made => {}
        }
        drop(template);
        setup.batch_execute(&format!(r#"CREATE DATABASE "{dbname}" TEMPLATE with_zdd"#))?;
        self.connect(dbname, "postgres", "setup")
    }

    /// One of PostgreSQL's client programs (psql, pgbench, pg_dump, …) with the connection in its environment.
    pub fn client_tool(&self, name: &str, dbname: &str) -> Command {
        let mut tool = command(self.bin.join(name), None, Path::new("."));
        tool.envs([("PGUSER", "postgres"), ("PGDATABASE", dbname)]);
        tool.env("PGHOST", self.socket_dir());
        tool
    }

    /// Runs SQL or backslash commands in psql as the superuser; it stops at the first error.
    pub fn psql(&self, dbname: &str, sql: &str) -> Result<Output> {
        let mut psql = self.client_tool("psql", dbname);
        psql.args(["-X", "-v", "ON_ERROR_STOP=1", "-f", "-"]);
        let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().ok_or("psql without stdin")?;
        let sql = sql.to_owned();
        // From a thread of its own: psql may fill its output before it has read all of its input.
        let writer = std::thread::spawn(move || stdin.write_all(sql.as_bytes()));
        let output = child.wait_with_output()?;
        let written = writer.join().map_err(|_| "the writer to psql panicked")?;
        match written {
            // psql ended at an error before it had read everything.
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
            _ => Ok(output),
        }
    }

    pub fn pgdata(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub fn socket_dir(&self) -> &Path {
        &self.dir
    }

    pub fn bin_dir(&self) -> &Path {
        &self.bin
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let bytes = std::fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// A program that has to run as the server's owner (initdb, pg_ctl, pg_basebackup, …).
    pub fn server_tool(&self, name: &str) -> Command {
        command(self.bin.join(name), self.owner, &self.dir)
    }

    fn run(&self, command: &mut Command) -> Result<()> {
        // Not through pipes: the postmaster would inherit them, and reading them to their end would never end.
        let name = command.get_program().to_string_lossy().into_owned();
        let out_path = self.dir.join("tool.out");
        let out = std::fs::File::create(&out_path)?;
        let status = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).status()?;
        if status.success() {
            return Ok(());
        }
        let mut text = String::new();
        std::fs::File::open(&out_path)?.read_to_string(&mut text)?;
        Err(format!("{name}: {status}\n{text}").into())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}, last lines:\n{}", self.log().display(), self.log_tail(40));
        }
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

fn kill(pid: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).ok_or("no process has that id")?;
    Ok(kill_process(pid, signal)?)
}

impl Owner {
    fn of(name: &str) -> Result<Owner> {
        let passwd = std::fs::read_to_string("/etc/passwd")?;
        let entry = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            Some(Owner { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
        });
        entry.ok_or_else(|| format!("root cannot run a server, and there is no user {name}").into())
    }
}

/// A command that knows nothing of the caller's PGHOST, PGDATABASE, PGOPTIONS and the like, nor of RUST_BACKTRACE,
/// which makes a server with pgrx in it write backtraces into its errors.
fn command(program: impl AsRef<std::ffi::OsStr>, owner: Option<Owner>, dir: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if (text.starts_with("PG") && text != "PG_CONFIG") || text == "RUST_BACKTRACE" {
            command.env_remove(&name);
        }
    }
    if let Some(Owner { uid, gid }) = owner {
        command.uid(uid).gid(gid);
    }
    command.current_dir(dir);
    command
}

/// Where this server's programs are: `PG_CONFIG`, else Debian's PostgreSQL 15, else the first pg_config on the path.
fn bin_dir() -> Result<PathBuf> {
    let debian = "/usr/lib/postgresql/15/bin/pg_config";
    let default = if Path::new(debian).exists() { debian } else { "pg_config" };
    let pg_config = std::env::var_os("PG_CONFIG").filter(|given| !given.is_empty()).unwrap_or_else(|| default.into());
    bin_dir_of(&pg_config)
}

fn bin_dir_of(pg_config: &std::ffi::OsStr) -> Result<PathBuf> {
    let output = Command::new(pg_config)
        .arg("--bindir")
        .output()
        .map_err(|e| format!("{}: {e}", pg_config.to_string_lossy()))?;
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// A new folder that the server's owner can reach, with a path short enough for a socket.
fn make_dir(owner: Option<Owner>) -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("pg_zdd.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mut dir = std::env::temp_dir().join(&name);
    let reachable = |dir: &Path| {
        let open = |d: &Path| d.metadata().is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
        owner.is_none() || dir.ancestors().skip(1).all(open)
    };
    if dir.as_os_str().len() > MAX_SOCKET_DIR || !reachable(&dir) {
        dir = Path::new("/tmp").join(&name);
    }
    std::fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700))?;
    if let Some(Owner { uid, gid }) = owner {
        std::os::unix::fs::chown(&dir, Some(uid), Some(gid))?;
    }
    Ok(dir)
}
