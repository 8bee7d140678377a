//! A foreign program: a client that knows nothing but AMQP, one frame after the other.

use bytes::{Bytes, BytesMut};
use tidings_wire::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const FRAME_MAX: u32 = 131_072;

pub(crate) struct Raw {
    stream: TcpStream,
    read: BytesMut,
}

impl Raw {
    /// Logs in as guest and opens channel 1, in confirm mode.
    pub(crate) async fn connect(url: &str) -> Self {
        let place = url.split_once('@').expect("a URL with a user").1;
        let place = place.split('/').next().expect("a host");
        let stream = TcpStream::connect(place).await.expect("it listens");
        let mut raw = Self {
            stream,
            read: BytesMut::new(),
        };
        raw.stream
            .write_all(&PROTOCOL_HEADER)
            .await
            .expect("written");
        raw.method().await;
        let start_ok = ConnectionStartOk {
            mechanism: ShortStr::from_static("PLAIN"),
            response: Bytes::from_static(b"\0guest\0guest"),
            locale: ShortStr::from_static("en_US"),
            ..ConnectionStartOk::default()
        };
        raw.call(0, &start_ok).await;
        let tune_ok = ConnectionTuneOk {
            channel_max: 1,
            frame_max: FRAME_MAX,
            heartbeat: 0,
        };
        raw.send(|out| encode_method(out, 0, &tune_ok)).await;
        let open = ConnectionOpen {
            virtual_host: ShortStr::from_static("/"),
        };
        raw.call(0, &open).await;
        raw.call(1, &ChannelOpen {}).await;
        raw.call(1, &ConfirmSelect::default()).await;
        raw
    }

    async fn send(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        let mut out = BytesMut::new();
        encode(&mut out);
        self.stream.write_all(&out).await.expect("written");
    }

    async fn method(&mut self) -> Method {
        loop {
            let frame = decode_frame(&mut self.read, FRAME_MAX).expect("AMQP");
            if let Some(Frame {
                payload: Payload::Method(method),
                ..
            }) = frame
            {
                return method;
            }
            let count = self.stream.read_buf(&mut self.read).await.expect("read");
            assert!(count > 0, "the broker hung up");
        }
    }

    /// Sends a method and returns what answers it.
    pub(crate) async fn call(&mut self, channel: u16, method: &impl EncodeMethod) -> Method {
        self.send(|out| encode_method(out, channel, method)).await;
        self.method().await
    }

    /// Publishes and waits for the confirm.
    pub(crate) async fn publish(
        &mut self,
        exchange: &str,
        routing_key: &str,
        properties: &BasicProperties,
        body: &[u8],
    ) {
        let properties = properties.encode();
        let (bytes, max) = (properties.as_bytes(), FRAME_MAX);
        self.send(|out| {
            encode_publish(out, 1, exchange, routing_key, true, bytes, body, max)
                .expect("short names");
        })
        .await;
        let answer = self.method().await;
        assert!(matches!(answer, Method::BasicAck(_)), "{answer:?}");
    }

    /// A durable queue.
    pub(crate) async fn declare_queue(&mut self, queue: &str, arguments: &[(&str, Value)]) {
        let mut table = Table::builder();
        for (name, value) in arguments {
            table.push_value(name, value).expect("a short name");
        }
        let declare = QueueDeclare {
            queue: queue.try_into().expect("a short name"),
            durable: true,
            arguments: table.build(),
            ..QueueDeclare::default()
        };
        let answer = self.call(1, &declare).await;
        assert!(matches!(answer, Method::QueueDeclareOk(_)), "{answer:?}");
    }

    pub(crate) async fn bind(&mut self, queue: &str, exchange: &str) {
        let bind = QueueBind {
            queue: queue.try_into().expect("a short name"),
            exchange: exchange.try_into().expect("a short name"),
            ..QueueBind::default()
        };
        let answer = self.call(1, &bind).await;
        assert!(matches!(answer, Method::QueueBindOk(_)), "{answer:?}");
    }

    /// Asks whether a queue is there.
    pub(crate) async fn look(&mut self, queue: &str) -> Method {
        let look = QueueDeclare {
            queue: queue.try_into().expect("a short name"),
            passive: true,
            ..QueueDeclare::default()
        };
        self.call(1, &look).await
    }

    /// How many messages wait in the queue. `None`, and an end of the channel, if there is none.
    pub(crate) async fn count(&mut self, queue: &str) -> Option<u32> {
        match self.look(queue).await {
            Method::QueueDeclareOk(ok) => Some(ok.message_count),
            Method::ChannelClose(close) if close.reply_code == reply::NOT_FOUND => None,
            other => panic!("unexpected: {other:?}"),
        }
    }

    pub(crate) async fn delete_queue(&mut self, queue: &str) {
        let delete = QueueDelete {
            queue: queue.try_into().expect("a short name"),
            ..QueueDelete::default()
        };
        let answer = self.call(1, &delete).await;
        assert!(matches!(answer, Method::QueueDeleteOk(_)), "{answer:?}");
    }

    pub(crate) async fn delete_exchange(&mut self, exchange: &str) {
        let delete = ExchangeDelete {
            exchange: exchange.try_into().expect("a short name"),
            ..ExchangeDelete::default()
        };
        let answer = self.call(1, &delete).await;
        assert!(matches!(answer, Method::ExchangeDeleteOk(_)), "{answer:?}");
    }
}
