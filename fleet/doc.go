// Package fleet is the expression language that selects devices: by id, by when
// they were seen, by their attributes and by their open anomalies.
//
//	attributes.model = "x1" and not (attributes.site in ("hall 1", "hall 2"))
//	last_seen < -1h or anomaly
//	id like "pump-*" and attributes.firmware >= 1.2 and severity > 50
//
// # Grammar
//
//	expression = term { "or" term }
//	term       = factor { "and" factor }
//	factor     = "not" factor | "(" expression ")" | condition
//	condition  = "anomaly"                                   it has an open anomaly
//	           | "exists" attribute
//	           | field comparison value                       = != < <= > >=
//	           | text "like" string                           * stands for any characters
//	           | field "in" "(" value { "," value } ")"
//	field      = text | "first_seen" | "last_seen" | "severity"
//	text       = "id" | attribute
//	attribute  = "attributes." name                           name: letters, digits, _ - . or a string
//	value      = string | number | time
//	string     = '"' { character | '\"' | '\\' } '"'
//	time       = string with RFC 3339 | duration as -15m, -1h, -7d: before now
//
// Words are lower case. An attribute is text; compared with a number (without
// quotes) it is read as one, and one that is no number, or absent, fulfils no
// condition but != : a device without the attribute differs from every value.
// severity is that of the worst open anomaly, 0 to 100, and 0 without one.
//
// # Promises
//
// Parse refuses what it does not understand, with the place and what was expected
// there. An Expression is immutable, holds no more than 64 conditions, and answers
// in time linear in them and in the length of what it looks at. It owns nothing
// and knows neither shards nor HTTP; whoever has devices implements Device.
package fleet
