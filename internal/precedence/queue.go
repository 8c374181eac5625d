package precedence

// urgentInARow is how many of the urgent class come before one of the other, while
// both wait: a flood of commands leaves telemetry a quarter.
const urgentInARow = 3

// Queue is a queue of two classes. The zero value is empty and ready to use.
type Queue[T any] struct {
	urgent, bulk []item[T]
	size         int
	row          uint8 // urgent ones since the last of bulk
}

type item[T any] struct {
	v    T
	size int
}

// Push appends v to its class. It returns false, and keeps nothing, when all that
// waits would be larger than bound, or for bulk than three quarters of it.
func (q *Queue[T]) Push(v T, size int, urgent bool, bound int) bool {
	if !urgent {
		bound -= bound / 4
	}
	if q.size+size > bound {
		return false
	}
	q.Put(v, size, urgent)
	return true
}

// Put is Push for callers who have a bound of their own.
func (q *Queue[T]) Put(v T, size int, urgent bool) {
	q.size += size
	if urgent {
		q.urgent = append(q.urgent, item[T]{v, size})
	} else {
		q.bulk = append(q.bulk, item[T]{v, size})
	}
}

// Len is how many wait.
func (q *Queue[T]) Len() int { return len(q.urgent) + len(q.bulk) }

// Size is the sum of the sizes of all that wait.
func (q *Queue[T]) Size() int { return q.size }

// Next is the size of what Pop returns next; false when nothing waits.
func (q *Queue[T]) Next() (size int, ok bool) {
	if q.Len() == 0 {
		return 0, false
	}
	return (*q.next())[0].size, true
}

// Pop takes out what is next. Something must be waiting.
func (q *Queue[T]) Pop() T {
	list := q.next()
	if list == &q.bulk || len(q.bulk) == 0 {
		q.row = 0
	} else {
		q.row++
	}
	first := (*list)[0]
	(*list)[0] = item[T]{} // the array lives on
	if *list = (*list)[1:]; len(*list) == 0 {
		*list = nil
	}
	q.size -= first.size
	return first.v
}

// next is the class whose turn it is.
func (q *Queue[T]) next() *[]item[T] {
	if len(q.urgent) == 0 || len(q.bulk) > 0 && q.row == urgentInARow {
		return &q.bulk
	}
	return &q.urgent
}
