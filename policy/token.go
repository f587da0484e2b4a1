package policy

import (
	"strings"
	"unicode/utf8"
)

// A token is one token of a Cedar text.
type token struct {
	kind tokenKind
	text string // as written; a string has its quotes
	at   int    // offset in bytes
}

type tokenKind uint8

const (
	identToken tokenKind = iota
	integerToken
	stringToken
	operatorToken
)

// maxUnary is how many - or ! Cedar allows in a row.
const maxUnary = 4

// A lexProblem is text that is not Cedar although cedar-go accepts it.
type lexProblem struct {
	at   int
	text string
}

// tokenize appends the tokens of text[from:to] to tokens. cedar-go must have parsed
// the text. tokenize returns a problem for what the grammar of Cedar does not allow
// but cedar-go does: block comments, and more than four unary operators in a row.
func tokenize(tokens []token, text string, from, to int) ([]token, *lexProblem) {
	for i := from; i < to; {
		rest := text[i:to]
		n, kind := 1, operatorToken
		switch c := rest[0]; {
		case strings.HasPrefix(rest, "//"):
			if n = strings.IndexByte(rest, '\n'); n < 0 {
				n = len(rest)
			}
			i += n
			continue
		case strings.HasPrefix(rest, "/*"):
			return tokens, &lexProblem{i, `Cedar has no /* */ comments: start each line of the comment with //`}
		case isIdentByte(c) && !isDigit(c):
			n, kind = prefixLen(rest, isIdentByte), identToken
		case isDigit(c):
			n, kind = prefixLen(rest, isDigit), integerToken
		case c == '"':
			n, kind = stringLen(rest), stringToken
		case len(rest) > 1 && strings.Contains(" :: == != <= >= && || ", " "+rest[:2]+" "):
			n = 2
		case c <= ' ' || c >= utf8.RuneSelf: // white space; cedar-go rejects other characters
			i++
			continue
		}
		tokens = append(tokens, token{kind, rest[:n], i})
		i += n
	}
	return tokens, unaryProblem(tokens)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isIdentByte(c byte) bool {
	return isDigit(c) || c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// prefixLen returns the length of the longest prefix whose bytes all satisfy is.
func prefixLen(s string, is func(byte) bool) int {
	n := 0
	for n < len(s) && is(s[n]) {
		n++
	}
	return n
}

// stringLen returns the length of the string literal that s starts with.
func stringLen[T string | []byte](s T) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(s)
}

// unaryProblem returns the first operator of a run with more than maxUnary unary
// operators. A minus after an operand is binary.
func unaryProblem(tokens []token) *lexProblem {
	run, afterOperand := 0, false
	for i, t := range tokens {
		if (t.text == "-" || t.text == "!") && !afterOperand {
			if run++; run > maxUnary {
				return &lexProblem{tokens[i-maxUnary].at, "Cedar allows at most 4 unary operators (- or !) in a row: remove some"}
			}
			continue
		}
		run, afterOperand = 0, isOperandEnd(t)
	}
	return nil
}

// isOperandEnd reports whether an expression may end with t.
func isOperandEnd(t token) bool {
	switch t.kind {
	case identToken:
		return !strings.Contains(" if then else in has like is ", " "+t.text+" ")
	case operatorToken:
		return t.text == ")" || t.text == "]" || t.text == "}"
	}
	return true
}
