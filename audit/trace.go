package audit

import "encoding/hex"

// A Trace is the trace context of a call (W3C Trace Context, section 3.2): the trace
// that the call belongs to, and the caller's span in it. The zero Trace means that there is none.
type Trace struct {
	TraceID [16]byte
	SpanID  [8]byte
	Flags   byte
}

// traceLength is the length of a traceparent of version 00.
const traceLength = len("00-") + 2*16 + len("-") + 2*8 + len("-") + 2

// ParseTrace returns the trace context of a traceparent header. It returns false for a
// text that the specification declares invalid. It reads the fields of version 00 from
// later versions, which may have further fields.
func ParseTrace(text string) (t Trace, ok bool) {
	const longest = 256 // of a later version
	if len(text) < traceLength || len(text) > longest || text[2] != '-' || text[35] != '-' || text[52] != '-' {
		return Trace{}, false
	}
	var version [1]byte
	var flags [1]byte
	if !decodeLower(version[:], text[:2]) || !decodeLower(t.TraceID[:], text[3:35]) || !decodeLower(t.SpanID[:], text[36:52]) || !decodeLower(flags[:], text[53:55]) {
		return Trace{}, false
	}
	switch {
	case version[0] == 0xff, version[0] == 0 && len(text) > traceLength, len(text) > traceLength && text[traceLength] != '-':
		return Trace{}, false
	case t.TraceID == [16]byte{}, t.SpanID == [8]byte{}:
		return Trace{}, false
	}
	t.Flags = flags[0]
	return t, true
}

// decodeLower decodes hexadecimal digits, which must be in lower case.
func decodeLower(into []byte, text string) bool {
	for i := range text {
		if c := text[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	_, err := hex.Decode(into, []byte(text))
	return err == nil
}

// IsZero reports whether there is no trace context.
func (t Trace) IsZero() bool { return t == Trace{} }

// String returns the trace context as a traceparent of version 00.
func (t Trace) String() string { return string(t.appendTo(make([]byte, 0, traceLength))) }

func (t Trace) appendTo(b []byte) []byte {
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, t.TraceID[:])
	b = hex.AppendEncode(append(b, '-'), t.SpanID[:])
	return hex.AppendEncode(append(b, '-'), []byte{t.Flags})
}

// trace is a traceparent of version 00.
func (c *codec) trace(key string, t *Trace) {
	if !c.member(key, !t.IsZero(), traceLength+len(`""`)) {
		return
	}
	if c.mode == writing {
		c.buf = append(t.appendTo(append(c.buf, '"')), '"')
		return
	}
	text := c.readString(key)
	parsed, ok := ParseTrace(text)
	if c.err == nil && (!ok || parsed.String() != text) {
		c.fail(key, "not a traceparent")
	}
	*t = parsed
}
