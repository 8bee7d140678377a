//! Examples in the help of verbs at every depth. A verb that consists of others shows examples of them all; each
//! of those shows its own of them, so that an example is written once.

use clap::Command;

/// How the examples of a verb begin in its help.
const HEADING: &str = "Examples:";

/// The command, in which each verb without examples has those of the verb it belongs to that are about it.
pub(crate) fn spread(command: Command) -> Command {
    let name = command.get_name().to_owned();
    below(command, &name)
}

fn below(command: Command, path: &str) -> Command {
    let help = help_of(&command);
    command.mut_subcommands(|verb| {
        let path = format!("{path} {}", verb.get_name());
        let own = help_of(&verb);
        let verb = match own.contains(HEADING) {
            true => verb,
            false => match about(&help, &path) {
                examples if examples.is_empty() => verb,
                examples => verb.after_help(
                    format!("{HEADING}\n{examples}\n\n{own}")
                        .trim_end()
                        .to_owned(),
                ),
            },
        };
        below(verb, &path)
    })
}

fn help_of(command: &Command) -> String {
    command
        .get_after_help()
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// The examples in `help` that use the verb `path`.
fn about(help: &str, path: &str) -> String {
    let is_about = |line: &&str| {
        let rest = line.split_once(path).map(|(_, rest)| rest);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    let lines: Vec<&str> = help.lines().filter(is_about).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_has_those_of_its_parent_that_are_about_it() {
        let help = "Examples:\n  t a list\n  t a list x   why\n  t a lists\n  t a show";
        assert_eq!(about(help, "t a list"), "  t a list\n  t a list x   why");
        assert_eq!(about(help, "t a edit"), "");
    }
}
