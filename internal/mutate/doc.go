// Package mutate breaks Sluice on purpose, in builds with the tag mutations and
// nowhere else: a check that finds nothing wrong is believed only if it finds
// what was made wrong. Each switch is a mistake that other systems have shipped.
//
// In a normal build On is a constant false, so that the compiler removes the
// mistakes and their names. In a build with the tag the environment variable
// MUTATION names the one that is made; an unknown name ends the process.
//
// Example:
//
//	if !mutate.On(mutate.AckBeforeFsync) {
//		err = f.Fdatasync()
//	}
package mutate

// The switches.
const (
	AckBeforeFsync        = "ack-before-fsync"        // a group commit is answered without its sync
	SkipDirFsync          = "skip-dir-fsync"          // names are never synced
	RetryFsync            = "retry-fsync"             // a failed sync is tried again until it says that it worked
	TruncateOnCorrupt     = "truncate-on-corrupt"     // the log is cut at the first bad record, wherever that is
	NoDedup               = "no-dedup"                // repeats of devices are not recognised
	FlushWithoutWatermark = "flush-without-watermark" // rows are committed before the watermark moves
	StaleRead             = "stale-read"              // whoever believes that it leads answers reads
)

// All lists the switches.
func All() []string {
	return []string{AckBeforeFsync, SkipDirFsync, RetryFsync, TruncateOnCorrupt, NoDedup, FlushWithoutWatermark, StaleRead}
}

// Env is the environment variable that names the switch.
const Env = "MUTATION"
