package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/devcluster"
)

// Compare-and-set on the attributes of a few devices through every node, with
// every operation recorded: the history has to be linearizable (C6).

// OpKind is what a client of the register asked for.
type OpKind string

// The operations.
const (
	OpRead OpKind = "read"
	OpPut  OpKind = "put"  // replaces whatever is there
	OpSwap OpKind = "swap" // replaces what the client has read, or nothing
)

// Operation is one operation on a register. Every write has a value of its own.
type Operation struct {
	Register, Client int
	Kind             OpKind
	Expect           string // OpSwap: what was read; "" is a device that is not known
	Write            string
	Read             string // OpRead: the answer
	Done             bool   // OpSwap: it took place
	Unknown          bool   // no answer: it may have taken place, now or later
	Call, Return     int64  // nanoseconds since the run began
}

const (
	registersCount  = 3
	registerClients = 6
	registerPause   = 40 * time.Millisecond
	registerMax     = 5 * time.Second // for an answer
	registerKey     = "value"
	checkMax        = time.Minute // for the linearizability of one run
)

// registers drives and records.
type registers struct {
	began time.Time
	done  sync.WaitGroup
	mu    sync.Mutex
	ops   []Operation
}

func startRegisters(ctx context.Context, nodes []*devcluster.Node, seed uint64) *registers {
	r := &registers{began: time.Now()}
	for i := range registerClients {
		rng := rand.New(rand.NewPCG(seed, uint64(100+i)))
		r.done.Go(func() { r.run(ctx, nodes, i, rng) })
	}
	return r
}

// run works through one node after the other, going on when one does not answer.
func (r *registers) run(ctx context.Context, nodes []*devcluster.Node, id int, rng *rand.Rand) {
	tags := map[int]Operation{} // the last read of each register
	etags := map[int]string{}
	for at, seq := id, 0; ctx.Err() == nil; sleep(ctx, registerPause) {
		cl, err := nodes[at%len(nodes)].Client()
		if err != nil {
			return
		}
		op := Operation{Register: rng.IntN(registersCount), Client: id, Write: fmt.Sprintf("%d-%d", id, seq)}
		seq++
		op.Kind = []OpKind{OpRead, OpRead, OpSwap, OpPut}[rng.IntN(4)]
		last, known := tags[op.Register]
		if op.Kind == OpSwap && !known {
			op.Kind = OpRead
		}
		op.Expect = last.Read
		etag := r.do(ctx, cl, &op, etags[op.Register])
		cl.Close()
		switch {
		case op.Unknown:
			at++
			delete(tags, op.Register)
		case op.Kind == OpRead:
			tags[op.Register], etags[op.Register] = op, etag
		default:
			delete(tags, op.Register) // it is read again before the next swap
		}
		r.mu.Lock()
		r.ops = append(r.ops, op)
		r.mu.Unlock()
	}
}

// do performs one operation and notes its answer.
func (r *registers) do(ctx context.Context, cl *client.Client, op *Operation, etag string) string {
	ctx, cancel := context.WithTimeout(ctx, registerMax)
	defer cancel()
	device := fmt.Sprintf("register-%d", op.Register)
	op.Call = int64(time.Since(r.began))
	defer func() { op.Return = int64(time.Since(r.began)) }()
	if op.Kind == OpRead {
		values, tag, err := cl.Attributes(ctx, device)
		if err != nil && !errors.Is(err, api.ErrNotFound) {
			op.Unknown = true
			return ""
		}
		op.Read = values[registerKey]
		return tag
	}
	var when client.Precondition
	switch {
	case op.Kind == OpSwap && op.Expect == "":
		when.IfNoneMatch = "*"
	case op.Kind == OpSwap:
		when.IfMatch = etag
	}
	_, _, err := cl.PutAttributes(ctx, device, map[string]string{registerKey: op.Write}, when)
	switch {
	case err == nil:
		op.Done = true
	case !errors.Is(err, api.ErrPrecondition):
		op.Unknown = true
	}
	return ""
}

// registerModel is a register with read, put and compare-and-set. An operation
// without an answer never returns; one that never took place is ordered last.
var registerModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := make([][]porcupine.Operation, registersCount)
		for _, o := range history {
			i := o.Input.(Operation).Register
			parts[i] = append(parts[i], o)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		now, op := state.(string), input.(Operation)
		switch {
		case op.Kind == OpRead:
			return op.Unknown || op.Read == now, now
		case op.Kind == OpPut:
			return true, op.Write
		case op.Unknown && now != op.Expect:
			return true, now
		case op.Done || op.Unknown:
			return now == op.Expect, op.Write
		}
		return now != op.Expect, now
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
}

// linearizable checks a recorded history.
func linearizable(ops []Operation, res *Result) {
	var history []porcupine.Operation
	last := int64(0)
	for _, op := range ops {
		last = max(last, op.Return)
	}
	for _, op := range ops {
		if op.Unknown && op.Kind == OpRead {
			continue
		}
		end := op.Return
		if op.Unknown {
			end = last + 1
		}
		history = append(history, porcupine.Operation{ClientId: op.Client, Input: op, Call: op.Call, Return: end})
	}
	switch porcupine.CheckOperationsTimeout(registerModel, history, checkMax) {
	case porcupine.Illegal:
		res.fail("C6", "%d operations on %d registers are not linearizable", len(history), registersCount)
	case porcupine.Unknown:
		res.Note += fmt.Sprintf("; linearizability of %d operations not decided within %v", len(history), checkMax)
	}
}
