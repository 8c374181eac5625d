package gossip

import (
	"bytes"
	"log"
	"log/slog"
)

// libraryLogger passes memberlist's lines to slog, one level lower than they
// say: what it calls an error (a ping that failed) is a node that restarts.
func libraryLogger(logger *slog.Logger) *log.Logger {
	return log.New(lineWriter{logger}, "", 0)
}

type lineWriter struct{ logger *slog.Logger }

// Write takes one line, "[LEVEL] memberlist: text".
func (w lineWriter) Write(line []byte) (int, error) {
	text := bytes.TrimSpace(line)
	level, rest, ok := bytes.Cut(text, []byte("] "))
	if ok {
		text = bytes.TrimPrefix(rest, []byte("memberlist: "))
	}
	switch string(level) {
	case "[ERR", "[ERROR":
		w.logger.Warn("gossip library reports", "text", string(text))
	case "[WARN":
		w.logger.Info("gossip library reports", "text", string(text))
	default:
		w.logger.Debug("gossip library reports", "text", string(text))
	}
	return len(line), nil
}
