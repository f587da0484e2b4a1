package scrub

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"time"

	"accessbroker.internal/egress/egresstest"
)

// bodies are what a benchmark reads: ordinary answers, and those that an adversary makes
// slow.
func bodies(r *rand.Rand, secret string) map[string][]byte {
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	var prose, document, page bytes.Buffer
	for prose.Len() < 1<<20 {
		prose.WriteString(random(r, 2+r.IntN(9)) + pick(r, " ", " ", " ", ", ", ".\n"))
	}
	for document.Len() < 1<<20 {
		b, _ := json.Marshal(map[string]any{"id": r.Uint64(), "name": random(r, 20), "text": "a \"quoted\" word\nand a path C:\\x & <b>", "url": "https://api.example/v1/" + random(r, 12) + "?q=%20"})
		document.Write(append(b, '\n'))
	}
	for page.Len() < 1<<20 {
		page.WriteString("<li class=\"x\"><a href=\"/p?a=1&amp;b=%2F" + random(r, 8) + "\">" + random(r, 12) + " &quot;&nbsp;</a></li>\n")
	}
	full := func(s string) []byte { return []byte(strings.Repeat(s, 1<<20/len(s))) }
	return map[string][]byte{
		"random":            noise,
		"text":              prose.Bytes(),
		"json":              document.Bytes(),
		"html":              page.Bytes(),
		"base64":            []byte(b64(string(noise))),
		"base64 lines":      []byte(egresstest.Wrap(b64(string(noise)), 76, "\r\n")),
		"attack percents":   full("%"),
		"attack escapes":    []byte(egresstest.Escape(random(r, 1<<18), "%%%02x", 1)),
		"attack unicode":    []byte(egresstest.Escape(random(r, 1<<18), `\u%04x`, 1)),
		"attack slashes":    full(`\`),
		"attack entities":   []byte(egresstest.Escape(random(r, 1<<18), "&#%d;", 1)),
		"attack almost":     full(secret[:len(secret)-1] + "!"),
		"attack almost esc": full(egresstest.Escape(secret[:len(secret)-1], "%%%02x", 1)),
		"attack nested":     full(egresstest.Escape(egresstest.Escape(secret[:len(secret)-1], `\u%04x`, 1), "%%%02x", 1)),
	}
}

// BenchmarkReader reads bodies of 1 MiB without a secret.
func BenchmarkReader(b *testing.B) {
	for _, n := range []int{1, 8, 200} {
		r := rand.New(rand.NewPCG(1, 1))
		var secrets []string
		for range n {
			secrets = append(secrets, random(r, 40))
		}
		s := New(secrets...)
		all := bodies(r, secrets[0])
		for _, name := range sortedKeys(all) {
			b.Run(fmt.Sprintf("secrets=%d/%s", n, strings.ReplaceAll(name, " ", "_")), func(b *testing.B) {
				body := all[name]
				b.SetBytes(int64(len(body)))
				b.ReportAllocs()
				before := cpu()
				defer func() { b.ReportMetric(float64(len(body)*b.N)/1e6/(cpu()-before).Seconds(), "MB/cpu-s") }()
				for b.Loop() {
					if n, err := io.Copy(io.Discard, s.Reader(io.NopCloser(bytes.NewReader(body)))); err != nil || n != int64(len(body)) {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
}

// cpu returns the time for which this process used a core. Other programs on the machine
// do not change it much.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkNew makes scrubbers.
func BenchmarkNew(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{1, 8, 200} {
		var secrets []string
		for range n {
			secrets = append(secrets, random(r, 40))
		}
		b.Run(fmt.Sprintf("secrets=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				New(secrets...)
			}
		})
	}
}

// BenchmarkString scrubs a header value.
func BenchmarkString(b *testing.B) {
	s := New(token)
	b.ReportAllocs()
	for b.Loop() {
		s.String("text/html; charset=utf-8")
	}
}
