package importer

import (
	"errors"

	"github.com/sluice-iot/sluice/telemetry"
)

// ndjson checks lines of messages with the scanner that the nodes use, so that
// what they would put in quarantine is reported with its line instead.
type ndjson struct {
	scanner  *telemetry.Scanner
	fallback string // device of lines that name none
	scratch  []telemetry.Message
}

var errDevices = errors.New("messages of several devices in one line: put them in lines of their own")

// message checks one line; an array may hold several messages of one device.
func (n *ndjson) message(text []byte) (device string, messages, readings int, err error) {
	n.scratch, err = n.scanner.Parse("", text, 0, n.scratch[:0])
	if err == nil && n.fallback != "" && len(n.scratch) > 0 && n.scratch[0].Reason != "" {
		n.scratch, err = n.scanner.Parse(n.fallback, text, 0, n.scratch[:0])
	}
	if err != nil {
		return "", 0, 0, err
	}
	for i := range n.scratch {
		m := &n.scratch[i]
		if m.Reason != "" {
			return "", 0, 0, errors.New(m.Reason)
		}
		if m.Device != n.scratch[0].Device {
			return "", 0, 0, errDevices
		}
		readings += len(m.Readings)
	}
	return n.scratch[0].Device, len(n.scratch), readings, nil
}
