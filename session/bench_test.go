package session

import (
	"fmt"
	"runtime"
	"slices"
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

// BenchmarkSnapshotStops is how long a snapshot keeps the lock of a shard's sessions: at
// the longest, at once, and while it is taken; beside what encoding under the lock took.
func BenchmarkSnapshotStops(b *testing.B) {
	for _, n := range []int{20_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			st, _ := benchState(n)
			var stops, whole, takes []time.Duration
			for b.Loop() {
				began := time.Now()
				st.Append(nil)
				whole = append(whole, time.Since(began))
				began = time.Now()
				v := st.View()
				takes = append(takes, time.Since(began))
				h := &held{}
				v.Append(nil, h)
				v.Release()
				stops = append(stops, max(h.longest, takes[len(takes)-1]))
			}
			for name, l := range map[string][]time.Duration{"ms-whole": whole, "ms-view": takes, "ms-longest-stop": stops} {
				slices.Sort(l)
				b.ReportMetric(l[len(l)/2].Seconds()*1e3, name)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// held is a lock that notes how long it was held at the longest.
type held struct {
	at      time.Time
	longest time.Duration
}

func (h *held) Lock()   { h.at = time.Now() }
func (h *held) Unlock() { h.longest = max(h.longest, time.Since(h.at)) }

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
