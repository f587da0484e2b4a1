package audit

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strconv"
	"time"
)

// texts is a list of strings. most bounds the encoded list.
func (c *codec) texts(key string, list *[]string, most int) {
	if !c.member(key, len(*list) > 0, most) {
		return
	}
	if c.mode == reading {
		c.readList(key, func() { *list = append(*list, c.readString(key)) })
		return
	}
	start := len(c.buf)
	for i, s := range *list {
		c.buf = append(c.buf, "[,"[min(i, 1)])
		c.writeString(key, s)
	}
	c.buf = append(c.buf, ']')
	c.bound(key, start, most)
}

func (c *codec) bound(key string, start, most int) {
	if n := len(c.buf) - start; n > most {
		c.fail(key, "%d bytes exceed the limit of %d", n, most)
	}
}

// readList reads a list with at least one element.
func (c *codec) readList(key string, element func()) {
	c.expect(key, '[')
	for c.err == nil {
		element()
		if c.err == nil && c.at < len(c.buf) && c.buf[c.at] == ',' {
			c.at++
			continue
		}
		break
	}
	c.expect(key, ']')
}

// files is a set of named digests, encoded as a list sorted by name. It is not an
// object, because keys are ASCII and file names need not be.
func (c *codec) files(key string, files *map[string]Digest, most int) {
	if !c.member(key, len(*files) > 0, most) {
		return
	}
	if c.mode == reading {
		c.readFiles(key, files)
		return
	}
	start := len(c.buf)
	for i, name := range slices.Sorted(maps.Keys(*files)) {
		c.buf = append(c.buf, "[,"[min(i, 1)])
		d := (*files)[name]
		c.file(&name, &d)
	}
	c.buf = append(c.buf, ']')
	c.comma = true
	c.bound(key, start, most)
}

func (c *codec) file(name *string, d *Digest) {
	c.open()
	c.text("name", name, maxID)
	c.digest("sha256", d)
	c.close("file")
}

func (c *codec) readFiles(key string, files *map[string]Digest) {
	*files = map[string]Digest{}
	last := ""
	c.readList(key, func() {
		var name string
		var d Digest
		c.file(&name, &d)
		if name <= last {
			c.fail(key, "%q is out of order", name)
		}
		(*files)[name], last = d, name
	})
}

func (c *codec) digest(key string, d *Digest) {
	if !c.member(key, !d.IsZero(), hex.EncodedLen(len(d))+len(`""`)) {
		return
	}
	if c.mode == reading {
		c.readDigest(key, d)
		return
	}
	c.buf = append(c.buf, '"')
	c.buf = hex.AppendEncode(c.buf, d[:])
	c.buf = append(c.buf, '"')
}

func (c *codec) readDigest(key string, d *Digest) {
	c.expect(key, '"')
	end := c.at + hex.EncodedLen(len(d))
	if end > len(c.buf) || d.UnmarshalText(c.buf[c.at:end]) != nil || d.IsZero() {
		c.fail(key, "%w", errDigest)
		return
	}
	c.at = end
	c.expect(key, '"')
}

// bytes are encoded in base64url without padding (RFC 4648, section 5). most
// bounds the decoded bytes.
func (c *codec) bytes(key string, b *[]byte, most int) {
	if !c.member(key, len(*b) > 0, base64.RawURLEncoding.EncodedLen(most)+len(`""`)) {
		return
	}
	if c.mode == reading {
		text := c.readString(key)
		raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
		if err != nil || len(raw) == 0 || base64.RawURLEncoding.EncodeToString(raw) != text {
			c.fail(key, "not base64url")
		}
		*b = raw
		return
	}
	if len(*b) > most {
		c.fail(key, "%d bytes exceed the limit of %d", len(*b), most)
	}
	c.buf = append(c.buf, '"')
	c.buf = base64.RawURLEncoding.AppendEncode(c.buf, *b)
	c.buf = append(c.buf, '"')
}

func (c *codec) flag(key string, b *bool) {
	if !c.member(key, *b, len("true")) {
		return
	}
	if c.mode == writing {
		c.buf = append(c.buf, "true"...)
		return
	}
	*b = true
	for i := range len("true") {
		c.expect(key, "true"[i])
	}
}

// number is a positive integer. Zero is omitted.
func (c *codec) number(key string, n *int64) {
	if !c.member(key, *n != 0, len("9007199254740991")) {
		return
	}
	if c.mode == writing {
		if *n < 0 || *n > maxInt {
			c.fail(key, "%d is not between 0 and 2^53", *n)
		}
		c.buf = strconv.AppendInt(c.buf, *n, 10)
		return
	}
	start := c.at
	for c.at < len(c.buf) && c.buf[c.at] >= '0' && c.buf[c.at] <= '9' {
		c.at++
	}
	v, err := strconv.ParseInt(string(c.buf[start:c.at]), 10, 64)
	if err != nil || c.buf[start] == '0' || v > maxInt {
		c.fail(key, "not a positive integer below 2^53")
	}
	*n = v
}

func (c *codec) count(key string, n *int) {
	v := int64(*n)
	if v == 1 {
		v = 0 // one is the default
	}
	c.number(key, &v)
	if c.mode == reading {
		if v == 1 {
			c.fail(key, "a count of one must be omitted")
		}
		*n = int(v)
	}
}

func (c *codec) seconds(key string, d *time.Duration) {
	if *d%time.Second != 0 {
		c.fail(key, "%s is not a whole number of seconds", *d)
	}
	v := int64(*d / time.Second)
	c.number(key, &v)
	if c.mode == reading {
		if v > int64(1<<63-1)/int64(time.Second) {
			c.fail(key, "more seconds than a duration can represent")
		}
		*d = time.Duration(v) * time.Second
	}
}

func (c *codec) time(key string, t *time.Time) {
	if !c.member(key, !t.IsZero(), len(TimeFormat)+len(`""`)) {
		return
	}
	if c.mode == reading {
		*t = c.readTime(key)
		return
	}
	c.writeTime(key, *t)
}

// commitTime is the time of the record. It is never omitted, because the store
// sets it after encoding.
func (c *codec) commitTime(key string, t *time.Time) {
	if !c.member(key, true, len(TimeFormat)+len(`""`)) {
		if c.mode == reading {
			c.fail(key, "missing")
		}
		return
	}
	if c.mode == reading {
		*t = c.readTime(key)
		return
	}
	c.timeAt = len(c.buf) + len(`"`)
	c.writeTime(key, *t)
}

func (c *codec) writeTime(key string, t time.Time) {
	t = t.UTC()
	if y := t.Year(); y < 0 || y > 9999 {
		c.fail(key, "the year %d does not have four digits", y)
	}
	c.buf = append(c.buf, '"')
	c.buf = t.AppendFormat(c.buf, TimeFormat)
	c.buf = append(c.buf, '"')
}

func (c *codec) readTime(key string) time.Time {
	s := c.readString(key)
	if t, ok := parseTime(s); ok {
		return t
	}
	t, err := time.Parse(TimeFormat, s)
	if err != nil || t.Format(TimeFormat) != s {
		c.fail(key, "%q is not a time in the format %s", s, TimeFormat)
	}
	return t
}

// parseTime reads a time in TimeFormat. It is several times as fast as time.Parse,
// and reports false for every text that needs a closer look.
func parseTime(s string) (time.Time, bool) {
	const zeros = "0000-00-00T00:00:00.000Z"
	if len(s) != len(zeros) {
		return time.Time{}, false
	}
	var numbers [7]int
	field := 0
	for i := range len(zeros) {
		switch digit := s[i] - '0'; {
		case zeros[i] != '0' && s[i] != zeros[i] || zeros[i] == '0' && digit > 9:
			return time.Time{}, false
		case zeros[i] == '0':
			numbers[field] = 10*numbers[field] + int(digit)
		default:
			field++
		}
	}
	t := time.Date(numbers[0], time.Month(numbers[1]), numbers[2], numbers[3], numbers[4], numbers[5], numbers[6]*int(time.Millisecond), time.UTC)
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	exists := [6]int{year, int(month), day, hour, minute, second} == [6]int(numbers[:6]) // Date normalizes February 30
	return t, exists
}

func (c *codec) version(key string) {
	v := int64(Version)
	c.number(key, &v)
	if c.err == nil && v != Version {
		c.err = errVersion
	}
}

var errVersion = errors.New("unknown version of the record schema")
