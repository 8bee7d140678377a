//! The folder of a log: who has it open, what made it, and its segment files.
//!
//! ```text
//! LOCK                      locked while a process has the log open; holds its process id
//! FORMAT                    the format's version and the log's salt
//! 00000000000000000001.seg  segments, numbered without gaps; only the oldest is ever removed
//! spare                     the next segment, being filled with zeros; never read
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::LogError;
use crate::batch::{self, ALIGNMENT};

/// The newest format this version writes and the newest it can read.
const FORMAT_VERSION: u32 = 1;
const FORMAT_TITLE: &str = "tidings-broker-log format";

pub(crate) const SEGMENT_HEADER_BYTES: usize = 32;
const _: () = assert!(SEGMENT_HEADER_BYTES.is_multiple_of(ALIGNMENT));
const SEGMENT_MAGIC: &[u8; 8] = b"TIDINGS\n";

/// A folder that this process has locked.
#[derive(Debug)]
pub(crate) struct Dir {
    path: PathBuf,
    /// None in a folder that is only looked at and has no lock file: a copy.
    _lock: Option<Lock>,
    pub(crate) version: u32,
    pub(crate) salt: u64,
}

/// What the format file says.
struct Format {
    version: u32,
    salt: u64,
}

/// A lock file, locked until this is dropped.
///
/// Dropping unlocks the file. Closing it would not be enough: while another thread starts a program,
/// the new process holds a copy of every open file for a moment, and with it the lock.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // If it fails, closing the file unlocks it, unless there is such a copy.
        let _ = self.0.unlock();
    }
}

impl Dir {
    /// Opens or creates the folder and takes the lock.
    pub(crate) fn open(path: &Path) -> Result<Self, LogError> {
        fs::create_dir_all(path).map_err(|e| LogError::io("create the folder", path, e))?;
        let lock = lock(path)?;
        let format = match read_format(path)? {
            Some(format) => format,
            None => create_format(path)?,
        };
        Ok(Self::new(path, Some(lock), format))
    }

    /// Opens a folder to look at it: writes nothing, and no broker can have it open meanwhile.
    pub(crate) fn look(path: &Path) -> Result<Self, LogError> {
        let failed = |e| LogError::io("read the folder", path, e);
        let mut others = 0;
        for entry in fs::read_dir(path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            // What a start leaves that was killed at once.
            let is_ours = ["LOCK", DRAFT, "spare"].iter().any(|ours| name == *ours);
            others += usize::from(!is_ours);
        }
        let lock = lock_to_read(path)?;
        match read_format(path)? {
            Some(format) => Ok(Self::new(path, lock, format)),
            None => Err(LogError::no_log(path, others)),
        }
    }

    /// Makes a log in a folder that is empty, or not there yet. Until [`finish`] no broker takes it.
    pub(crate) fn create(path: &Path) -> Result<Self, LogError> {
        fs::create_dir_all(path).map_err(|e| LogError::io("create the folder", path, e))?;
        let mut entries =
            fs::read_dir(path).map_err(|e| LogError::io("read the folder", path, e))?;
        if entries.next().is_some() {
            let why = "the folder is not empty; name one that is, or that is not there yet";
            return Err(LogError::destination(path, why));
        }
        let lock = lock(path)?;
        let format = draft_format(path).inspect_err(|_| {
            // So that the folder is empty again for the next attempt.
            let _ = discard(path);
        })?;
        Ok(Self::new(path, Some(lock), format))
    }

    fn new(path: &Path, lock: Option<Lock>, format: Format) -> Self {
        Self {
            path: path.to_owned(),
            _lock: lock,
            version: format.version,
            salt: format.salt,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The segments, oldest first.
    pub(crate) fn segments(&self) -> Result<Vec<(u64, PathBuf)>, LogError> {
        segments(&self.path)
    }

    pub(crate) fn segment_path(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:020}.seg"))
    }

    pub(crate) fn spare_path(&self) -> PathBuf {
        self.path.join("spare")
    }

    /// Makes renames and removals durable.
    pub(crate) fn sync(&self) -> Result<(), LogError> {
        sync_dir(&self.path)
    }
}

fn lock(path: &Path) -> Result<Lock, LogError> {
    let lock_path = path.join("LOCK");
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path);
    let mut file = open.map_err(|e| LogError::io("write to", &lock_path, e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            // Those who look share it, and do not say who they are.
            let is_shared = file.try_lock_shared().is_ok();
            return Err(match is_shared {
                true => LogError::being_read(path),
                false => LogError::in_use(path, &holder(&mut file)),
            });
        }
        Err(TryLockError::Error(e)) => return Err(LogError::io("lock", &lock_path, e)),
    }
    let lock = Lock(file);
    let holder = format!("process {}\n", std::process::id());
    lock.0
        .set_len(0)
        .and_then(|()| lock.0.write_all_at(holder.as_bytes(), 0))
        .map_err(|e| LogError::io("write to", &lock_path, e))?;
    Ok(lock)
}

/// Takes the lock that a broker would have, together with others who look. A copy has no lock file,
/// and needs none.
fn lock_to_read(path: &Path) -> Result<Option<Lock>, LogError> {
    let lock_path = path.join("LOCK");
    let mut file = match File::open(&lock_path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(LogError::io("read", &lock_path, e)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(Lock(file))),
        Err(TryLockError::WouldBlock) => Err(LogError::in_use(path, &holder(&mut file))),
        Err(TryLockError::Error(e)) => Err(LogError::io("lock", &lock_path, e)),
    }
}

/// Who holds the lock, in parentheses. It is a courtesy: the refusal stands without it.
fn holder(file: &mut File) -> String {
    let mut holder = String::new();
    let _ = file.read_to_string(&mut holder);
    match holder.trim() {
        "" => String::new(),
        process => format!(" ({process})"),
    }
}

/// What the format file says; none if there is neither such a file nor a segment.
fn read_format(dir: &Path) -> Result<Option<Format>, LogError> {
    let path = dir.join("FORMAT");
    match fs::read_to_string(&path) {
        Ok(text) => parse_format(dir, &text).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if segments(dir)?.is_empty() {
                return Ok(None);
            }
            // A start gives it its name before it makes a segment.
            if dir.join(DRAFT).exists() {
                return Err(LogError::unfinished(dir));
            }
            let what = "the file is missing although there are segments";
            Err(LogError::format(&path, what))
        }
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            Err(LogError::format(&path, "it is not text"))
        }
        Err(e) => Err(LogError::io("read", &path, e)),
    }
}

fn parse_format(dir: &Path, text: &str) -> Result<Format, LogError> {
    let damaged = |what| LogError::format(&dir.join("FORMAT"), what);
    let mut lines = text.lines();
    let version = lines
        .next()
        .and_then(|line| line.strip_prefix(FORMAT_TITLE))
        .and_then(|version| version.trim().parse::<u32>().ok())
        .ok_or_else(|| damaged("it does not say which format this is"))?;
    if version > FORMAT_VERSION {
        return Err(LogError::newer(dir, version, FORMAT_VERSION));
    }
    lines
        .next()
        .and_then(|line| line.strip_prefix("salt "))
        .filter(|salt| salt.len() == 16)
        .and_then(|salt| u64::from_str_radix(salt, 16).ok())
        .map(|salt| Format { version, salt })
        .ok_or_else(|| damaged("it has no salt"))
}

/// What the format file is called before it is complete.
const DRAFT: &str = "FORMAT.new";

/// Writes the format file so that it is there as a whole or not at all.
fn create_format(dir: &Path) -> Result<Format, LogError> {
    let format = draft_format(dir)?;
    finish(dir)?;
    Ok(format)
}

fn draft_format(dir: &Path) -> Result<Format, LogError> {
    let salt = RandomState::new().hash_one(dir);
    let draft = dir.join(DRAFT);
    let write = || {
        let mut file = File::create(&draft)?;
        write!(file, "{FORMAT_TITLE} {FORMAT_VERSION}\nsalt {salt:016x}\n")?;
        file.sync_all()
    };
    write().map_err(|e| LogError::io("write", &draft, e))?;
    let version = FORMAT_VERSION;
    Ok(Format { version, salt })
}

/// Gives the format file its name: from here on a broker takes what is in the folder.
pub(crate) fn finish(dir: &Path) -> Result<(), LogError> {
    let path = dir.join("FORMAT");
    fs::rename(dir.join(DRAFT), &path).map_err(|e| LogError::io("write", &path, e))?;
    sync_dir(dir)
}

/// Takes away what there is of a log that was [created](Dir::create) and will not be finished.
pub(crate) fn discard(dir: &Path) -> Result<(), LogError> {
    let mut paths = vec![dir.join("LOCK"), dir.join(DRAFT), dir.join("spare")];
    paths.extend(segments(dir)?.into_iter().map(|(_, path)| path));
    for path in paths {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(LogError::io("remove", &path, e));
            }
            _ => {}
        }
    }
    Ok(())
}

fn segments(dir: &Path) -> Result<Vec<(u64, PathBuf)>, LogError> {
    let failed = |e| LogError::io("list the folder", dir, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_suffix(".seg")?.parse::<u64>().ok());
        found.extend(number.map(|number| (number, path)));
    }
    found.sort_unstable();
    Ok(found)
}

fn sync_dir(dir: &Path) -> Result<(), LogError> {
    let sync = || File::open(dir)?.sync_all();
    sync().map_err(|e| LogError::io("sync the folder", dir, e))
}

/// The start of every segment file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u64,
    /// The sequence number of its first batch.
    pub(crate) first: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(self, salt: u64) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0..8].copy_from_slice(SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first.to_le_bytes());
        let crc = Self::checksum(&bytes, salt);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8], salt: u64) -> Option<Self> {
        let bytes = bytes.first_chunk::<SEGMENT_HEADER_BYTES>()?;
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let crc = Self::checksum(bytes, salt).to_le_bytes();
        let whole = bytes[0..8] == *SEGMENT_MAGIC && bytes[12..16] == crc;
        whole.then(|| Self {
            number: number(16),
            first: number(24),
        })
    }

    fn checksum(bytes: &[u8; SEGMENT_HEADER_BYTES], salt: u64) -> u32 {
        batch::checksum(&[&bytes[0..12], &bytes[16..]], salt)
    }
}

/// A file full of zeros, ready to become a segment. Syncing a write into it need not sync any
/// metadata, which is more than twice as fast as growing a file.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) file: File,
    pub(crate) size: u64,
}

impl Spare {
    /// Creates the file. If the disk has no room for it, nothing of it is left.
    pub(crate) fn create(path: &Path, size: u64) -> Result<Self, LogError> {
        Self::fill(path, size).map_err(|e| {
            // Whatever could not be written must not keep space from others.
            let _ = fs::remove_file(path);
            LogError::io("make room for a segment at", path, e)
        })
    }

    fn fill(path: &Path, size: u64) -> io::Result<Self> {
        const ZEROS: &[u8] = &[0; 256 << 10];
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        let mut left = size;
        while left > 0 {
            let chunk = left.min(ZEROS.len() as u64);
            file.write_all(&ZEROS[..chunk as usize])?;
            left -= chunk;
        }
        file.sync_all()?;
        Ok(Self { file, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_free_when_it_is_let_go_of_even_if_a_copy_of_its_lock_file_is_open() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = Dir::open(folder.path()).expect("free");
        // What a process has that is just being started by somebody else.
        let lock = dir._lock.as_ref().expect("it is locked");
        let copy = lock.0.try_clone().expect("a copy");
        assert!(Dir::open(folder.path()).expect_err("taken").is_in_use());
        drop(dir);
        Dir::open(folder.path()).expect("free again");
        drop(copy);
    }

    #[test]
    fn what_is_made_is_no_log_before_it_is_finished() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = Dir::create(folder.path()).expect("empty");
        fs::write(dir.segment_path(1), "").expect("written");
        drop(dir);
        let error = Dir::open(folder.path()).expect_err("not finished");
        assert!(error.to_string().contains("salvage again"), "{error}");
        finish(folder.path()).expect("finished");
        Dir::open(folder.path()).expect("a log");
    }
}
