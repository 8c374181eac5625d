package session

// retain keeps m as its topic's message; an empty one clears it. False when there
// is no room, and then the earlier one stays.
func (st *State) retain(m *Message) bool {
	old := st.retained[m.Topic]
	n, bytes := len(st.retained), st.kept
	if old != nil {
		n, bytes = n-1, bytes-old.Bytes()
	}
	if len(m.Payload) == 0 {
		if old != nil {
			delete(st.retained, m.Topic)
			st.kept = bytes
		}
		return true
	}
	if n >= retainedMax || bytes+m.Bytes() > retainedBytesMax {
		return false
	}
	st.retained[m.Topic] = m
	st.kept = bytes + m.Bytes()
	return true
}
