"""Writes and reads the bodies of events as Confluent's own clients do, by the schemas of a registry.

    python3 peer.py write FORMAT BOOTSTRAP REGISTRY TOPIC SCHEMA   registers the schema; values as lines of JSON on stdin
    python3 peer.py read FORMAT BOOTSTRAP REGISTRY TOPIC COUNT     values as lines of JSON on stdout

FORMAT is `json`; SCHEMA is a file. What is written by it has nothing that only Tidings knows: no headers, no id, no
type.
"""

import json
import sys

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

SECONDS_MAX = 60


def serializer(form, client, schema):
    if form == "json":
        return JSONSerializer(schema, client)
    raise SystemExit(f"no such format: {form}")


def deserializer(form, client, schema):
    if form == "json":
        return JSONDeserializer(schema, schema_registry_client=client)
    raise SystemExit(f"no such format: {form}")


def write(form, bootstrap, registry, topic, schema):
    with open(schema, encoding="utf-8") as file:
        schema = file.read()
    serialize = serializer(form, SchemaRegistryClient({"url": registry}), schema)
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random"})
    failures = []
    for line in sys.stdin:
        value = json.loads(line)
        body = serialize(value, SerializationContext(topic, MessageField.VALUE))
        producer.produce(topic, body, on_delivery=lambda error, _: error and failures.append(str(error)))
    left = producer.flush(SECONDS_MAX)
    if failures or left:
        raise SystemExit(f"not written: {failures}, {left} not confirmed")


def read(form, bootstrap, registry, topic, count):
    client = SchemaRegistryClient({"url": registry})
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": f"peer-of-{topic}", "enable.auto.commit": False})
    known = consumer.list_topics(topic, SECONDS_MAX).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in known])
    for _ in range(int(count)):
        message = consumer.poll(SECONDS_MAX)
        if message is None or message.error():
            raise SystemExit(f"not read: {message and message.error()}")
        body = message.value()
        schema = client.get_schema(int.from_bytes(body[1:5], "big")).schema_str
        value = deserializer(form, client, schema)(body, SerializationContext(topic, MessageField.VALUE))
        print(json.dumps(value))
    consumer.close()


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    {"write": write, "read": read}[verb](*arguments)
