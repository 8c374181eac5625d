package obs

import "strings"

// OneLine joins a message of several lines, for a log, a table or a terminal.
func OneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
