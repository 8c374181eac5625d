// Package precedence is a queue of two classes: what is urgent passes what is bulk,
// and bulk is never starved.
//
// It owns what it was given until that is popped, and no goroutine. It is not safe
// for concurrent use: its owner holds a lock, or is the only one who uses it.
//
// Invariants:
//
//   - Within a class the order is that of Push.
//   - What is urgent comes before what is bulk, but for one of bulk after every
//     three of urgent in a row while bulk waits.
//   - Bulk fills at most three quarters of the bound: there is room for what is
//     urgent however much bulk waits.
//
// It knows nothing of messages: what is urgent is the caller's to say.
//
//	var q precedence.Queue[[]byte]
//	ok := q.Push(body, len(body), urgent, bytesMax) // false: no room
//	for size, ok := q.Next(); ok && size <= left; size, ok = q.Next() {
//		left -= size
//		frame = append(frame, q.Pop()...)
//	}
package precedence
