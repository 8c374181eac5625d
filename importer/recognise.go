package importer

import (
	"bytes"
	"fmt"
)

// recognise refuses what is no text in lines, by its beginning.
func recognise(name string, sample []byte) error {
	text := bytes.TrimPrefix(sample, []byte("\xef\xbb\xbf"))
	first, _, _ := bytes.Cut(sample, []byte{'\n'}) // further down, a logger that lost its power leaves zeroes
	switch {
	case len(sample) == 0:
		return fmt.Errorf("%s is empty", name)
	case len(bytes.TrimSpace(text)) == 0 && len(sample) < sourceBytes:
		return fmt.Errorf("%s is empty but for blanks", name)
	case bytes.HasPrefix(sample, []byte("\xff\xfe")) || bytes.HasPrefix(sample, []byte("\xfe\xff")):
		return fmt.Errorf("%s is UTF-16: convert it to UTF-8, for example with iconv -f utf-16 -t utf-8", name)
	case bytes.IndexByte(first, 0) >= 0:
		return fmt.Errorf("%s is no text: byte %d is zero; CSV is wanted, plain or gzip", name, bytes.IndexByte(first, 0)+1)
	case bytes.IndexByte(text, '\n') < 0 && bytes.IndexByte(bytes.TrimRight(text, "\r"), '\r') >= 0:
		return fmt.Errorf(`%s ends its lines with carriage returns alone: convert it, for example with tr '\r' '\n'`, name)
	}
	return nil
}
