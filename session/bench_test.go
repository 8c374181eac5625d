package session

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// benchState is a shard with n durable sessions: identity, a will and the subscription
// to the client's own commands each.
func benchState(n int) (*State, int) {
	st := New()
	log := 0
	const batch = 64
	for at := 0; at < n; at += batch {
		var ops [][]byte
		for i := at; i < min(at+batch, n); i++ {
			id := fmt.Sprintf("meter-%07d", i)
			c := Connect{Client: id, Node: "n1", NodeEpoch: 7, Durable: true, Expiry: 3600e6, QueueMax: 1000, QueueBytes: 1 << 20, QueueAge: 86400e6,
				Will: &Message{Topic: "fleet/" + id, Payload: []byte("gone"), QoS: 1, Origin: id}, WillDelay: 60e6}
			ops = append(ops, c.Append(nil), AppendSubscribe(nil, Ref{id, uint64(i) + 1}, []Subscription{{Filter: "devices/" + id + "/commands", QoS: 1}}, nil))
		}
		b := AppendBatch(nil, "n1", 7, uint64(at/batch)+1, ops)
		log += len(b)
		st.Apply(1, b)
		st.TakeEffects()
	}
	return st, log
}

// BenchmarkSessions is what durable sessions cost a replica of their shard: memory,
// log, snapshot, and the garbage collector's time for going through them. An op is one
// collection; the number of sessions is in the name.
func BenchmarkSessions(b *testing.B) {
	for _, n := range []int{20_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			before, _ := inUse()
			began := time.Now()
			st, log := benchState(n)
			apply := time.Since(began)
			after, objects := inUse()
			if got := st.Counts(); got.Sessions != n || got.Connected != n {
				b.Fatalf("%+v", got)
			}
			for range 3 {
				runtime.GC()
			}
			cpu := cpuTime(b)
			for b.Loop() {
				runtime.GC()
			}
			spent := cpuTime(b) - cpu
			each := float64(n)
			b.ReportMetric(float64(after-before)/each, "B/session")
			b.ReportMetric(float64(objects)/each, "objects/session")
			b.ReportMetric(float64(log)/each, "log-B/session")
			b.ReportMetric(float64(apply.Nanoseconds())/each, "apply-ns/session")
			b.ReportMetric(spent.Seconds()*1e3/float64(b.N), "cpu-ms/collection")
			began = time.Now()
			snapshot := st.Append(nil)
			b.ReportMetric(time.Since(began).Seconds()*1e3, "snapshot-ms")
			b.ReportMetric(float64(len(snapshot))/each, "snapshot-B/session")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func inUse() (bytes, objects uint64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, m.HeapObjects
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
