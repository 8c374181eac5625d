package telemetry

import "strings"

// TopicKind says what a topic means to the ingest path.
type TopicKind uint8

// The kinds of a topic.
const (
	TopicOther   TopicKind = iota // not a telemetry topic
	TopicDevice                   // devices/{id}/telemetry: objects of one device
	TopicGateway                  // gateways/{gw}/telemetry: every object names its device
	TopicInvalid                  // has the form of a telemetry topic, but the id is not acceptable: refuse (0x90)
)

// Topic is a parsed topic name; ID is a part of the string given to ParseTopic,
// the device or the gateway. It is set for TopicInvalid too, for the log.
type Topic struct {
	Kind TopicKind
	ID   string
}

const (
	devicesPrefix   = "devices/"
	gatewaysPrefix  = "gateways/"
	telemetrySuffix = "/telemetry"
)

// ParseTopic recognises the two telemetry topics. It allocates nothing; matching
// is exact and case-sensitive, and an id never holds a slash. A gateway id obeys
// the same grammar as a device id.
func ParseTopic(topic string) Topic {
	var kind TopicKind
	var rest string
	switch {
	case strings.HasPrefix(topic, devicesPrefix):
		kind, rest = TopicDevice, topic[len(devicesPrefix):]
	case strings.HasPrefix(topic, gatewaysPrefix):
		kind, rest = TopicGateway, topic[len(gatewaysPrefix):]
	default:
		return Topic{}
	}
	id, ok := strings.CutSuffix(rest, telemetrySuffix)
	if !ok || strings.IndexByte(id, '/') >= 0 {
		return Topic{}
	}
	if !ValidDeviceID(id) {
		kind = TopicInvalid
	}
	return Topic{Kind: kind, ID: id}
}
