//! Programs that somebody else wrote: where they are, which version, and how they are called.
//!
//! `scripts/alternatives.sh` installs them, and leaves beside them a file `NAME.version`, or `NAME.missing` with the
//! reason.

use std::path::PathBuf;
use std::process::Command;

use pg_zdd_cluster::Result;

pub struct Tool(pub &'static str);

impl Tool {
    pub fn missing(&self) -> Option<String> {
        match (self.said("version"), self.said("missing")) {
            (Some(_), _) => None,
            (None, Some(reason)) => Some(reason),
            (None, None) => Some("not installed: run it with make bench".into()),
        }
    }

    pub fn version(&self) -> String {
        self.said("version").unwrap_or_else(|| "(not installed)".into())
    }

    /// Runs it to its end. What it says is only of interest when it fails.
    pub fn run(&self, args: &[&str]) -> Result<()> {
        let mut command = Command::new(self.dir().join("bin").join(self.0));
        // It would make the errors of a program in Rust pages long.
        command.env_remove("RUST_BACKTRACE");
        let output = command.args(args).output().map_err(|e| format!("{}: {e}", self.0))?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        Err(last_words(&String::from_utf8_lossy(&said)).into())
    }

    fn said(&self, what: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.dir().join(format!("{}.{what}", self.0))).ok()?;
        Some(text.trim().to_owned())
    }

    fn dir(&self) -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        PathBuf::from(target).join("tools")
    }
}

/// The lines that tell what went wrong, without the colours and spinners of a terminal.
fn last_words(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => while chars.next().is_some_and(|c| !c.is_ascii_alphabetic()) {},
            '\r' => plain.push('\n'),
            c => plain.push(c),
        }
    }
    let lines: Vec<&str> = plain.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let error = lines.iter().rposition(|line| line.starts_with("Error:"));
    lines[error.unwrap_or(lines.len().saturating_sub(3))..].join(" ")
}

#[cfg(test)]
mod tests {
    use super::last_words;

    #[test]
    fn an_error_without_its_spinner() {
        let said = "\u{1b}[96m* 1000 records\u{1b}[0m\r\u{1b}[96m* 2000 records\u{1b}[0m\nERROR gone\nError: gone\n  at last\n";
        assert_eq!(last_words(said), "Error: gone at last");
        assert_eq!(last_words("one\ntwo\n\nthree\nfour\n"), "two three four");
    }
}
