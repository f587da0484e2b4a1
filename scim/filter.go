package scim

import (
	"encoding/json"
	"strings"
	"time"
)

// A filter is an expression of RFC 7644, section 3.4.2.2.
type filter struct {
	op    string    // an operator of compare or logic; "pr", "not", or "[]" for a value path
	parts []*filter // of and, or, not and []
	attr  operand   // of a comparison, pr and []
	value any       // string, bool, float64, or nil for null
	when  time.Time // of value, if the attribute is a dateTime
}

// An operand is the attribute of a comparison.
type operand struct {
	extension string     // the URN of its schema; empty: the core schema
	attr      *attribute // nil: the schema does not have it, so it has no value
	sub       *attribute // nil: the attribute itself
	unknown   bool       // sub is named and unknown
}

// Bounds of a filter. Each comparison costs at most a scan of the values of a resource.
const (
	maxFilter  = 4096 // bytes
	maxTerms   = 64   // comparisons
	maxNesting = 16   // parentheses and brackets
)

// A scope resolves the names of a filter.
type scope struct {
	resource   *resourceType // nil in a value path
	attributes attributes    // in a value path
}

// parseFilter parses the filter of a query.
func (t *resourceType) parseFilter(s string) (*filter, error) {
	p := &filterParser{text: s, scope: scope{resource: t}}
	return p.parse()
}

// A filterParser parses by recursive descent. Its depth is bounded.
type filterParser struct {
	text   string
	at     int
	scope  scope
	inside bool // a value path: it ends with a bracket
	depth  int
	terms  int
}

func (p *filterParser) parse() (*filter, error) {
	if len(p.text) > maxFilter {
		return nil, bad(typeInvalidFilter, "the filter is longer than %d bytes", maxFilter)
	}
	f, err := p.or()
	if err != nil {
		return nil, err
	}
	p.space()
	switch {
	case p.inside && p.take("]"):
	case p.inside:
		return nil, p.wrong("expected ]")
	case p.at < len(p.text):
		return nil, p.wrong("expected the end")
	}
	return f, nil
}

func (p *filterParser) wrong(what string) error {
	return bad(typeInvalidFilter, "the filter is malformed at byte %d: %s", p.at+1, what)
}

func (p *filterParser) or() (*filter, error)  { return p.list("or", p.and) }
func (p *filterParser) and() (*filter, error) { return p.list("and", p.term) }

// list parses parts with a logical operator between them. "and" binds more tightly.
func (p *filterParser) list(op string, part func() (*filter, error)) (*filter, error) {
	first, err := part()
	if err != nil {
		return nil, err
	}
	f := &filter{op: op, parts: []*filter{first}}
	for p.word(op) {
		next, err := part()
		if err != nil {
			return nil, err
		}
		f.parts = append(f.parts, next)
	}
	if len(f.parts) == 1 {
		return first, nil
	}
	return f, nil
}

func (p *filterParser) term() (*filter, error) {
	if p.depth++; p.depth > maxNesting {
		return nil, bad(typeInvalidFilter, "the filter is nested more than %d deep", maxNesting)
	}
	defer func() { p.depth-- }()
	p.space()
	negated := p.isNot()
	if p.take("(") {
		f, err := p.or()
		if err != nil {
			return nil, err
		}
		if p.space(); !p.take(")") {
			return nil, p.wrong("expected )")
		}
		if negated {
			f = &filter{op: "not", parts: []*filter{f}}
		}
		return f, nil
	}
	if negated {
		return nil, p.wrong("expected ( after not")
	}
	if p.terms++; p.terms > maxTerms {
		return nil, bad(typeInvalidFilter, "the filter has more than %d comparisons", maxTerms)
	}
	return p.comparison()
}

// isNot takes the word not in front of a parenthesis.
func (p *filterParser) isNot() bool {
	at := p.at
	if p.word("not") {
		if p.space(); p.at < len(p.text) && p.text[p.at] == '(' {
			return true
		}
	}
	p.at = at // an attribute may be named not
	return false
}

func (p *filterParser) comparison() (*filter, error) {
	attr, err := p.operand()
	if err != nil {
		return nil, err
	}
	if p.take("[") {
		return p.valuePath(attr)
	}
	if p.word("pr") {
		return &filter{op: "pr", attr: attr}, nil
	}
	for _, op := range []string{"eq", "ne", "co", "sw", "ew", "gt", "ge", "lt", "le"} {
		if !p.word(op) {
			continue
		}
		f := &filter{op: op, attr: attr}
		if f.value, err = p.value(); err != nil {
			return nil, err
		}
		return f, f.check()
	}
	return nil, p.wrong("expected an operator: eq, ne, co, sw, ew, pr, gt, ge, lt or le")
}

// valuePath parses the filter in brackets after an attribute.
func (p *filterParser) valuePath(attr operand) (*filter, error) {
	switch {
	case p.scope.resource == nil:
		return nil, p.wrong("a value path inside another one")
	case attr.sub != nil || attr.unknown:
		return nil, p.wrong("a value path of a sub-attribute")
	}
	outer := p.scope
	p.scope = scope{}
	if attr.attr != nil {
		p.scope.attributes = attr.attr.sub
	}
	inner, err := p.or()
	if err != nil {
		return nil, err
	}
	if p.space(); !p.take("]") {
		return nil, p.wrong("expected ]")
	}
	p.scope = outer
	return &filter{op: "[]", attr: attr, parts: []*filter{inner}}, nil
}

// operand parses the name of an attribute.
func (p *filterParser) operand() (o operand, err error) {
	p.space()
	start := p.at
	for p.at < len(p.text) && (isNameByte(p.text[p.at]) || p.text[p.at] == ':' || p.text[p.at] == '.') {
		p.at++
	}
	name := p.text[start:p.at]
	if name == "" {
		return o, p.wrong("expected the name of an attribute")
	}
	list := p.scope.attributes
	if t := p.scope.resource; t != nil {
		s, rest := t.cutURN(name)
		switch {
		case s == nil || rest == "": // an unknown schema, or the whole of one
			return o, nil
		case s != t.core:
			o.extension = s.id
		}
		name, list = rest, t.attributesOf(s)
	}
	name, sub, hasSub := strings.Cut(name, ".")
	if o.attr = list.find(name); o.attr == nil || !hasSub {
		return o, nil
	}
	o.sub = o.attr.sub.find(sub)
	o.unknown = o.sub == nil
	return o, nil
}

// value parses a JSON value that is neither an object nor a list.
func (p *filterParser) value() (any, error) {
	p.space()
	end := p.at
	if strings.HasPrefix(p.text[p.at:], `"`) {
		for end++; end < len(p.text) && p.text[end] != '"'; end++ {
			if p.text[end] == '\\' {
				end++
			}
		}
		end++
	} else {
		for end < len(p.text) && !strings.ContainsRune(" \t)]", rune(p.text[end])) {
			end++
		}
	}
	if end > len(p.text) {
		return nil, p.wrong("the text has no end")
	}
	word := p.text[p.at:end]
	if word != "" && word[0] != '"' && strings.ContainsAny(word[:1], "TFNtfn") {
		word = strings.ToLower(word) // clients write True
	}
	var v any
	if err := json.Unmarshal([]byte(word), &v); err != nil {
		return nil, p.wrong("expected a text in quotes, a number, true, false or null")
	}
	switch v.(type) {
	case map[string]any, []any:
		return nil, p.wrong("a value is not an object or a list")
	}
	p.at = end
	return v, nil
}

// space skips white space.
func (p *filterParser) space() {
	for p.at < len(p.text) && (p.text[p.at] == ' ' || p.text[p.at] == '\t') {
		p.at++
	}
}

func (p *filterParser) take(s string) bool {
	if strings.HasPrefix(p.text[p.at:], s) {
		p.at += len(s)
		return true
	}
	return false
}

// word takes a word in any case, with white space before it, if it is there and ends there.
func (p *filterParser) word(w string) bool {
	at := p.at
	p.space()
	end := p.at + len(w)
	if end > len(p.text) || !strings.EqualFold(p.text[p.at:end], w) || end < len(p.text) && (isNameByte(p.text[end]) || p.text[end] == '.' || p.text[end] == ':') {
		p.at = at
		return false
	}
	p.at = end
	return true
}
