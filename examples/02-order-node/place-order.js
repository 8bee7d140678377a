// Places an order in a running shop with nothing but an AMQP client: a bare JSON body, no headers,
// no message id. The order's id is its identity, so publishing it often is still one order, which
// the payment service charges once.
//
//   node place-order.js ORDER-ID [AMOUNT] [TIMES]

const amqp = require('amqplib');

async function main() {
  const [orderId, amount = '99.99', times = '1'] = process.argv.slice(2);
  if (!orderId) throw new Error('say which order: node place-order.js ORDER-ID [AMOUNT] [TIMES]');

  const connection = await amqp.connect(process.env.AMQP_URL || 'amqp://localhost');
  const channel = await connection.createConfirmChannel();
  await channel.assertExchange('order_events', 'fanout', { durable: true });

  const order = {
    orderId,
    amount: Number(amount),
    timestamp: new Date().toISOString(),
    status: 'CREATED',
  };
  const body = Buffer.from(JSON.stringify(order));
  for (let i = 0; i < Number(times); i += 1) channel.publish('order_events', '', body);
  await channel.waitForConfirms();
  console.log(`published ${orderId} ${times} time(s)`);

  await connection.close();
}

main().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
