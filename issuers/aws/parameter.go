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

// fill puts parameters into a template. It refuses a value that would mean more
// than its text (a wildcard, a policy variable, another part of the ARN, "..")
// unless the parameter's pattern names that character.
func (s *Spec) fill(template string, parameters map[string]string) (string, error) {
	var err error
	dots := false
	filled := reference.ReplaceAllStringFunc(template, func(ref string) string {
		name := ref[2 : len(ref)-1]
		allowed := s.parameters[name]
		dots = dots || allowed.dots
		if fault := allowed.check(parameters[name]); fault != "" && err == nil {
			err = &broker.Refusal{Err: broker.ErrInvalidParameter, Detail: fmt.Sprintf("%s %s", name, fault)}
		}
		return parameters[name]
	})
	if err == nil && !dots && strings.Contains(filled, "..") {
		err = &broker.Refusal{Err: broker.ErrInvalidParameter, Detail: "the parameters together have two dots in a row, which is not allowed"}
	}
	if err != nil {
		return "", err
	}
	return filled, nil
}

// meaningful are the characters with a meaning in a resource.
const meaningful = "*?$:"

// An allowance lists the characters with a meaning in a resource that a parameter's
// pattern allows.
type allowance struct {
	characters string // of meaningful
	dots       bool   // two dots in a row
}

// check describes what is wrong with a value, without repeating the value. It returns
// "" for a valid value.
func (a allowance) check(value string) string {
	switch {
	case value == "":
		return "is required"
	case !isPlain(value):
		return "has characters that AWS does not accept"
	case !a.dots && strings.Contains(value, ".."):
		return "may not have two dots in a row"
	}
	for _, r := range value {
		if strings.ContainsRune(meaningful, r) && !strings.ContainsRune(a.characters, r) {
			return fmt.Sprintf("may not have %q", r)
		}
	}
	return ""
}

// allowanceOf returns the characters that a pattern names: escaped, as a literal or
// in a class such as [a-z*]. Characters that merely match a range, a negated class
// or a dot do not count.
func allowanceOf(p *regexp.Regexp) allowance {
	if p == nil {
		return allowance{}
	}
	var named []rune
	rest := []rune(p.String())
	for len(rest) > 0 {
		var found []rune
		found, rest = nextLiterals(rest)
		named = append(named, found...)
	}
	a := allowance{dots: strings.Contains(p.String(), `\.\.`)}
	for _, r := range meaningful {
		if slices.Contains(named, r) {
			a.characters += string(r)
		}
	}
	return a
}

// nextLiterals takes the first element off a pattern, and returns the characters
// that stand for themselves in it.
func nextLiterals(p []rune) (found, rest []rune) {
	switch {
	case p[0] == '\\' && len(p) > 1:
		if p[1] == 'Q' {
			return nil, nil // ignores quoted text, which allows less
		}
		return p[1:2], p[2:]
	case p[0] == '[':
		return classLiterals(p)
	case p[0] == '(' && len(p) > 1 && p[1] == '?':
		return nil, p[1+slices.IndexFunc(p, func(r rune) bool { return r == ':' || r == '>' || r == ')' }):]
	case strings.ContainsRune("*?$", p[0]):
		return nil, p[1:] // operators
	}
	return p[:1], p[1:]
}

// classLiterals takes a class such as [a-z*] off a pattern.
func classLiterals(p []rune) (found, rest []rune) {
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

// maxLength returns how many characters a parameter can have.
func maxLength(p broker.Parameter) int {
	most := cmp.Or(p.MaxLength, broker.MaxParameter)
	if p.Pattern == nil {
		return most
	}
	pattern, err := syntax.Parse(p.Pattern.String(), syntax.Perl)
	if err != nil {
		return most
	}
	return min(most, longestMatch(pattern, most))
}

// longestMatch returns how many characters a pattern can match, and a number
// greater than most if that is unbounded or more.
func longestMatch(p *syntax.Regexp, most int) (n int) {
	switch p.Op {
	case syntax.OpLiteral:
		return len(p.Rune)
	case syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return 1
	case syntax.OpAlternate:
		for _, sub := range p.Sub {
			n = max(n, longestMatch(sub, most))
		}
		return n
	}
	for _, sub := range p.Sub {
		n = min(n+longestMatch(sub, most), most+1)
	}
	switch {
	case n > 0 && (p.Op == syntax.OpStar || p.Op == syntax.OpPlus || p.Op == syntax.OpRepeat && p.Max < 0):
		return most + 1
	case p.Op == syntax.OpRepeat:
		return min(n*p.Max, most+1)
	}
	return n
}
