package archive

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sluice-iot/sluice/store/parquet"
	"github.com/sluice-iot/sluice/telemetry"
)

func hours(n int) time.Time { return time.UnixMicro(t0 + int64(n)*3600e6) }

// replica is a store with a retention of a day that waits for the archive.
type replica struct {
	t     *testing.T
	files *parquet.Store
	hold  *Hold
	*Archiver
	leads bool
}

func newReplica(t *testing.T, bucket Bucket, dir string, cfg HoldConfig) *replica {
	t.Helper()
	hold, err := NewHold(quiet(), nil, cfg)
	if err != nil {
		t.Fatal(err)
	}
	files, err := parquet.Open(quiet(), nil, parquet.Config{Dir: dir, Retention: 24 * time.Hour, Keeper: hold})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	r := &replica{t: t, files: files, hold: hold, leads: true}
	r.Archiver, err = New(quiet(), nil, Config{Prefix: func() string { return "site/" }, Leads: func(telemetry.ShardID) bool { return r.leads }, Hold: hold}, files, bucket)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// expire does what maintenance does and returns the end of what has expired of
// shard 1.
func (r *replica) expire(now time.Time) uint64 {
	r.t.Helper()
	for _, shard := range r.files.Shards() {
		if _, err := r.files.Expire(r.t.Context(), shard, now); err != nil {
			r.t.Fatal(err)
		}
	}
	r.hold.Step(now, r.files.Overdue(now))
	if s := r.files.Segments(1); len(s) > 0 && s[0].Expired {
		return s[0].To
	}
	return 0
}

func storeDir(t *testing.T) string { return filepath.Join(t.TempDir(), "store") }

// TestRowsStayUntilTheArchiveHasThem on the replica that leads and on another one,
// which learns of the copies by itself and lets the same rows go.
func TestRowsStayUntilTheArchiveHasThem(t *testing.T) {
	away := &broken{server(t), 0}
	leader := newReplica(t, away, storeDir(t), HoldConfig{Max: 1000 * time.Hour})
	follower := newReplica(t, away.Bucket, storeDir(t), HoldConfig{Max: 1000 * time.Hour})
	follower.leads = false
	write(t, leader.files, 0, 60)
	write(t, follower.files, 0, 60)
	compact(t, follower.files)
	now := hours(60)
	for _, r := range []*replica{leader, follower} {
		if to := r.expire(now); to != 0 {
			t.Fatalf("rows up to %d are gone that the archive lacks", to)
		}
		h := r.hold.State()
		if h.Shards != 2 || h.Bytes == 0 || !h.Since.Equal(hours(25)) || !h.Until.Equal(hours(25+1000)) || h.Short || !h.Late(now) || h.Late(hours(25)) {
			t.Fatalf("held: %+v", h)
		}
	}
	if err := leader.Round(t.Context(), now); err == nil {
		t.Fatal("an archive that is away is no error")
	}
	if to := leader.expire(now); to != 0 {
		t.Fatalf("rows up to %d are gone that the archive lacks", to)
	}
	away.left = 7 // some of the first shard
	if err := leader.Round(t.Context(), now); err == nil {
		t.Fatal("a round that was cut is no error")
	}
	if err := follower.Round(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if follower.expire(now) != 0 || leader.expire(now) != 0 || leader.hold.State().Shards != 2 {
		t.Error("rows are gone that the archive lacks")
	}
	away.left = 1000
	for _, r := range []*replica{leader, follower} {
		if err := r.Round(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		if to := r.expire(now); to != 36 {
			t.Errorf("rows up to %d have expired, want 36", to)
		}
		if h := r.hold.State(); h != (Held{}) || testutil.ToFloat64(r.hold.metrics.lostRows) != 0 {
			t.Errorf("held: %+v, lost %v", h, testutil.ToFloat64(r.hold.metrics.lostRows))
		}
	}
	if got := fill(t, away.Bucket.(*S3)).Missing(1, 59); got != nil {
		t.Errorf("the archive lacks %v", got)
	}
}

func TestRowsGoWhenTheArchiveIsAwayForTooLong(t *testing.T) {
	r := newReplica(t, &broken{server(t), 0}, storeDir(t), HoldConfig{Max: 10 * time.Hour})
	write(t, r.files, 0, 60)
	if to := r.expire(hours(34)); to != 0 {
		t.Fatalf("rows up to %d are gone within the time", to)
	}
	if to := r.expire(hours(36)); to != 2 {
		t.Fatalf("rows up to %d are gone, want 2: those whose retention has been over for ten hours", to)
	}
	if n := testutil.ToFloat64(r.hold.metrics.lostRows); n != 2*2*10 {
		t.Errorf("%v rows are told to be lost, want 40", n)
	}
}

// TestRoomIsMadeOldestFirst: as much as it takes, not all.
func TestRoomIsMadeOldestFirst(t *testing.T) {
	free := int64(50)
	r := newReplica(t, &broken{server(t), 0}, storeDir(t), HoldConfig{Max: 1000 * time.Hour, Space: func() (int64, int64) { return free, 100 }})
	write(t, r.files, 0, 60)
	now := hours(60)
	r.expire(now)
	free = 9
	r.expire(now) // decides
	if h := r.hold.State(); !h.Short || !h.Late(now) {
		t.Fatalf("no room: %+v", h)
	}
	if to := r.expire(now); to != 1 {
		t.Errorf("rows up to %d are gone, want 1", to)
	}
	if to := r.expire(now); to != 2 {
		t.Errorf("rows up to %d are gone, want 2", to)
	}
	free = 10
	r.expire(now) // one hour more had been decided
	if to := r.expire(now); to != 3 {
		t.Errorf("rows up to %d are gone, want 3: there is room again", to)
	}
	r.hold.cfg.BytesMax = r.hold.State().Bytes - 1
	r.expire(now)
	if to := r.expire(now); to != 4 {
		t.Errorf("rows up to %d are gone, want 4: their files are too large", to)
	}
	if to := r.expire(now); to != 4 {
		t.Errorf("rows up to %d are gone, want 4: they are small enough", to)
	}
}

// TestWhatExpiredBeforeHoldsNothing: the archive will never have it.
func TestWhatExpiredBeforeHoldsNothing(t *testing.T) {
	dir := storeDir(t)
	files, err := parquet.Open(quiet(), nil, parquet.Config{Dir: dir, Retention: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	write(t, files, 0, 40)
	for _, shard := range files.Shards() {
		if did, err := files.Expire(t.Context(), shard, hours(40)); err != nil || !did {
			t.Fatal(did, err)
		}
	}
	if err := files.Close(); err != nil {
		t.Fatal(err)
	}
	r := newReplica(t, server(t), dir, HoldConfig{Max: 1000 * time.Hour})
	write(t, r.files, 40, 60)
	if to := r.expire(hours(60)); to != 16 {
		t.Fatalf("rows up to %d have expired, want 16 of before", to)
	}
	if err := r.Round(t.Context(), hours(60)); err != nil {
		t.Fatal(err)
	}
	if to := r.expire(hours(60)); to != 36 {
		t.Errorf("rows up to %d have expired, want 36", to)
	}
	if n := testutil.ToFloat64(r.hold.metrics.lostRows); n != 0 {
		t.Errorf("%v rows are told to be lost", n)
	}
}
