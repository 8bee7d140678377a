//! The part of a Containerfile's language that ours uses. What is not known is an error, so that nothing is skipped.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// A Containerfile: its stages in order.
#[derive(Debug)]
pub(crate) struct Containerfile {
    pub(crate) stages: Vec<Stage>,
}

/// One `FROM` and what follows it.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) name: String,
    /// An image, or an earlier stage.
    pub(crate) from: String,
    pub(crate) steps: Vec<Step>,
}

/// An instruction.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// Its default.
    Arg(String, String),
    Env(String, String),
    Workdir(String),
    User(String),
    StopSignal(String),
    Expose(u16),
    Entrypoint(Vec<String>),
    HealthCheck(Vec<String>),
    /// From a stage, or from the folder that is built.
    Copy {
        from: Option<String>,
        source: String,
        to: String,
    },
    Run {
        /// Folders that are kept between builds.
        caches: Vec<String>,
        command: String,
    },
}

pub(crate) fn parse(text: &str) -> Result<Containerfile> {
    let mut defaults = BTreeMap::new();
    let mut stages: Vec<Stage> = Vec::new();
    for line in lines(text) {
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let rest = rest.trim();
        match (word, stages.last_mut()) {
            ("ARG", None) => {
                let (name, value) = pair(rest)?;
                defaults.insert(name, value);
            }
            ("FROM", _) => {
                let (from, name) = rest
                    .split_once(" AS ")
                    .with_context(|| format!("give the stage a name: `{line}`"))?;
                stages.push(Stage {
                    name: name.to_owned(),
                    from: filled(from, &defaults)?,
                    steps: Vec::new(),
                });
            }
            (_, Some(stage)) => {
                let step = step(word, rest).with_context(|| format!("cannot run `{line}`"))?;
                stage.steps.push(step);
            }
            (_, None) => bail!("`{line}` stands before the first `FROM`"),
        }
    }
    Ok(Containerfile { stages })
}

/// Whole instructions, without comments.
fn lines(text: &str) -> Vec<String> {
    let mut whole = Vec::new();
    let mut begun = String::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        match line.strip_suffix('\\') {
            Some(part) => begun += &format!("{} ", part.trim_end()),
            None => whole.push(std::mem::take(&mut begun) + line),
        }
    }
    whole
}

fn step(word: &str, rest: &str) -> Result<Step> {
    let list = |text: &str| serde_json::from_str(text).context("give a list in JSON");
    Ok(match word {
        "ARG" => {
            let (name, value) = pair(rest)?;
            Step::Arg(name, value)
        }
        "ENV" => {
            let (name, value) = pair(rest)?;
            Step::Env(name, value)
        }
        "WORKDIR" => Step::Workdir(rest.to_owned()),
        "USER" => Step::User(rest.to_owned()),
        "STOPSIGNAL" => Step::StopSignal(rest.to_owned()),
        "EXPOSE" => Step::Expose(rest.parse()?),
        "ENTRYPOINT" => Step::Entrypoint(list(rest)?),
        "HEALTHCHECK" => {
            let (_, command) = rest.split_once("CMD ").context("it has no `CMD`")?;
            Step::HealthCheck(list(command)?)
        }
        "COPY" => copy(rest)?,
        "RUN" => run(rest)?,
        _ => bail!("the instruction `{word}` is not known here"),
    })
}

fn copy(rest: &str) -> Result<Step> {
    let mut words: Vec<&str> = rest.split_whitespace().collect();
    let from = words.first().and_then(|word| word.strip_prefix("--from="));
    let from = from.map(str::to_owned);
    if from.is_some() {
        words.remove(0);
    }
    match words.as_slice() {
        [source, to] if !source.starts_with("--") => Ok(Step::Copy {
            from,
            source: (*source).to_owned(),
            to: (*to).to_owned(),
        }),
        _ => bail!("give one thing to copy, and where to"),
    }
}

fn run(mut rest: &str) -> Result<Step> {
    let mut caches = Vec::new();
    while let Some(option) = rest.strip_prefix("--mount=type=cache,target=") {
        let (folder, after) = option.split_once(' ').context("nothing is run")?;
        caches.push(folder.to_owned());
        rest = after.trim_start();
    }
    if rest.starts_with("--") {
        bail!("this option of `RUN` is not known here");
    }
    Ok(Step::Run {
        caches,
        command: rest.to_owned(),
    })
}

fn pair(text: &str) -> Result<(String, String)> {
    let (name, value) = text
        .split_once('=')
        .with_context(|| format!("`{text}` has no `=`"))?;
    Ok((name.to_owned(), value.trim_matches('"').to_owned()))
}

fn filled(text: &str, values: &BTreeMap<String, String>) -> Result<String> {
    let mut filled = text.to_owned();
    for (name, value) in values {
        filled = filled.replace(&format!("${{{name}}}"), value);
    }
    if filled.contains('$') {
        bail!("`{filled}` is not known");
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::root;

    const SMALL: &str = "\
ARG RUST=1.90
# A remark.
FROM rust:${RUST} AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/a \\
    --mount=type=cache,target=/b \\
    cargo build && \\
    # It is long.
    cargo test
FROM debian:slim AS run
COPY --from=build /out/ /bin/
HEALTHCHECK --interval=1s CMD [\"true\", \"x y\"]
";

    #[test]
    fn stages_and_steps_are_read() {
        let file = parse(SMALL).unwrap();
        let [build, run] = file.stages.as_slice() else {
            panic!("{file:?}");
        };
        assert_eq!([&build.name, &build.from], ["build", "rust:1.90"]);
        let caches = vec!["/a".to_owned(), "/b".to_owned()];
        let command = "cargo build && cargo test".to_owned();
        assert_eq!(build.steps[2], Step::Run { caches, command });
        let check = vec!["true".to_owned(), "x y".to_owned()];
        assert_eq!(run.steps[1], Step::HealthCheck(check));
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        let check = |text: &str, said: &str| {
            let error = format!("{:#}", parse(text).expect_err(text));
            assert!(error.contains(said), "{error}");
        };
        check("RUN true", "before the first `FROM`");
        check("FROM a", "give the stage a name");
        check("FROM ${A} AS a", "is not known");
        check("FROM a AS a\nSHELL [\"x\"]", "`SHELL` is not known here");
        check("FROM a AS a\nRUN --network=none true", "option of `RUN`");
        check("FROM a AS a\nCOPY a b c", "one thing to copy");
        check("FROM a AS a\nHEALTHCHECK NONE", "no `CMD`");
    }

    #[test]
    fn the_images_run_as_nobody_and_end_when_asked() {
        let text = std::fs::read_to_string(root().unwrap().join("deploy/Containerfile")).unwrap();
        let file = parse(&text).unwrap();
        let names: Vec<&str> = file.stages.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["build", "runtime", "broker", "shop"]);
        let has = |stage: usize, wanted: Step| file.stages[stage].steps.contains(&wanted);
        assert!(has(1, Step::User("10001:10001".to_owned())));
        assert!(has(1, Step::StopSignal("SIGTERM".to_owned())));
        for (stage, port) in [(2, 5672), (3, 8080)] {
            assert_eq!(file.stages[stage].from, "runtime");
            assert!(has(stage, Step::Expose(port)));
            let steps = &file.stages[stage].steps;
            assert!(steps.iter().any(|it| matches!(it, Step::HealthCheck(_))));
            assert!(steps.iter().any(|it| matches!(it, Step::Entrypoint(_))));
        }
    }
}
