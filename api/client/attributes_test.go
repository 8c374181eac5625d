package client_test

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
)

func TestPutIsRepeatedAndHasOneEffect(t *testing.T) {
	n := start(t)
	ctx := context.Background()
	if _, _, err := n.client.Attributes(ctx, "d1"); !errors.Is(err, api.ErrNotFound) {
		t.Fatalf("unknown device: %v", err)
	}
	first, created, err := n.client.PutAttributes(ctx, "d1", map[string]string{"a": "1"}, client.Precondition{IfNoneMatch: "*"})
	if err != nil || !created {
		t.Fatalf("create: %v, created %v", err, created)
	}
	lost := 0
	n.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || lost > 0 {
			return false
		}
		lost++ // the put happens, its answer does not arrive
		rec := discard{http.Header{}}
		n.direct.ServeHTTP(rec, r)
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	second, created, err := n.client.PutAttributes(ctx, "d1", map[string]string{"a": "2"}, client.Precondition{IfMatch: first})
	if err != nil || created || second == first || lost != 1 {
		t.Fatalf("compare-and-set whose answer was lost: ETag %s after %s, %v", second, first, err)
	}
	attributes, etag, err := n.client.Attributes(ctx, "d1")
	if err != nil || etag != second || attributes["a"] != "2" {
		t.Fatalf("read %v with %s, %v, want a=2 with %s", attributes, etag, err, second)
	}
	if _, _, err := n.client.PutAttributes(ctx, "d1", nil, client.Precondition{IfMatch: first}); !errors.Is(err, api.ErrPrecondition) {
		t.Fatalf("a stale tag: %v, want ErrPrecondition", err)
	}
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}
