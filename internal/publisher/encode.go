package publisher

import (
	"bufio"
	"encoding/binary"
)

// PUBLISH with QoS 1 and no properties: fixed header, topic, packet id, the
// length 0 of the properties, payload.
const (
	flagsPublish = 3<<4 | 1<<1
	flagDup      = 1 << 3
	fixedBytes   = 2 + 2 + 1 // topic length, packet id, properties
)

// publishBytes is the size of the whole packet.
func publishBytes(it *item) int {
	n := fixedBytes + len(it.topic) + len(it.payload)
	size := 2 // type and one byte of length
	for m := n; m >= 128; m >>= 7 {
		size++
	}
	return size + n
}

func writePublish(w *bufio.Writer, it *item) error {
	var head [8]byte
	head[0] = flagsPublish
	if it.dup {
		head[0] |= flagDup
	}
	n := 1 + binary.PutUvarint(head[1:], uint64(fixedBytes+len(it.topic)+len(it.payload))) // MQTT's variable length is a uvarint
	n += copy(head[n:], []byte{byte(len(it.topic) >> 8), byte(len(it.topic))})
	// A bufio.Writer keeps its first error; the last write reports it.
	_, _ = w.Write(head[:n])
	_, _ = w.WriteString(it.topic)
	_, _ = w.Write([]byte{byte(it.id >> 8), byte(it.id), 0})
	_, err := w.Write(it.payload)
	return err
}
