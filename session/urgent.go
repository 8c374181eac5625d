package session

import (
	"strings"

	"github.com/sluice-iot/sluice/telemetry"
)

// alarmPrefix begins the topics of anomalies; the device id follows.
const alarmPrefix = "anomalies/"

// Urgent reports whether messages on a topic pass before bulk wherever messages
// queue: anomalies, and whatever is below a device and is not its telemetry, so its
// commands and the alarms it raises itself. All messages of one topic are of one
// class, so that precedence never changes their order.
func Urgent(topic string) bool {
	if strings.HasPrefix(topic, alarmPrefix) {
		return true
	}
	home := HomeOf(topic)
	return home != "" && home != topic && telemetry.ParseTopic(topic).Kind == telemetry.TopicOther
}

// Urgent is that of the message's topic.
func (m *Message) Urgent() bool { return Urgent(m.Topic) }
