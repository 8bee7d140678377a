//! A folder with a Debian of its own, in which commands run as if it were all there is.
//!
//! What is mounted into it is seen by the command alone, and gone with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{answers, program, quietly};

/// A folder that is a whole system.
pub(crate) struct Chroot {
    pub(crate) folder: PathBuf,
    /// What it sees of this machine: a folder there, and the folder here.
    pub(crate) mounts: BTreeMap<String, PathBuf>,
}

impl Chroot {
    /// A new Debian in `folder`, as a copy of one in `roots`, which is made the first time.
    pub(crate) fn debian(
        folder: &Path,
        roots: &Path,
        release: &str,
        variant: &str,
    ) -> Result<Self> {
        let made = roots.join(format!("{release}-{variant}"));
        debootstrap(&made, release, variant, &[])?;
        copy(&made, folder)?;
        std::fs::copy("/etc/resolv.conf", folder.join("etc/resolv.conf"))?;
        Self::of(folder)
    }

    /// A system that is a copy of another one.
    pub(crate) fn copy_of(other: &Self, folder: &Path) -> Result<Self> {
        copy(&other.folder, folder)?;
        Self::of(folder)
    }

    fn of(folder: &Path) -> Result<Self> {
        let mounts = ["/proc", "/dev"].map(|path| (path.to_owned(), PathBuf::from(path)));
        Ok(Self {
            folder: folder.to_owned(),
            mounts: mounts.into(),
        })
    }

    /// Where a path of the system is on this machine.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.folder.join(inside.trim_start_matches('/'))
    }

    /// A command in it. Its process is the command's own, with nothing of this machine's environment.
    pub(crate) fn command(
        &self,
        user: &str,
        workdir: &str,
        environment: &BTreeMap<String, String>,
        words: &[String],
    ) -> Result<Command> {
        let mut script = String::from("set -e\n");
        for (inside, outside) in &self.mounts {
            let at = self.path(inside);
            std::fs::create_dir_all(&at)
                .with_context(|| format!("cannot make {}", at.display()))?;
            let (outside, at) = (
                quoted(&outside.to_string_lossy()),
                quoted(&at.to_string_lossy()),
            );
            script += &format!("mount --bind {outside} {at}\n");
        }
        let mut command = format!(
            "exec chroot --userspec={user} {} ",
            quoted(&self.folder.to_string_lossy())
        );
        command += &format!("/usr/bin/env -i -C {} ", quoted(workdir));
        for (name, value) in environment {
            command += &format!("{} ", quoted(&format!("{name}={value}")));
        }
        let words = words.iter().map(|word| quoted(word));
        command += &words.collect::<Vec<_>>().join(" ");
        let mut unshare = program("unshare")?;
        unshare.args(["--mount", "--propagation", "private", "sh", "-c"]);
        unshare.arg(script + &command);
        Ok(unshare)
    }
}

/// Makes sure that `folder` has a Debian with these packages beyond the variant's own.
pub(crate) fn debootstrap(
    folder: &Path,
    release: &str,
    variant: &str,
    packages: &[&str],
) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    if !answers("debootstrap", "--version") {
        bail!("`debootstrap` is not installed (Debian: `apt-get install debootstrap`)");
    }
    // A folder of the right name is a whole system.
    let mut unfinished = folder.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    remove(&unfinished)?;
    std::fs::create_dir_all(&unfinished)?;
    let mut debootstrap = program("debootstrap")?;
    debootstrap.arg(format!("--variant={variant}"));
    if !packages.is_empty() {
        debootstrap.arg(format!("--include={}", packages.join(",")));
    }
    quietly(debootstrap.arg(release).arg(&unfinished))?;
    Ok(std::fs::rename(&unfinished, folder)?)
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    remove(to)?;
    if let Some(above) = to.parent() {
        std::fs::create_dir_all(above)?;
    }
    quietly(
        program("cp")?
            .args(["--archive", "--reflink=auto"])
            .args([from, to]),
    )
    .map(drop)
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
