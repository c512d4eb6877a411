//! What is recorded, in a file: a restart does not forget it, and a crash no more than came after the last time it was
//! saved.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::now;
use super::store::{self, Entry, Fenced, Header, Slot, Subject};
use crate::pg::shmem;

/// In the server's data directory, where its processes are, and where PostgreSQL keeps its own statistics.
const DIRECTORY: &str = "pg_stat";
const FILE: &str = "pg_stat/pg_zdd_usage.json";
const NEW_FILE: &str = "pg_stat/pg_zdd_usage.json.tmp";

#[derive(Serialize, Deserialize)]
struct Saved {
    /// The version of this format.
    version: u32,
    entries: Vec<Entry>,
    fenced: Vec<SavedFenced>,
}

const VERSION: u32 = 2;

#[derive(Serialize, Deserialize)]
struct SavedFenced {
    subject: Subject,
    relation: u32,
    owner: u32,
    source: String,
    table: String,
}

impl Saved {
    fn new(header: &Header, slots: &[Slot]) -> Saved {
        let fenced = header.fenced().map(|fenced| SavedFenced {
            subject: fenced.subject,
            relation: fenced.relation,
            owner: fenced.owner,
            source: store::text(&fenced.source),
            table: store::text(&fenced.table),
        });
        Saved { version: VERSION, entries: slots.iter().filter_map(Slot::entry).collect(), fenced: fenced.collect() }
    }

    fn write(&self) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(NEW_FILE)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(NEW_FILE, FILE)?;
        File::open(DIRECTORY)?.sync_all()
    }

    fn read() -> io::Result<Saved> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let bytes = std::fs::read(FILE)?;
        // The version comes first: another may have other fields.
        match serde_json::from_slice(&bytes)? {
            Version { version: VERSION } => Ok(serde_json::from_slice(&bytes)?),
            Version { version } => Err(io::Error::other(format!("its version is {version}, not {VERSION}"))),
        }
    }
}

/// Saves what is recorded. A failure is logged, and nothing else: the next time may go better.
pub fn save() {
    let Some(saved) = shmem::read(Saved::new) else { return };
    if written(&saved) {
        shmem::write(|header, _| header.saved_at = now());
    }
}

/// The same when the server has ended and this is its last process.
pub fn save_at_exit(header: &Header, slots: &[Slot]) {
    written(&Saved::new(header, slots));
}

fn written(saved: &Saved) -> bool {
    let result = saved.write();
    if let Err(error) = &result {
        pgrx::log!("pg_zdd: could not write \"{FILE}\": {error}");
    }
    result.is_ok()
}

/// Begins with what was saved. A file that cannot be read is passed over.
pub fn load(header: &mut Header, slots: &mut [Slot]) {
    header.recorded_since = now();
    if !Path::new(FILE).exists() {
        return;
    }
    match Saved::read() {
        Ok(mut saved) => {
            // If there are more than have room now, the last ones stay.
            saved.entries.sort_by_key(|entry| entry.last_seen);
            for entry in &saved.entries {
                store::restore(header, slots, entry);
            }
            for fenced in saved.fenced {
                header.add_fenced(&Fenced {
                    subject: fenced.subject,
                    relation: fenced.relation,
                    owner: fenced.owner,
                    source: store::name(fenced.source.as_bytes()),
                    table: store::name(fenced.table.as_bytes()),
                });
            }
            header.forget_evictions();
        }
        Err(error) => pgrx::log!("pg_zdd: ignoring \"{FILE}\": {error}"),
    }
}
