//! A schema registry of its own for a test: Apicurio, which speaks Confluent's API under a path of its own.
//!
//! Confluent's own is not published where tests may fetch it. This one is a program that its makers publish for Maven,
//! fetched once into a cache folder of the user's (109 MB) and started with the installed Java; what is registered is
//! kept in a folder, so that it is there again after a restart. Its version is the last that Java 17 runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use super::{Process, kafka};

const VERSION: &str = "3.0.9";

/// How long it may take from its start until it answers: 5 s on two idle cores.
const START_MAX: Duration = Duration::from_secs(120);

/// How long it may take to end when asked to.
const STOP_MAX: Duration = Duration::from_secs(30);

/// A registry on a port of its own; dropped, it is gone.
pub struct SchemaRegistry {
    java: PathBuf,
    program: PathBuf,
    port: u16,
    process: Option<Process>,
    // Last, so that it is removed when nothing writes to it any more.
    folder: TempDir,
}

impl SchemaRegistry {
    /// What to do when there is none to start and none can be fetched; nothing when there is.
    pub fn missing() -> Option<String> {
        let java = super::find("java", []).is_some();
        let program = cache().is_ok_and(|it| it.is_dir()) || super::find("mvn", []).is_some();
        (!java || !program).then(|| {
            "the schema registry needs Java, and Maven to be fetched with: install them (Debian: `apt-get install \
             default-jre-headless maven`)"
                .to_owned()
        })
    }

    /// Fetches it, unless that was done before.
    pub fn fetch() -> Result<()> {
        program().map(drop)
    }

    /// Starts one and returns when it answers.
    pub fn start() -> Result<SchemaRegistry> {
        let mut registry = Self::prepare()?;
        registry.restart()?;
        Ok(registry)
    }

    /// One that has its port, and does not answer before it is [started](Self::restart).
    pub fn prepare() -> Result<SchemaRegistry> {
        let java = super::find("java", []);
        Ok(SchemaRegistry {
            java: java.ok_or_else(|| anyhow!("{}", Self::missing().unwrap_or_default()))?,
            program: program()?,
            port: super::free_port()?,
            process: None,
            folder: super::folder("registry", None)?,
        })
    }

    /// Where Confluent's API is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/apis/ccompat/v7", self.port)
    }

    /// Ends it as an operator would. (Killed, it may forget what was registered in the half second before.)
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.stop(STOP_MAX).map(drop),
            None => Ok(()),
        }
        .context("cannot stop the schema registry")
    }

    /// Starts it on its port, with what was registered before, ending it first when it still runs.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        let database = self.folder.path().join("database");
        let mut command = Process::command(&self.java);
        command
            .current_dir(self.folder.path())
            .args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg("-Dquarkus.http.host=127.0.0.1")
            .arg(format!("-Dquarkus.http.port={}", self.port))
            .arg(format!(
                "-Dapicurio.datasource.url=jdbc:h2:file:{}",
                database.display()
            ))
            .arg("-jar")
            .arg(&self.program);
        let mut process = Process::start(command)?;
        let folder = self.folder.path().display();
        super::wait_until("the schema registry to answer", START_MAX, || {
            !process.is_running() || answers(self.port)
        })
        .and_then(|()| match process.status() {
            None => Ok(()),
            Some(status) => Err(anyhow!("it ended ({status})")),
        })
        .with_context(|| {
            let printed = [process.stdout(), process.stderr()].concat().join("\n");
            format!("cannot start the schema registry in {folder}:\n{printed}")
        })?;
        self.process = Some(process);
        Ok(())
    }
}

/// Whether it tells its subjects.
fn answers(port: u16) -> bool {
    super::http_ok(port, "/apis/ccompat/v7/subjects")
}

fn cache() -> Result<PathBuf> {
    Ok(kafka::cache_folder()?.join(format!("apicurio-{VERSION}")))
}

/// The program, which is fetched if it is not there yet. Its folder appears as a whole, so that of two who fetch at once
/// neither sees half of it.
fn program() -> Result<PathBuf> {
    let folder = cache()?;
    let program = folder.join(format!("apicurio-registry-app-{VERSION}-runner.jar"));
    if folder.is_dir() {
        return Ok(program);
    }
    let maven = super::find("mvn", []);
    let maven =
        maven.ok_or_else(|| anyhow!("{}", SchemaRegistry::missing().unwrap_or_default()))?;
    let place = folder.parent().context("a folder in a folder")?;
    std::fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    let fetching = tempfile::Builder::new()
        .prefix("fetching-")
        .tempdir_in(place)?;
    let artifact = format!("io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all");
    let copy = ["-q", "-B", "dependency:copy", "-DoutputDirectory=."];
    let mut fetch = Command::new(maven);
    fetch.args(copy).arg(format!("-Dartifact={artifact}"));
    done(
        fetch.current_dir(fetching.path()),
        "Maven cannot fetch the schema registry",
    )?;
    let archive = format!("apicurio-registry-app-{VERSION}-all.tar.gz");
    let unpacked = fetching.path().join("unpacked");
    std::fs::create_dir(&unpacked)?;
    let mut unpack = Command::new("tar");
    unpack.args(["-xzf", &archive, "-C", "unpacked"]);
    done(
        unpack.current_dir(fetching.path()),
        "the schema registry cannot be unpacked",
    )?;
    match std::fs::rename(&unpacked, &folder) {
        // Somebody else was quicker.
        Err(_) if folder.is_dir() => Ok(program),
        done => done
            .map(|()| program.clone())
            .with_context(|| format!("cannot put the schema registry into {}", folder.display())),
    }
}

fn done(command: &mut Command, what: &str) -> Result<()> {
    let name = Path::new(command.get_program()).display().to_string();
    let output = command
        .output()
        .with_context(|| format!("cannot run `{name}`"))?;
    if !output.status.success() {
        let printed = [&output.stdout[..], &output.stderr[..]].concat();
        bail!("{what}: {}", String::from_utf8_lossy(&printed));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs Apicurio"]
    fn it_starts_dies_and_comes_back() {
        let mut registry = SchemaRegistry::prepare().unwrap();
        assert!(!answers(registry.port));
        registry.restart().unwrap();
        let url = registry.url();
        registry.stop().unwrap();
        assert!(!answers(registry.port));
        registry.restart().unwrap();
        assert_eq!(registry.url(), url);
        let (folder, port) = (registry.folder.path().to_owned(), registry.port);
        drop(registry);
        assert!(!answers(port) && !folder.exists());
    }
}
