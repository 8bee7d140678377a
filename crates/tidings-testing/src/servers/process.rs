//! A program as a test sees it: it prints lines, it can be waited for, ended and killed.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Lines kept of each stream; older ones are forgotten.
const LINES_MAX: usize = 20_000;

/// A running program whose output is kept, and which is killed when this is dropped.
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
    /// Held for as long as the program may live: the thread that started it waits for its end.
    _leash: mpsc::SyncSender<()>,
}

impl Process {
    /// A command for [`Process::start`] that, on Linux, cannot outlive the test process.
    pub fn command(program: impl AsRef<Path>) -> Command {
        super::command(program.as_ref(), None)
    }

    /// Starts `command`, with an empty stdin and both outputs kept.
    pub fn start(command: Command) -> Result<Process> {
        let name = name(&command);
        let (stdout, stderr) = (Arc::new(Lines::default()), Arc::new(Lines::default()));
        let (leash, released) = mpsc::sync_channel(1);
        let (started, child) = mpsc::sync_channel(1);
        let kept = (Arc::clone(&stdout), Arc::clone(&stderr));
        // The kernel binds the child's life to the thread that started it, and a test's thread
        // may end before a server that several tests share: so the child has a thread of its own.
        std::thread::spawn(move || {
            let mut child = spawn(command);
            let streams = child
                .as_mut()
                .map(|child| (child.stdout.take(), child.stderr.take()))
                .ok();
            if started.send(child).is_err() {
                return;
            }
            if let Some((Some(out), Some(err))) = streams {
                let (stdout, stderr) = kept;
                std::thread::spawn(move || stderr.read(err));
                stdout.read(out);
            }
            let _ = released.recv();
        });
        let child = child
            .recv()
            .map_err(|_| anyhow!("the thread that starts `{name}` is gone"))?
            .with_context(|| format!("cannot start `{name}`"))?;
        Ok(Process {
            name,
            child,
            status: None,
            stdout,
            stderr,
            _leash: leash,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line on stdout that `wanted` accepts, printed before or after this call.
    ///
    /// # Errors
    ///
    /// When the program ends, or `deadline` passes, without it; with what it printed last.
    pub fn wait_for_line(
        &mut self,
        deadline: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let end = Instant::now() + deadline;
        loop {
            // Asked before looking: what it printed before it ended is still found.
            let ended = self.status();
            let patience = if ended.is_some() {
                Duration::from_millis(200)
            } else {
                SLICE
            };
            if let Some(line) = self.stdout.wait_for(patience, &wanted) {
                return Ok(line);
            }
            if let Some(status) = ended {
                bail!(
                    "`{}` ended ({status}) before the line came{}",
                    self.name,
                    self.last_words()
                );
            }
            if Instant::now() > end {
                bail!(
                    "waited {deadline:?} in vain for a line{}",
                    self.last_words()
                );
            }
        }
    }

    /// What it printed so far on stdout, line by line.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lock().clone()
    }

    /// What it printed so far on stderr, line by line.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lock().clone()
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        self.status().is_none()
    }

    /// How it ended, when it has; then all that it printed is there.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
            if self.status.is_some() {
                // Bounded, because its own children may hold the streams open.
                self.stdout.wait_for_end(LAST_WORDS_MAX);
                self.stderr.wait_for_end(LAST_WORDS_MAX);
            }
        }
        self.status
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the end of `{}`", self.name);
        super::wait_until(&what, deadline, || self.status().is_some())
            .with_context(|| format!("it is still running{}", self.last_words()))?;
        self.status()
            .ok_or_else(|| anyhow!("`{}` is still running", self.name))
    }

    /// `kill -9`: it gets no chance to do anything more. Returns once it is gone.
    pub fn kill9(&mut self) {
        if self.status().is_none() {
            // Failing means that it is gone already, which is what was wanted.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn stop(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(deadline)
    }

    /// Asks it to end as Ctrl-C does (SIGINT) and waits until it has.
    pub fn interrupt(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::INT)?;
        self.wait(deadline)
    }

    /// Lets it do nothing more until [`Process::thaw`] (SIGSTOP): to others it is there, and does not answer.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        // Asking for the status first makes sure the id is still this process's and no other's.
        if self.status().is_none() {
            let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
            let id = id.ok_or_else(|| anyhow!("`{}` has no process id", self.name))?;
            kill_process(id, signal)
                .with_context(|| format!("cannot send a signal to `{}`", self.name))?;
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let tail = |lines: &Lines| {
            let lines = lines.lock();
            lines[lines.len().saturating_sub(30)..].join("\n")
        };
        format!(
            "\n--- its stdout:\n{}\n--- its stderr:\n{}",
            tail(&self.stdout),
            tail(&self.stderr)
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Whether a process with this id runs; one that only waits to be reaped does not.
pub(super) fn exists(id: u32) -> bool {
    if let Some((state, _)) = state_and_parent(id) {
        return state != 'Z';
    }
    let id = i32::try_from(id).ok().and_then(Pid::from_raw);
    // Not being allowed to ask is an answer too: somebody is there.
    id.is_some_and(|id| test_kill_process(id) != Err(rustix::io::Errno::SRCH))
}

/// What `/proc` says about a process; nothing where there is no `/proc` or no such process.
pub(super) fn state_and_parent(id: u32) -> Option<(char, u32)> {
    // `id (name) state parent ...`, where the name may hold anything, brackets and spaces too.
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

/// How long to read on when a program has ended.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);

/// How long to wait for a line before asking whether the program still runs.
const SLICE: Duration = Duration::from_millis(100);

fn spawn(mut command: Command) -> std::io::Result<Child> {
    // It stays in the group of the test process: Ctrl-C at a terminal ends it too.
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

fn name(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy()));
    if words[0] == "setpriv" {
        words = words.split_off(
            words
                .iter()
                .position(|word| word == "--")
                .map_or(0, |at| at + 1),
        );
    }
    words.join(" ")
}

/// The lines of one stream, and a bell that rings at each, and at the end.
#[derive(Default)]
struct Lines {
    kept: Mutex<Vec<String>>,
    ended: AtomicBool,
    bell: Condvar,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, stream: impl Read) {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream
            .read_until(b'\n', &mut line)
            .is_ok_and(|count| count > 0)
        {
            let mut kept = self.lock();
            if kept.len() == LINES_MAX {
                kept.drain(..LINES_MAX / 2);
            }
            kept.push(String::from_utf8_lossy(&line).trim_end().to_owned());
            self.bell.notify_all();
            line.clear();
        }
        let _kept = self.lock();
        self.ended.store(true, Ordering::Release);
        self.bell.notify_all();
    }

    /// Waits until the stream has ended: a process is gone before its last words are read.
    fn wait_for_end(&self, patience: Duration) {
        let lines = self.lock();
        let goes_on = |_: &mut Vec<String>| !self.ended.load(Ordering::Acquire);
        drop(self.bell.wait_timeout_while(lines, patience, goes_on));
    }

    fn wait_for(&self, patience: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let find = |lines: &Vec<String>| lines.iter().find(|line| wanted(line)).cloned();
        let (lines, _) = self
            .bell
            .wait_timeout_while(self.lock(), patience, |lines| find(lines).is_none())
            .unwrap_or_else(PoisonError::into_inner);
        find(&lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Process {
        let mut command = Process::command("sh");
        command.args(["-c", script]);
        Process::start(command).unwrap()
    }

    #[test]
    fn a_line_is_found_whether_it_comes_before_or_after_the_question() {
        let mut process = shell("echo first; sleep 0.2; echo second; sleep 60");
        assert_eq!(
            process
                .wait_for_line(SOON, |line| line == "second")
                .unwrap(),
            "second"
        );
        assert_eq!(
            process
                .wait_for_line(SOON, |line| line.starts_with("fi"))
                .unwrap(),
            "first"
        );
    }

    #[test]
    fn a_program_that_ends_too_early_is_reported_with_its_last_words() {
        let mut process = shell("echo 'no such port' >&2; exit 3");
        let error = process
            .wait_for_line(SOON, |line| line == "ready")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("no such port"),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_has_ended_has_said_everything() {
        for _ in 0..50 {
            let mut process = shell("echo out; echo error >&2; exit 1");
            assert!(!process.wait(SOON).unwrap().success());
            assert_eq!(
                (process.stdout(), process.stderr()),
                (vec!["out".into()], vec!["error".into()])
            );
        }
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let error = match Process::start(Command::new("/no/such/program")) {
            Err(error) => format!("{error:#}"),
            Ok(_) => panic!("it started"),
        };
        assert!(
            error.starts_with("cannot start `/no/such/program`: "),
            "{error}"
        );
    }

    #[test]
    fn stopping_lets_it_finish_and_killing_does_not() {
        let script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
        let mut polite = shell(script);
        polite.wait_for_line(SOON, |line| line == "ready").unwrap();
        assert!(polite.stop(SOON).unwrap().success());
        polite.wait_for_line(SOON, |line| line == "bye").unwrap();

        let mut killed = shell(script);
        killed.wait_for_line(SOON, |line| line == "ready").unwrap();
        killed.kill9();
        assert!(!killed.is_running() && !exists(killed.id()));
        assert_eq!(killed.stdout(), ["ready"]);
    }

    #[test]
    fn dropped_it_is_gone() {
        let process = shell("sleep 600");
        let id = process.id();
        assert!(exists(id));
        drop(process);
        assert!(!exists(id));
    }

    /// Says in a test process that it is the one to be killed.
    const OWNER: &str = "TIDINGS_TEST_OWNER";

    #[test]
    #[ignore = "run by the test below, which kills it"]
    fn owner_of_a_process() {
        if std::env::var_os(OWNER).is_some() {
            let process = shell("sleep 600");
            println!("started {}", process.id());
            std::thread::sleep(SOON);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn it_dies_with_a_test_that_is_killed() {
        let mut command = Process::command(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--nocapture", "owner_of_a_process"])
            .env(OWNER, "");
        let mut owner = Process::start(command).unwrap();
        let line = owner
            .wait_for_line(SOON, |line| line.contains("started "))
            .unwrap();
        let id: u32 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
        assert!(exists(id));
        owner.kill9();
        super::super::wait_until("the process to die too", SOON, || !exists(id)).unwrap();
    }
}
