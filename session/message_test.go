package session

import (
	"encoding/binary"
	"testing"
)

func TestWholeSecondsOfWaitingAreTakenOffTheExpiryInterval(t *testing.T) {
	const sent = 1_700_000_000_000_000
	m := Message{Expires: sent + 60_000_000}
	for waited, want := range map[int64]uint32{0: 60, 4_000: 60, 999_999: 60, 1_000_000: 59, 1_500_000: 59, 59_500_000: 1, 61_000_000: 1} {
		p := m.AppendExpiry(nil, sent+waited)
		if len(p) != 5 || p[0] != propMessageExpiry || binary.BigEndian.Uint32(p[1:]) != want {
			t.Errorf("after %d us: % x, want %d seconds left", waited, p, want)
		}
	}
	if p := new(Message).AppendExpiry(nil, sent); len(p) != 0 {
		t.Errorf("a message that never expires says % x", p)
	}
}
