package fleet

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

type tokenKind int

const (
	tokenEnd    tokenKind = iota
	tokenWord             // names, words of the language, numbers, durations
	tokenString           // text is what stands between the quotes
	tokenSymbol           // = != < <= > >= ( ) ,
	tokenBad              // text says what is wrong
)

type token struct {
	kind tokenKind
	text string
	at   int // byte where it begins
}

type lexer struct {
	text string
	at   int
}

func (l *lexer) next() token {
	for l.at < len(l.text) && strings.IndexByte(" \t\r\n", l.text[l.at]) >= 0 {
		l.at++
	}
	at := l.at
	if at == len(l.text) {
		return token{tokenEnd, "", at}
	}
	switch c := l.text[at]; {
	case c == '"':
		return l.quoted()
	case strings.IndexByte("(),=", c) >= 0:
		l.at++
		return token{tokenSymbol, string(c), at}
	case strings.IndexByte("<>!", c) >= 0:
		l.at++
		if l.at < len(l.text) && l.text[l.at] == '=' {
			l.at++
		} else if c == '!' {
			return token{tokenBad, `"!" is not known: write != or not`, at}
		}
		return token{tokenSymbol, l.text[at:l.at], at}
	case wordByte(c):
		for l.at < len(l.text) && wordByte(l.text[l.at]) {
			l.at++
		}
		return token{tokenWord, l.text[at:l.at], at}
	default:
		r, _ := utf8.DecodeRuneInString(l.text[at:])
		return token{tokenBad, fmt.Sprintf("%q has no meaning here: texts stand in double quotes", r), at}
	}
}

func wordByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_.-+", c) >= 0
}

func (l *lexer) quoted() token {
	at := l.at
	var b strings.Builder
	for l.at++; l.at < len(l.text); l.at++ {
		switch c := l.text[l.at]; {
		case c == '"':
			l.at++
			return token{tokenString, b.String(), at}
		case c == '\\' && l.at+1 < len(l.text) && strings.IndexByte(`"\`, l.text[l.at+1]) >= 0:
			l.at++
			b.WriteByte(l.text[l.at])
		case c == '\\':
			return token{tokenBad, `a backslash stands before " or \ only`, l.at}
		default:
			b.WriteByte(c)
		}
	}
	return token{tokenBad, "the text that begins here has no closing quote", at}
}
