// Package egresstest has a hostile host for tests of calls: it repeats the credential of a
// call in every form, place, coding and division. It also has a search for credentials
// that knows nothing of how they are removed.
package egresstest

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Forms are the forms in which servers repeat what they received.
var Forms = map[string]func(secret string) string{
	"raw":                    func(s string) string { return "token=" + s + "\n" },
	"upper case":             func(s string) string { return strings.Map(upper, s) },
	"UTF-8 read as Latin-1":  latin1,
	"base64, offset 0":       b64,
	"base64, offset 1":       func(s string) string { return b64("x" + s) },
	"base64, offset 2":       func(s string) string { return b64("xy" + s) },
	"base64, raw":            func(s string) string { return base64.RawStdEncoding.EncodeToString([]byte("xy" + s)) },
	"base64url, offset 0":    func(s string) string { return base64.URLEncoding.EncodeToString([]byte(s + "?>")) },
	"base64url, offset 1":    func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte("x" + s + "?>")) },
	"basic":                  func(s string) string { return "Basic " + b64("ana:"+s) },
	"base64, MIME 76":        func(s string) string { return Wrap(b64(strings.Repeat("-", 40)+s+"tail"), 76, "\r\n") },
	"base64, PEM 64":         func(s string) string { return Wrap(b64(strings.Repeat("-", 40)+s+"tail"), 64, "\n") },
	"base64, indented":       func(s string) string { return Wrap(b64(strings.Repeat("-", 40)+s+"tail"), 64, "\n    ") },
	"base64, breaks in JSON": func(s string) string { return Wrap(b64(strings.Repeat("-", 40)+s+"tail"), 64, `\n`) },
	"base64, breaks in URL":  func(s string) string { return Wrap(b64(strings.Repeat("-", 40)+s), 76, "%0D%0A") },
	"base64 in JSON":         func(s string) string { return strings.ReplaceAll(b64("??>"+s), "/", `\/`) },
	"base64 in URL":          func(s string) string { return url.QueryEscape(b64("??>" + s)) },
	"base64 of base64":       func(s string) string { return b64(`{"auth":"` + b64("user:"+s) + `"}`) },
	"base64 of JSON":         func(s string) string { return b64(`{"token":"` + inJSON(s) + `"}`) },
	"base64 of URL":          func(s string) string { return b64("token=" + url.QueryEscape(s)) },
	"query":                  url.QueryEscape,
	"path":                   url.PathEscape,
	"every byte, upper":      func(s string) string { return Escape(s, "%%%02X", 1) },
	"every byte, lower":      func(s string) string { return Escape(s, "%%%02x", 1) },
	"every third byte":       func(s string) string { return Escape(s, "%%%02x", 3) },
	"double percent":         func(s string) string { return Escape(s, "%%25%02X", 2) },
	"triple percent":         func(s string) string { return Escape(s, "%%2525%02X", 2) },
	"old JavaScript":         func(s string) string { return Escape(s, "%%u%04X", 2) },
	"JSON":                   inJSON,
	"JSON, slashes":          func(s string) string { return strings.ReplaceAll(inJSON(s), "/", `\/`) },
	"JSON, every byte":       func(s string) string { return Escape(s, `\u%04x`, 1) },
	"JSON, upper":            func(s string) string { return Escape(s, `\u%04X`, 2) },
	"JSON twice":             func(s string) string { return inJSON(inJSON(s)) },
	"JSON three times":       func(s string) string { return inJSON(inJSON(inJSON(s))) },
	"JSON in URL":            func(s string) string { return url.QueryEscape(`{"t":"` + inJSON(s) + `"}`) },
	"URL in JSON":            func(s string) string { return inJSON(Escape(s, "%%%02x", 1)) },
	"bytes":                  func(s string) string { return Escape(s, `\x%02x`, 1) },
	"octal":                  func(s string) string { return Escape(s, `\%03o`, 1) },
	"braces":                 func(s string) string { return Escape(s, `\u{%x}`, 1) },
	"quoted":                 func(s string) string { return fmt.Sprintf("%q", s) },
	"HTML":                   html.EscapeString,
	"HTML, decimal":          func(s string) string { return Escape(s, "&#%d;", 1) },
	"HTML, zeros":            func(s string) string { return Escape(s, "&#%05d;", 2) },
	"HTML, hexadecimal":      func(s string) string { return Escape(s, "&#x%x;", 1) },
	"HTML of JSON":           func(s string) string { return html.EscapeString(`{"t":"` + inJSON(s) + `"}`) },
	"hexadecimal":            func(s string) string { return hex.EncodeToString([]byte(s)) },
	"hexadecimal, upper":     func(s string) string { return strings.ToUpper(hex.EncodeToString([]byte(s))) },
	"numbers":                func(s string) string { return fmt.Sprint([]byte(s)) },
	"numbers in JSON":        func(s string) string { return strings.ReplaceAll(fmt.Sprint([]byte(s)), " ", ",") },
	"UTF-16":                 func(s string) string { return wide(s, 0) },
	"UTF-16, big-endian":     func(s string) string { return wide(s, 8) },
	"UTF-32":                 func(s string) string { return wider(s, binary.LittleEndian) },
	"UTF-32, big-endian":     func(s string) string { return wider(s, binary.BigEndian) },
	"hexadecimal, colons":    func(s string) string { return strings.ReplaceAll(fmt.Sprintf("% X", s), " ", ":") },
	"hexadecimal, spaces":    func(s string) string { return fmt.Sprintf("% x", s) },
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// Escape writes every n-th byte of a text, or every n-th character for forms of
// Unicode, with a format. It escapes all that is not ASCII.
func Escape(text, format string, n int) string {
	var b strings.Builder
	i := 0
	for _, c := range escaped(text, format) {
		if i++; i%n == 0 || c >= utf8.RuneSelf {
			fmt.Fprintf(&b, format, c)
		} else {
			b.WriteByte(byte(c))
		}
	}
	return b.String()
}

// escaped returns the characters that a format escapes: those of Unicode, the units of
// UTF-16, or bytes.
func escaped(text, format string) (list []rune) {
	switch {
	case strings.HasPrefix(format, "&"), strings.HasPrefix(format, `\u{`):
		return []rune(text)
	case strings.HasPrefix(format, "%%u"), strings.HasPrefix(format, `\u`):
		for _, c := range utf16.Encode([]rune(text)) {
			list = append(list, rune(c))
		}
		return list
	}
	for i := range len(text) {
		list = append(list, rune(text[i]))
	}
	return list
}

func inJSON(text string) string {
	b, err := json.Marshal(text)
	if err != nil {
		panic(err) // a string can be marshalled
	}
	return string(b[1 : len(b)-1])
}

// Wrap breaks a text after every n characters.
func Wrap(text string, n int, eol string) string {
	var b strings.Builder
	for len(text) > n {
		b.WriteString(text[:n] + eol)
		text = text[n:]
	}
	return b.String() + text
}

// upper turns letters of ASCII to upper case.
func upper(r rune) rune {
	if 'a' <= r && r <= 'z' {
		return r - 'a' + 'A'
	}
	return r
}

// latin1 returns the UTF-8 of a text that was taken for Latin-1.
func latin1(s string) string {
	var b strings.Builder
	for i := range len(s) {
		b.WriteRune(rune(s[i]))
	}
	return b.String()
}

// wide writes a text in UTF-16. The first byte of each pair has the bits from shift on.
func wide(s string, shift int) string {
	var b []byte
	for _, c := range utf16.Encode([]rune(s)) {
		b = append(b, byte(c>>shift), byte(c>>(8-shift)))
	}
	return string(b)
}

// wider writes a text in UTF-32.
func wider(s string, order binary.AppendByteOrder) string {
	var b []byte
	for _, c := range s {
		b = order.AppendUint32(b, uint32(c))
	}
	return string(b)
}
