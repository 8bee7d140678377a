//! RabbitMQ's own tutorials 1 to 6, as the npm package amqplib carries them, unmodified.
//!
//! Their authors never heard of this broker. Each runs in both of its styles, promises and
//! callbacks, on RabbitMQ, where it shows that the test is right, and on this broker, which has to
//! behave the same. The programs of the article that the project began with run here too.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tidings_testing::foreign::{self, lead_to_port};
use tidings_testing::servers::{Process, rabbitmq_url};

/// Starting Node on a busy machine takes a while.
const SOON: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs RabbitMQ and Node"]
fn the_tutorials_run_on_rabbitmq() {
    let url = rabbitmq_url();
    let port = url
        .trim_end_matches('/')
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse().ok());
    run_all(port.expect("the URL of the test's RabbitMQ ends with its port"));
}

#[test]
#[ignore = "needs Node"]
fn the_tutorials_run_on_this_broker() {
    let (broker, port) = start_broker();
    run_all(port);
    drop(broker);
}

fn start_broker() -> (Process, u16) {
    let mut command = Process::command(env!("CARGO_BIN_EXE_tidings-broker"));
    command.args(["--listen", "127.0.0.1:0", "--ephemeral"]);
    let mut broker = Process::start(command).unwrap();
    let line = broker
        .wait_for_line(SOON, |line| line.starts_with("listening amqp "))
        .unwrap();
    let port = line.rsplit_once(':').unwrap().1.parse().unwrap();
    (broker, port)
}

fn run_all(port: u16) {
    let tutorials = foreign::node_package("amqplib").join("examples/tutorials");
    for folder in [tutorials.clone(), tutorials.join("callback_api")] {
        let programs = Programs { folder, port };
        hello_world(&programs);
        work_queues(&programs);
        publish_subscribe(&programs);
        routing(&programs);
        topics(&programs);
        remote_procedure_call(&programs);
    }
    let others = Programs {
        folder: tutorials.parent().unwrap().into(),
        port,
    };
    headers_exchange(&others);
    publisher_confirms(&others);
    article(&Programs {
        folder: foreign::examples().join("01-article-node"),
        port,
    });
}

/// The Node programs of one folder, led to the broker under test.
struct Programs {
    folder: PathBuf,
    port: u16,
}

impl Programs {
    fn command(&self, script: &str, args: &[&str]) -> Command {
        let mut command = foreign::node(self.folder.join(script));
        command.args(args);
        lead_to_port(&mut command, self.port);
        command
    }

    /// Starts a program that goes on until it is stopped, and waits until it listens.
    fn start(&self, script: &str, args: &[&str]) -> Program {
        let mut process = Process::start(self.command(script, args)).unwrap();
        let waits = |line: &str| line.contains("Waiting for") || line.contains("Awaiting");
        process.wait_for_line(SOON, waits).unwrap();
        Program(process)
    }

    /// Runs a program to its end and returns what it printed.
    fn run(&self, script: &str, args: &[&str]) -> String {
        let mut process = Process::start(self.command(script, args)).unwrap();
        let status = process.wait(SOON).unwrap();
        let (out, err) = (process.stdout().join("\n"), process.stderr().join("\n"));
        assert!(
            status.success() && err.is_empty(),
            "{script} {args:?}: {status}\n{out}\n{err}"
        );
        out
    }
}

struct Program(Process);

impl Program {
    #[track_caller]
    fn says(&mut self, words: &str) {
        self.0
            .wait_for_line(SOON, |line| line.contains(words))
            .unwrap();
    }

    fn count(&self, words: &str) -> usize {
        self.0
            .stdout()
            .iter()
            .filter(|line| line.contains(words))
            .count()
    }

    /// Ctrl-C, upon which the tutorials close channel and connection and end by themselves.
    #[track_caller]
    fn ends(mut self) {
        let status = self.0.interrupt(SOON).unwrap();
        assert!(status.success(), "{status}: {:?}", self.0.stderr());
        assert_eq!(self.0.stderr(), [] as [&str; 0]);
    }
}

/// Tutorial 1.
fn hello_world(programs: &Programs) {
    let mut receiver = programs.start("receive.js", &[]);
    programs.run("send.js", &[]);
    receiver.says("Received 'Hello World!'");
    receiver.ends();
}

/// Tutorial 2: tasks are dealt out fairly, and what a killed worker had goes to another.
fn work_queues(programs: &Programs) {
    let mut workers = [
        programs.start("worker.js", &[]),
        programs.start("worker.js", &[]),
    ];
    for task in ["one.", "two.", "three.", "four."] {
        programs.run("new_task.js", &[task]);
    }
    let count =
        |workers: &[Program; 2], words| workers.iter().map(|w| w.count(words)).sum::<usize>();
    wait_until("four tasks to be done", || count(&workers, "Done") == 4);
    assert_eq!(count(&workers, "Received"), 4);
    assert!(
        workers.iter().all(|worker| worker.count("Done") > 0),
        "one worker did everything"
    );

    // Long enough to be killed in the middle of it.
    programs.run("new_task.js", &["long..."]);
    wait_until("somebody to take the long task", || {
        count(&workers, "Received 'long") == 1
    });
    let taker = workers
        .iter()
        .position(|worker| worker.count("Received 'long") == 1)
        .unwrap();
    let done = workers[1 - taker].count("Done");
    workers[taker].0.kill9();
    wait_until("the other to do it", || {
        workers[1 - taker].count("Done") == done + 1
    });
    assert_eq!(workers[1 - taker].count("Received 'long"), 1);
    let [first, second] = workers;
    if taker == 0 {
        second.ends()
    } else {
        first.ends()
    }
}

/// Tutorial 3.
fn publish_subscribe(programs: &Programs) {
    let mut receivers = [
        programs.start("receive_logs.js", &[]),
        programs.start("receive_logs.js", &[]),
    ];
    programs.run("emit_log.js", &["something", "happened"]);
    for receiver in &mut receivers {
        receiver.says("something happened");
    }
    receivers.into_iter().for_each(Program::ends);
}

/// Tutorial 4.
fn routing(programs: &Programs) {
    let mut errors = programs.start("receive_logs_direct.js", &["error"]);
    let mut all = programs.start("receive_logs_direct.js", &["info", "warning", "error"]);
    programs.run("emit_log_direct.js", &["info", "all is well"]);
    programs.run("emit_log_direct.js", &["debug", "nobody asked"]);
    programs.run("emit_log_direct.js", &["error", "it burns"]);
    errors.says("it burns");
    all.says("it burns");
    assert_eq!(
        (errors.count("all is well"), all.count("all is well")),
        (0, 1)
    );
    assert_eq!(all.count("nobody asked"), 0);
    errors.ends();
    all.ends();
}

/// Tutorial 5.
fn topics(programs: &Programs) {
    let mut everything = programs.start("receive_logs_topic.js", &["#"]);
    let mut kernel = programs.start("receive_logs_topic.js", &["kern.*"]);
    let mut both = programs.start("receive_logs_topic.js", &["kern.*", "*.critical"]);
    programs.run("emit_log_topic.js", &["cron.info", "tick"]);
    programs.run("emit_log_topic.js", &["cron.critical", "no tick"]);
    programs.run("emit_log_topic.js", &["kern.critical", "panic"]);
    for receiver in [&mut everything, &mut kernel, &mut both] {
        receiver.says("panic");
    }
    assert_eq!(everything.count("tick"), 2);
    assert_eq!(kernel.count("tick"), 0);
    assert_eq!((both.count("'tick'"), both.count("no tick")), (0, 1));
    assert_eq!(
        both.count("panic"),
        1,
        "both bindings match, and still it is one message"
    );
    [everything, kernel, both]
        .into_iter()
        .for_each(Program::ends);
}

/// Tutorial 6.
fn remote_procedure_call(programs: &Programs) {
    let server = programs.start("rpc_server.js", &[]);
    let answer = programs.run("rpc_client.js", &["30"]);
    assert!(answer.contains("Got 832040"), "{answer}");
    server.ends();
}

fn headers_exchange(programs: &Programs) {
    let mut process = Process::start(programs.command("headers.js", &[])).unwrap();
    wait_until("two messages that match", || {
        process
            .stdout()
            .iter()
            .filter(|line| *line == "hello")
            .count()
            == 2
    });
    assert!(!process.stdout().iter().any(|line| line == "lost"));
    process.interrupt(SOON).unwrap();
}

fn publisher_confirms(programs: &Programs) {
    let printed = programs.run("waitForConfirms.js", &[]);
    assert!(printed.contains("All messages done"), "{printed}");
}

/// The two programs of the article.
fn article(programs: &Programs) {
    let mut payment = programs.start("payment-service.js", &[]);
    programs.run("order-service.js", &[]);
    payment.says("Received order ORD-123: charging $99.99");
}

#[track_caller]
fn wait_until(what: &str, ready: impl FnMut() -> bool) {
    tidings_testing::servers::wait_until(what, SOON, ready).unwrap();
}
