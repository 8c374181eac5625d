package telemetry

import "math"

// Kind says how a value was written by the device. Null and Text are reserved
// in every format but give no reading today (a string becomes an attribute).
type Kind uint8

// The kinds of a value; the numbers are part of the block and segment formats.
const (
	KindNull    Kind = 0
	KindBool    Kind = 1 // Mantissa is 0 or 1
	KindInt64   Kind = 2 // Mantissa is the integer
	KindFloat64 Kind = 3 // Mantissa holds math.Float64bits
	KindDecimal Kind = 4 // Mantissa / 10^Scale, Scale 1..18
	KindText    Kind = 5
)

// Value is one number as the device wrote it, without loss: a decimal keeps its
// digits, anything that does not fit the decimal path keeps its float64 bits.
type Value struct {
	Mantissa int64
	Kind     Kind
	Scale    uint8
}

// FloatValue wraps a float64 bit for bit.
func FloatValue(f float64) Value {
	return Value{Mantissa: int64(math.Float64bits(f)), Kind: KindFloat64}
}

var pow10 = [...]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18}

// Float64 is the nearest float64, the number that strconv.ParseFloat gives for
// the text the device wrote. A Decimal holds |Mantissa| <= 2^53 (the scanner
// and the codec keep to that), so one correctly rounded division is exact.
func (v Value) Float64() float64 {
	switch v.Kind {
	case KindFloat64:
		return math.Float64frombits(uint64(v.Mantissa))
	case KindDecimal:
		return float64(v.Mantissa) / pow10[v.Scale]
	default:
		return float64(v.Mantissa)
	}
}

// Reading is one sensor's value in a message.
type Reading struct {
	Sensor string
	Value  Value
}

// Attribute is a device's descriptive text: a string among the sensors, or
// anything under metadata in its JSON spelling without quotes.
type Attribute struct {
	Key, Value string
}

// DupKey identifies a publish that carries no timestamp of its own: a hash over
// client id, packet id and payload (D7). The zero key means "none".
type DupKey [16]byte

// Message is one telemetry object of one device, parsed and valid, or one
// payload that could not be parsed and goes to quarantine (Reason != "").
type Message struct {
	Device     string
	Time       int64 // device time, or Received when the device gave none
	Received   int64 // when the connected node read it
	Readings   []Reading
	Attributes []Attribute
	Nulls      uint32 // values that were null, NaN or infinite and give no reading
	NoTime     bool   // the device sent no timestamp: Time == Received
	Retry      bool   // the publisher marked it as a repeat (MQTT DUP=1, Idempotency-Key)
	Dup        DupKey // set when NoTime and QoS > 0 or an idempotency key was given

	// Quarantine: Reason says why Payload, published on Topic, is not telemetry.
	// Device is the topic's device. All other fields but Received are zero.
	Reason  string
	Topic   string
	Payload []byte
}

// Outcome is what the cluster did with one message once its fate is durable.
type Outcome uint8

// The outcomes; the numbers are part of the replicated state and of frames.
const (
	Unknown     Outcome = 0 // not known to be durable: never acknowledged
	Applied     Outcome = 1 // durable, at least one reading is new (or it has none)
	Duplicate   Outcome = 2 // durable earlier: every reading is a repeat
	Quarantined Outcome = 3 // durable in quarantine
	Refused     Outcome = 4 // never proposed and never will be
)

func (o Outcome) String() string {
	switch o {
	case Applied:
		return "applied"
	case Duplicate:
		return "duplicate"
	case Quarantined:
		return "quarantined"
	case Refused:
		return "refused"
	default:
		return "unknown"
	}
}
