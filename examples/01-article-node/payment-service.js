// The payment service of the article: handles each order that is placed, and acknowledges it.
//
//   node payment-service.js          (Ctrl-C ends it)
//
// What a toolkit adds to this: a crash between the charge and `ack` charges twice, and a body
// that is not JSON ends the program. The shop's own payment service shows both handled.

const amqp = require('amqplib');

const url = process.env.AMQP_URL || 'amqp://localhost';
const exchange = 'order_events';
const queue = 'payment_processor_queue';

async function startPaymentConsumer() {
  const connection = await amqp.connect(url);
  const channel = await connection.createChannel();
  await channel.assertExchange(exchange, 'fanout', { durable: true });
  await channel.assertQueue(queue, { durable: true });
  await channel.bindQueue(queue, exchange, '');

  await channel.consume(queue, (message) => {
    if (message === null) return; // the queue was deleted
    const order = JSON.parse(message.content.toString());
    console.log(`[Payment Service] Received order ${order.orderId}: charging $${order.amount}`);
    channel.ack(message);
  });
  console.log(`[Payment Service] Waiting for events in ${queue}`);
}

startPaymentConsumer().catch((error) => {
  console.error('[Payment Service]', error.message);
  process.exitCode = 1;
});
