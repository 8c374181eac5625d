package mux

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

var testPeer = []byte("n7.5f3a9c1e")

// fill sets every field of v, and fails on a type it does not know: a new field
// in raft must not be lost on the wire unnoticed.
func fill(t *testing.T, v reflect.Value, seed *int) {
	t.Helper()
	*seed++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1769181886, int64(*seed)*1001)))
		return
	case []byte:
		v.SetBytes(fmt.Appendf(nil, "bytes %d", *seed))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), seed)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), seed)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		for i := range 3 {
			fill(t, v.Index(i), seed)
		}
	case reflect.Uint64, reflect.Uint8:
		v.SetUint(uint64(*seed))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*seed))
	case reflect.Bool:
		v.SetBool(true)
	default:
		t.Fatalf("field of kind %v: teach the encoding about it", v.Kind())
	}
}

var requestKinds = map[Kind]raft.WithRPCHeader{
	kindAppend:     new(raft.AppendEntriesRequest),
	kindVote:       new(raft.RequestVoteRequest),
	kindPreVote:    new(raft.RequestPreVoteRequest),
	kindTimeoutNow: new(raft.TimeoutNowRequest),
	kindSnapshot:   new(raft.InstallSnapshotRequest),
}

func TestEveryFieldOfRaftRequestsSurvives(t *testing.T) {
	for kind, request := range requestKinds {
		seed := 0
		fill(t, reflect.ValueOf(request).Elem(), &seed)
		b := encodeRequest(nil, request, testPeer)
		if limit := requestBytesMax(request); len(b) > limit {
			t.Errorf("%T: %d bytes, bound says %d", request, len(b), limit)
		}
		got, err := decodeRequest(kind, b, testPeer)
		if err != nil || !reflect.DeepEqual(got, request) {
			t.Errorf("%T: got %+v, %v\nwant %+v", request, got, err, request)
		}
	}
}

func TestEveryFieldOfRaftResponsesSurvives(t *testing.T) {
	for _, response := range []any{new(raft.AppendEntriesResponse), new(raft.RequestVoteResponse), new(raft.RequestPreVoteResponse),
		new(raft.TimeoutNowResponse), new(raft.InstallSnapshotResponse)} {
		seed := 0
		fill(t, reflect.ValueOf(response).Elem(), &seed)
		b, err := encodeResponse(nil, response, testPeer)
		if err != nil {
			t.Fatal(err)
		}
		got := reflect.New(reflect.TypeOf(response).Elem()).Interface()
		if err := decodeResponse(got, b, testPeer); err != nil || !reflect.DeepEqual(got, response) {
			t.Errorf("%T: got %+v, %v\nwant %+v", response, got, err, response)
		}
		clear(b)
		if !reflect.DeepEqual(got, response) {
			t.Errorf("%T keeps a part of the read buffer", response)
		}
	}
}

func TestOwnPeerIDCostsNoBytes(t *testing.T) {
	h := raft.RPCHeader{ProtocolVersion: 3, ID: testPeer, Addr: testPeer}
	a := &raft.AppendEntriesRequest{RPCHeader: h, Term: 5, Leader: testPeer}
	b := encodeRequest(nil, a, testPeer)
	if len(b) > 8 {
		t.Errorf("heartbeat takes %d bytes", len(b))
	}
	if got, err := decodeAppendEntries(b, testPeer); err != nil || !reflect.DeepEqual(got, a) {
		t.Errorf("got %+v, %v", got, err)
	}
	for range 3 {
		a.Entries = append(a.Entries, &raft.Log{Index: 1<<40 + uint64(len(a.Entries)), Term: 5, Data: []byte("x")})
	}
	a.PrevLogEntry = 1<<40 - 1
	with := len(encodeRequest(nil, a, testPeer))
	a.Entries = a.Entries[:1]
	if per := (with - len(encodeRequest(nil, a, testPeer))) / 2; per != entryBytesMin+1 {
		t.Errorf("an entry of one byte takes %d bytes, want %d", per, entryBytesMin+1)
	}
}

func FuzzDecodeRequest(f *testing.F) {
	for kind := range requestKinds {
		f.Add(byte(kind), []byte{})
	}
	entry := &raft.Log{Index: 10, Term: 3, Type: raft.LogConfiguration, Data: []byte("data"), Extensions: []byte("ext"), AppendedAt: time.Unix(1, 2)}
	a := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: testPeer}, Term: 4, PrevLogEntry: 9, Entries: []*raft.Log{entry, entry}}
	f.Add(byte(kindAppend), encodeRequest(nil, a, testPeer))
	f.Add(byte(kindSnapshot), encodeRequest(nil, &raft.InstallSnapshotRequest{Size: 1 << 40, Configuration: []byte("c")}, testPeer))
	f.Add(byte(kindAppend), []byte{7, 3, 1, 1, 1, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		before := bytes.Clone(b)
		got, err := decodeRequest(Kind(kind), b, testPeer)
		if err != nil {
			return
		}
		again, err := decodeRequest(Kind(kind), encodeRequest(nil, got, testPeer), testPeer)
		if err != nil || !reflect.DeepEqual(normal(got), normal(again)) {
			t.Fatalf("second round trip: %v\n%+v\n%+v", err, got, again)
		}
		if !bytes.Equal(b, before) {
			t.Fatal("decoder wrote to its input")
		}
	})
}

// normal drops the difference between a time of zero and none.
func normal(r raft.WithRPCHeader) raft.WithRPCHeader {
	if a, ok := r.(*raft.AppendEntriesRequest); ok {
		for _, e := range a.Entries {
			e.AppendedAt = e.AppendedAt.UTC()
		}
	}
	return r
}

func FuzzDecodeResponse(f *testing.F) {
	for _, response := range []any{&raft.AppendEntriesResponse{Term: 3, LastLog: 1 << 40, Success: true}, &raft.RequestVoteResponse{Granted: true, Peers: []byte("p")}} {
		b, err := encodeResponse(nil, response, testPeer)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, response := range []any{new(raft.AppendEntriesResponse), new(raft.RequestVoteResponse), new(raft.RequestPreVoteResponse),
			new(raft.TimeoutNowResponse), new(raft.InstallSnapshotResponse)} {
			if decodeResponse(response, b, testPeer) != nil {
				continue
			}
			again, err := encodeResponse(nil, response, testPeer)
			if err != nil {
				t.Fatal(err)
			}
			second := reflect.New(reflect.TypeOf(response).Elem()).Interface()
			if err := decodeResponse(second, again, testPeer); err != nil || !reflect.DeepEqual(response, second) {
				t.Fatalf("second round trip of %T: %v", response, err)
			}
		}
	})
}
