package fleet

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Parse reads an expression. now is what times before now refer to; whoever
// evaluates one expression in several places passes the same.
func Parse(text string, now time.Time) (*Expression, error) {
	p := parser{lexer: lexer{text: text}, now: now}
	if len(text) > textBytesMax {
		return nil, &Error{At: textBytesMax + 1, Text: fmt.Sprintf("an expression has at most %d bytes", textBytesMax)}
	}
	p.advance()
	root, err := p.expression(0)
	if err == nil && p.token.kind != tokenEnd {
		err = p.expected(`"and", "or" or the end`)
	}
	if err != nil {
		return nil, err
	}
	return &Expression{root: root}, nil
}

type parser struct {
	lexer
	token      token
	now        time.Time
	conditions int
}

func (p *parser) advance() { p.token = p.next() }

func (p *parser) expected(what string) error {
	if p.token.kind == tokenBad {
		return &Error{At: p.token.at + 1, Text: p.token.text}
	}
	have := strconv.Quote(p.token.text)
	if p.token.kind == tokenEnd {
		have = "the end"
	}
	return &Error{At: p.token.at + 1, Text: fmt.Sprintf("found %s where %s belongs", have, what)}
}

// word takes a word of the language if it is next.
func (p *parser) word(w string) bool {
	if p.token.kind == tokenWord && p.token.text == w {
		p.advance()
		return true
	}
	return false
}

func (p *parser) symbol(s string) bool {
	if p.token.kind == tokenSymbol && p.token.text == s {
		p.advance()
		return true
	}
	return false
}

func (p *parser) expression(depth int) (node, error) {
	if depth > depthMax {
		return nil, &Error{At: p.token.at + 1, Text: fmt.Sprintf("parentheses and nots are nested more than %d deep", depthMax)}
	}
	return chain(p, "or", func() (node, error) {
		return chain(p, "and", func() (node, error) { return p.factor(depth) }, func(n []node) node { return allOf(n) })
	}, func(n []node) node { return anyOf(n) })
}

// chain reads parts with a word between them.
func chain(p *parser, word string, part func() (node, error), join func([]node) node) (node, error) {
	var parts []node
	for {
		n, err := part()
		if err != nil {
			return nil, err
		}
		parts = append(parts, n)
		if !p.word(word) {
			break
		}
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	return join(parts), nil
}

func (p *parser) factor(depth int) (node, error) {
	switch {
	case p.word("not"):
		if depth >= depthMax {
			return p.expression(depth + 1) // which refuses
		}
		n, err := p.factor(depth + 1)
		return not{n}, err
	case p.symbol("("):
		n, err := p.expression(depth + 1)
		if err == nil && !p.symbol(")") {
			err = p.expected(`"and", "or" or ")"`)
		}
		return n, err
	}
	if p.conditions++; p.conditions > conditionsMax {
		return nil, &Error{At: p.token.at + 1, Text: fmt.Sprintf("an expression has at most %d conditions", conditionsMax)}
	}
	return p.condition()
}

func (p *parser) condition() (node, error) {
	switch {
	case p.word("anomaly"):
		return anomalous{}, nil
	case p.word("exists"):
		f, err := p.field()
		if err == nil && f.kind != fieldAttribute {
			err = &Error{At: p.token.at + 1, Text: "exists is for attributes: write exists attributes.NAME"}
		}
		return exists{f.key}, err
	}
	f, err := p.field()
	if err != nil {
		return nil, err
	}
	switch {
	case p.word("like"):
		return p.like(f)
	case p.word("in"):
		return p.list(f)
	}
	if p.token.kind != tokenSymbol || p.token.text == "(" || p.token.text == ")" || p.token.text == "," {
		return nil, p.expected(`a comparison (= != < <= > >=), "like" or "in"`)
	}
	op := p.token.text
	p.advance()
	v, err := p.value(f)
	return &comparison{of: f, op: op, values: []value{v}}, err
}

const fieldNames = `a field (id, first_seen, last_seen, severity, anomaly, attributes.NAME)`

func (p *parser) field() (field, error) {
	if p.token.kind != tokenWord {
		return field{}, p.expected(fieldNames)
	}
	switch w := p.token.text; w {
	case "id":
		p.advance()
		return field{kind: fieldID}, nil
	case "first_seen":
		p.advance()
		return field{kind: fieldFirstSeen}, nil
	case "last_seen":
		p.advance()
		return field{kind: fieldLastSeen}, nil
	case "severity":
		p.advance()
		return field{kind: fieldSeverity}, nil
	default:
		key, ok := strings.CutPrefix(w, "attributes.")
		if !ok {
			return field{}, p.expected(fieldNames)
		}
		p.advance()
		if key == "" && p.token.kind == tokenString {
			key = p.token.text
			p.advance()
		}
		if key == "" {
			return field{}, p.expected("the name of an attribute behind attributes.")
		}
		return field{kind: fieldAttribute, key: key}, nil
	}
}

func (p *parser) like(f field) (node, error) {
	if f.kind != fieldID && f.kind != fieldAttribute {
		return nil, &Error{At: p.token.at + 1, Text: "like is for texts: id and attributes"}
	}
	if p.token.kind != tokenString {
		return nil, p.expected(`a pattern in quotes, as "pump-*"`)
	}
	pieces := strings.Split(p.token.text, "*")
	p.advance()
	return &like{of: f, pieces: pieces}, nil
}

func (p *parser) list(f field) (node, error) {
	if !p.symbol("(") {
		return nil, p.expected(`"(" and a list of values`)
	}
	n := &comparison{of: f, op: "="}
	for {
		v, err := p.value(f)
		if err != nil {
			return nil, err
		}
		if n.values = append(n.values, v); len(n.values) > conditionsMax {
			return nil, &Error{At: p.token.at + 1, Text: fmt.Sprintf("a list has at most %d values", conditionsMax)}
		}
		if p.symbol(",") {
			continue
		}
		if !p.symbol(")") {
			return nil, p.expected(`"," or ")"`)
		}
		return n, nil
	}
}

// value reads a literal of the field's kind.
func (p *parser) value(f field) (value, error) {
	t := p.token
	seen := f.kind == fieldFirstSeen || f.kind == fieldLastSeen
	switch {
	case seen && t.kind == tokenString:
		at, err := time.Parse(time.RFC3339Nano, t.text)
		if err != nil {
			return value{}, &Error{At: t.at + 1, Text: fmt.Sprintf("%q is no time: write 2026-01-23T15:24:46Z, or -1h for an hour before now", t.text)}
		}
		p.advance()
		return value{number: float64(at.UnixMicro()), numeric: true}, nil
	case seen && t.kind == tokenWord && strings.HasPrefix(t.text, "-"):
		d, err := ago(t.text[1:])
		if err != nil {
			return value{}, &Error{At: t.at + 1, Text: fmt.Sprintf("%q is no length of time: write -15m, -1h or -7d", t.text)}
		}
		p.advance()
		return value{number: float64(p.now.Add(-d).UnixMicro()), numeric: true}, nil
	case seen:
		return value{}, p.expected(`a time in quotes, or -1h for an hour before now,`)
	case t.kind == tokenString && f.kind != fieldSeverity:
		p.advance()
		return value{text: t.text}, nil
	case t.kind == tokenWord && f.kind != fieldID:
		if n, err := strconv.ParseFloat(t.text, 64); err == nil && !math.IsNaN(n) && !math.IsInf(n, 0) {
			p.advance()
			return value{number: n, numeric: true}, nil
		}
	}
	switch f.kind {
	case fieldSeverity:
		return value{}, p.expected("a number")
	case fieldID:
		return value{}, p.expected("a text in quotes")
	default:
		return value{}, p.expected("a text in quotes or a number")
	}
}

// ago reads a duration, with days.
func ago(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	d, err := time.ParseDuration(s)
	if err == nil && d < 0 {
		err = strconv.ErrRange
	}
	return d, err
}
