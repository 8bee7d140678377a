// The order service of the article on Amazon SNS: announces an order, to whoever listens. Sent into a running shop, the order is
// worked off there; its id is its identity, so sending it often is still one order, which is charged once.
//
//   SHOP_PREFIX=shop- node order-service.js [ORDER-ID] [AMOUNT] [TIMES]
//
// Region, credentials and endpoint come from the SDK's own variables: AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
// AWS_ENDPOINT_URL. The topic is there, because the shop has made it.

const { randomUUID } = require('node:crypto');
const { SNSClient, paginateListTopics, PublishCommand } = require('@aws-sdk/client-sns');

const topic = `${process.env.SHOP_PREFIX || ''}order_events.fifo`;

async function arnOf(sns) {
  for await (const page of paginateListTopics({ client: sns }, {})) {
    const found = (page.Topics || []).find(({ TopicArn }) => TopicArn.endsWith(`:${topic}`));
    if (found) return found.TopicArn;
  }
  throw new Error(`there is no topic ${topic}; does the shop run, and is SHOP_PREFIX the one of its URL?`);
}

async function createOrder({ id, total, times }) {
  const sns = new SNSClient({});
  const event = {
    orderId: id,
    amount: total,
    timestamp: new Date().toISOString(),
    status: 'CREATED',
  };
  const TopicArn = await arnOf(sns);
  for (let i = 0; i < times; i += 1) {
    await sns.send(new PublishCommand({
      TopicArn,
      Message: JSON.stringify(event),
      // The group: what happens to one order comes in order.
      MessageGroupId: id,
      // Another one each time, so that Amazon does not leave the repetitions out: it would for five minutes only.
      MessageDeduplicationId: randomUUID(),
    }));
  }
  console.log(`[Order Service] Event published: order ${id}, ${times} time(s)`);
}

const [id = 'ORD-123', total = '99.99', times = '1'] = process.argv.slice(2);
createOrder({ id, total: Number(total), times: Number(times) }).catch((error) => {
  console.error('[Order Service]', error.message);
  process.exitCode = 1;
});
