package gossip

import (
	"bytes"
	"testing"
)

func FuzzDecodeMember(f *testing.F) {
	f.Add(encodeMember(Member{Peer: "n0.5f3a9c1e", Zone: "a", Mux: "127.0.0.1:7000", MQTT: "127.0.0.1:1883", HTTP: "127.0.0.1:8080", ClusterID: "C1"}))
	f.Add(encodeMember(Member{Peer: "n0.5f3a9c1e"}))
	f.Add([]byte{})
	f.Add([]byte{metaVersion})
	f.Add([]byte{metaVersion, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMember(b)
		if err != nil {
			return
		}
		again, err := decodeMember(append(encodeMember(m), "appended by a later version"...))
		if err != nil || again != m {
			t.Fatalf("%q decodes to %+v, which decodes to %+v, %v", b, m, again, err)
		}
		if !bytes.HasPrefix(encodeMember(again), []byte{metaVersion}) {
			t.Fatal("version is lost")
		}
	})
}
