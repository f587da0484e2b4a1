package scrub

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
)

// MinLength is the length of the shortest secret that a Scrubber removes. A shorter text
// would occur by chance, and its removal would destroy answers.
const MinLength = 8

// Protects reports whether a Scrubber removes a secret.
func Protects(secret string) bool { return len(secret) >= MinLength }

// A needle is a text that the scan searches for, in lower case.
type needle struct {
	text    []byte
	wrapped bool // may contain line breaks
}

// needles returns the forms of secrets that are not escapes of single characters.
func needles(secrets []string) (list []needle) {
	seen := map[string]bool{}
	for _, secret := range secrets {
		for _, part := range parts(secret) {
			for _, n := range forms(part) {
				if !seen[string(n.text)] {
					seen[string(n.text)] = true
					list = append(list, n)
				}
			}
		}
	}
	return list
}

// parts returns the secrets within a secret: the lines of a private key and all of its
// base64, and the signature of a token.
func parts(secret string) (list []string) {
	lines := strings.FieldsFunc(secret, func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) <= 1 {
		list = append(list, strings.Trim(secret, "\r\n"))
	}
	joined := ""
	for _, line := range lines {
		if strings.HasPrefix(line, "-----") { // RFC 7468: the label is public
			continue
		}
		joined += line
		if len(lines) > 1 {
			list = append(list, line)
		}
	}
	if len(lines) > 1 {
		list = append(list, joined)
	}
	if token := strings.Split(secret, "."); len(token) == 3 && len(token[2]) >= 2*MinLength {
		list = append(list, token[2])
	}
	return slices.DeleteFunc(list, func(part string) bool { return !Protects(part) })
}

// forms returns the forms of one part of a secret.
func forms(part string) (list []needle) {
	add := func(text string, wrapped bool) {
		list = append(list, needle{text: lower([]byte(text)), wrapped: wrapped})
	}
	add(part, isToken68(part))
	if strings.Contains(part, " ") {
		add(strings.ReplaceAll(part, " ", "+"), false)
	}
	for _, wide := range wide(part) {
		add(wide, false)
	}
	if other := latin1(part); other != part {
		add(other, false)
	}
	if other, ok := narrow(part); ok {
		add(other, false)
	}
	digits := hex.EncodeToString([]byte(part))
	add(digits, true)
	for _, separator := range []string{":", " "} {
		add(separated(digits, separator), false)
	}
	for _, separator := range []string{",", ", ", " "} {
		add(decimal(part, separator), false)
	}
	for _, escaped := range escaped(part) {
		for _, once := range aligned(escaped) {
			add(once, true)
			if escaped != part {
				continue
			}
			for _, twice := range aligned(once) {
				add(twice, true)
			}
		}
	}
	return list
}

// aligned returns the base64 of a text within a longer one, at the three alignments and
// in both alphabets, without the characters that also encode what surrounds it.
func aligned(text string) (list []string) {
	for offset := range 3 {
		padded := append(make([]byte, offset, offset+len(text)), text...)
		whole := base64.RawStdEncoding.EncodeToString(padded)
		first, last := (offset*8+5)/6, len(padded)*8/6
		inner := whole[first:last]
		list = append(list, inner)
		if other := strings.NewReplacer("+", "-", "/", "_").Replace(inner); other != inner {
			list = append(list, other)
		}
	}
	return list
}

// escaped returns a text as it is and as encoders escape it before it is encoded once
// more.
func escaped(text string) []string {
	inJSON, _ := json.Marshal(text) // a string can be marshalled
	strict := strings.Trim(string(inJSON), `"`)
	if len(inJSON) >= 2 {
		strict = string(inJSON[1 : len(inJSON)-1])
	}
	var relaxed strings.Builder
	encoder := json.NewEncoder(&relaxed)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(text) // to memory
	plain := strings.TrimSuffix(relaxed.String(), "\n")
	plain = plain[1 : len(plain)-1]
	list := []string{
		text, strict, plain, strings.ReplaceAll(plain, "/", `\/`),
		url.QueryEscape(text), url.PathEscape(text), percentLower(url.QueryEscape(text)),
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// percentLower writes the digits of percent-encoding in lower case.
func percentLower(text string) string {
	b := []byte(text)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			lower(b[i+1 : i+3])
		}
	}
	return string(b)
}

// decimal writes the bytes of a text as numbers, as debuggers and JSON arrays do.
func decimal(text, separator string) string {
	var b []byte
	for i := range len(text) {
		if i > 0 {
			b = append(b, separator...)
		}
		b = strconv.AppendUint(b, uint64(text[i]), 10)
	}
	return string(b)
}

// separated writes a separator between the digits of two bytes, as dumps do.
func separated(digits, separator string) string {
	var b strings.Builder
	for i := 0; i < len(digits); i += 2 {
		if i > 0 {
			b.WriteString(separator)
		}
		b.WriteString(digits[i : i+2])
	}
	return b.String()
}

// latin1 returns the UTF-8 of a text that was taken for Latin-1, as headers are.
func latin1(text string) string {
	var b strings.Builder
	for i := range len(text) {
		b.WriteRune(rune(text[i]))
	}
	return b.String()
}

// narrow returns a text in Latin-1, if it is possible.
func narrow(text string) (string, bool) {
	var b []byte
	for _, r := range text {
		if r > 0xff {
			return "", false
		}
		b = append(b, byte(r))
	}
	return string(b), len(b) >= MinLength
}

// wide returns a text in UTF-16 and UTF-32 in both byte orders, without the outer bytes
// that are zero. The orders are equal for ASCII.
func wide(text string) (list []string) {
	var little, big, little4, big4 []byte
	for _, c := range utf16.Encode([]rune(text)) {
		little = binary.LittleEndian.AppendUint16(little, c)
		big = binary.BigEndian.AppendUint16(big, c)
	}
	for _, c := range text {
		little4 = binary.LittleEndian.AppendUint32(little4, uint32(c))
		big4 = binary.BigEndian.AppendUint32(big4, uint32(c))
	}
	for _, b := range [][]byte{little, big, little4, big4} {
		list = append(list, strings.Trim(string(b), "\x00"))
	}
	return list
}

// isToken68 reports whether a secret may be wrapped: it is base64, or parts of base64 as in
// a JWT (token68 of RFC 9110, section 11.2).
func isToken68(text string) bool {
	for i := range len(text) {
		if c := text[i]; !encodes[c] && c != '.' && c != '~' {
			return false
		}
	}
	return true
}

// lower turns ASCII letters to lower case, in place.
func lower(b []byte) []byte {
	for i, c := range b {
		b[i] = fold[c]
	}
	return b
}

var fold = func() (t [256]byte) {
	for c := range t {
		t[c] = byte(c)
		if 'A' <= c && c <= 'Z' {
			t[c] += 'a' - 'A'
		}
	}
	return t
}()

// encodes has the characters of base64 and of hexadecimal digits.
var encodes = func() (t [256]bool) {
	for c := range t {
		t[c] = isAlnum(byte(c)) || strings.IndexByte("+/-_=", byte(c)) >= 0 && c < 0x80
	}
	return t
}()

// inLine has the bytes of a line of base64 that may be escaped.
var inLine = func() (t [256]bool) {
	t = encodes
	t['\\'], t['%'] = true, true
	return t
}()
