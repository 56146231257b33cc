//! The host's audit log: one JSON record per line, hash-chained, and on the disk before the key is used.

use fleetward_api::agent::AuditHead;
use fleetward_durable::{self as durable, Access};
use fleetward_model::audit::{AuditAction, AuditEvent, AuditRecord};
use fleetward_model::{GuardianId, HostName, JobId, VmId};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use time::OffsetDateTime;

/// Longest line read back, in bytes.
const MAX_RECORD: u64 = 64 * 1024;

/// Most records given in one answer.
const MAX_ANSWER: usize = 1000;

/// The log, open for appending. One process at a time may append; others (`export-pfx` beside a running agent) wait.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    host: HostName,
    /// Keeps the records of this process in order.
    turn: Mutex<()>,
}

/// What is recorded; time and host are added.
#[derive(Debug, Clone)]
pub struct Use {
    pub actor: String,
    pub action: AuditAction,
    pub vm: Option<VmId>,
    pub guardian: Option<GuardianId>,
    pub reason: String,
    pub job: Option<JobId>,
}

impl AuditLog {
    pub fn new(path: PathBuf, host: HostName) -> Self {
        Self {
            path,
            host,
            turn: Mutex::new(()),
        }
    }

    /// Moves away a log that a host of another name has begun here: each host's chain is its own.
    pub(crate) fn set_aside_of_another_host(&self) -> io::Result<()> {
        let Some(first) = read_after(&self.path, 0)?.into_iter().next() else {
            return Ok(());
        };
        if first.host == self.host {
            return Ok(());
        }
        let aside = self.path.with_file_name(format!(
            "audit-{}-{}.log",
            first.host,
            first.time.unix_timestamp()
        ));
        durable::rename(&self.path, &aside)
    }

    /// Appends a record; it is on the disk when this returns.
    #[expect(
        clippy::disallowed_methods,
        reason = "a log that grows at its end; each record is synced"
    )]
    pub fn record(&self, used: Use) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)?;
        let mut file = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
            .map_err(|(_, errno)| io::Error::from(errno))?;
        let last = last_record(&mut file)?;
        let event = AuditEvent {
            time: OffsetDateTime::now_utc(),
            host: self.host.clone(),
            actor: used.actor,
            action: used.action,
            vm: used.vm,
            guardian: used.guardian,
            reason: used.reason,
            job: used.job,
        };
        let mut line = serde_json::to_vec(&AuditRecord::chain(last.as_ref(), event))?;
        line.push(b'\n');
        file.write_all(&line)?;
        file.sync_data()
    }

    /// Remembers how far the controller's own chain goes, and gives what was remembered before. A head that is shorter than
    /// the one remembered is not taken: that is what a witness is for.
    pub(crate) fn witness(&self, shown: Option<AuditHead>) -> io::Result<Option<AuditHead>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path.with_file_name("audit-witness.json");
        let known: Option<AuditHead> = durable::read_json(&path)?;
        if let Some(shown) = shown
            && known.as_ref().is_none_or(|known| shown.seq > known.seq)
        {
            durable::replace_json(&path, &shown, Access::PRIVATE)?;
        }
        Ok(known)
    }

    /// Records with a higher number than `after`, oldest first, at most a thousand.
    pub fn after(&self, after: u64) -> io::Result<Vec<AuditRecord>> {
        read_after(&self.path, after)
    }
}

fn read_after(path: &Path, after: u64) -> io::Result<Vec<AuditRecord>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut file = BufReader::new(file);
    let (mut records, mut line) = (Vec::new(), Vec::new());
    let mut unreadable = None;
    for number in 1_u64.. {
        line.clear();
        file.read_until(b'\n', &mut line)?;
        // Half a line at the end is being written, or was cut by a crash before its key was used.
        let Some(whole) = line.strip_suffix(b"\n") else {
            break;
        };
        let record: AuditRecord = match serde_json::from_slice(whole) {
            Ok(record) => record,
            Err(error) => {
                unreadable = Some((number, error));
                continue;
            }
        };
        unreadable = None;
        if record.seq > after {
            records.push(record);
            if records.len() == MAX_ANSWER {
                break;
            }
        }
    }
    match unreadable {
        // An unreadable line with records after it is a gap, which the verification reports; at the end of the file it
        // is an interrupted write.
        Some((number, error)) if records.is_empty() => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("line {number} is no audit record: {error}"),
        )),
        _ => Ok(records),
    }
}

/// The last whole record. A line without its end was cut by a crash before its key was used, and is taken away.
fn last_record(file: &mut File) -> io::Result<Option<AuditRecord>> {
    let length = file.seek(SeekFrom::End(0))?;
    let start = length.saturating_sub(MAX_RECORD);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let whole = tail
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |at| at + 1);
    if whole < tail.len() {
        tracing::warn!("the audit log ended in half a record, which is cut off");
        file.set_len(start + whole as u64)?;
        tail.truncate(whole);
    }
    let Some(line) = tail.split(|b| *b == b'\n').rfind(|line| !line.is_empty()) else {
        return Ok(None);
    };
    serde_json::from_slice(line).map(Some).map_err(|error| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the last audit record cannot be read: {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(dir: &Path) -> AuditLog {
        AuditLog::new(dir.join("audit.log"), "host-a".parse().expect("name"))
    }

    fn opened(reason: &str) -> Use {
        Use {
            actor: "controller".into(),
            action: AuditAction::Open,
            vm: None,
            guardian: None,
            reason: reason.into(),
            job: None,
        }
    }

    #[test]
    fn a_host_that_joins_under_another_name_begins_its_own_chain() {
        let dir = tempfile::tempdir().expect("directory");
        log(dir.path()).record(opened("one")).expect("record");
        let other = AuditLog::new(
            dir.path().join("audit.log"),
            "host-b".parse().expect("name"),
        );
        other.set_aside_of_another_host().expect("set aside");
        other.record(opened("two")).expect("record");
        let records = other.after(0).expect("read");
        assert_eq!(records.len(), 1);
        assert_eq!(fleetward_model::audit::verify(None, &records), Ok(()));
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 2);
    }

    #[test]
    fn a_witness_keeps_the_longest_chain_it_was_shown() {
        let dir = tempfile::tempdir().expect("directory");
        let log = log(dir.path());
        let head = |seq| AuditHead {
            seq,
            hash: format!("{seq}"),
        };
        assert_eq!(log.witness(Some(head(7))).expect("write"), None);
        assert_eq!(log.witness(Some(head(3))).expect("write"), Some(head(7)));
        assert_eq!(log.witness(None).expect("read"), Some(head(7)));
    }

    /// A log of three records, of which a byte of line `line` is no text any more.
    fn spoilt(dir: &Path, line: usize) -> AuditLog {
        let log = log(dir);
        for reason in ["one", "two", "three"] {
            log.record(opened(reason)).expect("record");
        }
        let path = dir.join("audit.log");
        let mut bytes = std::fs::read(&path).expect("read");
        let ends = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n');
        let end = ends.map(|(at, _)| at).nth(line - 1).expect("a line");
        bytes[end - 20] = 0xff;
        std::fs::write(&path, bytes).expect("write");
        log
    }

    #[test]
    fn a_byte_that_is_no_text_leaves_a_gap_and_what_follows_is_still_told() {
        let dir = tempfile::tempdir().expect("directory");
        let log = spoilt(dir.path(), 2);
        let records = log.after(0).expect("read");
        let found = fleetward_model::audit::verify(None, &records).expect_err("a gap");
        assert_eq!(found.seq(), 2, "{found}");
        log.record(opened("four")).expect("keys are still used");
        assert_eq!(log.after(3).expect("read").len(), 1);
    }

    #[test]
    fn a_last_line_that_cannot_be_read_is_told_and_not_passed_over() {
        let dir = tempfile::tempdir().expect("directory");
        let log = spoilt(dir.path(), 3);
        assert_eq!(log.after(0).expect("what can be read").len(), 2);
        let told = log.after(2).expect_err("the rest cannot be read");
        assert!(told.to_string().contains("line 3"), "{told}");
        // and no key is used without a record of it that follows from the last
        log.record(opened("four")).expect_err("no chain to go on");
    }

    #[test]
    fn records_chain_across_restarts_and_half_written_lines() {
        let dir = tempfile::tempdir().expect("directory");
        log(dir.path()).record(opened("one")).expect("record");
        log(dir.path()).record(opened("two")).expect("record");
        let path = dir.path().join("audit.log");
        let mut file = OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(b"{\"seq\":3,\"ti").expect("write");
        log(dir.path()).record(opened("three")).expect("record");

        let records = log(dir.path()).after(0).expect("read");
        assert_eq!(records.len(), 3);
        assert_eq!(fleetward_model::audit::verify(None, &records), Ok(()));
        assert_eq!(log(dir.path()).after(2).expect("read").len(), 1);
    }
}
