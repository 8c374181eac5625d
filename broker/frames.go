package broker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// frames takes WebSocket frames of a client apart (RFC 6455, section 5), wherever the
// reads have cut them. Between two reads it keeps the beginning of a header and of a
// control frame, and no buffer.
type frames struct {
	head    [frameHeadMax]byte
	have    int    // bytes of head
	left    uint64 // of the payload, once the header is whole
	at      int    // in the mask
	payload bool   // a payload is being read
	open    bool   // a message goes on in the next frame
	control []byte // payload so far of a control frame

	// reply is given the control frame that answers one of the client's.
	reply func(op byte, payload []byte)
}

const (
	frameHeadMax    = 14
	frameControlMax = 125
	frameContinue   = 0
	frameText       = 1
	frameBinary     = 2
	frameClose      = 8
	framePing       = 9
	framePong       = 10
)

// Codes of a close frame (RFC 6455, section 7.4.1).
const (
	closeNormal      = 1000
	closeProtocol    = 1002
	closeUnsupported = 1003
)

// frameError is a violation of the protocol.
type frameError struct {
	code uint16
	text string
}

func (e *frameError) Error() string { return "WebSocket: " + e.text }

// take reads b and moves the payload of binary frames to its front; n is how much
// there is of it. io.EOF is the client's close frame.
func (f *frames) take(b []byte) (n int, err error) {
	for i := 0; i < len(b); {
		if !f.payload {
			f.head[f.have] = b[i]
			f.have++
			i++
			if f.have == f.headSize() {
				if err := f.begin(); err != nil {
					return n, err
				}
			}
		} else {
			size := min(len(b)-i, int(min(f.left, uint64(len(b)))))
			part := b[i : i+size]
			f.unmask(part)
			if f.head[0]&0x0f < frameClose {
				n += copy(b[n:], part)
			} else {
				f.control = append(f.control, part...)
			}
			i += size
			f.left -= uint64(size)
		}
		if f.payload && f.left == 0 {
			if err := f.end(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// headSize is how long the header is, as far as it is known.
func (f *frames) headSize() int {
	if f.have < 2 {
		return 2
	}
	switch f.head[1] & 0x7f {
	case 126:
		return 2 + 2 + 4
	case 127:
		return 2 + 8 + 4
	}
	return 2 + 4
}

// begin judges a header that is whole.
func (f *frames) begin() error {
	op, fin := f.head[0]&0x0f, f.head[0]&0x80 != 0
	switch size := f.head[1] & 0x7f; size {
	case 126:
		f.left = uint64(binary.BigEndian.Uint16(f.head[2:]))
	case 127:
		f.left = binary.BigEndian.Uint64(f.head[2:])
	default:
		f.left = uint64(size)
	}
	switch {
	case f.head[0]&0x70 != 0:
		return &frameError{closeProtocol, "a reserved bit is set"}
	case f.head[1]&0x80 == 0:
		return &frameError{closeProtocol, "a frame of a client is not masked"}
	case f.left>>63 != 0:
		return &frameError{closeProtocol, "a frame is longer than the protocol allows"}
	}
	switch op {
	case frameContinue, frameBinary:
		if f.open != (op == frameContinue) {
			return &frameError{closeProtocol, "a message begins before the last one has ended, or goes on without one"}
		}
		f.open = !fin
	case frameText:
		return &frameError{closeUnsupported, "MQTT needs binary messages"}
	case frameClose, framePing, framePong:
		if !fin || f.left > frameControlMax {
			return &frameError{closeProtocol, "a control frame is in pieces or too long"}
		}
	default:
		return &frameError{closeProtocol, fmt.Sprintf("frame of unknown kind %d", op)}
	}
	f.payload, f.at = true, 0
	return nil
}

// unmask restores a part of the payload; the mask is the end of the header.
func (f *frames) unmask(b []byte) {
	mask := f.head[f.have-4 : f.have]
	for i := range b {
		b[i] ^= mask[(f.at+i)&3]
	}
	f.at = (f.at + len(b)) & 3
}

// end concludes a frame.
func (f *frames) end() error {
	op, control := f.head[0]&0x0f, f.control
	f.payload, f.have, f.control = false, 0, nil
	switch op {
	case framePing:
		f.reply(framePong, control)
	case frameClose:
		f.reply(frameClose, control[:min(2, len(control))]) // the code, not the text
		return io.EOF
	}
	return nil
}

// appendFrame encodes one whole frame of a server.
func appendFrame(dst []byte, op byte, payload []byte) []byte {
	dst = append(dst, 0x80|op)
	switch n := len(payload); {
	case n <= frameControlMax:
		dst = append(dst, byte(n))
	case n <= 0xffff:
		dst = binary.BigEndian.AppendUint16(append(dst, 126), uint16(n))
	default:
		dst = binary.BigEndian.AppendUint64(append(dst, 127), uint64(n))
	}
	return append(dst, payload...)
}

// closeCode is what a client is told of an error.
func closeCode(err error) uint16 {
	var f *frameError
	if errors.As(err, &f) {
		return f.code
	}
	return closeNormal
}
