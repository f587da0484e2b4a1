package scrub

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// framed writes a message in fragments of sizes.
func framed(opcode byte, message string, sizes ...int) (b []byte) {
	for {
		n := len(message)
		if len(sizes) > 0 {
			n, sizes = min(n, sizes[0]), sizes[1:]
		}
		first := opcode
		if n == len(message) && len(sizes) == 0 {
			first |= finalBit
		}
		switch {
		case n < 126:
			b = append(b, first, byte(n))
		default:
			b = append(b, first, 126, byte(n>>8), byte(n))
		}
		b = append(b, message[:n]...)
		if message = message[n:]; first&finalBit != 0 {
			return b
		}
		opcode = continued
	}
}

// messages reads the messages of frames, and control frames as messages of their own.
func messages(t *testing.T, b []byte) (list []string) {
	t.Helper()
	var all bytes.Buffer
	f := &frames{in: newFrameReader(bytes.NewReader(b))}
	for {
		h, err := f.header()
		if err == io.EOF {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		payload := make([]byte, h.length)
		if _, err := io.ReadFull(f.in, payload); err != nil {
			t.Fatal(err)
		}
		if h.opcode&controlBit != 0 {
			list = append(list, string(rune('A'+h.opcode))+string(payload))
			continue
		}
		if all.Write(payload); h.final {
			list = append(list, all.String())
			all.Reset()
		}
	}
}

func TestFrames(t *testing.T) {
	mask := func(n int) string { return strings.Repeat("*", n) }
	long := strings.Repeat("0123456789!?", 6000)
	for name, c := range map[string]struct {
		in   []byte
		want []string
	}{
		"whole":             {framed(1, "a "+token+" b"), []string{"a " + mask(len(token)) + " b"}},
		"every byte":        {framed(1, "a "+token+" b", slicesOf(1, 40)...), []string{"a " + mask(len(token)) + " b"}},
		"empty fragments":   {framed(2, token, 0, 3, 0, 4), []string{mask(len(token))}},
		"empty":             {framed(1, ""), []string{""}},
		"several":           {append(framed(1, token), framed(2, "x")...), []string{mask(len(token)), "x"}},
		"ping":              {append(append(framed(1, token, 10)[:12], framed(9, token)...), framed(0, token[10:])...), []string{"J" + mask(len(token)), mask(len(token))}},
		"over two messages": {append(framed(1, "a "+token[:12]), framed(1, token[12:]+" b")...), []string{"a " + mask(12), mask(len(token)-12) + " b"}},
		"same end":          {append(framed(1, "a"), framed(1, token[12:]+" b")...), []string{"a", token[12:] + " b"}},
		"long":              {framed(2, long[:60000]), []string{long[:60000]}},
		"close":             {append(framed(8, "\x03\xe8"+token), framed(1, "after")...), []string{"I\x03\xe8" + mask(len(token))}},
	} {
		for kind, r := range map[string]io.Reader{"whole": bytes.NewReader(c.in), "byte by byte": iotest.OneByteReader(bytes.NewReader(c.in))} {
			var out bytes.Buffer
			err := New(token).Frames(&out, r)
			if err != nil && err != io.EOF {
				t.Errorf("%s, %s: got %v", name, kind, err)
			}
			if got := messages(t, out.Bytes()); strings.Join(got, "|") != strings.Join(c.want, "|") {
				t.Errorf("%s, %s: got %.300q, want %.300q", name, kind, got, c.want)
			}
		}
	}
}

func slicesOf(n, times int) (list []int) {
	for range times {
		list = append(list, n)
	}
	return list
}

// Frames that break the protocol, or that cannot be searched, end the copy.
func TestFramesAreStrict(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"compressed":          {"\xc1\x01a", ErrExtension},
		"masked":              {"\x81\x81abcda", ErrFrame},
		"reserved opcode":     {"\x83\x01a", ErrFrame},
		"reserved control":    {"\x8b\x01a", ErrFrame},
		"fragmented ping":     {"\x09\x01a", ErrFrame},
		"long ping":           {"\x89\x7e\x00\x80", ErrFrame},
		"no start":            {"\x80\x01a", ErrFrame},
		"two starts":          {"\x01\x01a\x81\x01b", ErrFrame},
		"length of 64 bits":   {"\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x00", ErrFrame},
		"end in a header":     {"\x82", io.ErrUnexpectedEOF},
		"end in a payload":    {"\x82\x05ab", io.ErrUnexpectedEOF},
		"end between frames":  {"\x02\x01a", io.EOF},
		"end in a ping":       {"\x89\x05ab", io.ErrUnexpectedEOF},
		"end of a long frame": {"\x82\x7f\x00\x00\x00\x00\x7f\x00\x00\x00ab", io.ErrUnexpectedEOF},
	} {
		if err := New(token).Frames(io.Discard, strings.NewReader(c.in)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

// FuzzFrames copies what a hostile host could send.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x81\x05hello"))
	f.Add(framed(1, "a "+token+" b", 3, 0, 9))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		_ = New(token).Frames(&out, bytes.NewReader(in))
		if strings.Contains(strings.Join(messages(t, out.Bytes()), "|"), token) {
			t.Errorf("got %q", out.Bytes())
		}
	})
}

// Frames of any size come out with the same messages.
func TestFramesOfAnySize(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	for range 200 {
		message := random(r, r.IntN(300)) + token + random(r, r.IntN(300)) + " "
		var sizes []int
		for range r.IntN(20) {
			sizes = append(sizes, r.IntN(60))
		}
		var out bytes.Buffer
		if err := New(token).Frames(&out, bytes.NewReader(framed(1, message, sizes...))); err != io.EOF {
			t.Fatal(err)
		}
		want := strings.Replace(message, token, strings.Repeat("*", len(token)), 1)
		if got := messages(t, out.Bytes()); len(got) != 1 || got[0] != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}
