// The payment service of the article on Amazon SQS: has a queue of its own that gets each order from then on, also while the
// service is away.
//
//   SHOP_PREFIX=shop- node payment-service.js [QUEUE]         (Ctrl-C ends it)
//
// Region, credentials and endpoint come from the SDK's own variables, as for order-service.js.
//
// What a toolkit adds to this: a crash between the charge and the deletion charges twice, a charge that takes longer than the
// message is hidden is made twice, and a body that is not JSON comes back again and again and holds up its order. The shop's own
// payment service shows all three handled.

const {
  SNSClient, paginateListTopics, SubscribeCommand,
} = require('@aws-sdk/client-sns');
const {
  SQSClient, CreateQueueCommand, DeleteMessageCommand, GetQueueAttributesCommand, ReceiveMessageCommand,
  SetQueueAttributesCommand,
} = require('@aws-sdk/client-sqs');

const prefix = process.env.SHOP_PREFIX || '';
const topic = `${prefix}order_events.fifo`;
const queue = `${prefix}${process.argv[2] || 'payment_processor'}.fifo`;

async function arnOf(sns) {
  for await (const page of paginateListTopics({ client: sns }, {})) {
    const found = (page.Topics || []).find(({ TopicArn }) => TopicArn.endsWith(`:${topic}`));
    if (found) return found.TopicArn;
  }
  throw new Error(`there is no topic ${topic}; does the shop run, and is SHOP_PREFIX the one of its URL?`);
}

// The topic may send to the queue.
function policy(QueueArn, TopicArn) {
  return JSON.stringify({
    Version: '2012-10-17',
    Statement: [{
      Effect: 'Allow',
      Principal: { Service: 'sns.amazonaws.com' },
      Action: 'sqs:SendMessage',
      Resource: QueueArn,
      Condition: { ArnEquals: { 'aws:SourceArn': TopicArn } },
    }],
  });
}

async function subscribe(sns, sqs) {
  const TopicArn = await arnOf(sns);
  const { QueueUrl } = await sqs.send(new CreateQueueCommand({
    QueueName: queue,
    Attributes: { FifoQueue: 'true' },
  }));
  const asked = { QueueUrl, AttributeNames: ['QueueArn'] };
  const { Attributes: { QueueArn } } = await sqs.send(new GetQueueAttributesCommand(asked));
  const Attributes = { Policy: policy(QueueArn, TopicArn) };
  await sqs.send(new SetQueueAttributesCommand({ QueueUrl, Attributes }));
  await sns.send(new SubscribeCommand({
    TopicArn,
    Protocol: 'sqs',
    Endpoint: QueueArn,
    // The event as it was published, without an envelope of Amazon's around it.
    Attributes: { RawMessageDelivery: 'true' },
  }));
  return QueueUrl;
}

async function startPaymentConsumer() {
  const [sns, sqs] = [new SNSClient({}), new SQSClient({})];
  const QueueUrl = await subscribe(sns, sqs);
  console.log(`[Payment Service] Waiting for events in ${queue}`);
  let isOver = false;
  process.once('SIGINT', () => { isOver = true; });
  while (!isOver) {
    const wanted = { QueueUrl, MaxNumberOfMessages: 10, WaitTimeSeconds: 5 };
    const { Messages = [] } = await sqs.send(new ReceiveMessageCommand(wanted));
    for (const { Body, ReceiptHandle } of Messages) {
      const order = JSON.parse(Body);
      console.log(`[Payment Service] Received order ${order.orderId}: charging $${order.amount}`);
      await sqs.send(new DeleteMessageCommand({ QueueUrl, ReceiptHandle }));
    }
  }
}

startPaymentConsumer().catch((error) => {
  console.error('[Payment Service]', error.message);
  process.exitCode = 1;
});
