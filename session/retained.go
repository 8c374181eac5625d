package session

// retain keeps m as its topic's message; an empty one clears it. False when there
// is no room, and then the earlier one stays.
func (st *State) retain(m *Message) bool {
	old := st.retained.get(m.Topic)
	n, bytes := st.retained.len(), st.kept
	if old != nil {
		n, bytes = n-1, bytes-old.Bytes()
	}
	if len(m.Payload) == 0 {
		if old != nil {
			st.retained.remove(old)
			st.kept = bytes
		}
		return true
	}
	if n >= retainedMax || bytes+m.Bytes() > retainedBytesMax {
		return false
	}
	st.retained.put(m)
	st.kept = bytes + m.Bytes()
	return true
}

// Retained lists what is retained under a filter and has not expired at now.
func (st *State) Retained(filter string, now int64) (out []*Message) {
	st.retained.match(filter, func(m *Message) {
		if !m.Expired(now) {
			out = append(out, m)
		}
	})
	return out
}
