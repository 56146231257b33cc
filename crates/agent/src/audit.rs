//! The host's audit log: one JSON record per line, hash-chained, and on the disk before the key is used.

use fleetward_api::agent::AuditHead;
use fleetward_durable::{self as durable, Access};
use fleetward_model::audit::{AuditAction, AuditEvent, AuditRecord, GENESIS, verify};
use fleetward_model::{GuardianId, HostName, JobId, VmId};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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
    /// The end that was read last, and of which file.
    end: Mutex<Option<(FileMark, AuditHead)>>,
}

/// A file of which nothing was changed has the same: device, number, length, time of its last change.
type FileMark = (u64, u64, u64, (i64, i64));

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
            end: Mutex::new(None),
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
    pub fn record(&self, used: Use) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = self.locked()?;
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

    /// The log, for this process alone until it is dropped.
    #[expect(
        clippy::disallowed_methods,
        reason = "a log that grows at its end; each record is synced"
    )]
    fn locked(&self) -> io::Result<Flock<File>> {
        loop {
            let file = OpenOptions::new()
                .create(true)
                .read(true)
                .append(true)
                .mode(0o600)
                .open(&self.path)?;
            let file = Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, errno)| io::Error::from(errno))?;
            // A repair may have put another in its place while this one was waited for.
            let (ours, now) = (file.metadata()?, std::fs::metadata(&self.path));
            if now.is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino())) {
                return Ok(file);
            }
        }
    }

    /// Looks at the whole log: what is good from its beginning on, and what follows that is not.
    ///
    /// # Errors
    /// It cannot be read at all.
    pub fn check(&self) -> io::Result<Checked> {
        let content = durable::read(&self.path)?.unwrap_or_default();
        Ok(checked(&content))
    }

    /// Closes a damaged log and begins a new one: the damaged file stays beside it as it is; the new one has what was good,
    /// and a record that says by whom and why it was closed. None where nothing is damaged.
    ///
    /// # Errors
    /// A file cannot be read or written; the log is as it was.
    pub fn repair(&self, actor: &str, reason: &str) -> io::Result<Option<Repaired>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = self.locked()?;
        let mut content = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut content)?;
        let Checked { good, damage, .. } = checked(&content);
        let Some(damage) = damage else {
            return Ok(None);
        };
        let time = OffsetDateTime::now_utc();
        let aside = format!("audit-damaged-{}.log", time.unix_timestamp());
        let aside = self.path.with_file_name(aside);
        let hash = good.last().map_or(GENESIS, |last| last.hash.as_str());
        let event = AuditEvent {
            time,
            host: self.host.clone(),
            actor: actor.to_owned(),
            action: AuditAction::CloseLog,
            vm: None,
            guardian: None,
            reason: format!(
                "{reason} ({}; the last good record is {} with hash {hash}; damaged lines: {}, kept in {})",
                damage.what,
                good.last().map_or(0, |last| last.seq),
                damage.lines,
                aside.display()
            ),
            job: None,
        };
        let mut closing = AuditRecord::chain(good.last(), event);
        // Beyond every number that a damaged line may have had: the controller may have its copy.
        closing.seq += damage.lines;
        closing.hash = closing.expected_hash();
        let mut lines = Vec::new();
        for record in good.iter().chain([&closing]) {
            lines.extend(serde_json::to_vec(record)?);
            lines.push(b'\n');
        }
        // The damaged one has a second name before the first goes to the new one.
        durable::link(&self.path, &aside)?;
        durable::replace(&self.path, &lines, Access::PRIVATE)?;
        Ok(Some(Repaired { aside, closing }))
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

    /// How far the log goes; 0 before its first record. It is asked for all the time, and read only when the file has changed.
    ///
    /// # Errors
    /// The file or its last record cannot be read.
    pub fn head(&self) -> io::Result<AuditHead> {
        let empty = AuditHead {
            seq: 0,
            hash: GENESIS.to_owned(),
        };
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(empty),
            other => other?,
        };
        let found = file.metadata()?;
        let changed = (found.mtime(), found.mtime_nsec());
        let mark = (found.dev(), found.ino(), found.len(), changed);
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, head)) = &*end
            && *known == mark
        {
            return Ok(head.clone());
        }
        let (_, tail) = read_tail(&mut file)?;
        let head = match parse_last(&tail)? {
            Some(AuditRecord { seq, hash, .. }) => AuditHead { seq, hash },
            None => empty,
        };
        *end = Some((mark, head.clone()));
        Ok(head)
    }

    /// Records with a higher number than `after`, oldest first, at most a thousand.
    pub fn after(&self, after: u64) -> io::Result<Vec<AuditRecord>> {
        read_after(&self.path, after)
    }
}

/// A log as it was looked at.
#[derive(Debug)]
pub struct Checked {
    /// From the beginning to the first line that does not fit.
    pub good: Vec<AuditRecord>,
    /// None: the whole log is good.
    pub damage: Option<Damage>,
}

/// What follows the good records.
#[derive(Debug)]
pub struct Damage {
    pub what: String,
    pub lines: u64,
}

/// A log that was closed.
#[derive(Debug)]
pub struct Repaired {
    /// Where the damaged file lies.
    pub aside: PathBuf,
    /// The record that closes it, in the new file.
    pub closing: AuditRecord,
}

/// Half a line at the end is none: it was cut by a crash before its key was used, and the next record takes it away.
fn checked(content: &[u8]) -> Checked {
    let whole = content
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |at| at + 1);
    let lines: Vec<&[u8]> = content[..whole].split_inclusive(|b| *b == b'\n').collect();
    let mut good: Vec<AuditRecord> = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let fits = serde_json::from_slice::<AuditRecord>(line)
            .map_err(|error| format!("line {} is no audit record: {error}", at + 1))
            .and_then(|record| {
                let follows = verify(good.last(), [&record]);
                follows.map(|()| record).map_err(|found| found.to_string())
            });
        match fits {
            Ok(record) => good.push(record),
            Err(what) => {
                let lines = (lines.len() - at) as u64;
                let damage = Some(Damage { what, lines });
                return Checked { good, damage };
            }
        }
    }
    Checked { good, damage: None }
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
    let (start, tail) = read_tail(file)?;
    let whole = whole_lines(&tail);
    if whole < tail.len() {
        tracing::warn!("the audit log ended in half a record, which is cut off");
        file.set_len(start + whole as u64)?;
    }
    parse_last(&tail)
}

/// The end of the file that has its last record, and where that begins.
fn read_tail(file: &mut File) -> io::Result<(u64, Vec<u8>)> {
    let length = file.seek(SeekFrom::End(0))?;
    let start = length.saturating_sub(MAX_RECORD);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok((start, tail))
}

/// Bytes up to the end of the last whole line.
fn whole_lines(tail: &[u8]) -> usize {
    let end = tail.iter().rposition(|b| *b == b'\n');
    end.map_or(0, |at| at + 1)
}

/// The last whole record; half a line behind it is being written.
fn parse_last(tail: &[u8]) -> io::Result<Option<AuditRecord>> {
    let tail = &tail[..whole_lines(tail)];
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
    fn the_end_of_the_log_follows_what_is_recorded() {
        let dir = tempfile::tempdir().expect("directory");
        let (log, other) = (log(dir.path()), log(dir.path()));
        assert_eq!(log.head().expect("no log yet").seq, 0);
        for seq in 1..=3 {
            // Another process may write, too.
            let writer = if seq == 2 { &other } else { &log };
            writer.record(opened("again")).expect("recorded");
            let head = log.head().expect("readable");
            let last = log.after(seq - 1).expect("readable").remove(0);
            assert_eq!((head.seq, &head.hash), (seq, &last.hash));
            assert_eq!(log.head().expect("readable"), head, "from memory");
        }
        let half = OpenOptions::new().append(true).open(&log.path);
        half.and_then(|mut file| file.write_all(b"{\"seq\":4"))
            .expect("written");
        assert_eq!(log.head().expect("half a record is none").seq, 3);
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
    fn a_damaged_log_is_closed_with_a_note_and_keys_are_used_again() {
        for line in [1, 2, 3] {
            let dir = tempfile::tempdir().expect("directory");
            let log = spoilt(dir.path(), line);
            let damaged = std::fs::read(dir.path().join("audit.log")).expect("read");
            assert!(log.check().expect("read").damage.is_some());
            let repaired = log.repair("local:0", "a disk failed").expect("repaired");
            let repaired = repaired.expect("it was damaged");
            assert_eq!(std::fs::read(&repaired.aside).expect("kept"), damaged);
            log.record(opened("four")).expect("keys are used again");
            let records = log.after(0).expect("read");
            assert_eq!(fleetward_model::audit::verify(None, &records), Ok(()));
            assert_eq!(records.len(), line - 1 + 2);
            assert_eq!(
                records[line - 1].seq,
                4,
                "beyond the numbers of damaged lines"
            );
            let told = fleetward_model::audit::closings(&records);
            assert!(told[0].contains("local:0") && told[0].contains("a disk failed"));
            let again = log.repair("local:0", "once more").expect("looked");
            assert!(again.is_none(), "nothing is damaged");
        }
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
