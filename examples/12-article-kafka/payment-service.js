// The payment service of the article on Kafka: handles each order that is placed, from now on and while it was away.
//
//   KAFKA_BROKERS=localhost:9092 node payment-service.js [GROUP]         (Ctrl-C ends it)
//
// What a toolkit adds to this: a crash between the charge and the commit of the offset charges twice, and a body that is not
// JSON is read again and again and holds up its partition. The shop's own payment service shows both handled.

const { Kafka, logLevel } = require('kafkajs');

const brokers = (process.env.KAFKA_BROKERS || 'localhost:9092').split(',');
const groupId = process.argv[2] || 'payment_processor';
const topic = 'order_events';

async function startPaymentConsumer() {
  const kafka = new Kafka({ clientId: 'payment-service', brokers, logLevel: logLevel.ERROR });
  const consumer = kafka.consumer({ groupId });
  const joined = new Promise((resolve) => consumer.on(consumer.events.GROUP_JOIN, resolve));
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  await consumer.run({
    // Returning from it commits the offset, some time later.
    eachMessage: async ({ message }) => {
      const order = JSON.parse(message.value.toString());
      console.log(`[Payment Service] Received order ${order.orderId}: charging $${order.amount}`);
    },
  });
  await joined;
  console.log(`[Payment Service] Waiting for events as ${groupId}`);
  process.once('SIGINT', () => consumer.disconnect());
}

startPaymentConsumer().catch((error) => {
  console.error('[Payment Service]', error.message);
  process.exitCode = 1;
});
