package scrub

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"

	"accessbroker.internal/egress/egresstest"
)

// An oracle masks a text in the most obvious way: it tries each needle at each place, and
// reads the text in every way from there on.
type oracle struct {
	text    string
	needles []needle
	whole   bool        // lines can be short
	ways    [][]reading // of the text at each place
	lines   [][]int     // the places after the line breaks at each place
	seen    map[[2]int]int
	reads   map[[2]int]reading
}

type reading struct {
	text string
	size int
}

func (o *oracle) mask() string {
	out := []byte(o.text)
	o.prepare()
	for i := range o.needles {
		o.seen = map[[2]int]int{}
		for at := range len(o.text) {
			end := o.end(&o.needles[i], 0, at)
			for p := at; p < end; p++ {
				if out[p] != '\n' && out[p] != '\r' {
					out[p] = '*'
				}
			}
		}
	}
	return string(out)
}

// prepare reads the text at each place.
func (o *oracle) prepare() {
	o.reads = map[[2]int]reading{}
	o.ways, o.lines = make([][]reading, len(o.text)), make([][]int, len(o.text))
	for at := range len(o.text) {
		for level := range depth + 1 {
			text, size := o.read(at, level)
			if r := (reading{asciiLower(text), size}); !slices.Contains(o.ways[at], r) {
				o.ways[at] = append(o.ways[at], r)
			}
			if next := o.line(at, level); next > 0 && !slices.Contains(o.lines[at], next) {
				o.lines[at] = append(o.lines[at], next)
			}
		}
	}
}

// end returns the end of the longest reading of a needle from its k-th byte, or 0.
func (o *oracle) end(n *needle, k, at int) (end int) {
	if k == len(n.text) {
		return at
	}
	if at >= len(o.text) {
		return 0
	}
	if k > 0 {
		if end, ok := o.seen[[2]int{k, at}]; ok {
			return end
		}
		defer func() { o.seen[[2]int{k, at}] = end }()
	}
	for _, way := range o.ways[at] {
		if bytes.HasPrefix(n.text[k:], []byte(way.text)) {
			end = max(end, o.end(n, k+len(way.text), at+way.size))
		}
	}
	if k > 0 && n.wrapped {
		for _, next := range o.lines[at] {
			end = max(end, o.end(n, k, next))
		}
	}
	return end
}

func asciiLower(s string) string {
	return string(lower([]byte(s)))
}

// fullLine is how a line of base64 ends.
var fullLine = regexp.MustCompile(`[0-9A-Za-z+/\-_=\\%]{16}$`)

// line returns the place after a line break, or 0.
func (o *oracle) line(at, level int) int {
	if !o.whole && !fullLine.MatchString(o.text[max(at-minLine, 0):at]) {
		return 0
	}
	lines := ""
	next := at
	for range maxIndent {
		text, size := o.read(next, level)
		if size == 0 || !strings.Contains(" \t\r\n", text) || strings.Contains(lines, "\n") && text == "\n" {
			break
		}
		lines += text
		next += size
	}
	if next == at {
		return 0
	}
	return next
}

var (
	percentForm  = regexp.MustCompile(`^%([0-9a-fA-F]{2})`)
	uForm        = regexp.MustCompile(`^[%\\]u([0-9a-fA-F]{4})`)
	pairForm     = regexp.MustCompile(`^(?:\\u([dD][89abAB][0-9a-fA-F]{2})\\u([0-9a-fA-F]{4})|%u([dD][89abAB][0-9a-fA-F]{2})%u([0-9a-fA-F]{4}))`)
	surrogate    = regexp.MustCompile(`^[%\\]u[dD][89a-fA-F]`)
	bracesForm   = regexp.MustCompile(`^\\u\{([0-9a-fA-F]{1,6})\}`)
	longForm     = regexp.MustCompile(`^\\U([0-9a-fA-F]{8})`)
	byteForm     = regexp.MustCompile(`^\\x([0-9a-fA-F]{2})`)
	octalForm    = regexp.MustCompile(`^\\([0-7]{3})`)
	letterForm   = regexp.MustCompile(`^\\([abfnrtv])`)
	selfForm     = regexp.MustCompile(`^\\([^0-9A-Za-z])`)
	decimalForm  = regexp.MustCompile(`^&#([0-9]{1,8})(;?)`)
	hexEntity    = regexp.MustCompile(`^&#[xX]([0-9a-fA-F]{1,8})(;?)`)
	nameForm     = regexp.MustCompile(`^&([0-9A-Za-z]{1,24});`)
	allDigits    = regexp.MustCompile(`^&#([0-9]{9}|[xX][0-9a-fA-F]{9})`)
	letterValues = map[string]string{"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
)

// read returns what the text at a place stands for after level decodings, and the size
// of it.
func (o *oracle) read(at, level int) (text string, size int) {
	r, ok := o.reads[[2]int{at, level}]
	if !ok {
		r.text, r.size = o.readAnew(at, level)
		o.reads[[2]int{at, level}] = r
	}
	return r.text, r.size
}

func (o *oracle) readAnew(at, level int) (text string, size int) {
	if at >= len(o.text) {
		return "", 0
	}
	if level == 0 {
		return o.text[at : at+1], 1
	}
	text, size = o.read(at, level-1)
	if text != "%" && text != `\` && text != "&" {
		return text, size
	}
	if level > 1 {
		if _, below := o.read(at, level-2); below == size { // no escape of the level below
			return text, size
		}
	}
	// The characters from here on, and where each ends.
	var chars string
	ends := map[int]int{}
	for p := at; len(chars) < 40 && p < len(o.text); {
		c, n := o.read(p, level-1)
		chars += c
		p += n
		ends[len(chars)] = p - at
	}
	if next, more := o.read(at+size, level-1); text == `\` && more > 0 && next[0] >= 0x80 {
		return next, size + more // a backslash before any other character
	}
	got, n := unescape(chars)
	if n == 0 || ends[n] == 0 || ends[n] > maxUnit {
		return text, size
	}
	return got, ends[n]
}

// unescape decodes the escape at the start of a text, and returns its length.
func unescape(s string) (text string, n int) {
	number := func(m string, base int) string {
		v, _ := strconv.ParseUint(m, base, 32)
		return string(rune(v))
	}
	if m := pairForm.FindStringSubmatch(s); m != nil {
		high, _ := strconv.ParseUint(m[1]+m[3], 16, 32)
		low, _ := strconv.ParseUint(m[2]+m[4], 16, 32)
		return string(utf16.DecodeRune(rune(high), rune(low))), len(m[0])
	}
	if surrogate.MatchString(s) {
		return "", 0
	}
	for _, form := range []*regexp.Regexp{uForm, bracesForm, longForm} {
		if m := form.FindStringSubmatch(s); m != nil {
			return number(m[1], 16), len(m[0])
		}
	}
	for _, form := range []*regexp.Regexp{percentForm, byteForm} {
		if m := form.FindStringSubmatch(s); m != nil {
			b, _ := hex.DecodeString(m[1])
			return string(b), len(m[0])
		}
	}
	if m := octalForm.FindStringSubmatch(s); m != nil {
		v, _ := strconv.ParseUint(m[1], 8, 32)
		return string([]byte{byte(v)}), len(m[0])
	}
	if m := letterForm.FindStringSubmatch(s); m != nil {
		return letterValues[m[1]], len(m[0])
	}
	if m := selfForm.FindStringSubmatch(s); m != nil && s[1] < 0x80 {
		return m[1], len(m[0])
	}
	return unescapeHTML(s)
}

func unescapeHTML(s string) (text string, n int) {
	if allDigits.MatchString(s) {
		return "", 0
	}
	for form, base := range map[*regexp.Regexp]int{decimalForm: 10, hexEntity: 16} {
		if m := form.FindStringSubmatch(s); m != nil {
			if v, _ := strconv.ParseUint(m[1], base, 64); v <= 0x10ffff {
				return string(rune(v)), len(m[0])
			}
		}
	}
	if m := nameForm.FindStringSubmatch(s); m != nil && names[m[1]].n > 0 {
		return html.UnescapeString(m[0]), len(m[0])
	}
	return "", 0
}

// fuzzed are secrets with repetitions, escapes and spaces in them.
var fuzzed = [][]string{
	{"AbCdEfGh12/+"}, {"aaaaaaaab"}, {"abababab%41", "bababa%41b"}, {`\\\\n\\u0041`, `\\\\\\\\\\`},
	{"correct horse battery"}, {"&amp;&#65;&amp"}, {"pässwörd", "\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8"}, {"p%41%25%2525", "%%%%%%%%"},
	{"ghp_J4x/Qz7+Tm2&Wn9\"Kd=Lf", "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJlLW9m", "0000000000000001"},
}

// compose writes a text of whole and broken secrets in random forms.
func compose(r *rand.Rand, secrets []string, extra []byte) string {
	var b strings.Builder
	list := needles(secrets)
	for range 1 + r.IntN(6) {
		n := list[r.IntN(len(list))]
		text := string(n.text)
		if r.IntN(4) == 0 {
			text = text[r.IntN(len(text)):]
		}
		if r.IntN(4) == 0 {
			text = text[:r.IntN(len(text)+1)]
		}
		if n.wrapped && r.IntN(2) == 0 {
			text = strings.Repeat("A", 20) + egresstest.Wrap(text, 1+r.IntN(70), pick(r, "\n", "\r\n", `\n`, `\r\n`, "%0d%0a", "&#10;", "\n  ", `\\n`, " ", "%20\t", "\r"))
		}
		for range r.IntN(4) {
			text = distort(r, text)
		}
		b.WriteString(text)
		b.WriteString(pick(r, "", "", " ", "%", `\`, "&", "\n", "a", `"`, "4", "&#6", `\u00`))
		if len(extra) > 0 && r.IntN(3) == 0 {
			b.Write(extra)
		}
	}
	return b.String()
}

func pick(r *rand.Rand, list ...string) string { return list[r.IntN(len(list))] }

// distort escapes some of the bytes of a text.
func distort(r *rand.Rand, text string) string {
	var b strings.Builder
	one, kind := r.IntN(10), r.IntN(12)
	for i := range len(text) {
		if r.IntN(10) > one {
			b.WriteByte(text[i])
			continue
		}
		if r.IntN(8) == 0 {
			kind = r.IntN(12)
		}
		format := []string{"%%%02x", "%%%02X", `\u%04x`, `\x%02x`, `\%03o`, `\u{%x}`, "&#%d;", "&#x%X;", "%%u%04x", "&#%d", "", ""}[kind]
		switch {
		case format != "":
			fmt.Fprintf(&b, format, text[i])
		case strings.IndexByte(`"\/'<>&% `, text[i]) >= 0:
			b.WriteString(`\` + text[i:i+1])
		default:
			b.WriteString(pick(r, text[i:i+1], strings.ToUpper(text[i:i+1]), html.EscapeString(text[i:i+1])))
		}
	}
	return b.String()
}

// FuzzScrub compares the reader, over random parts of a text, with the oracle. It ends
// each text with bytes that belong to no form, because an oracle that knows what would
// follow would not be obvious.
func FuzzScrub(f *testing.F) {
	for seed := range uint64(25) {
		f.Add(seed, []byte("%4&#\\u00"))
	}
	f.Fuzz(func(t *testing.T, seed uint64, extra []byte) {
		r := rand.New(rand.NewPCG(seed, 0))
		secrets := fuzzed[r.IntN(len(fuzzed))]
		text := compose(r, secrets, extra[:min(len(extra), 100)])
		text = text[:min(len(text), 600)] + strings.Repeat("\x01", 100)
		s := New(secrets...)
		want := (&oracle{text: text, needles: s.needles, whole: true}).mask()
		if got := s.String(text); got != want {
			t.Fatalf("secrets %q\ntext %q\ngot  %q\nwant %q", secrets, text, got, want)
		}
		want = (&oracle{text: text, needles: s.needles}).mask()
		for range 5 {
			got, err := io.ReadAll(s.Reader(io.NopCloser(&splits{r: r, text: text})))
			if err != nil || string(got) != want {
				t.Fatalf("secrets %q\ntext %q\ngot  %q, %v\nwant %q", secrets, text, got, err, want)
			}
		}
	})
}

// splits returns a text in random parts.
type splits struct {
	r    *rand.Rand
	text string
}

func (s *splits) Read(p []byte) (int, error) {
	if s.text == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 1+s.r.IntN(1+s.r.IntN(60)))], s.text)
	s.text = s.text[n:]
	return n, nil
}

// A secret that is larger than the buffer of a reader is found, too.
func TestLongSecretInLongForm(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	secret := random(r, 4000)
	s := New(secret)
	text := bytes.Repeat([]byte("0123456789abcdef\n"), 10000)
	text = append(text, egresstest.Escape(egresstest.Escape(secret, "%%%02x", 1), "%%%02x", 1)...)
	text = append(text, '\n')
	got, err := io.ReadAll(s.Reader(io.NopCloser(bytes.NewReader(text))))
	if err != nil || bytes.Count(got, []byte("*")) < 9*4000 || !bytes.HasPrefix(got, text[:170000]) {
		t.Errorf("got %d stars, %v", bytes.Count(got, []byte("*")), err)
	}
}
