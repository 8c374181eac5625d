// Package obs makes the loggers of the libraries we build on speak through
// log/slog: hashicorp/raft wants an hclog.Logger, memberlist a *log.Logger.
// It owns nothing.
package obs
