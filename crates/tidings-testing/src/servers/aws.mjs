// Starts fauxqs, an emulator of Amazon SNS and SQS, on loopback, with its data in a folder.
//
//   node aws.mjs FOLDER-OF-FAUXQS PORT DATA-FOLDER
//
// Where fauxqs differs from what Amazon documents of FIFO queues, it is set right here: one receive may bring
// several messages of a group, what is given back takes its old place, and a message that somebody has holds up
// only those behind it in its group. And its file would not take back what is given back: it lost the counts of
// receives.

import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, port, data] = process.argv.slice(2);
const part = (path) => import(pathToFileURL(join(folder, "node_modules/fauxqs/dist", path)).href);
const { SqsQueue, SqsStore } = await part("sqs/sqsStore.js");
const { SnsStore } = await part("sns/snsStore.js");
const { S3Store } = await part("s3/s3Store.js");
const { PersistenceManager } = await part("persistence.js");
const { buildApp } = await part("app.js");

/** What nothing holds up, in the order of the groups' first messages, each group in its order. */
SqsQueue.prototype.receivable = function () {
  const held = new Map();
  for (const { message } of this.inflightMessages.values()) {
    const first = held.get(message.messageGroupId);
    if (first === undefined || message.sequenceNumber < first) {
      held.set(message.messageGroupId, message.sequenceNumber);
    }
  }
  const found = [];
  for (const [group, messages] of this.fifoMessages) {
    messages.sort((a, b) => (a.sequenceNumber < b.sequenceNumber ? -1 : 1));
    const before = held.get(group) ?? "~";
    const free = messages.filter((message) => message.sequenceNumber < before);
    if (free.length > 0) found.push(free);
  }
  return found.sort((a, b) => (a[0].sequenceNumber < b[0].sequenceNumber ? -1 : 1)).flat();
};

SqsQueue.prototype.hasAvailableFifoMessages = function () {
  return this.receivable().length > 0;
};

SqsQueue.prototype.dequeueFifo = function (countMax, visibility) {
  this.processTimers();
  const seconds = visibility ?? parseInt(this.attributes.VisibilityTimeout);
  return this.receivable().slice(0, Math.min(countMax, 10)).map((message) => {
    const group = this.fifoMessages.get(message.messageGroupId).filter((other) => other !== message);
    if (group.length > 0) this.fifoMessages.set(message.messageGroupId, group);
    else this.fifoMessages.delete(message.messageGroupId);
    message.approximateReceiveCount++;
    message.approximateFirstReceiveTimestamp ??= Date.now();
    const handle = crypto.randomUUID();
    const until = Date.now() + seconds * 1000;
    this.inflightMessages.set(handle, { message, receiptHandle: handle, visibilityDeadline: until });
    this.persistence?.updateMessageInflight(
      message.messageId, handle, until, message.approximateReceiveCount, message.approximateFirstReceiveTimestamp,
    );
    const received = {
      MessageId: message.messageId, ReceiptHandle: handle, MD5OfBody: message.md5OfBody, Body: message.body,
    };
    if (message.md5OfMessageAttributes) received.MD5OfMessageAttributes = message.md5OfMessageAttributes;
    if (Object.keys(message.messageAttributes).length > 0) received.MessageAttributes = message.messageAttributes;
    return received;
  });
};

/** A standard queue promises no order, and may hand a message out twice: each `twice`th, if a test wants it. */
const AMONG = 100;
let twice = 0;
let handedOut = 0;
const dequeue = SqsQueue.prototype.dequeue;
SqsQueue.prototype.dequeue = function (countMax, ...others) {
  if (this.isFifo()) return dequeue.call(this, countMax, ...others);
  const waiting = this.messages;
  const count = Math.min(countMax, 10, waiting.length);
  for (let at = 0; at < count; at++) {
    const other = at + Math.floor(Math.random() * Math.min(AMONG, waiting.length - at));
    [waiting[at], waiting[other]] = [waiting[other], waiting[at]];
  }
  const next = waiting.slice(0, count);
  const received = dequeue.call(this, countMax, ...others);
  const again = next.filter(() => twice > 0 && ++handedOut % twice === 0);
  waiting.push(...again);
  return received;
};

PersistenceManager.prototype.updateMessageReady = function (id) {
  const text = "UPDATE sqs_messages SET receipt_handle = NULL, visibility_deadline = NULL WHERE message_id = ?";
  this.givenBack ??= this.db.prepare(text);
  this.givenBack.run(id);
};

/** SNS drops a raw message with more than ten attributes without a word. */
const enqueue = SqsQueue.prototype.enqueue;
SqsQueue.prototype.enqueue = function (message) {
  if (Object.keys(message.messageAttributes).length <= 10) enqueue.call(this, message);
};

const stores = { sqsStore: new SqsStore(), snsStore: new SnsStore(), s3Store: new S3Store() };
const persistence = new PersistenceManager(data);
// What a killed process has written is there without it; it is machines that fail which need it.
persistence.db.exec("PRAGMA synchronous = OFF");
persistence.loadSqsAndSns(stores.sqsStore, stores.snsStore);
stores.sqsStore.persistence = persistence;
stores.snsStore.persistence = persistence;
for (const queue of stores.sqsStore.allQueues()) queue.persistence = persistence;

const app = buildApp({ logger: false, host: "127.0.0.1", stores });
app.addHook("preClose", () => persistence.close());

// What a test lets fail: calls of an action, or those entries of a batch whose text contains something.
const faults = [];
app.post("/_tidings/faults", async (request) => {
  faults.push(JSON.parse(request.body.toString()));
  return {};
});
app.post("/_tidings/twice", async (request) => {
  twice = JSON.parse(request.body.toString());
  return {};
});
const member = /^PublishBatchRequestEntries\.member\.(\d+)\.(.*)$/;
const xmlOf = ({ id, code }) =>
  `<member><Id>${id}</Id><Code>${code}</Code><Message>as a test wants it</Message>` +
  `<SenderFault>${code.startsWith("Invalid")}</SenderFault></member>`;
const jsonOf = ({ id, code }) =>
  ({ Id: id, Code: code, Message: "as a test wants it", SenderFault: code.startsWith("Invalid") });


// What was asked, for a test that compares it with what may be: an action of Amazon, what it is about, and by which key.
let calls = [];
app.get("/_tidings/calls", async () => {
  const asked = calls;
  calls = [];
  return asked;
});
const aboutOf = (body) =>
  body.SubscriptionArn ? "*" : (body.TopicArn ?? body.Name ?? body.QueueUrl ?? body.QueueName ?? "").split(/[:/]/).pop();

app.addHook("preHandler", async (request, reply) => {
  const body = request.body ?? {};
  const action = body.Action ?? request.headers["x-amz-target"]?.split(".")[1];
  // A batch is allowed by its action.
  const service = action === "GetCallerIdentity" ? "sts" : body.Action ? "sns" : "sqs";
  const key = request.headers.authorization?.match(/Credential=([^/]+)/)?.[1] ?? "";
  if (action) calls.push([`${service}:${action.replace(/Batch$/, "")}`, aboutOf(body), key]);
  const fault = faults.find((it) => it.action === action && it.times > 0 &&
    JSON.stringify(body).includes(it.containing ?? ""));
  if (!fault) return;
  fault.times--;
  if (fault.containing === undefined) {
    reply.code(400);
    if (body.Action) {
      const error = `<Error><Type>Sender</Type><Code>${fault.code}</Code><Message>as a test wants it</Message></Error>`;
      return reply.type("text/xml").send(`<ErrorResponse>${error}</ErrorResponse>`);
    }
    reply.header("content-type", "application/x-amz-json-1.0");
    return reply.send(JSON.stringify({ __type: fault.code, message: "as a test wants it" }));
  }
  const hit = (text) => (text ?? "").includes(fault.containing);
  if (body.Action) {
    const hits = Object.keys(body).map((key) => key.match(member))
      .filter((it) => it?.[2] === "Message" && hit(body[it[0]])).map((it) => it[1]);
    request.failed = hits.map((at) =>
      ({ id: body[`PublishBatchRequestEntries.member.${at}.Id`], code: fault.code }));
    for (const key of Object.keys(body)) if (hits.includes(key.match(member)?.[1])) delete body[key];
    if (!Object.keys(body).some((key) => member.test(key))) {
      const parts = `<PublishBatchResult><Successful></Successful><Failed></Failed></PublishBatchResult>`;
      return reply.type("text/xml").send(`<PublishBatchResponse>${parts}</PublishBatchResponse>`);
    }
  } else {
    const hits = body.Entries.filter((entry) => hit(entry.MessageBody ?? ""));
    request.failed = hits.map((entry) => ({ id: entry.Id, code: fault.code }));
    body.Entries = body.Entries.filter((entry) => !hits.includes(entry));
    if (body.Entries.length === 0) {
      reply.header("content-type", "application/x-amz-json-1.0");
      return reply.send(JSON.stringify({ Successful: [], Failed: [] }));
    }
  }
});
app.addHook("onSend", async (request, _reply, payload) => {
  if (!request.failed?.length) return payload;
  if (request.body.Action) {
    return payload.replace("<Failed>", `<Failed>${request.failed.map(xmlOf).join("")}`);
  }
  const answer = JSON.parse(payload);
  answer.Failed = [...(answer.Failed ?? []), ...request.failed.map(jsonOf)];
  return JSON.stringify(answer);
});

process.once("SIGTERM", () => app.close().then(() => process.exit(0)));
await app.listen({ port: Number(port), host: "127.0.0.1" });
console.log("ready");
