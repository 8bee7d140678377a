//! Waiting for all of several steps, and for the first of two.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use super::{All, Awaited, Planned, Saga, Step, StepError, sealed};

/// Waits for all steps; made by [`Saga::all`].
#[must_use = "await it"]
pub struct WaitAll<T>(T);

impl<T> WaitAll<T> {
    pub(super) fn new(of: T) -> Self {
        Self(of)
    }
}

impl<T: All> Future for WaitAll<T> {
    type Output = Result<T::Replies, StepError>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
        match self.0.look() {
            Some(replies) => Poll::Ready(replies),
            None => {
                self.0.saga().0.lock().wait(task.waker());
                Poll::Pending
            }
        }
    }
}

macro_rules! tuples_are_all {
    ($(($first:ident $($more:ident)*))+) => {$(
        #[allow(non_snake_case)]
        impl<$first: Step, $($more: Step),*> sealed::All for (Planned<$first>, $(Planned<$more>,)*) {
            type Replies = ($first::Reply, $($more::Reply,)*);

            fn saga(&self) -> &Saga {
                &self.0.saga
            }

            fn look(&mut self) -> Option<Result<Self::Replies, StepError>> {
                use sealed::Awaited as _;
                let ($first, $($more,)*) = self;
                let looks = ($first.look(), $($more.look(),)*);
                let ($first, $($more,)*) = &looks;
                let errors = [
                    $first.as_ref().and_then(|(place, it)| Some((*place, it.as_ref().err()?))),
                    $($more.as_ref().and_then(|(place, it)| Some((*place, it.as_ref().err()?))),)*
                ];
                let first = errors.into_iter().flatten().min_by_key(|(place, _)| *place);
                if let Some((_, error)) = first {
                    return Some(Err(error.clone()));
                }
                let ($first, $($more,)*) = looks;
                let replies = ($first?.1.ok()?, $($more?.1.ok()?,)*);
                {
                    let ($first, $($more,)*) = self;
                    $first.taken();
                    $($more.taken();)*
                }
                Some(Ok(replies))
            }
        }
    )+};
}

tuples_are_all! { (A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E F) }

impl<C: Step> sealed::All for Vec<Planned<C>> {
    type Replies = Vec<C::Reply>;

    fn saga(&self) -> &Saga {
        // An error is impossible: an empty list has all its replies, and nobody waits for it.
        self.first()
            .map_or_else(|| unreachable!("nobody waits for nothing"), |it| &it.saga)
    }

    fn look(&mut self) -> Option<Result<Self::Replies, StepError>> {
        use sealed::Awaited as _;
        let looks: Vec<_> = self.iter_mut().map(sealed::Awaited::look).collect();
        let errors = looks.iter().flatten();
        let errors = errors.filter_map(|(place, it)| Some((*place, it.as_ref().err()?)));
        if let Some((_, error)) = errors.min_by_key(|(place, _)| *place) {
            return Some(Err(error.clone()));
        }
        let replies = looks.into_iter().map(|it| it?.1.ok());
        let replies = replies.collect::<Option<_>>()?;
        self.iter_mut().for_each(Planned::taken);
        Some(Ok(replies))
    }
}

/// Waits for the first of two; made by [`Saga::first`].
#[must_use = "await it"]
pub struct WaitFirst<A, B>(A, B);

impl<A, B> WaitFirst<A, B> {
    pub(super) fn new(of: (A, B)) -> Self {
        Self(of.0, of.1)
    }
}

/// Which of two came first, and what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First<A, B> {
    /// The first of the two.
    First(A),
    /// The second of the two.
    Second(B),
}

impl<A, B> First<A, B> {
    /// The first of the two came first.
    pub fn is_first(&self) -> bool {
        matches!(self, Self::First(_))
    }

    /// The second of the two came first.
    pub fn is_second(&self) -> bool {
        matches!(self, Self::Second(_))
    }
}

impl<A: Awaited, B: Awaited> Future for WaitFirst<A, B> {
    type Output = First<A::Output, B::Output>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
        let Self(first, second) = &mut *self;
        let came = match (first.look(), second.look()) {
            (Some((place, output)), other) if other.as_ref().is_none_or(|it| place < it.0) => {
                first.taken();
                First::First(output)
            }
            (_, Some((_, output))) => {
                second.taken();
                First::Second(output)
            }
            (_, None) => {
                first.saga().0.lock().wait(task.waker());
                return Poll::Pending;
            }
        };
        Poll::Ready(came)
    }
}
