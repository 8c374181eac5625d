"""Eclipse Paho's Python client over the nodes of a cluster: pahopython.py PORT PORT PORT.

Prints a line for each thing tried and ends with 1 if one of them failed.
"""

import sys
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PORTS = [int(port) for port in sys.argv[1:]]
WAIT = 60  # seconds; a busy machine takes its time
failed = False


def until(ok):
    end = time.monotonic() + WAIT
    while not ok():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def check(what, ok, seen):
    global failed
    failed = failed or not ok
    print("ok" if ok else "FAILED", what, "" if ok else seen)


class Client:
    """A connected client that writes down what it gets."""

    def __init__(self, name, node, version, durable=False, will=None):
        five = version == mqtt.MQTTv5
        args = {} if five else {"clean_session": not durable}
        callbacks = getattr(mqtt, "CallbackAPIVersion", None)
        first = [callbacks.VERSION1] if callbacks else []
        self.mqtt = mqtt.Client(*first, client_id=name, protocol=version, **args)
        self.got, self.connected, self.subscribed = [], threading.Event(), threading.Event()
        self.mqtt.on_connect = lambda *_: self.connected.set()
        self.mqtt.on_subscribe = lambda *_: self.subscribed.set()
        self.mqtt.on_message = lambda c, u, m: self.got.append((m.topic, m.payload.decode(), m.retain))
        if will:
            self.mqtt.will_set(will, "gone", 1)
        args = {}
        if five:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 300 if durable else 0
            args = {"clean_start": not durable, "properties": properties}
        self.mqtt.connect("127.0.0.1", PORTS[node], 60, **args)
        self.mqtt.loop_start()
        if not self.connected.wait(WAIT):
            sys.exit(f"{name}: no CONNACK")

    def subscribe(self, topic, qos):
        self.subscribed.clear()
        self.mqtt.subscribe(topic, qos)
        if not self.subscribed.wait(WAIT):
            sys.exit(f"no SUBACK for {topic}")

    def publish(self, topic, count, qos, retain=False):
        for message in [self.mqtt.publish(topic, str(i), qos, retain) for i in range(count)]:
            message.wait_for_publish(WAIT)

    def leave(self):
        self.mqtt.disconnect()
        self.mqtt.loop_stop()

    def payloads(self, topic):
        return [payload for at, payload, _ in self.got if at == topic]


def numbers(count):
    return [str(i) for i in range(count)]


def conversation(version, v):
    publisher = Client(f"py-publisher-{v}", 0, version)
    subscriber = Client(f"py-subscriber-{v}", 1, version)
    subscriber.subscribe(f"py{v}/#", 2)
    for qos in range(3):
        topic = f"py{v}/qos{qos}"
        publisher.publish(topic, 50, qos)
        check(f"{v}: QoS {qos} from node to node", until(lambda: subscriber.payloads(topic) == numbers(50)), subscriber.payloads(topic))

    publisher.publish(f"py{v}/retained", 1, 1, retain=True)
    later = Client(f"py-later-{v}", 2, version)
    later.subscribe(f"py{v}/retained", 1)
    check(f"{v}: retained", until(lambda: later.got == [(f"py{v}/retained", "0", True)]), later.got)

    dying = Client(f"py-dying-{v}", 2, version, will=f"py{v}/will")
    dying.mqtt.socket().shutdown(2)
    dying.mqtt.loop_stop()
    check(f"{v}: will", until(lambda: subscriber.payloads(f"py{v}/will") == ["gone"]), subscriber.got[-3:])

    commands = f"devices/py-device-{v}/commands"
    device = Client(f"py-device-{v}", 0, version, durable=True)
    device.subscribe(commands, 1)
    device.leave()
    publisher.publish(commands, 30, 1)
    device = Client(f"py-device-{v}", 1, version, durable=True)
    check(f"{v}: a session goes on at another node", until(lambda: device.payloads(commands) == numbers(30)), device.payloads(commands))

    group = [Client(f"py-group-{v}-{node}", node, version) for node in range(len(PORTS))]
    for member in group:
        member.subscribe(f"$share/py/shared{v}/x", 1)
    publisher.publish(f"shared{v}/x", 90, 1)
    shares = lambda: sorted(int(payload) for member in group for payload in member.payloads(f"shared{v}/x"))
    check(f"{v}: one of a group gets each", until(lambda: shares() == list(range(90))), shares())
    for client in [publisher, subscriber, later, device, *group]:
        client.leave()


conversation(mqtt.MQTTv311, "3.1.1")
conversation(mqtt.MQTTv5, "5")
sys.exit(failed)
