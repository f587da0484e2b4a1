package egresstest

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// An Upstream is a hostile host. It repeats the credential of a call, or of an earlier
// call, in a form, a place, a coding and a division that it draws at random.
//
// The query of a call chooses: "seed" is the seed of the draw, and "do" one of the
// behaviors below instead of the draw:
//
//	drip      one byte at a time
//	endless   an answer without an end
//	redirect  a redirect with the status and to the URL in the query, "status" and "to"
//	bomb      a gigabyte of zeros in gzip
//	headers   more headers than a client accepts
//	coding    the coding in the query, "coding", which the body does not have
//	range     a range that ends or begins within the credential
//	silent    no answer until the client leaves
//	socket    a WebSocket, if the call asks for one
type Upstream struct {
	mu      sync.Mutex
	secrets map[string]bool
	answers int

	// Sent is called with the text of each drawn answer before it is coded and divided.
	// Nil is nothing to call.
	Sent func(text []byte)
}

// Secrets returns the credentials of all calls.
func (u *Upstream) Secrets() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Sorted(maps.Keys(u.secrets))
}

// Forget returns the credentials of all calls, and repeats none of them from now on.
func (u *Upstream) Forget() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	secrets := slices.Sorted(maps.Keys(u.secrets))
	u.secrets = nil
	return secrets
}

// Answers returns the number of drawn answers.
func (u *Upstream) Answers() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.answers
}

// credential returns the credential of a call.
func credential(r *http.Request) string {
	for _, name := range []string{"X-Api-Key", "Private-Token"} {
		if value := r.Header.Get(name); value != "" {
			return value[strings.LastIndexByte(value, ' ')+1:]
		}
	}
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	value := r.Header.Get("Authorization")
	return value[strings.LastIndexByte(value, ' ')+1:]
}

// ServeHTTP answers a call. A call without a credential is refused.
func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	secret := credential(r)
	if secret == "" {
		http.Error(w, "no credential", http.StatusUnauthorized)
		return
	}
	u.mu.Lock()
	if u.secrets == nil {
		u.secrets = map[string]bool{}
	}
	u.secrets[secret] = true
	u.mu.Unlock()
	_, _ = io.Copy(io.Discard, r.Body)
	seed, _ := strconv.ParseUint(r.URL.Query().Get("seed"), 10, 64)
	draw := rand.New(rand.NewPCG(seed, 18))
	if behave := behaviors[r.URL.Query().Get("do")]; behave != nil {
		behave(w, r, secret, draw)
		return
	}
	if draw.IntN(8) == 0 {
		all := u.Secrets()
		secret = all[draw.IntN(len(all))]
	}
	u.answer(w, r, secret, draw)
}

// answer writes an answer that is drawn.
func (u *Upstream) answer(w http.ResponseWriter, r *http.Request, secret string, draw *rand.Rand) {
	text := echo(secret, draw)
	u.mu.Lock()
	u.answers++
	u.mu.Unlock()
	place := places[draw.IntN(len(places))]
	inBody := place(w.Header(), text)
	if u.Sent != nil {
		u.Sent([]byte(text))
	}
	body := []byte(filler(draw))
	if inBody {
		body = slices.Concat(body, []byte(text), []byte("\n"+filler(draw)))
	}
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		body = encode(w.Header(), body, draw)
	}
	status := []int{200, 200, 200, 201, 400, 401, 404, 500}[draw.IntN(8)]
	if draw.IntN(3) == 0 {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		body = divide(w, status, body, nil)
		_, _ = w.Write(body)
		return
	}
	divide(w, status, body, draw)
	if w.Header().Get("Trailer") != "" {
		w.Header().Set("X-Echo-Trailer", oneLine(text))
	}
}

// divide writes a body in parts that are flushed, if there is a draw.
func divide(w http.ResponseWriter, status int, body []byte, draw *rand.Rand) (rest []byte) {
	w.WriteHeader(status)
	for draw != nil && len(body) > 0 {
		n := min(len(body), 1+draw.IntN(1+draw.IntN(400)))
		_, _ = w.Write(body[:n])
		_ = http.NewResponseController(w).Flush()
		body = body[n:]
	}
	return body
}

// echo writes a credential in a form.
func echo(secret string, draw *rand.Rand) string {
	names := slices.Sorted(maps.Keys(Forms))
	return Forms[names[draw.IntN(len(names))]](secret)
}

// filler is text around a credential.
func filler(draw *rand.Rand) string {
	var b strings.Builder
	for range draw.IntN(30) {
		b.WriteString([]string{"a word ", "{\"id\": 17, \"at\": \"C:\\\\x\"}", "100% & more ", "&amp;%20\\n", "\n", "data: {}\n\n", "=", "\x00\xff", "<p class=\"x\">"}[draw.IntN(9)])
	}
	return b.String()
}

// oneLine makes a text fit for a header.
func oneLine(text string) string {
	b := []byte(text)
	return string(slices.DeleteFunc(b, func(c byte) bool { return c < ' ' || c == 0x7f }))
}

// places put a text into the header of an answer, or report that it belongs in the body.
var places = []func(h http.Header, text string) (inBody bool){
	func(http.Header, string) bool { return true },
	func(h http.Header, text string) bool { h.Set("X-Echo", oneLine(text)); return false },
	func(h http.Header, text string) bool { h.Set("Location", "/x?q="+oneLine(text)); return true },
	func(h http.Header, text string) bool { h.Add("Set-Cookie", "a="+oneLine(text)); return true },
	func(h http.Header, text string) bool {
		h.Set("Www-Authenticate", `Bearer error_description="`+oneLine(text)+`"`)
		return true
	},
	func(h http.Header, text string) bool { h.Set("Etag", `"`+oneLine(text)+`"`); return true },
	func(h http.Header, text string) bool {
		if len(text) < 2000 { // net/http reads no longer trailers over HTTP/1.1
			h.Set("Trailer", "X-Echo-Trailer")
		}
		return true
	},
	func(h http.Header, text string) bool { h.Set("Content-Type", "text/event-stream"); return true },
	func(h http.Header, text string) bool {
		h.Set("Content-Type", `multipart/mixed; boundary="`+strconv.Itoa(len(text))+`"`)
		return true
	},
}

// encode codes a body at random, also twice.
func encode(h http.Header, body []byte, draw *rand.Rand) []byte {
	for range draw.IntN(3) {
		var out bytes.Buffer
		var z io.WriteCloser
		name := "deflate"
		switch draw.IntN(3) {
		case 0:
			z, name = gzip.NewWriter(&out), "gzip"
		case 1:
			z = zlib.NewWriter(&out)
		default:
			z, _ = flate.NewWriter(&out, 5) // a valid level
		}
		_, _ = z.Write(body) // to memory
		_ = z.Close()
		h.Add("Content-Encoding", name)
		body = out.Bytes()
	}
	return body
}

// behaviors are answers that are not drawn.
var behaviors = map[string]func(w http.ResponseWriter, r *http.Request, secret string, draw *rand.Rand){
	"drip": func(w http.ResponseWriter, _ *http.Request, secret string, _ *rand.Rand) {
		for i := range secret {
			_, _ = io.WriteString(w, secret[i:i+1])
			_ = http.NewResponseController(w).Flush()
		}
	},
	"endless": func(w http.ResponseWriter, r *http.Request, secret string, _ *rand.Rand) {
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, secret+" and "); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		}
	},
	"redirect": func(w http.ResponseWriter, r *http.Request, _ string, _ *rand.Rand) {
		status, _ := strconv.Atoi(r.URL.Query().Get("status"))
		w.Header().Set("Location", r.URL.Query().Get("to"))
		w.WriteHeader(max(status, 300))
	},
	"bomb": func(w http.ResponseWriter, _ *http.Request, _ string, _ *rand.Rand) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		for zeros := make([]byte, 1<<20); ; {
			if _, err := z.Write(zeros); err != nil {
				return
			}
		}
	},
	"headers": func(w http.ResponseWriter, _ *http.Request, secret string, _ *rand.Rand) {
		for i := range 10000 {
			w.Header().Add(fmt.Sprint("X-", i), secret+strings.Repeat("x", 100))
		}
	},
	"coding": func(w http.ResponseWriter, r *http.Request, secret string, _ *rand.Rand) {
		w.Header().Set("Content-Encoding", r.URL.Query().Get("coding"))
		_, _ = io.WriteString(w, secret)
	},
	"range": func(w http.ResponseWriter, _ *http.Request, secret string, draw *rand.Rand) {
		text := "before " + secret + " after"
		from := draw.IntN(len(text))
		to := from + draw.IntN(len(text)-from)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(text)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = io.WriteString(w, text[from:to+1])
	},
	"silent": func(_ http.ResponseWriter, r *http.Request, _ string, _ *rand.Rand) {
		select {
		case <-r.Context().Done():
		case <-time.After(10 * time.Minute):
		}
	},
	"socket": serveSocket,
}
