// The order service of the article: announces that an order was placed, to whoever listens.
//
//   node order-service.js [ORDER-ID] [AMOUNT]

const amqp = require('amqplib');

const url = process.env.AMQP_URL || 'amqp://localhost';
const exchange = 'order_events';

async function createOrder({ id, total }) {
  const connection = await amqp.connect(url);
  // A confirm channel answers for each message: without it, closing right away could lose it.
  const channel = await connection.createConfirmChannel();
  await channel.assertExchange(exchange, 'fanout', { durable: true });

  const event = {
    orderId: id,
    amount: total,
    timestamp: new Date().toISOString(),
    status: 'CREATED',
  };
  channel.publish(exchange, '', Buffer.from(JSON.stringify(event)), { persistent: true });
  await channel.waitForConfirms();
  console.log(`[Order Service] Event published: order ${id}`);

  await connection.close();
}

const [id = 'ORD-123', total = '99.99'] = process.argv.slice(2);
createOrder({ id, total: Number(total) }).catch((error) => {
  console.error('[Order Service]', error.message);
  process.exitCode = 1;
});
