package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// serveDebug serves profiles on loopback when the configuration asks for it.
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
	srv := &http.Server{Handler: m, ReadHeaderTimeout: 5 * time.Second}
	n.running.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.logger.Warn("serve profiles", "err", err)
		}
	})
	return srv.Close, nil
}
