// MQTT.js over the nodes of a cluster: node mqttjs.mjs PORT PORT PORT.
// Prints a line for each thing tried and ends with 1 if one of them failed.
import mqtt from 'mqtt'

const ports = process.argv.slice(2)
const wait = 60_000 // a busy machine takes its time
let failed = false

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

async function until(ok) {
  for (const end = Date.now() + wait; !ok(); await sleep(20)) {
    if (Date.now() > end) return false
  }
  return true
}

function check(what, ok, seen) {
  failed ||= !ok
  console.log(ok ? 'ok' : 'FAILED', what, ok ? '' : JSON.stringify(seen))
}

// listen connects a client and writes down what it gets.
async function listen(clientId, node, protocolVersion, options = {}) {
  const got = []
  const c = mqtt.connect(`mqtt://127.0.0.1:${ports[node]}`, {
    clientId, protocolVersion, reconnectPeriod: 0, connectTimeout: wait, ...options
  })
  c.on('message', (topic, payload, packet) => got.push({ topic, text: payload.toString(), retain: packet.retain, properties: packet.properties }))
  const connack = await new Promise((resolve, reject) => { c.on('connect', resolve); c.on('error', reject) })
  return { c, got, connack }
}

const numbers = (n) => [...Array(n).keys()].map(String)
const same = (got, want) => got.map((m) => m.text).join() === want.join()

for (const version of [4, 5]) {
  const { c: publisher } = await listen(`js-publisher-${version}`, 0, version)
  const { c: subscriber, got } = await listen(`js-subscriber-${version}`, 1, version)
  await subscriber.subscribeAsync(`js${version}/#`, { qos: 2 })
  for (const qos of [0, 1, 2]) {
    const topic = `js${version}/qos${qos}`
    await Promise.all(numbers(50).map((n) => publisher.publishAsync(topic, n, { qos })))
    const of = () => got.filter((m) => m.topic === topic)
    check(`v${version}: QoS ${qos} from node to node`, await until(() => same(of(), numbers(50))), of())
  }

  const durable = version === 5 ? { clean: false, properties: { sessionExpiryInterval: 300 } } : { clean: false }
  const commands = `devices/js-device-${version}/commands`
  const before = await listen(`js-device-${version}`, 2, version, durable)
  await before.c.subscribeAsync(commands, { qos: 2 })
  await before.c.endAsync()
  for (const n of numbers(30)) await publisher.publishAsync(commands, n, { qos: 2 })
  const device = await listen(`js-device-${version}`, 1, version, durable)
  check(`v${version}: session present at another node`, device.connack.sessionPresent, device.connack)
  check(`v${version}: its queue of QoS 2, once and in order`, await until(() => device.got.length >= 30) && same(device.got, numbers(30)), device.got)
  await Promise.all([publisher, subscriber, device.c].map((c) => c.endAsync()))
}

const answering = await listen('js-answering', 1, 5, { properties: { receiveMaximum: 3, topicAliasMaximum: 5 } })
answering.c.on('message', (topic, payload, { properties: p }) => {
  answering.c.publish(p.responseTopic, payload, { qos: 1, properties: { correlationData: p.correlationData, userProperties: p.userProperties } })
})
await answering.c.subscribeAsync('js/request', { qos: 1, properties: { subscriptionIdentifier: 77 } })
const asking = await listen('js-asking', 0, 5, { properties: { topicAliasMaximum: 10 }, autoAssignTopicAlias: true })
await asking.c.subscribeAsync('js/response', { qos: 1 })
for (const n of numbers(20)) {
  asking.c.publish('js/request', n, { qos: 1, properties: { responseTopic: 'js/response', correlationData: Buffer.from(`for ${n}`), userProperties: { a: 'b' } } })
}
const answered = await until(() => asking.got.length >= 20)
check('request and response, aliases, a receive maximum of 3', answered && same(asking.got, numbers(20)), asking.got)
check('correlation data and user properties', asking.got.every(({ text, properties: p }) => p.correlationData.toString() === `for ${text}` && p.userProperties.a === 'b'), asking.got)
check('subscription identifier', answering.got.every((m) => m.properties.subscriptionIdentifier === 77), answering.got)

const late = await listen('js-late', 2, 5)
await late.c.subscribeAsync('js/kept', { qos: 1, rap: true })
await asking.c.publishAsync('js/kept', 'x', { qos: 1, retain: true, properties: { messageExpiryInterval: 60, contentType: 'text/plain' } })
check('retain as published, content type, expiry', await until(() => late.got.length > 0) && late.got[0].retain &&
  late.got[0].properties.contentType === 'text/plain' && late.got[0].properties.messageExpiryInterval <= 60, late.got)

let reason
asking.c.on('disconnect', (packet) => { reason = packet.reasonCode })
await listen('js-asking', 2, 5)
check('who is taken over hears why', await until(() => reason === 0x8e), reason)
process.exit(failed ? 1 : 0)
