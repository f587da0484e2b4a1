package aws

import (
	"cmp"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"accessbroker.internal/broker"
)

// fill puts parameters into a template. A value can't become more than a text:
// wildcards, policy variables, another part of the ARN or a way up are refused,
// unless the parameter's pattern allows them in so many words.
func (s *Spec) fill(template string, parameters map[string]string) (string, error) {
	var err error
	dots := false
	filled := awsReference.ReplaceAllStringFunc(template, func(m string) string {
		name := m[2 : len(m)-1]
		allowed := s.parameters[name]
		dots = dots || allowed.dots
		if fault := allowed.check(parameters[name]); fault != "" && err == nil {
			err = &broker.Refusal{Err: broker.ErrInvalidParameter, Detail: fmt.Sprintf("%s %s", name, fault)}
		}
		return parameters[name]
	})
	if err == nil && !dots && strings.Contains(filled, "..") {
		err = &broker.Refusal{Err: broker.ErrInvalidParameter, Detail: "the parameters make two dots in a row, which they may not"}
	}
	if err != nil {
		return "", err
	}
	return filled, nil
}

// An awsAllowance is what a parameter's pattern allows in so many words, of
// what would change a resource's meaning.
type awsAllowance struct {
	characters string
	dots       bool
}

const awsMeaningful = "*?$:"

// check says what is wrong with a value, without the value; nothing if it is
// good.
func (a awsAllowance) check(value string) string {
	switch {
	case value == "":
		return "is needed"
	case !awsPlain(value):
		return "holds characters that AWS does not take"
	case !a.dots && strings.Contains(value, ".."):
		return "may not hold two dots in a row"
	}
	for _, r := range value {
		if strings.ContainsRune(awsMeaningful, r) && !strings.ContainsRune(a.characters, r) {
			return fmt.Sprintf("may not hold %q", r)
		}
	}
	return ""
}

// awsAllows reads from a pattern what it allows in so many words: the character
// itself, escaped or in a list, [a-z*]. What only falls into a range, a negated
// list or a dot is not meant.
func awsAllows(p *regexp.Regexp) awsAllowance {
	if p == nil {
		return awsAllowance{}
	}
	var written []rune
	rest := []rune(p.String())
	for len(rest) > 0 {
		var found []rune
		found, rest = awsWritten(rest)
		written = append(written, found...)
	}
	a := awsAllowance{dots: strings.Contains(p.String(), `\.\.`)}
	for _, r := range awsMeaningful {
		if slices.Contains(written, r) {
			a.characters += string(r)
		}
	}
	return a
}

// awsWritten takes one element off a pattern, and gives the characters that
// stand in it for themselves.
func awsWritten(p []rune) (found, rest []rune) {
	switch {
	case p[0] == '\\' && len(p) > 1:
		if p[1] == 'Q' {
			return nil, nil // a quoted text: rather too little is allowed
		}
		return p[1:2], p[2:]
	case p[0] == '[':
		return awsClass(p)
	case p[0] == '(' && len(p) > 1 && p[1] == '?':
		return nil, p[1+slices.IndexFunc(p, func(r rune) bool { return r == ':' || r == '>' || r == ')' }):]
	case strings.ContainsRune("*?$", p[0]):
		return nil, p[1:] // operators
	}
	return p[:1], p[1:]
}

// awsClass takes a list, [a-z*], off a pattern.
func awsClass(p []rune) (found, rest []rune) {
	i := 1
	negated := i < len(p) && p[i] == '^'
	if negated {
		i++
	}
	for first := i; i < len(p) && (p[i] != ']' || i == first); i++ {
		switch {
		case p[i] == '[' && i+1 < len(p) && p[i+1] == ':': // [[:alpha:]]
			for i += 2; i < len(p) && p[i] != ']'; i++ {
			}
			continue
		case p[i] == '\\' && i+1 < len(p):
			i++
		}
		found = append(found, p[i])
	}
	if negated {
		found = nil
	}
	return found, p[min(i+1, len(p)):]
}

// awsLongest gives how many characters a parameter can have.
func awsLongest(p broker.Parameter) int {
	most := cmp.Or(p.MaxLength, broker.MaxParameter)
	if p.Pattern == nil {
		return most
	}
	pattern, err := syntax.Parse(p.Pattern.String(), syntax.Perl)
	if err != nil {
		return most
	}
	return min(most, awsLongestMatch(pattern, most))
}

// awsLongestMatch gives how many characters a pattern can match, or more than
// most.
func awsLongestMatch(p *syntax.Regexp, most int) (n int) {
	switch p.Op {
	case syntax.OpLiteral:
		return len(p.Rune)
	case syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return 1
	case syntax.OpAlternate:
		for _, sub := range p.Sub {
			n = max(n, awsLongestMatch(sub, most))
		}
		return n
	}
	for _, sub := range p.Sub {
		n = min(n+awsLongestMatch(sub, most), most+1)
	}
	switch {
	case n > 0 && (p.Op == syntax.OpStar || p.Op == syntax.OpPlus || p.Op == syntax.OpRepeat && p.Max < 0):
		return most + 1
	case p.Op == syntax.OpRepeat:
		return min(n*p.Max, most+1)
	}
	return n
}
