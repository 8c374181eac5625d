package mux

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// BenchmarkCall is a small request and its answer, 64 in flight, both ends in
// this process.
func BenchmarkCall(b *testing.B) {
	d := newDirectory()
	m, o := newTestMux(b, d, peerID(0)), newTestMux(b, d, peerID(1))
	o.Handle(64, echo)
	body := make([]byte, 64)
	slots := make(chan struct{}, 64)
	var wg sync.WaitGroup
	done := func(_ []byte, err error) {
		if err != nil {
			b.Error(err)
		}
		<-slots
		wg.Done()
	}
	if _, err := m.Call(testContext(b), peerID(1), 64, 0, body); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		slots <- struct{}{}
		wg.Add(1)
		m.Go(peerID(1), 64, 0, body, done)
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// BenchmarkAppendEntries pipelines appends of 16 entries to a follower that
// answers at once: the transport alone.
func BenchmarkAppendEntries(b *testing.B) {
	for _, size := range []int{2 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("entry=%dKiB", size>>10), func(b *testing.B) {
			d := newDirectory()
			m, o := newTestMux(b, d, peerID(0)), newTestMux(b, d, peerID(1))
			follower := o.Group(1)
			stop := make(chan struct{})
			defer close(stop)
			go func() {
				for {
					select {
					case rpc := <-follower.Consumer():
						rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: raft.RPCHeader{ID: []byte(peerID(1))}, Term: 1, Success: true}, nil)
					case <-stop:
						return
					}
				}
			}()
			self := []byte(peerID(0))
			const entries = 16
			request := func() *raft.AppendEntriesRequest {
				a := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: self, Addr: self}, Term: 1, PrevLogEntry: 1, PrevLogTerm: 1}
				for i := range entries {
					a.Entries = append(a.Entries, &raft.Log{Index: uint64(2 + i), Term: 1, Data: make([]byte, size), AppendedAt: time.Now()})
				}
				return a
			}()
			p, err := m.Group(1).AppendEntriesPipeline("", raft.ServerAddress(peerID(1)))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(entries * int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for range b.N {
					if _, err := p.AppendEntries(request, new(raft.AppendEntriesResponse)); err != nil {
						b.Error(err)
						return
					}
				}
			}()
			for range b.N {
				if f := <-p.Consumer(); f.Error() != nil {
					b.Fatal(f.Error())
				}
			}
			<-sent
		})
	}
}

// BenchmarkHeartbeat is a heartbeat and its answer, with nothing else going on and
// while 64 MiB snapshots of another group follow each other on the same pair.
func BenchmarkHeartbeat(b *testing.B) {
	for _, busy := range []bool{false, true} {
		b.Run(fmt.Sprintf("snapshot=%v", busy), func(b *testing.B) {
			d := newDirectory()
			m, o := newTestMux(b, d, peerID(0)), newTestMux(b, d, peerID(1))
			target := raft.ServerAddress(peerID(1))
			o.Group(1).SetHeartbeatHandler(func(rpc raft.RPC) { rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil) })
			h := raft.RPCHeader{ProtocolVersion: 3, ID: m.self, Addr: m.self}
			stop := make(chan struct{})
			var wg sync.WaitGroup
			var sent atomic.Int64
			if busy {
				wg.Go(func() {
					for {
						select {
						case rpc := <-o.Group(2).Consumer():
							_, _ = install(rpc)
						case <-stop:
							return
						}
					}
				})
				wg.Go(func() {
					for i := uint64(1); ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						if m.Group(2).InstallSnapshot("", target, snapshotOf(m, 1, i, 64<<20), new(raft.InstallSnapshotResponse), zeros{}) != nil {
							return
						}
						sent.Add(64 << 20)
					}
				})
			}
			var took []time.Duration
			b.ResetTimer()
			for range b.N {
				start := time.Now()
				if err := m.Group(1).AppendEntries("", target, &raft.AppendEntriesRequest{RPCHeader: h, Term: 1}, new(raft.AppendEntriesResponse)); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
				time.Sleep(time.Millisecond)
			}
			b.StopTimer()
			close(stop)
			_ = m.Close() // ends the snapshot under way
			wg.Wait()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
			b.ReportMetric(float64(took[len(took)-1].Microseconds()), "max-us")
			b.ReportMetric(float64(sent.Load())/b.Elapsed().Seconds()/1e6, "snapshot-MB/s")
		})
	}
}
