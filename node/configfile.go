package node

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/sluice-iot/sluice/internal/obs"
)

// decodeFile reads the text of a configuration file over the values of cfg. What
// the file does not name keeps its value, also where it names nothing at all.
func decodeFile(cfg *Config, text []byte) error {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return yamlError(err)
	}
	if err := checkFile(file); err != nil {
		return err
	}
	if !slices.ContainsFunc(file.Docs, hasContent) { // the decoder would clear cfg
		return nil
	}
	if err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(cfg); err != nil {
		return yamlError(err)
	}
	return nil
}

// hasContent reports whether a document holds more than comments.
func hasContent(doc *ast.DocumentNode) bool {
	return doc.Body != nil && doc.Body.Type() != ast.NullType && doc.Body.Type() != ast.CommentType
}

func yamlError(err error) error {
	return errors.New(obs.OneLine(yaml.FormatError(err, false, false)))
}

// checkFile refuses what the decoder would pass over: a second document, a
// fraction where a whole number belongs (it cuts it off), and lengths of time,
// whose errors it leaves without a place.
func checkFile(file *ast.File) error {
	bodies := 0
	for _, doc := range file.Docs {
		if !hasContent(doc) {
			continue
		}
		if bodies++; bodies > 1 {
			return fmt.Errorf("%s a second document begins: a configuration is one, without a line of ---", place(doc.Body))
		}
	}
	c := valueChecker{types: keysOf(reflect.TypeFor[Config](), "")}
	for _, doc := range file.Docs {
		ast.Walk(&c, doc)
	}
	return c.err
}

// valueChecker visits the values of a file and keeps the first that does not fit
// the type of its key.
type valueChecker struct {
	types map[string]reflect.Type
	err   error
}

func (c *valueChecker) Visit(n ast.Node) ast.Visitor {
	if c.err != nil {
		return nil
	}
	pair, ok := n.(*ast.MappingValueNode)
	if !ok {
		return c
	}
	s, ok := pair.Value.(ast.ScalarNode)
	if !ok || s.Type() == ast.NullType {
		return c
	}
	key := strings.TrimPrefix(s.GetPath(), "$.")
	t, ok := c.types[key]
	if !ok {
		return c
	}
	switch text := fmt.Sprint(s.GetValue()); {
	case t == reflect.TypeFor[time.Duration]():
		if _, err := time.ParseDuration(text); err != nil {
			c.err = fmt.Errorf("%s %s: %q is not a length of time: use a number with its unit, 500ms, 10s or 15m", place(s), key, text)
		}
	case t.Kind() == reflect.Int && s.Type() == ast.FloatType:
		c.err = fmt.Errorf("%s %s: %s is not a whole number: leave out the fraction", place(s), key, s.GetToken().Value)
	}
	return c
}

// place is where a node stands, the way the decoder writes it.
func place(n ast.Node) string {
	p := n.GetToken().Position
	return fmt.Sprintf("[%d:%d]", p.Line, p.Column)
}
