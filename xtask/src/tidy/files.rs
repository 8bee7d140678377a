//! What files must say, must not say, and how long they may be.

use super::{Complaint, Repository};

/// Files that were too long when the limit came, each with the length it may not exceed.
const LONG_FILES: &str = "xtask/long-files.txt";

/// The lines of a Rust file beyond which it holds more than one idea.
const LINES_MAX: usize = 600;

/// What an ignored test may need: the names `cargo xtask test` knows.
const NEEDS: &[&str] = &[
    "RabbitMQ",
    "Kafka",
    "SQS",
    "PostgreSQL",
    "Node",
    "Python",
    "Go",
    "S3",
    "Chromium",
    "OpenSSL",
    "Apicurio",
    "root",
];

pub(super) fn every_crate_is_on_the_map(repository: &Repository) -> Vec<Complaint> {
    let map = repository.text_of("ARCHITECTURE.md");
    let packages = repository.packages.iter();
    packages
        .filter(|package| !map.contains(&format!("`{}`", package.name)))
        .map(|package| {
            let says = format!("say what `{}` is and what holds for it", package.name);
            Complaint::new("ARCHITECTURE.md", says)
        })
        .collect()
}

pub(super) fn every_source_opens_with_its_idea(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    // Cases that must not compile are shown to the compiler, not to readers.
    for file in repository
        .rust_files()
        .filter(|file| !file.path.contains("/tests/ui/"))
    {
        let idea = file
            .text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("//! "));
        if idea.is_none_or(|idea| idea.len() < 10) {
            let says = "begin with a `//!` line that says what is here";
            complaints.push(Complaint::new(&file.path, says));
        }
    }
    complaints
}

/// A ratchet: what is too long may only become shorter, and then stays shorter.
pub(super) fn no_file_outgrows_its_length(repository: &Repository) -> Vec<Complaint> {
    let allowed = repository
        .text_of(LONG_FILES)
        .lines()
        .filter(|line| !line.starts_with('#'));
    let allowed: Vec<(&str, usize)> = allowed
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(path, lines)| Some((path, lines.trim().parse().ok()?)))
        .collect();
    let mut complaints = Vec::new();
    for file in repository.rust_files() {
        let lines = file.text.lines().count();
        let allowed = allowed
            .iter()
            .find(|(path, _)| *path == file.path)
            .map(|(_, max)| *max);
        let says = match allowed {
            None if lines > LINES_MAX => format!("divide its {lines} lines by ideas"),
            Some(max) if lines > max => {
                format!("it had {max} lines and has {lines} now: divide it")
            }
            Some(_) if lines <= LINES_MAX => format!("well done: take it out of {LONG_FILES}"),
            Some(max) if lines < max => format!("well done: write {lines} for it in {LONG_FILES}"),
            _ => continue,
        };
        complaints.push(Complaint::new(&file.path, says));
    }
    let exists = |path: &str| repository.files.iter().any(|file| file.path == path);
    let gone = allowed.iter().filter(|(path, _)| !exists(path));
    complaints
        .extend(gone.map(|(path, _)| Complaint::new(LONG_FILES, format!("`{path}` is gone"))));
    complaints
}

/// `cargo xtask test` reads these reasons to know what to run, and what to leave out where a
/// server is missing.
pub(super) fn ignored_tests_say_what_they_need(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for file in repository.rust_files() {
        for (number, line) in file.text.lines().enumerate() {
            let Some(reason) = line.trim_start().strip_prefix("#[ignore") else {
                continue;
            };
            let reason = reason.strip_prefix(" = \"").unwrap_or_default();
            let need = reason.strip_prefix("needs ").unwrap_or_default();
            let in_need = NEEDS.iter().any(|name| need.contains(name));
            if !in_need && !reason.starts_with("measures") && !reason.starts_with("run by ") {
                let says = format!(
                    "as the reason say `needs` and one of {NEEDS:?}, `measures`, or `run by`"
                );
                complaints.push(Complaint::new(
                    format!("{}:{}", file.path, number + 1),
                    says,
                ));
            }
        }
    }
    complaints
}

/// Code in prose that says where it comes from, `<!-- path/to/file.rs -->` in the line above its
/// fence, must be there word by word: so it compiles, and is tested.
pub(super) fn quoted_code_is_real(repository: &Repository) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for file in repository
        .files
        .iter()
        .filter(|file| file.path.ends_with(".md"))
    {
        let mut lines = file.text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let source = line
                .strip_prefix("<!-- ")
                .and_then(|line| line.strip_suffix(" -->"));
            let Some(source) = source.filter(|source| source.ends_with(".rs")) else {
                continue;
            };
            let fence = lines
                .next()
                .is_some_and(|(_, line)| line.starts_with("```"));
            let quoted = lines
                .by_ref()
                .map(|(_, line)| line)
                .take_while(|line| *line != "```");
            let quoted = if fence {
                quoted.collect::<Vec<_>>().join("\n")
            } else {
                String::new()
            };
            if quoted.is_empty() || !repository.text_of(source).contains(&quoted) {
                let says = format!("quote `{source}` as it is");
                complaints.push(Complaint::new(
                    format!("{}:{}", file.path, number + 1),
                    says,
                ));
            }
        }
    }
    complaints
}

pub(super) fn nothing_names_a_machine(repository: &Repository) -> Vec<Complaint> {
    // In two parts each, so that this file does not name them itself.
    let machines = [
        ["/ro", "ot/"],
        ["/ho", "me/"],
        ["/Us", "ers/"],
        ["/wo", "rk/"],
    ]
    .map(|p| p.concat());
    let mut complaints = Vec::new();
    for file in &repository.files {
        for (number, line) in file.text.lines().enumerate() {
            // A path begins after something that is not part of one: `tests/work/` is ours.
            let names = |path: &String| {
                line.match_indices(path.as_str()).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-/~}".contains(c))
                })
            };
            if let Some(path) = machines.iter().find(|path| names(path)) {
                let says = format!("`{path}` is on somebody's machine only");
                complaints.push(Complaint::new(
                    format!("{}:{}", file.path, number + 1),
                    says,
                ));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn a_crate_that_the_map_does_not_name_is_missed() {
        let mut repository = Repository::with_package("tidings-new", "crates/tidings-new", &[]);
        check(every_crate_is_on_the_map, &repository, &["ARCHITECTURE.md"]);
        repository.files = Repository::with_file("ARCHITECTURE.md", "| `tidings-newer` |").files;
        check(every_crate_is_on_the_map, &repository, &["ARCHITECTURE.md"]);
        repository.files = Repository::with_file("ARCHITECTURE.md", "| `tidings-new` |").files;
        check(every_crate_is_on_the_map, &repository, &[]);
    }

    #[test]
    fn a_source_without_an_opening_line_is_found() {
        let rule = every_source_opens_with_its_idea;
        check(
            rule,
            &Repository::with_file("src/a.rs", "//! Everything about a.\n"),
            &[],
        );
        check(
            rule,
            &Repository::with_file("src/a.rs", "use b;\n//! Late.\n"),
            &["src/a.rs"],
        );
        check(
            rule,
            &Repository::with_file("src/a.rs", "//! TBD.\n"),
            &["src/a.rs"],
        );
        check(rule, &Repository::with_file("src/a.rs", ""), &["src/a.rs"]);
        check(
            rule,
            &Repository::with_file("x/tests/ui/a.rs", "fn main() {}"),
            &[],
        );
        check(rule, &Repository::with_file("a.md", "Prose.\n"), &[]);
    }

    #[test]
    fn a_long_file_may_only_become_shorter() {
        let rule = no_file_outgrows_its_length;
        let of = |lines: usize, allowed: &str| {
            let mut repository = Repository::with_file("a.rs", &"x\n".repeat(lines));
            repository
                .files
                .extend(Repository::with_file(LONG_FILES, allowed).files);
            repository
        };
        check(rule, &of(600, ""), &[]);
        check(rule, &of(601, ""), &["a.rs"]);
        check(rule, &of(700, "# why\na.rs 700\n"), &[]);
        check(rule, &of(701, "a.rs 700\n"), &["a.rs"]);
        check(rule, &of(699, "a.rs 700\n"), &["a.rs"]);
        check(rule, &of(600, "a.rs 700\n"), &["a.rs"]);
        check(rule, &of(1, "b.rs 700\n"), &[LONG_FILES]);
    }

    #[test]
    fn an_ignored_test_without_a_known_need_is_found() {
        let rule = ignored_tests_say_what_they_need;
        let of =
            |rest: &str| Repository::with_file("a.rs", &format!("\n    #[{}{rest}\n", "ignore"));
        check(rule, &of(" = \"needs RabbitMQ and Node\"]"), &[]);
        check(rule, &of(" = \"measures; run it in release\"]"), &[]);
        check(rule, &of(" = \"run by another test\"]"), &[]);
        check(rule, &of(" = \"needs luck\"]"), &["a.rs:2"]);
        check(rule, &of(" = \"slow\"]"), &["a.rs:2"]);
        check(rule, &of("]"), &["a.rs:2"]);
    }

    #[test]
    fn quoted_code_that_is_not_in_its_file_is_found() {
        let rule = quoted_code_is_real;
        let of = |prose: &str| {
            let mut repository = Repository::with_file("a.md", prose);
            repository
                .files
                .extend(Repository::with_file("a.rs", "fn a() {\n}\nfn b() {}\n").files);
            repository
        };
        check(rule, &of("<!-- a.rs -->\n```rust\nfn a() {\n}\n```\n"), &[]);
        check(
            rule,
            &of("```rust\nfn c() {}\n```\n<!-- a remark -->\n"),
            &[],
        );
        check(
            rule,
            &of("\n<!-- a.rs -->\n```rust\nfn c() {}\n```\n"),
            &["a.md:2"],
        );
        check(rule, &of("<!-- a.rs -->\n\nNo code.\n"), &["a.md:1"]);
        check(
            rule,
            &of("<!-- b.rs -->\n```rust\nfn a() {\n```\n"),
            &["a.md:1"],
        );
    }

    #[test]
    fn a_path_of_somebodys_machine_is_found() {
        let rule = nothing_names_a_machine;
        let of = |start: &str, path: [&str; 2]| {
            Repository::with_file("a.md", &format!("see\n{start}{}x\n", path.concat()))
        };
        check(rule, &of("cd ", ["/ho", "me/"]), &["a.md:2"]);
        check(rule, &of("\"", ["/wo", "rk/"]), &["a.md:2"]);
        check(rule, &of("", ["/ro", "ot/"]), &["a.md:2"]);
        check(rule, &of("tests", ["/wo", "rk/"]), &[]);
        check(rule, &of("cd ", ["/tm", "p/"]), &[]);
    }
}
