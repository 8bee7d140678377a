//! A build without the feature `registry`: nothing is written or read by schemas, and a URL that asks for it is refused.

use std::sync::Arc;

use tidings_core::{Destination, Envelope, PublishError, TransportError};

use crate::address::SchemaOptions;

/// There is none.
#[derive(Debug)]
pub(crate) enum Schemas {}

/// There is none.
#[expect(
    dead_code,
    reason = "it has the shape of what is in a build with registries"
)]
pub(crate) enum Unread {
    Later(std::convert::Infallible),
    Never(String),
}

impl Schemas {
    pub(crate) fn of(options: &SchemaOptions) -> Result<Option<Self>, TransportError> {
        let SchemaOptions {
            registry,
            subjects,
            without,
        } = options;
        match [registry, subjects, without].iter().any(|it| it.is_some()) {
            false => Ok(None),
            true => Err(TransportError::fatal(
                "this program was built without schema registries for Kafka: build it with the feature `registry` of \
                 `tidings-kafka`, or leave `schema_registry` out of the broker's URL",
            )),
        }
    }

    pub(crate) async fn write<'a>(
        &self,
        _: impl Iterator<Item = (&'a Destination, &'a mut Envelope)>,
    ) -> Vec<Option<PublishError>> {
        match *self {}
    }

    pub(crate) async fn read(&self, _: &Arc<Envelope>, _: bool) -> Result<Arc<Envelope>, Unread> {
        match *self {}
    }
}
