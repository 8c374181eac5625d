package node

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// serveDebug serves profiles and the digests of replicas on loopback when the configuration asks for it.
func (n *node) serveDebug(context.Context) (func() error, error) {
	if n.cfg.Debug.Listen == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", n.cfg.Debug.Listen)
	if err != nil {
		return nil, inUse("debug.listen", err)
	}
	m := http.NewServeMux()
	m.HandleFunc("/debug/pprof/", pprof.Index)
	m.HandleFunc("/debug/pprof/profile", pprof.Profile)
	m.HandleFunc("/debug/pprof/trace", pprof.Trace)
	m.HandleFunc("/debug/replicas", n.serveReplicas)
	srv := &http.Server{Handler: m, ReadHeaderTimeout: 5 * time.Second}
	n.running.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.logger.Warn("serve profiles", "err", err)
		}
	})
	return srv.Close, nil
}

// serveReplicas describes the replicas of this node with the digests of their
// states: equal at the same index, or a state machine has diverged. It
// costs the CPU time of encoding every state.
func (n *node) serveReplicas(w http.ResponseWriter, _ *http.Request) {
	if !n.serving.Load() {
		http.Error(w, "the node is starting", http.StatusServiceUnavailable)
		return
	}
	out := []shard.ReplicaStatus{}
	for id := range n.meta.State().Shards {
		if s, ok := n.host.Shard(telemetry.ShardID(id)); ok {
			out = append(out, s.Status(true))
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(out); err != nil {
		n.logger.Debug("digests not sent", "err", err)
	}
}
