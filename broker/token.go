package broker

import (
	"encoding/binary"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/telemetry"
)

// userWriteToken is the user property by which a client asks for the token of its
// write, and by which it gets it.
const userWriteToken = "sluice-write-token"

func wantsToken(pk *packets.Packet) bool {
	for i := range pk.Properties.User {
		if pk.Properties.User[i].Key == userWriteToken {
			return true
		}
	}
	return false
}

// appendTokenAck encodes a successful PUBACK or PUBREC that carries a write token,
// or one without where the client takes no packet of that size.
func (c *conn) appendTokenAck(dst []byte, kind byte, id uint16, writes []telemetry.Write) []byte {
	token := telemetry.WriteToken(c.b.cfg.ClusterID, writes)
	props := 1 + 2 + len(userWriteToken) + 2 + len(token)
	size := 2 + 1 + sizeVarint(props) + props
	if c.packetMax > 0 && 1+sizeVarint(size)+size > int(c.packetMax) {
		return c.appendAck(dst, kind, id, packets.CodeSuccess)
	}
	dst = appendVarint(append(dst, kind<<4), size)
	dst = append(binary.BigEndian.AppendUint16(dst, id), packets.CodeSuccess.Code)
	dst = append(appendVarint(dst, props), packets.PropUser)
	return appendString(appendString(dst, userWriteToken), token)
}
