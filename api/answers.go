package api

import (
	"net/http"
	"strings"
	"sync"

	"github.com/zeebo/xxh3"
)

const (
	keyBytesMax = 255
	// answersBytesMax bounds the answers kept for repeats: about 40,000 without
	// errors, which covers minutes of any client's retries.
	answersBytesMax = 16 << 20
	// answerBytes is what an answer without errors costs, map entry included.
	answerBytes = 400
)

// answers keeps what requests with an Idempotency-Key were told, so that a
// repeat on the same node hears the first counts again. A repeat on another
// node, or after the oldest were forgotten, takes the ordinary way, where the
// replicated window finds its messages to be duplicates.
type answers struct {
	mu       sync.Mutex
	byKey    map[string]*answer
	order    []string // finished ones, oldest first
	bytes    int
	bytesMax int
}

type answer struct {
	done   bool // otherwise the first request is still under way
	body   xxh3.Uint128
	counts Counts
	size   int
}

func newAnswers(bytesMax int) *answers {
	return &answers{byKey: map[string]*answer{}, bytesMax: bytesMax}
}

// begin claims a key. first is true for the request that must do the work and
// then call finish or forget; otherwise known is the answer to give again.
func (a *answers) begin(key string) (known answer, first bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e, ok := a.byKey[key]; !ok {
		a.byKey[key] = &answer{}
		return answer{}, true, nil
	} else if e.done {
		return *e, false, nil
	}
	p := newProblem(http.StatusConflict, "a request with this Idempotency-Key is still under way: wait for its answer, then repeat")
	p.retryAfter = RetryAfterDefault
	return answer{}, false, p
}

// finish keeps the answer for repeats and lets the oldest go.
func (a *answers) finish(key string, body xxh3.Uint128, counts Counts) {
	size := answerBytes + 2*len(key)
	for _, e := range counts.Errors {
		size += 32 + len(e.Reason)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	*a.byKey[key] = answer{done: true, body: body, counts: counts, size: size}
	a.order = append(a.order, key)
	a.bytes += size
	for a.bytes > a.bytesMax && len(a.order) > 1 {
		a.bytes -= a.byKey[a.order[0]].size
		delete(a.byKey, a.order[0])
		a.order = a.order[1:]
	}
}

// forget gives a key back whose request came to no final answer.
func (a *answers) forget(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.byKey, key)
}

// idempotencyKey reads the header; the draft standard's quotes may be missing.
func idempotencyKey(h http.Header) (string, error) {
	values := h.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	key := values[0]
	if n := len(key); n >= 2 && key[0] == '"' && key[n-1] == '"' {
		key = key[1 : n-1]
	}
	bad := strings.IndexFunc(key, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '#' }) >= 0
	if len(values) > 1 || key == "" || len(key) > keyBytesMax || bad {
		return "", invalid("Idempotency-Key must be one value of 1 to %d printable ASCII characters without spaces, quotes and #: use a UUID", keyBytesMax)
	}
	return key, nil
}
