package api

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"

	"github.com/cespare/xxhash/v2"

	"github.com/sluice-iot/sluice/store"
)

// The layout is described in FORMAT.md.
const (
	cursorVersion = 1

	cursorReading  = 1
	cursorDevice   = 2
	cursorPosition = 3
	cursorBucket   = 4

	cursorSumBytes = 4
)

// sealCursor frames a payload; scope is what the list is about (the device of
// readings), so that a cursor does not wander to another list.
func sealCursor(kind byte, scope string, payload []byte) string {
	b := append([]byte{cursorVersion, kind}, payload...)
	b = binary.LittleEndian.AppendUint32(b, cursorSum(b, scope))
	return base64.RawURLEncoding.EncodeToString(b)
}

func openCursor(kind byte, scope, s string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 2+cursorSumBytes || b[0] != cursorVersion || b[1] != kind {
		return nil, errCursor(s)
	}
	body, sum := b[:len(b)-cursorSumBytes], b[len(b)-cursorSumBytes:]
	if binary.LittleEndian.Uint32(sum) != cursorSum(body, scope) {
		return nil, errCursor(s)
	}
	return body[2:], nil
}

func cursorSum(b []byte, scope string) uint32 {
	d := xxhash.New()
	_, _ = d.Write(b)
	_, _ = d.WriteString(scope)
	return uint32(d.Sum64())
}

func errCursor(s string) error {
	return fmt.Errorf("cursor %q was not given for this list: pass next as it came, or leave it out to begin again", s)
}

// readingScope ties a cursor to the list's order too; no device id has a space.
func readingScope(q *store.Query) string {
	if q.Desc {
		return q.Device + " desc"
	}
	return q.Device
}

func encodeReadingCursor(q *store.Query, p *store.Point) string {
	b := binary.AppendVarint(nil, p.Time)
	b = binary.LittleEndian.AppendUint64(b, math.Float64bits(p.Value))
	return sealCursor(cursorReading, readingScope(q), append(b, p.Sensor...))
}

func bucketScope(q *store.Aggregate) string {
	return q.Device + " " + strconv.FormatInt(q.StepMicros, 10)
}

func encodeBucketCursor(q *store.Aggregate, b *store.Bucket) string {
	return sealCursor(cursorBucket, bucketScope(q), append(binary.AppendVarint(nil, b.Start), b.Sensor...))
}

func decodeBucketCursor(q *store.Aggregate, s string) (*store.Bucket, error) {
	b, err := openCursor(cursorBucket, bucketScope(q), s)
	if err != nil {
		return nil, err
	}
	start, n := binary.Varint(b)
	if n <= 0 {
		return nil, errCursor(s)
	}
	return &store.Bucket{Start: start, Sensor: string(b[n:])}, nil
}

func decodeReadingCursor(q *store.Query, s string) (*store.Point, error) {
	b, err := openCursor(cursorReading, readingScope(q), s)
	if err != nil {
		return nil, err
	}
	t, n := binary.Varint(b)
	if n <= 0 || len(b) < n+8 {
		return nil, errCursor(s)
	}
	value := math.Float64frombits(binary.LittleEndian.Uint64(b[n:]))
	return &store.Point{Time: t, Value: value, Sensor: string(b[n+8:])}, nil
}

func encodeDeviceCursor(id string) string { return sealCursor(cursorDevice, "", []byte(id)) }

func decodeDeviceCursor(s string) (string, error) {
	b, err := openCursor(cursorDevice, "", s)
	return string(b), err
}

func encodePosition(p Position) string {
	return sealCursor(cursorPosition, "", append(binary.AppendVarint(nil, p.Time), p.ID...))
}

func decodePosition(s string) (Position, error) {
	b, err := openCursor(cursorPosition, "", s)
	if err != nil {
		return Position{}, err
	}
	t, n := binary.Varint(b)
	if n <= 0 {
		return Position{}, errCursor(s)
	}
	return Position{Time: t, ID: string(b[n:])}, nil
}
