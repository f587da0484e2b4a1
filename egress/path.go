package egress

import (
	"strings"
	"unicode/utf8"
)

// A canonicalPath is a path without anything that servers read in different ways.
type canonicalPath struct {
	sent     string   // percent-encoded, as the server receives it
	segments []string // decoded
}

// maxSegments bounds the segments of a path.
const maxSegments = 256

const nextPath = "write the path without dot segments, empty segments, encoded control characters and encoded dots"

// canonicalize decodes each segment of a path once. It leaves no encoded unreserved
// characters (RFC 3986, section 6.2.2.2), writes hexadecimal digits in upper case, and
// encodes all characters that a path can't have. It refuses dot segments and empty
// segments, which servers resolve before or after they check a path.
func canonicalize(raw string) (p canonicalPath, err *Refusal) {
	if !strings.HasPrefix(raw, "/") {
		return p, refuse(CodeInvalidURL, nextPath, "The path does not start with a slash")
	}
	if strings.Count(raw, "/") > maxSegments {
		return p, refuse(CodeInvalidURL, "shorten the path", "The path has more than %d segments", maxSegments)
	}
	var sent strings.Builder
	sent.Grow(len(raw))
	parts := strings.Split(raw[1:], "/")
	p.segments = make([]string, len(parts))
	for i, part := range parts {
		decoded, ok := decodeSegment(part, &sent)
		if !ok {
			return p, refuse(CodeInvalidURL, nextPath, "The path has a wrong percent-encoding, a control character, or bytes that are not UTF-8")
		}
		if problem := segmentProblem(decoded, i == len(parts)-1); problem != "" {
			return p, refuse(CodeInvalidURL, nextPath, "The path has %s", problem)
		}
		p.segments[i] = decoded
	}
	p.sent = sent.String()
	return p, nil
}

// decodeSegment returns a decoded segment, and writes its canonical form with a slash
// before it.
func decodeSegment(raw string, sent *strings.Builder) (decoded string, ok bool) {
	sent.WriteByte('/')
	if isPlain(raw) {
		sent.WriteString(raw)
		return raw, true
	}
	var plain strings.Builder
	for i := 0; i < len(raw); i++ {
		b, wasEncoded := raw[i], false
		if b == '%' {
			if i+2 >= len(raw) || unhex(raw[i+1]) < 0 || unhex(raw[i+2]) < 0 {
				return "", false
			}
			b, wasEncoded = byte(unhex(raw[i+1])<<4|unhex(raw[i+2])), true
			i += 2
		}
		if b < ' ' || b == 0x7f {
			return "", false
		}
		plain.WriteByte(b)
		if isUnreserved(b) || !wasEncoded && strings.IndexByte("!$&'()*+,;=:@", b) >= 0 {
			sent.WriteByte(b)
		} else {
			writeEncoded(sent, b)
		}
	}
	return plain.String(), utf8.ValidString(plain.String())
}

// isPlain reports whether a segment is its own canonical form, and its own meaning.
func isPlain(raw string) bool {
	for i := range len(raw) {
		if !isUnreserved(raw[i]) {
			return false
		}
	}
	return true
}

// segmentProblem returns why servers could read a segment in different ways, or "".
func segmentProblem(decoded string, last bool) string {
	if isPlain(decoded) && decoded != "" && decoded != "." && decoded != ".." {
		return ""
	}
	name, _, _ := strings.Cut(decoded, ";") // some servers remove parameters before they resolve dots
	switch {
	case decoded == "" && !last:
		return "an empty segment"
	case name == "." || name == ".." || name == "" && decoded != "":
		return "a dot segment"
	}
	for part := range strings.FieldsFuncSeq(decoded, func(r rune) bool { return r == '/' || r == '\\' }) {
		if part == "." || part == ".." {
			return "a dot segment after an encoded slash"
		}
	}
	if strings.ContainsAny(decoded, lookalikes) {
		return "a character that some servers read as a dot, slash, backslash, semicolon or percent sign"
	}
	return ""
}

// lookalikes are the characters that compatibility normalization (NFKC) turns into the
// characters with a meaning in paths, or into text with them.
const lookalikes = "\u2024\u2025\u2026\ufe52\uff0e\ufe19\ufe30" + "\u2044\u2215\uff0f\u2100\u2101\u2105\u2106" + "\ufe68\uff3c" + "\ufe14\ufe54\uff1b\u037e" + "\ufe6a\uff05"

// literalOnly are the bytes that no wildcard matches, because some servers decode or
// split a path again. A rule has to write them.
const literalOnly = `/\%;`

func isUnreserved(b byte) bool {
	return isAlphanumeric(b) || b == '-' || b == '.' || b == '_' || b == '~'
}

func writeEncoded(out *strings.Builder, b byte) {
	const digits = "0123456789ABCDEF"
	out.Write([]byte{'%', digits[b>>4], digits[b&15]})
}

func unhex(b byte) int {
	switch {
	case b >= '0' && b <= '9':
		return int(b - '0')
	case b >= 'a' && b <= 'f':
		return int(b-'a') + 10
	case b >= 'A' && b <= 'F':
		return int(b-'A') + 10
	}
	return -1
}

// A pathPattern matches the segments of a path.
type pathPattern struct {
	segments [][]string // the literal parts of each, between wildcards
	rest     bool       // "**": one or more further segments
}

// parsePath compiles the paths of a rule. "*" matches within a segment, and "**" as the
// last segment matches one or more segments.
func parsePath(text string) (p pathPattern, problem string) {
	if !strings.HasPrefix(text, "/") || len(text) > maxURL || strings.ContainsAny(text, "?#") {
		return p, "write a path that starts with /, without query and fragment"
	}
	body := text
	if before, ok := strings.CutSuffix(text, "/**"); ok {
		body, p.rest = before, true
	}
	if strings.Contains(body, "**") {
		return p, `"**" must be the last segment`
	}
	if body == "" && p.rest {
		return p, ""
	}
	if _, refusal := canonicalize(body); refusal != nil || p.rest && strings.HasSuffix(body, "/") {
		return p, "write the path without dot segments, empty segments and encoded control characters"
	}
	// A literal asterisk is written as %2A, so the wildcards are those of the text itself.
	for raw := range strings.SplitSeq(body[1:], "/") {
		var parts []string
		for part := range strings.SplitSeq(raw, "*") {
			var ignored strings.Builder
			decoded, ok := decodeSegment(part, &ignored)
			if !ok {
				return p, "write each percent-encoded character as a whole"
			}
			parts = append(parts, decoded)
		}
		p.segments = append(p.segments, parts)
	}
	return p, ""
}

func (p *pathPattern) match(path []string) bool {
	if len(path) < len(p.segments) || !p.rest && len(path) != len(p.segments) || p.rest && len(path) == len(p.segments) {
		return false
	}
	for i, parts := range p.segments {
		if !matchSegment(parts, path[i]) {
			return false
		}
	}
	for _, segment := range path[len(p.segments):] {
		if strings.ContainsAny(segment, literalOnly) {
			return false
		}
	}
	return true
}

// matchSegment reports whether a segment consists of the parts with any text between
// them. A wildcard matches at least one character where it is the whole segment.
func matchSegment(parts []string, segment string) bool {
	if len(parts) == 1 {
		return segment == parts[0]
	}
	if segment == "" {
		return false
	}
	first, last := parts[0], parts[len(parts)-1]
	if len(segment) < len(first)+len(last) || !strings.HasPrefix(segment, first) || !strings.HasSuffix(segment, last) {
		return false
	}
	segment = segment[len(first) : len(segment)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		at := strings.Index(segment, part)
		if at < 0 || strings.ContainsAny(segment[:at], literalOnly) {
			return false
		}
		segment = segment[at+len(part):]
	}
	return !strings.ContainsAny(segment, literalOnly)
}
