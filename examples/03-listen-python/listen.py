"""Prints the orders of a running shop, from a durable queue of its own.

    python3 listen.py QUEUE [COUNT]

The queue collects orders while this program is not running: start it again with the same name and
it goes on where it stopped. With COUNT it ends after that many orders.
"""

import json
import os
import sys

import pika


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("name a queue of your own: python3 listen.py QUEUE [COUNT]")
    queue = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else None

    url = os.environ.get("AMQP_URL", "amqp://localhost")
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.exchange_declare("order_events", exchange_type="fanout", durable=True)
    channel.queue_declare(queue, durable=True)
    channel.queue_bind(queue, "order_events")
    channel.basic_qos(prefetch_count=10)
    print(f"listening {queue}", flush=True)

    seen = 0
    for method, _properties, body in channel.consume(queue):
        order = json.loads(body)
        print(order["orderId"], order["amount"], order["timestamp"], order["status"], flush=True)
        channel.basic_ack(method.delivery_tag)
        seen += 1
        if seen == count:
            break
    connection.close()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
