// The order service of the article on Kafka: announces an order, to whoever listens. Sent into a running shop, the order is
// worked off there; its id is its identity, so sending it often is still one order, which is charged once.
//
//   KAFKA_BROKERS=localhost:9092 node order-service.js [ORDER-ID] [AMOUNT] [TIMES]

const { Kafka, Partitioners, logLevel } = require('kafkajs');

const brokers = (process.env.KAFKA_BROKERS || 'localhost:9092').split(',');
const topic = 'order_events';

async function createOrder({ id, total, times }) {
  const kafka = new Kafka({ clientId: 'order-service', brokers, logLevel: logLevel.ERROR });
  const admin = kafka.admin();
  await admin.connect();
  await admin.createTopics({ topics: [{ topic }] }); // says so and does nothing when it is there
  await admin.disconnect();

  // `idempotent` and `acks: -1`: what is confirmed is on all replicas in sync, once and in order.
  const producer = kafka.producer({
    idempotent: true,
    createPartitioner: Partitioners.DefaultPartitioner,
  });
  await producer.connect();
  const event = {
    orderId: id,
    amount: total,
    timestamp: new Date().toISOString(),
    status: 'CREATED',
  };
  // The key: what happens to one order is in one partition, in order.
  const message = { key: id, value: JSON.stringify(event) };
  await producer.send({ topic, acks: -1, messages: Array(times).fill(message) });
  console.log(`[Order Service] Event published: order ${id}, ${times} time(s)`);
  await producer.disconnect();
}

const [id = 'ORD-123', total = '99.99', times = '1'] = process.argv.slice(2);
createOrder({ id, total: Number(total), times: Number(times) }).catch((error) => {
  console.error('[Order Service]', error.message);
  process.exitCode = 1;
});
