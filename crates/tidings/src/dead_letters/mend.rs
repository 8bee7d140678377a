//! Editing and discarding letters. What they were before goes into the record first, so that nothing
//! is dropped silently; then the change is made, and only then the letter is taken out. Whoever dies
//! in between leaves a letter twice at worst, and a consumer knows the same message by its id.

use bytes::Bytes;
use serde::de::IgnoredAny;
use tracing::info;

use super::{
    DeadLetters,
    audit::Audit,
    error::{Code, Error},
    letter::Letter,
    selection::Selection,
    walk::{Step, Walk},
};
use crate::{
    Ask, Envelope, HOLD_TIME_MAX, HeldLetters, InboxState, LetterPlace, PublishError, RECORD_QUEUE,
    Store,
};

/// The largest body that a letter can be given.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many later letters of its key an edited letter can have behind it.
pub const FOLLOWERS_MAX: usize = 1000;

/// How many letters are read or discarded at a time.
const BATCH: usize = 100;

/// What an edit did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Edited {
    /// The letter's [id](Letter::id) now: another one than before if the message has none of its own.
    pub id: Box<str>,
    /// How many later letters of its key were put behind it again, so that they stay in order.
    pub followers: usize,
}

/// What was discarded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Discarded {
    /// How many letters.
    pub count: u64,
    /// For how many of them the consumer's store lets later messages of the key go on; zero without
    /// a store.
    pub released: u64,
}

impl DeadLetters {
    /// Gives the letter with this [`id`](Letter::id) another body. It says who did that, when and why
    /// ([`Letter::edits`]), and goes behind the other letters; later letters of its key go with it.
    /// The letter as it was is in the [record](DeadLetters::record).
    ///
    /// # Errors
    ///
    /// [`Code::NoLetter`]; [`Code::NoEdit`] if the body is the same, too large, or no JSON where the
    /// letter says that it is, or if more than [`FOLLOWERS_MAX`] letters would have to go with it;
    /// [`Code::NotTaken`]; when the letters cannot be held.
    pub async fn edit(
        &self,
        id: &str,
        body: impl Into<Bytes>,
        audit: &Audit,
    ) -> Result<Edited, Error> {
        self.check_is_no_record("edited")?;
        let body = body.into();
        let mut held = self.hold().await?;
        let (letter, followers) = self.with_followers(&mut held, id).await?;
        check_body(&letter, &body)?;
        let was = vec![letter.to_record("edited", audit)];
        self.put(RECORD_QUEUE, was).await?;
        let edited = letter.to_edit(body, audit);
        let now = Letter::id_of(&edited);
        let mut batch = vec![edited];
        batch.extend(followers.iter().map(Letter::to_put));
        self.put(&self.queue, batch).await?;
        let all = [&letter].into_iter().chain(&followers);
        let places: Vec<LetterPlace> = all.map(|letter| letter.place).collect();
        held.remove(&places).await?;
        held.release().await?;
        info!(
            id,
            by = audit.by,
            why = audit.why,
            "a dead letter was edited"
        );
        Ok(Edited {
            id: now,
            followers: followers.len(),
        })
    }

    /// Takes letters out for good, into the [record](DeadLetters::record), with who did it and why.
    /// `on` is told of each. With the consumer's [store](DeadLetters::store), later messages of its key
    /// that are parked behind it go on.
    ///
    /// # Errors
    ///
    /// When the letters cannot be held or the record is not taken: those of which `on` was not told
    /// are still there.
    pub async fn discard(
        &self,
        selection: &Selection,
        audit: &Audit,
        mut on: impl FnMut(&Letter),
    ) -> Result<Discarded, Error> {
        self.check_is_no_record("discarded")?;
        let mut walk = Walk::begin(self).await?;
        let mut discarded = Discarded::default();
        loop {
            let letters = match walk.next(BATCH).await? {
                Step::Letters(letters) => letters,
                Step::Restarted => continue,
                Step::End => break,
            };
            let chosen = letters.into_iter().filter(|it| selection.contains(it));
            let chosen: Vec<Letter> = chosen.collect();
            if !chosen.is_empty() {
                let records = chosen.iter().map(|it| it.to_record("discarded", audit));
                self.put(RECORD_QUEUE, records.collect()).await?;
                discarded.released += self.let_followers_go(&chosen).await?;
                let places: Vec<LetterPlace> = chosen.iter().map(|it| it.place).collect();
                if walk.remove(&places).await? {
                    discarded.count += chosen.len() as u64;
                    for letter in &chosen {
                        let id = &*letter.id;
                        info!(
                            id,
                            by = audit.by,
                            why = audit.why,
                            "a dead letter was discarded"
                        );
                        on(letter);
                    }
                }
            }
            if walk.is_too_long() {
                walk.pause().await?;
            }
        }
        walk.pause().await?;
        Ok(discarded)
    }

    fn check_is_no_record(&self, what: &str) -> Result<(), Error> {
        if *self.queue != *RECORD_QUEUE {
            return Ok(());
        }
        let says = format!(
            "letters in the record cannot be {what}: they are what was, and the oldest make room by \
             themselves"
        );
        Err(Error::new(Code::NoEdit, says))
    }

    /// The letter, and those of its key behind it.
    async fn with_followers(
        &self,
        held: &mut Box<dyn HeldLetters>,
        id: &str,
    ) -> Result<(Letter, Vec<Letter>), Error> {
        let began = tokio::time::Instant::now();
        let mut found: Option<Letter> = None;
        let mut followers = Vec::new();
        loop {
            let next = held.next(BATCH).await?;
            if next.is_empty() {
                break;
            }
            if began.elapsed() > HOLD_TIME_MAX {
                let says = "it took too long to read all letters; redrive or discard some first";
                return Err(Error::new(Code::NoEdit, says));
            }
            for letter in next {
                let letter = Letter::new(letter, &self.consumer);
                match &found {
                    None if *letter.id == *id => found = Some(letter),
                    Some(first) if follows(first, &letter) => followers.push(letter),
                    _ => {}
                }
            }
            if followers.len() > FOLLOWERS_MAX {
                let says = format!(
                    "more than {FOLLOWERS_MAX} later letters have the key of `{id}`, and would have \
                     to go behind it again; redrive or discard some first"
                );
                return Err(Error::new(Code::NoEdit, says));
            }
        }
        let letter = found.ok_or_else(|| Error::no_letter(id, &self.consumer))?;
        Ok((letter, followers))
    }

    /// Puts letters into a queue, all of them.
    async fn put(&self, queue: &str, batch: Vec<Envelope>) -> Result<(), Error> {
        let outcomes = self.access()?.put(queue, batch).await;
        match outcomes.into_iter().find_map(Result::err) {
            None => Ok(()),
            Some(error) => Err(not_taken(queue, &error)),
        }
    }

    /// Lets later messages of the keys of these letters go on. Only a row that is dead since this
    /// letter: a later redrive may be under way.
    async fn let_followers_go(&self, letters: &[Letter]) -> Result<u64, Error> {
        let Some(store) = &self.store else {
            return Ok(0);
        };
        let with_claims = letters
            .iter()
            .filter_map(|letter| Some((letter.number, letter.claim()?)));
        let (numbers, claims): (Vec<u32>, Vec<_>) = with_claims.unzip();
        let asks = claims.iter().map(|claim| Ask {
            claim: claim.clone(),
            order: None,
        });
        let asks: Vec<Ask> = asks.collect();
        let seen = Store::look(&**store, &asks).await?;
        let known = claims.into_iter().zip(numbers).zip(seen);
        let dead = known.filter(|((_, number), seen)| {
            seen.state == Some(InboxState::Dead) && seen.redrive <= *number
        });
        let dead: Vec<_> = dead.map(|((claim, _), _)| claim).collect();
        Ok(store.deferred().discard(&dead).await?)
    }
}

pub(super) fn not_taken(queue: &str, error: &PublishError) -> Error {
    let says = format!("the queue `{queue}` did not take what was put there: {error}");
    Error::new(Code::NotTaken, says)
}

/// True for a later letter of the same key.
fn follows(first: &Letter, letter: &Letter) -> bool {
    first.envelope.key.is_some() && first.envelope.key == letter.envelope.key
}

fn check_body(letter: &Letter, body: &Bytes) -> Result<(), Error> {
    let refuse = |says: String| Err(Error::new(Code::NoEdit, says));
    if *body == letter.envelope.body {
        return refuse(format!("the body of `{}` is what it was", letter.id));
    }
    if body.len() > BODY_BYTES_MAX {
        return refuse(format!(
            "the new body has {} bytes; at most {BODY_BYTES_MAX} are possible",
            body.len()
        ));
    }
    let kind = &letter.envelope.content_type;
    if (kind.is_empty() || kind.contains("json"))
        && let Err(error) = serde_json::from_slice::<IgnoredAny>(body)
    {
        return refuse(format!("the new body is no JSON: {error}; mend it"));
    }
    Ok(())
}
