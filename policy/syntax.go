package policy

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// positionForm is the position in an error of the Cedar parser, which has it only in
// its text: `parse error at <input>:3:7 "x": …` or `<input>:3:7: …`.
var positionForm = regexp.MustCompile(`<input>:(\d+):(\d+):? *(.*)$`)

// expectation is what the Cedar parser states about a token that it did not expect.
var expectation = regexp.MustCompile(`exact got (\S+) want (\S+)$`)

// rangeForm is the parser's error for a number with more than 64 bits.
var rangeForm = regexp.MustCompile(`parsing "-?(\d+)": value out of range`)

// parseProblem converts an error of the Cedar parser.
func parseProblem(src *source, err error) Problem {
	p := Problem{File: src.name, Text: "Cedar syntax error: " + err.Error()}
	if m := positionForm.FindStringSubmatch(err.Error()); m != nil {
		p.Line, _ = strconv.Atoi(m[1])
		p.Column, _ = strconv.Atoi(m[2])
		p.Text = "Cedar syntax error near " + expectation.ReplaceAllString(m[3], `found "$1", expected "$2"`)
		if !strings.HasPrefix(m[3], `"`) {
			p.Text = "Cedar syntax error: " + m[3]
		}
		return p
	}
	// The parser has no position for a number or a string that it can't convert.
	tokens, _ := tokenize(nil, string(src.text), 0, len(src.text))
	bad := func(t token) bool { return t.kind == stringToken && hasBadEscape(t.text) }
	if m := rangeForm.FindStringSubmatch(err.Error()); m != nil {
		bad = func(t token) bool { return t.kind == integerToken && t.text == m[1] }
		p.Text = fmt.Sprintf("Cedar syntax error: the number %s does not fit into 64 bits", m[1])
	}
	for _, t := range tokens {
		if bad(t) {
			p.Line, p.Column = src.position(t.at)
			break
		}
	}
	return p
}

// escapeForm is an escape that Cedar allows in a string. \* is for patterns only.
var escapeForm = regexp.MustCompile(`\\(?:[nrt\\0'"]|x[0-7][0-9a-fA-F]|u\{[0-9a-fA-F_]{1,8}\})`)

func hasBadEscape(literal string) bool {
	return strings.Contains(escapeForm.ReplaceAllString(literal, ""), `\`)
}

// Bounds of one policy. The parser and the validator recurse, so a policy without a
// bound could use up the stack and end the broker at a reload.
const (
	maxNesting = 100
	maxTokens  = 50_000
)

// checkNesting returns the first bracket or sign that is nested too deeply, or nil. It
// runs before the parser.
func checkNesting(src *source) *lexProblem {
	depth, signs := 0, 0
	for i := 0; i < len(src.code); i++ {
		c := src.code[i]
		switch {
		case c == '!' || c == '-':
			signs++
		case c > ' ':
			signs = 0
		}
		switch c {
		case '!', '-':
			if signs > maxNesting {
				return &lexProblem{i, fmt.Sprintf("more than %d signs in a row: remove some", maxNesting)}
			}
		case '"':
			i += stringLen(src.code[i:]) - 1
		case '(', '[', '{':
			if depth++; depth > maxNesting {
				return &lexProblem{i, fmt.Sprintf("more than %d brackets are open here: write a simpler policy", maxNesting)}
			}
		case ')', ']', '}':
			depth--
		}
	}
	return nil
}
