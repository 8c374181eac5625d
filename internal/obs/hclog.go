package obs

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Hclog returns an hclog.Logger that writes to logger what is at least level.
// The libraries speak to their own developers: what is WARN to raft (an election
// timeout, a rejected vote) is DEBUG to an operator, and what it repeats for as
// long as a peer is away is said once by the transport, so it is DEBUG too.
func Hclog(logger *slog.Logger, level hclog.Level) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: level, Output: io.Discard})
	l.RegisterSink(sink{logger, level})
	return l
}

// repeated lists what raft says again and again while a peer cannot be reached.
var repeated = []string{
	"failed to appendEntries to", "failed to heartbeat to", "failed to make requestVote RPC",
	"failed to make requestPreVote RPC", "failed to pipeline appendEntries", "failed to start pipeline replication to",
	"failed to send snapshot to", "peer has newer term, stopping replication",
}

type sink struct {
	logger *slog.Logger
	level  hclog.Level
}

// Accept implements hclog.SinkAdapter.
func (s sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	if level < s.level {
		return
	}
	to := slog.LevelDebug
	if level >= hclog.Error && !slices.Contains(repeated, msg) {
		to = slog.LevelWarn
	}
	if !s.logger.Enabled(context.Background(), to) {
		return
	}
	r := slog.NewRecord(time.Now(), to, msg, 0)
	for i := 0; i+1 < len(args); i += 2 {
		r.AddAttrs(slog.Any(fmt.Sprint(args[i]), args[i+1]))
	}
	// A handler that cannot write has nowhere to say so.
	_ = s.logger.Handler().Handle(context.Background(), r)
}

// StdLog returns a *log.Logger whose lines become records of level at logger.
func StdLog(logger *slog.Logger, level slog.Level) *log.Logger {
	return slog.NewLogLogger(logger.Handler(), level)
}
