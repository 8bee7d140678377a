//! Names of messages: whether one says what happened, and what it is called on the wire.
//!
//! The rule is small enough to be predicted: the last word of the name is a past participle. That
//! is a word in `-ed` which is not one of a few nouns and verbs that end so by chance, or one of
//! the irregular participles of the table.

/// Base form and past participle of irregular verbs that events are named with.
#[rustfmt::skip]
const IRREGULAR: &[(&str, &str)] = &[
    ("arise", "arisen"), ("awake", "awoken"), ("beat", "beaten"), ("become", "become"),
    ("begin", "begun"), ("bend", "bent"), ("bet", "bet"), ("bid", "bid"), ("bind", "bound"),
    ("bite", "bitten"), ("blow", "blown"), ("break", "broken"), ("bring", "brought"),
    ("build", "built"), ("burn", "burnt"), ("buy", "bought"), ("cast", "cast"),
    ("broadcast", "broadcast"), ("catch", "caught"), ("choose", "chosen"), ("come", "come"),
    ("cost", "cost"), ("cut", "cut"), ("deal", "dealt"), ("dig", "dug"), ("do", "done"),
    ("draw", "drawn"), ("drive", "driven"), ("eat", "eaten"), ("fall", "fallen"),
    ("feed", "fed"), ("feel", "felt"), ("fight", "fought"), ("find", "found"), ("fly", "flown"),
    ("forbid", "forbidden"), ("forget", "forgotten"), ("forgive", "forgiven"),
    ("freeze", "frozen"), ("get", "gotten"), ("give", "given"), ("go", "gone"),
    ("grind", "ground"), ("grow", "grown"), ("hang", "hung"), ("have", "had"), ("hear", "heard"),
    ("hide", "hidden"), ("hit", "hit"), ("hold", "held"), ("keep", "kept"), ("know", "known"),
    ("lay", "laid"), ("lead", "led"), ("leave", "left"), ("lend", "lent"), ("let", "let"),
    ("lie", "lain"), ("light", "lit"), ("lose", "lost"), ("make", "made"), ("mean", "meant"),
    ("meet", "met"), ("mistake", "mistaken"), ("offset", "offset"), ("overdraw", "overdrawn"),
    ("overrun", "overrun"), ("pay", "paid"), ("prepay", "prepaid"), ("put", "put"),
    ("quit", "quit"), ("read", "read"), ("rebuild", "rebuilt"), ("repay", "repaid"),
    ("resell", "resold"), ("resend", "resent"), ("reset", "reset"), ("rewrite", "rewritten"),
    ("ride", "ridden"), ("ring", "rung"), ("rise", "risen"), ("run", "run"), ("say", "said"),
    ("see", "seen"), ("seek", "sought"), ("sell", "sold"), ("send", "sent"), ("set", "set"),
    ("shake", "shaken"), ("shrink", "shrunk"), ("shut", "shut"), ("sing", "sung"),
    ("sink", "sunk"), ("sit", "sat"), ("sleep", "slept"), ("speak", "spoken"),
    ("spend", "spent"), ("spin", "spun"), ("split", "split"), ("spread", "spread"),
    ("stand", "stood"), ("steal", "stolen"), ("stick", "stuck"), ("strike", "struck"),
    ("swear", "sworn"), ("sweep", "swept"), ("swing", "swung"),
    ("take", "taken"), ("teach", "taught"), ("tear", "torn"), ("tell", "told"),
    ("think", "thought"), ("throw", "thrown"), ("undergo", "undergone"),
    ("understand", "understood"), ("undertake", "undertaken"), ("undo", "undone"),
    ("unbind", "unbound"), ("uphold", "upheld"), ("wake", "woken"), ("wear", "worn"),
    ("win", "won"), ("wind", "wound"), ("withdraw", "withdrawn"), ("withhold", "withheld"),
    ("write", "written"),
];

/// Words that end in `-ed` and are no participles.
#[rustfmt::skip]
const NOT_PARTICIPLES: &[&str] = &[
    "bed", "bleed", "breed", "creed", "deed", "embed", "exceed", "feed", "greed", "heed",
    "hundred", "indeed", "kindred", "naked", "need", "newsfeed", "proceed", "red", "reed",
    "sacred", "seed", "shed", "shred", "sled", "speed", "succeed", "weed", "wed", "wicked", "zed",
];

/// Verbs whose last consonant doubles: `shipped`.
#[rustfmt::skip]
const DOUBLING: &[&str] = &[
    "ship", "stop", "drop", "plan", "scan", "skip", "swap", "trap", "tag", "log", "submit",
    "admit", "commit", "permit", "refer", "transfer", "defer", "prefer", "occur", "cancel",
    "label", "ban", "flag", "map", "pin", "plug", "rub", "wrap", "clip", "omit", "control",
    "fulfil",
];

/// Words at the end of a name that only say what kind of thing it is.
const SUFFIXES: &[&str] = &[
    "Event",
    "Message",
    "Notification",
    "Fact",
    "Now",
    "Please",
    "Command",
];

/// Whether a name, `OrderPlaced` or `order-placed.v1`, says what happened.
///
/// # Errors
///
/// A sentence that says what is wrong with it and, if there is one, a better name.
///
/// ```
/// assert_eq!(tidings_names::check_past_tense("OrderPlaced"), Ok(()));
/// let wrong = tidings_names::check_past_tense("process-payment.v1").unwrap_err();
/// assert!(wrong.ends_with("an event says what happened: `PaymentProcessed`"));
/// ```
pub fn check_past_tense(name: &str) -> Result<(), String> {
    let camel = in_camel_case(name);
    let words = words(unversioned(&camel).0);
    let Some((last, before)) = words.split_last() else {
        return Ok(());
    };
    if is_participle(last, before.is_empty()) {
        return Ok(());
    }
    Err(match suggestion(&words) {
        Some((better, true)) => {
            format!("`{name}` does not end with what happened: call it `{better}`")
        }
        Some((better, false)) => {
            format!("`{name}` tells somebody what to do; an event says what happened: `{better}`")
        }
        None => format!(
            "`{name}` does not say what happened; an event is a fact in the past tense, as \
             `OrderPlaced` or `PaymentFailed`"
        ),
    })
}

/// `order-placed.v1` is `OrderPlaced`; what is in camel case stays.
fn in_camel_case(name: &str) -> String {
    if !name.contains(['-', '.', '_', ' ', '/']) && name.starts_with(char::is_uppercase) {
        return name.to_owned();
    }
    let is_version = |word: &&str| {
        let digits = word.strip_prefix('v').unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_digit())
    };
    let words = name
        .split(['-', '.', '_', ' ', '/'])
        .filter(|it| !it.is_empty() && !is_version(it));
    words
        .map(|word| {
            let mut rest = word.chars();
            let first = rest.next().map(char::to_uppercase);
            first.into_iter().flatten().chain(rest).collect::<String>()
        })
        .collect()
}

/// `OrderPlaced` is `order-placed.v1`; `OrderPlacedV2` is `order-placed.v2`.
pub fn wire_name(name: &str) -> String {
    let (name, version) = unversioned(name);
    let words: Vec<String> = words(name).iter().map(|word| word.to_lowercase()).collect();
    format!("{}.v{version}", words.join("-"))
}

/// The name without its `V2`, and the version.
fn unversioned(name: &str) -> (&str, &str) {
    match name.rsplit_once('V') {
        Some((rest, version))
            if !rest.is_empty()
                && !version.is_empty()
                && version.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            (rest, version)
        }
        _ => (name, "1"),
    }
}

/// The words of a name in camel case; `HTTPServer` has two.
fn words(name: &str) -> Vec<&str> {
    let bytes = name.as_bytes();
    let mut words = Vec::new();
    let mut start = 0;
    for end in 1..=bytes.len() {
        let boundary = end == bytes.len()
            || bytes[end] == b'_'
            || (bytes[end].is_ascii_uppercase()
                && (!bytes[end - 1].is_ascii_uppercase()
                    || bytes.get(end + 1).is_some_and(u8::is_ascii_lowercase)));
        if boundary && name.is_char_boundary(end) {
            words.extend(Some(name[start..end].trim_matches('_')).filter(|word| !word.is_empty()));
            start = end;
        }
    }
    words
}

fn is_participle(word: &str, alone: bool) -> bool {
    let word = word.to_lowercase();
    if let Some((base, _)) = IRREGULAR.iter().find(|(_, participle)| *participle == word) {
        // `Reset` alone is an instruction, `PasswordReset` is a fact.
        return !(alone && *base == word);
    }
    word.ends_with("ed") && !NOT_PARTICIPLES.contains(&word.as_str())
}

/// A better name, and whether it only lacks a suffix.
fn suggestion(words: &[&str]) -> Option<(String, bool)> {
    let kept = words.iter().rposition(|word| !SUFFIXES.contains(word))? + 1;
    let words = &words[..kept];
    if is_participle(words[kept - 1], kept == 1) {
        return Some((words.concat(), true));
    }
    let (verb, object) = words.split_first()?;
    if object.is_empty() {
        return None;
    }
    let base = verb.to_lowercase();
    let is_verb = VERBS.contains(&base.as_str()) || IRREGULAR.iter().any(|(verb, _)| *verb == base);
    is_verb.then(|| (format!("{}{}", object.concat(), participle(verb)), false))
}

/// Regular verbs that commands are often named with.
#[rustfmt::skip]
const VERBS: &[&str] = &[
    "accept", "activate", "add", "allocate", "approve", "archive", "assign", "authorize", "book",
    "calculate", "cancel", "capture", "change", "charge", "check", "clear", "close", "complete",
    "confirm", "copy", "create", "credit", "debit", "decline", "delete", "deliver", "deny",
    "disable", "dispatch", "enable", "execute", "expire", "fail", "finish", "fulfil", "handle",
    "import", "increase", "decrease", "issue", "load", "lock", "merge", "move", "notify", "open",
    "pack", "pick", "place", "print", "process", "publish", "receive", "record", "refund",
    "register", "reject", "release", "remove", "rename", "request", "reserve", "resume", "retry",
    "return", "schedule", "ship", "sign", "start", "stop", "store", "submit", "subscribe",
    "suspend", "transfer", "trigger", "unlock", "unsubscribe", "update", "upload", "validate",
    "verify",
];

fn participle(verb: &str) -> String {
    let base = verb.to_lowercase();
    let participle = match IRREGULAR.iter().find(|(verb, _)| *verb == base) {
        Some((_, participle)) => (*participle).to_owned(),
        None if base.ends_with('e') => format!("{base}d"),
        None if DOUBLING.contains(&base.as_str()) => {
            let last = &base[base.len() - 1..];
            format!("{base}{last}ed")
        }
        None => match base.strip_suffix('y') {
            Some(stem) if !stem.ends_with(['a', 'e', 'i', 'o', 'u']) => format!("{stem}ied"),
            _ => format!("{base}ed"),
        },
    };
    let (first, rest) = participle.split_at(1);
    first.to_uppercase() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_say_what_happened_are_accepted() {
        for name in [
            "OrderPlaced",
            "PaymentFailed",
            "InvoicePaid",
            "EmailSent",
            "StockFound",
            "CardLost",
            "FundsHeld",
            "TrialBegun",
            "ItemSold",
            "TicketBought",
            "ParcelShipped",
            "PasswordReset",
            "MessageRead",
            "OrderPlacedV2",
            "Shipped",
            "HTTPServerStarted",
            "OrderCancelled",
            "KeyEmbedded",
            "MoneyWithdrawn",
            "order-placed.v1",
            "com.example.order_placed",
        ] {
            assert_eq!(check_past_tense(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn other_names_are_refused_with_a_better_one() {
        for (name, better) in [
            ("ProcessPaymentNow", "PaymentProcessed"),
            ("ShipOrder", "OrderShipped"),
            ("SendEmail", "EmailSent"),
            ("NotifyCustomer", "CustomerNotified"),
            ("CancelOrder", "OrderCancelled"),
            ("ResetPassword", "PasswordReset"),
            ("PayInvoice", "InvoicePaid"),
            ("FulfilOrder", "OrderFulfilled"),
            ("OrderPlacedEvent", "OrderPlaced"),
            ("process-payment-now.v2", "PaymentProcessed"),
        ] {
            let explanation = check_past_tense(name).expect_err(name);
            assert!(
                explanation.contains(&format!("`{better}`")),
                "{name}: {explanation}"
            );
        }
    }

    #[test]
    fn words_that_end_in_ed_by_chance_are_not_the_past() {
        for name in [
            "ServiceNeed",
            "StockFeed",
            "TopSpeed",
            "OrderCreation",
            "Reset",
            "Payment",
        ] {
            assert!(check_past_tense(name).is_err(), "{name}");
        }
    }

    #[test]
    fn wire_names_are_kebab_case_with_a_version() {
        for (name, wire) in [
            ("OrderPlaced", "order-placed.v1"),
            ("OrderPlacedV12", "order-placed.v12"),
            ("HTTPServerStarted", "http-server-started.v1"),
            ("Shipped", "shipped.v1"),
        ] {
            assert_eq!(wire_name(name), wire);
        }
    }
}
