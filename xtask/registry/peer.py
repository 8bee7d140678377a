"""Writes and reads the bodies of events as Confluent's own clients do, by the schemas of a registry.

    python3 peer.py write FORMAT BOOTSTRAP REGISTRY TOPIC SCHEMA   registers the schema; values as lines of JSON on stdin
    python3 peer.py read FORMAT BOOTSTRAP REGISTRY TOPIC COUNT     values as lines of JSON on stdout; COUNT#MESSAGE of a `.proto`

FORMAT is `json`, `avro` or `protobuf`; SCHEMA is a file, behind a `#` with the name of the message if it is a `.proto` file.
What is written by it has nothing that only Tidings knows: no headers, no id, no type.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import json_format

SECONDS_MAX = 60


def message_class(schema, name):
    """The class of a message of a `.proto` file, as its compiler makes it."""
    from grpc_tools import protoc

    folder = tempfile.mkdtemp()
    Path(folder, "peer_messages.proto").write_text(schema, encoding="utf-8")
    if protoc.main(["protoc", f"-I{folder}", f"--python_out={folder}", "peer_messages.proto"]):
        raise SystemExit("the schema is no `.proto` file")
    sys.path.insert(0, folder)
    return getattr(importlib.import_module("peer_messages_pb2"), name)


def serializer(form, client, schema):
    if form == "json":
        return JSONSerializer(schema, client)
    if form == "avro":
        return AvroSerializer(client, schema)
    schema, name = schema
    of = message_class(schema, name)
    serialize = ProtobufSerializer(of, client, {"use.deprecated.format": False})
    return lambda value, context: serialize(json_format.ParseDict(value, of()), context)


def deserializer(form, client, schema, name):
    if form == "json":
        return JSONDeserializer(schema, schema_registry_client=client)
    if form == "avro":
        return AvroDeserializer(client)
    deserialize = ProtobufDeserializer(message_class(schema, name), {"use.deprecated.format": False})
    return lambda body, context: json_format.MessageToDict(deserialize(body, context))


def write(form, bootstrap, registry, topic, schema):
    path, _, name = schema.partition("#")
    schema = Path(path).read_text(encoding="utf-8")
    if form == "protobuf":
        schema = (schema, name)
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
    count, _, name = count.partition("#")
    of = None
    for _ in range(int(count)):
        message = consumer.poll(SECONDS_MAX)
        if message is None or message.error():
            raise SystemExit(f"not read: {message and message.error()}")
        body = message.value()
        schema = client.get_schema(int.from_bytes(body[1:5], "big")).schema_str
        of = of or deserializer(form, client, schema, name)
        value = of(body, SerializationContext(topic, MessageField.VALUE))
        print(json.dumps(value))
    consumer.close()


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    {"write": write, "read": read}[verb](*arguments)
