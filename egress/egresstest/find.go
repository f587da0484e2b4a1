package egresstest

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"html"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// window is the number of bytes of a secret that a Finder searches for.
const window = 12

// depth bounds how often a Finder decodes a text.
const depth = 3

// A Finder searches texts for parts of secrets. It decodes a text in all ways that it
// knows, and what results, and searches each result.
type Finder struct {
	windows map[string]string // in lower case; of which secret
	first   [1 << 16]bool     // the first two bytes of windows
}

// NewFinder returns a Finder of secrets. Of a JSON Web Token, only the signature is
// secret: its claims are the same in many tokens.
func NewFinder(secrets ...string) *Finder {
	f := &Finder{windows: map[string]string{}}
	for _, secret := range secrets {
		part := secret
		if i := strings.LastIndexByte(secret, '.'); i > 0 && strings.Count(secret, ".") == 2 {
			part = secret[i+1:]
		}
		part = strings.ToLower(part)
		for i := 0; i+window <= len(part); i++ {
			w := part[i : i+window]
			f.windows[w] = secret
			f.first[uint16(w[0])<<8|uint16(w[1])] = true
		}
	}
	return f
}

// Find returns the secret of which a text has a part, in any form, or "".
func (f *Finder) Find(text []byte) (secret string) { return f.find(text, depth, map[string]bool{}) }

// Once is Find for large texts, such as databases. It decodes them once.
func (f *Finder) Once(text []byte) (secret string) { return f.find(text, 1, map[string]bool{}) }

func (f *Finder) find(text []byte, depth int, seen map[string]bool) string {
	if seen[string(text)] {
		return ""
	}
	seen[string(text)] = true
	if secret := f.Raw(text); secret != "" || depth == 0 {
		return secret
	}
	for _, view := range views(text) {
		if len(view) >= window {
			if secret := f.find(view, depth-1, seen); secret != "" {
				return secret
			}
		}
	}
	return ""
}

// Raw searches a text as it is, in either case.
func (f *Finder) Raw(text []byte) string {
	lower := bytes.ToLower(text)
	for i := 0; i+window <= len(lower); i++ {
		if f.first[uint16(lower[i])<<8|uint16(lower[i+1])] {
			if secret, ok := f.windows[string(lower[i:i+window])]; ok {
				return secret
			}
		}
	}
	return ""
}

var (
	percents  = regexp.MustCompile(`%u[0-9a-fA-F]{4}|%[0-9a-fA-F]{2}`)
	slashes   = regexp.MustCompile(`\\u\{[0-9a-fA-F]{1,6}\}|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\[0-7]{3}|\\[^ux0-7]`)
	breaks    = regexp.MustCompile(`(?:\\r|\\n|\r|\n|%0[aAdD])+[ \t]*`)
	base64Run = regexp.MustCompile(`[0-9A-Za-z+/_-]{12,}`)
	hexRun    = regexp.MustCompile(`[0-9a-fA-F]{24,}`)
	hexBytes  = regexp.MustCompile(`[0-9a-fA-F]{2}(?:[: ][0-9a-fA-F]{2}){11,}`)
	numbers   = regexp.MustCompile(`[0-9]{1,3}(?:[, ]+[0-9]{1,3}){11,}`)
	number    = regexp.MustCompile(`[0-9]+`)
)

// views decodes a text in all ways.
func views(text []byte) (list [][]byte) {
	for introducer, decode := range map[byte]func([]byte) []byte{
		'%': func(b []byte) []byte {
			return percents.ReplaceAllFunc(b, func(m []byte) []byte { return code(strings.TrimLeft(string(m), "%u"), 16, m[1] == 'u') })
		},
		'\\': func(b []byte) []byte { return slashes.ReplaceAllFunc(b, unslash) },
		'&':  func(b []byte) []byte { return []byte(html.UnescapeString(string(b))) },
		0:    func(b []byte) []byte { return bytes.ReplaceAll(b, []byte{0}, nil) },
	} {
		if bytes.IndexByte(text, introducer) >= 0 {
			list = append(list, decode(text))
		}
	}
	joined := breaks.ReplaceAll(text, nil)
	for _, run := range base64Run.FindAll(joined, -1) {
		list = append(list, unbase64(run)...)
	}
	for _, run := range hexRun.FindAll(joined, -1) {
		for offset := range 2 {
			b := make([]byte, len(run)/2)
			n, _ := hex.Decode(b, run[offset:offset+(len(run)-offset)/2*2]) // only digits
			list = append(list, b[:n])
		}
	}
	for _, run := range hexBytes.FindAll(text, -1) {
		b, _ := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(string(run))) // only digits
		list = append(list, b)
	}
	for _, run := range numbers.FindAll(text, -1) {
		var b []byte
		for _, n := range number.FindAll(run, -1) {
			v, _ := strconv.Atoi(string(n)) // at most three digits
			b = append(b, byte(v))
		}
		list = append(list, b)
	}
	return list
}

// code returns the character of a number.
func code(digits string, base int, isRune bool) []byte {
	v, _ := strconv.ParseUint(digits, base, 32) // the expression has only digits
	if isRune {
		return utf8.AppendRune(nil, rune(v))
	}
	return []byte{byte(v)}
}

func unslash(m []byte) []byte {
	text := strings.Trim(string(m[1:]), "u{}x")
	switch {
	case m[1] == 'u':
		return code(text, 16, true)
	case m[1] == 'x':
		return code(text, 16, false)
	case len(m) == 4:
		return code(text, 8, false)
	}
	return m[1:]
}

// unbase64 decodes a run of base64 from each of its first characters.
func unbase64(run []byte) (list [][]byte) {
	run = bytes.ReplaceAll(bytes.ReplaceAll(run, []byte("-"), []byte("+")), []byte("_"), []byte("/"))
	for offset := range 4 {
		part := run[offset:]
		part = part[:len(part)/4*4]
		b := make([]byte, base64.StdEncoding.DecodedLen(len(part)))
		if n, err := base64.StdEncoding.Decode(b, part); err == nil {
			list = append(list, b[:n])
		}
	}
	return list
}
