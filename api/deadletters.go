package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sluice-iot/sluice/telemetry"
)

// Database is what only a shared database has. All methods may be called on any
// node.
type Database interface {
	// DeadLetters lists the rows that the database refused, newest first.
	DeadLetters(ctx context.Context, q DeadLetterQuery) ([]DeadLetter, error)
	// DeadLetter is one of them; ErrNotFound when there is no such letter.
	DeadLetter(ctx context.Context, id int64) (DeadLetter, error)
	// ReplayDeadLetter stores such a row and removes the letter; ErrConflict when
	// the database refuses it still, ErrNotFound when there is no such letter.
	ReplayDeadLetter(ctx context.Context, id int64) error
	// DropDeadLetter removes a letter and the row with it; ErrNotFound as above.
	DropDeadLetter(ctx context.Context, id int64) error
	// AcceptLoss lets a shard go on whose database has lost rows that the log no
	// longer has; ErrNotFound when it has lost none.
	AcceptLoss(ctx context.Context, shard telemetry.ShardID) error
}

// DeadLetterQuery selects dead letters, newest first.
type DeadLetterQuery struct {
	Device   string // "" is every device
	From, To int64  // of Created, microseconds, inclusive and exclusive
	Before   int64  // only with smaller ids; 0 is all
	Limit    int    // > 0
}

// DeadLetter is a row that the database refused, or the record of a range whose
// rows are gone.
type DeadLetter struct {
	ID        int64             `json:"id"`
	Created   Time              `json:"created"`
	Shard     telemetry.ShardID `json:"shard"`
	FromIndex uint64            `json:"from_index" doc:"log range of the batch, exclusive"`
	ToIndex   uint64            `json:"to_index" doc:"inclusive"`
	Kind      string            `json:"kind" enum:"reading,device,anomaly,lost"`
	Device    string            `json:"device_id"`
	SQLState  string            `json:"sqlstate"`
	Reason    string            `json:"reason" doc:"in the words of the database"`
	Content   json.RawMessage   `json:"content" doc:"all of the row; of a reading, with message_id and message, what it was published in: one of more than 64 readings in the first letter of a page, whole in /api/v1/deadletters/{id}"`
}

// DeadLetterList answers GET /api/v1/deadletters, newest first.
type DeadLetterList struct {
	DeadLetters []DeadLetter `json:"deadletters" nullable:"false"`
	Next        string       `json:"next,omitempty" doc:"cursor of the next page, absent on the last"`
}

func (l DeadLetterList) writeJSON(w io.Writer) error {
	return writeList(w, "deadletters", l.DeadLetters, l.Next)
}

// database is an error with the embedded store.
func (s *Server) database() (Database, error) {
	if s.backend.Database == nil {
		return nil, newProblem(http.StatusNotFound, "this cluster stores its rows in files, which refuse none and lose none: dead letters and losses are a database's")
	}
	return s.backend.Database, nil
}

func (s *Server) databaseRoutes() {
	register(s, huma.Operation{
		OperationID: "deadletters", Method: http.MethodGet, Path: "/api/v1/deadletters", Summary: "Rows that the database refused, newest first",
		Parameters: slices.Concat([]*huma.Param{deviceParam()}, periodParams(), pageParams(QuarantineLimitMax)), DefaultStatus: http.StatusOK,
	}, s.listDeadLetters)
	register(s, huma.Operation{
		OperationID: "deadletter", Method: http.MethodGet, Path: "/api/v1/deadletters/{id}", Summary: "One row that the database refused, with the message that it was published in",
		Parameters: []*huma.Param{pathParam("id", "of the dead letter")}, DefaultStatus: http.StatusOK,
	}, func(ctx context.Context, p *params) (DeadLetter, error) {
		id := pathNumber(p)
		if err := p.err(); err != nil {
			return DeadLetter{}, err
		}
		db, err := s.database()
		if err != nil {
			return DeadLetter{}, err
		}
		return db.DeadLetter(ctx, id)
	})
	s.act("replayDeadLetter", http.MethodPost, "/api/v1/deadletters/{id}/replay", "Store a refused row after all", "of the dead letter", Database.ReplayDeadLetter)
	s.act("dropDeadLetter", http.MethodDelete, "/api/v1/deadletters/{id}", "Remove a refused row for good", "of the dead letter", Database.DropDeadLetter)
	s.act("acceptLoss", http.MethodPost, "/api/v1/shards/{id}/accept-loss", "Let a shard go on whose database has lost rows that the log no longer has", "shard",
		func(d Database, ctx context.Context, id int64) error {
			if id > math.MaxUint32 {
				return fmt.Errorf("shard %d: %w", id, ErrNotFound)
			}
			return d.AcceptLoss(ctx, telemetry.ShardID(id))
		})
}

// act adds a route that does something to what a number names.
func (s *Server) act(id, method, path, summary, what string, do func(Database, context.Context, int64) error) {
	huma.Register(s.huma, operation(huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary,
		Parameters: []*huma.Param{pathParam("id", what)}, DefaultStatus: http.StatusNoContent,
	}), func(ctx context.Context, p *params) (*struct{}, error) {
		n := pathNumber(p)
		if err := p.err(); err != nil {
			return nil, err
		}
		db, err := s.database()
		if err == nil {
			err = do(db, ctx, n)
		}
		if err != nil {
			return nil, s.problem(ctx, err)
		}
		return nil, nil
	})
}

// pathNumber is the id in the path of a letter or a shard.
func pathNumber(p *params) int64 {
	n, err := strconv.ParseInt(p.path("id"), 10, 64)
	if err != nil || n < 0 {
		p.problem("id %q is no number: give one that the list has", p.path("id"))
	}
	return n
}

func (s *Server) listDeadLetters(ctx context.Context, p *params) (DeadLetterList, error) {
	q := DeadLetterQuery{Device: p.device()}
	q.From, q.To = p.period()
	limit := p.limit(QuarantineLimitMax)
	q.Limit = limit + 1
	if pos := p.position(); pos != nil {
		before, err := strconv.ParseInt(pos.ID, 10, 64)
		if err != nil || before <= 0 {
			p.problem("cursor %q was not given for this list: pass next as it came, or leave it out to begin again", p.query.Get("cursor"))
		}
		q.Before = before
	}
	if err := p.err(); err != nil {
		return DeadLetterList{}, err
	}
	db, err := s.database()
	if err != nil {
		return DeadLetterList{}, err
	}
	release, err := s.acquireRead(ctx)
	if err != nil {
		return DeadLetterList{}, err
	}
	defer release()
	found, err := db.DeadLetters(ctx, q)
	if err != nil {
		return DeadLetterList{}, err
	}
	var list DeadLetterList
	list.DeadLetters, list.Next = page(found, limit, func(l *DeadLetter) string {
		return encodePosition(Position{Time: int64(l.Created), ID: strconv.FormatInt(l.ID, 10)})
	})
	return list, nil
}
