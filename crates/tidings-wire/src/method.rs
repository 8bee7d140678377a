//! The 66 methods of AMQP 0-9-1 as RabbitMQ speaks it, in one table.
//!
//! A row is `METHOD-ID Name { fields } // comment`; `skip(types)` before or after the fields are the
//! specification's reserved ones: written as zero, ignored when read.

use bytes::{Bytes, BytesMut};

use crate::{
    ShortStr, Table, WireError,
    reader::Reader,
    reply,
    writer::{Put, Writer},
};

/// Anything that can be the payload of a method frame: a [`Method`] or one of its structs.
pub trait EncodeMethod {
    /// The class of the method.
    fn class_id(&self) -> u16;
    /// Its id within the class.
    fn method_id(&self) -> u16;
    /// Writes the arguments.
    fn encode_arguments(&self, out: &mut BytesMut);
}

macro_rules! methods {
    ($(
        class $class_id:literal $class:literal {$(
            $method_id:literal $text:literal $name:ident
                $(skip($($before:ty),+))? {$($field:ident: $type:ty),*} $(skip($($after:ty),+))?;
        )+}
    )+) => {
        /// A method with its arguments.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "each is named after its struct")]
        pub enum Method {
            $($($name($name),)+)+
        }

        $($(
            #[doc = concat!("`", $class, ".", $text, "`")]
            #[derive(Debug, Clone, PartialEq, Default)]
            #[allow(missing_docs, reason = "the specification's names")]
            pub struct $name {
                $(pub $field: $type,)*
            }

            impl $name {
                /// The class of this method.
                pub const CLASS_ID: u16 = $class_id;
                /// Its id within the class.
                pub const METHOD_ID: u16 = $method_id;

                #[allow(unused_variables, clippy::needless_pass_by_ref_mut)]
                fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
                    $($(reader.field::<$before>()?;)+)?
                    Ok(Self { $($field: reader.field()?,)* })
                }
            }

            impl EncodeMethod for $name {
                fn class_id(&self) -> u16 {
                    $class_id
                }

                fn method_id(&self) -> u16 {
                    $method_id
                }

                #[allow(unused_mut, unused_variables)]
                fn encode_arguments(&self, out: &mut BytesMut) {
                    let mut writer = Writer::new(out);
                    $($(<$before>::default().put(&mut writer);)+)?
                    $(writer.field(&self.$field);)*
                    $($(<$after>::default().put(&mut writer);)+)?
                }
            }

            impl From<$name> for Method {
                fn from(method: $name) -> Self {
                    Self::$name(method)
                }
            }
        )+)+

        impl Method {
            /// Decodes the arguments of a method.
            ///
            /// # Errors
            ///
            /// 540 for a method that does not exist, 502 for arguments that are not its own.
            pub fn decode(
                class_id: u16,
                method_id: u16,
                arguments: &Bytes,
            ) -> Result<Self, WireError> {
                let mut reader = Reader::new(arguments);
                match (class_id, method_id) {
                    $($(($class_id, $method_id) => $name::read(&mut reader).map(Self::$name),)+)+
                    _ => Err(WireError::new(
                        reply::NOT_IMPLEMENTED,
                        format!("there is no method {method_id} in class {class_id}"),
                    )),
                }
                .map_err(|error| error.within(class_id, method_id))
            }

            /// What people call it: `basic.publish`.
            pub const fn name(&self) -> &'static str {
                match self {
                    $($(Self::$name(_) => concat!($class, ".", $text),)+)+
                }
            }

            /// Every method with empty arguments, in the order of the table.
            pub fn all() -> Vec<Self> {
                vec![$($($name::default().into(),)+)+]
            }
        }

        impl EncodeMethod for Method {
            fn class_id(&self) -> u16 {
                match self {
                    $($(Self::$name(_) => $class_id,)+)+
                }
            }

            fn method_id(&self) -> u16 {
                match self {
                    $($(Self::$name(_) => $method_id,)+)+
                }
            }

            fn encode_arguments(&self, out: &mut BytesMut) {
                match self {
                    $($(Self::$name(method) => method.encode_arguments(out),)+)+
                }
            }
        }
    };
}

methods! {
    class 10 "connection" {
        10 "start" ConnectionStart {
            version_major: u8, version_minor: u8, server_properties: Table,
            mechanisms: Bytes, locales: Bytes
        };
        11 "start-ok" ConnectionStartOk {
            client_properties: Table, mechanism: ShortStr, response: Bytes, locale: ShortStr
        };
        20 "secure" ConnectionSecure { challenge: Bytes };
        21 "secure-ok" ConnectionSecureOk { response: Bytes };
        30 "tune" ConnectionTune { channel_max: u16, frame_max: u32, heartbeat: u16 };
        31 "tune-ok" ConnectionTuneOk { channel_max: u16, frame_max: u32, heartbeat: u16 };
        40 "open" ConnectionOpen { virtual_host: ShortStr } skip(ShortStr, bool);
        41 "open-ok" ConnectionOpenOk {} skip(ShortStr);
        50 "close" ConnectionClose {
            reply_code: u16, reply_text: ShortStr, class_id: u16, method_id: u16
        };
        51 "close-ok" ConnectionCloseOk {};
        60 "blocked" ConnectionBlocked { reason: ShortStr };
        61 "unblocked" ConnectionUnblocked {};
        70 "update-secret" ConnectionUpdateSecret { new_secret: Bytes, reason: ShortStr };
        71 "update-secret-ok" ConnectionUpdateSecretOk {};
    }
    class 20 "channel" {
        10 "open" ChannelOpen {} skip(ShortStr);
        11 "open-ok" ChannelOpenOk {} skip(Bytes);
        20 "flow" ChannelFlow { active: bool };
        21 "flow-ok" ChannelFlowOk { active: bool };
        40 "close" ChannelClose {
            reply_code: u16, reply_text: ShortStr, class_id: u16, method_id: u16
        };
        41 "close-ok" ChannelCloseOk {};
    }
    class 30 "access" {
        10 "request" AccessRequest {
            realm: ShortStr, exclusive: bool, passive: bool, active: bool, write: bool, read: bool
        };
        11 "request-ok" AccessRequestOk { ticket: u16 };
    }
    class 40 "exchange" {
        10 "declare" ExchangeDeclare skip(u16) {
            exchange: ShortStr, kind: ShortStr, passive: bool, durable: bool, auto_delete: bool,
            internal: bool, no_wait: bool, arguments: Table
        };
        11 "declare-ok" ExchangeDeclareOk {};
        20 "delete" ExchangeDelete skip(u16) {
            exchange: ShortStr, if_unused: bool, no_wait: bool
        };
        21 "delete-ok" ExchangeDeleteOk {};
        30 "bind" ExchangeBind skip(u16) {
            destination: ShortStr, source: ShortStr, routing_key: ShortStr, no_wait: bool,
            arguments: Table
        };
        31 "bind-ok" ExchangeBindOk {};
        40 "unbind" ExchangeUnbind skip(u16) {
            destination: ShortStr, source: ShortStr, routing_key: ShortStr, no_wait: bool,
            arguments: Table
        };
        51 "unbind-ok" ExchangeUnbindOk {};
    }
    class 50 "queue" {
        10 "declare" QueueDeclare skip(u16) {
            queue: ShortStr, passive: bool, durable: bool, exclusive: bool, auto_delete: bool,
            no_wait: bool, arguments: Table
        };
        11 "declare-ok" QueueDeclareOk {
            queue: ShortStr, message_count: u32, consumer_count: u32
        };
        20 "bind" QueueBind skip(u16) {
            queue: ShortStr, exchange: ShortStr, routing_key: ShortStr, no_wait: bool,
            arguments: Table
        };
        21 "bind-ok" QueueBindOk {};
        30 "purge" QueuePurge skip(u16) { queue: ShortStr, no_wait: bool };
        31 "purge-ok" QueuePurgeOk { message_count: u32 };
        40 "delete" QueueDelete skip(u16) {
            queue: ShortStr, if_unused: bool, if_empty: bool, no_wait: bool
        };
        41 "delete-ok" QueueDeleteOk { message_count: u32 };
        50 "unbind" QueueUnbind skip(u16) {
            queue: ShortStr, exchange: ShortStr, routing_key: ShortStr, arguments: Table
        };
        51 "unbind-ok" QueueUnbindOk {};
    }
    class 60 "basic" {
        10 "qos" BasicQos { prefetch_size: u32, prefetch_count: u16, global: bool };
        11 "qos-ok" BasicQosOk {};
        20 "consume" BasicConsume skip(u16) {
            queue: ShortStr, consumer_tag: ShortStr, no_local: bool, no_ack: bool,
            exclusive: bool, no_wait: bool, arguments: Table
        };
        21 "consume-ok" BasicConsumeOk { consumer_tag: ShortStr };
        30 "cancel" BasicCancel { consumer_tag: ShortStr, no_wait: bool };
        31 "cancel-ok" BasicCancelOk { consumer_tag: ShortStr };
        40 "publish" BasicPublish skip(u16) {
            exchange: ShortStr, routing_key: ShortStr, mandatory: bool, immediate: bool
        };
        50 "return" BasicReturn {
            reply_code: u16, reply_text: ShortStr, exchange: ShortStr, routing_key: ShortStr
        };
        60 "deliver" BasicDeliver {
            consumer_tag: ShortStr, delivery_tag: u64, redelivered: bool, exchange: ShortStr,
            routing_key: ShortStr
        };
        70 "get" BasicGet skip(u16) { queue: ShortStr, no_ack: bool };
        71 "get-ok" BasicGetOk {
            delivery_tag: u64, redelivered: bool, exchange: ShortStr, routing_key: ShortStr,
            message_count: u32
        };
        72 "get-empty" BasicGetEmpty {} skip(ShortStr);
        80 "ack" BasicAck { delivery_tag: u64, multiple: bool };
        90 "reject" BasicReject { delivery_tag: u64, requeue: bool };
        100 "recover-async" BasicRecoverAsync { requeue: bool };
        110 "recover" BasicRecover { requeue: bool };
        111 "recover-ok" BasicRecoverOk {};
        120 "nack" BasicNack { delivery_tag: u64, multiple: bool, requeue: bool };
    }
    class 85 "confirm" {
        10 "select" ConfirmSelect { no_wait: bool };
        11 "select-ok" ConfirmSelectOk {};
    }
    class 90 "tx" {
        10 "select" TxSelect {};
        11 "select-ok" TxSelectOk {};
        20 "commit" TxCommit {};
        21 "commit-ok" TxCommitOk {};
        30 "rollback" TxRollback {};
        31 "rollback-ok" TxRollbackOk {};
    }
}

impl Method {
    /// True if a header frame and body frames follow this method.
    pub const fn has_content(&self) -> bool {
        matches!(
            self,
            Self::BasicPublish(_)
                | Self::BasicReturn(_)
                | Self::BasicDeliver(_)
                | Self::BasicGetOk(_)
        )
    }
}
