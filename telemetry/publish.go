package telemetry

// Publish is one MQTT PUBLISH on a telemetry topic, or one line of an HTTP
// request, on its way into the log. The receiver of a Publish owns Payload
// until it reports the result.
type Publish struct {
	Client   string // MQTT client id, or the idempotency key of an HTTP request
	Device   string // device id of the topic; "" on a gateway's topic or over HTTP
	Topic    string // full topic; "" over HTTP
	Payload  []byte
	Received int64 // microseconds since the epoch
	PacketID uint16
	QoS      byte
	Dup      bool // the publisher says that it may have sent this before
	Token    bool // the publisher wants Result.Writes
}

// PublishOverhead is what a publish in flight costs a node beside its payload: its
// record, its place in a block, the record of who published it. It keeps a flood of
// empty publishes inside the bounds.
const PublishOverhead = 512

// Cost is what the publish counts against bounds of what is in flight, in bytes.
func (p *Publish) Cost() int64 { return int64(len(p.Payload)) + PublishOverhead }

// Result is what became of all messages of one Publish.
type Result struct {
	Applied     int
	Duplicate   int
	Quarantined int
	Refused     int
	Unknown     int    // not known to be durable: the publish must not be acknowledged
	Reason      string // why the first refused or quarantined message is not applied
	Refusal     Refusal
	Writes      []Write // where what is stored became durable; nil unless Publish.Token
}

// Refusal says in which way a publish was refused; each has its own MQTT reason
// code and HTTP status.
type Refusal uint8

// The refusals. None means the publish was not refused.
const (
	RefusalNone     Refusal = iota
	RefusalTopic            // the topic or the device id in it is not acceptable (0x90)
	RefusalQuota            // will certainly not be committed now: disk nearly full, quota (0x97)
	RefusalTooLarge         // payload over the limit (0x95, 0x97 where 0x95 cannot be an ack)
)
