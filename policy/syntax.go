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

// rangeForm is the parser's error for a number with more than 64 bits.
var rangeForm = regexp.MustCompile(`parsing "-?(\d+)": value out of range`)

// expectation is what the Cedar parser states about a token that it did not expect.
var expectation = regexp.MustCompile(`(?:exact )?got (\S*) want (\S+)$`)

// parserTexts are parts of the messages of the Cedar parser, and what the author can do
// about the mistake.
var parserTexts = []struct{ part, text string }{
	{"invalid primary", "a value or a condition is missing here"},
	{"unexpected token", "a value or a condition is missing here"},
	{"expected ident or string", "a name, or a text in quotation marks, is missing here"},
	{"expected ident", "a name is missing here"},
	{"expected string", "a text in quotation marks is missing here"},
	{"escape", `a backslash begins an escape, such as \n or \": write \\ for a backslash`},
	{"bad unicode rune", "a character is not valid"},
	{"literal not terminated", "the closing quotation mark is missing"},
	{"exceeded max depth", "the condition is nested too deeply"},
}

// inWords returns a message of the Cedar parser in words that say what to write.
func inWords(message string) string {
	if m := expectation.FindStringSubmatch(message); m != nil {
		found := fmt.Sprintf("found %q", m[1])
		if m[1] == "" {
			found = "the file ends here"
		}
		return fmt.Sprintf("%s, expected %q", found, strings.Trim(m[2], `"`))
	}
	if _, effect, ok := strings.Cut(message, "unexpected effect: "); ok {
		return fmt.Sprintf("found %q, expected permit or forbid", effect)
	}
	for _, known := range parserTexts {
		if strings.Contains(message, known.part) {
			return known.text
		}
	}
	return message // names a function, a key or an annotation
}

// nearForm is the token at which the parser stopped.
var nearForm = regexp.MustCompile(`^("(?:[^"\\]|\\.)*"): (.*)$`)

// parseProblem converts an error of the Cedar parser.
func parseProblem(src *source, err error) Problem {
	p := Problem{File: src.name, Text: "Cedar syntax error: " + inWords(err.Error())}
	if m := positionForm.FindStringSubmatch(err.Error()); m != nil {
		p.Line, _ = strconv.Atoi(m[1])
		p.Column, _ = strconv.Atoi(m[2])
		near := nearForm.FindStringSubmatch(m[3])
		switch {
		case near == nil:
			p.Text = "Cedar syntax error: " + inWords(m[3])
		case near[1] == `"principal"` && strings.Contains(string(src.code), "?principal"), near[1] == `"resource"` && strings.Contains(string(src.code), "?resource"):
			p.Text = "Cedar syntax error: templates (?principal, ?resource) are not supported: write a policy for each principal or resource"
		case near[1] == `""`:
			p.Text = "Cedar syntax error at the end: " + inWords(near[2])
		default:
			p.Text = "Cedar syntax error near " + near[1] + ": " + inWords(near[2])
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
