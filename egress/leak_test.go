package egress_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/egress/egresstest"
)

// renewed supplies another secret after each 20 uses.
type renewed struct{ uses atomic.Int64 }

func (r *renewed) Credential(_ context.Context, entitlement string) (*api.Credential, error) {
	n := r.uses.Add(1) / 20
	secret := fmt.Sprintf("%d%s%s", n, []string{"/", "+", "\"", "&", "%", "\\", "é"}[n%7], secretOf(n))
	return &api.Credential{Lease: "lse_x", Entitlement: entitlement, Type: "bearer", Secret: api.Secret{"token": secret}, ExpiresAt: time.Now().Add(time.Hour)}, nil
}

func (r *renewed) Held() []*api.Credential { return nil }

func (r *renewed) Rejected(context.Context, *api.Credential) bool { return false }

var base = rand.Text()

func secretOf(n int64) string {
	r := mathrand.New(mathrand.NewPCG(uint64(n), uint64(len(base))))
	b := []byte(base)
	r.Shuffle(len(b), func(i, j int) { b[i], b[j] = b[j], b[i] })
	return string(b)
}

// A hostile host repeats the credential of a call, or an earlier one, in every form, place,
// coding and division. Nothing of them comes back.
func TestNoSecretComesBack(t *testing.T) {
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	var up egresstest.Upstream
	var sent []string
	up.Sent = func(text []byte) { sent = append(sent, string(text)) }
	w := newWorld(t, &up, nil)
	w.transport.Credentials = &renewed{}
	header := http.Header{"Accept-Encoding": {"gzip, deflate"}}
	var answers []string
	const calls = 1500
	for i := range calls {
		resp, text, err := w.call("GET", fmt.Sprintf("%s/v1/x?seed=%d", w.host.URL, seed+uint64(i)), "", header)
		if err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		var head bytes.Buffer
		_ = resp.Header.Write(&head) // to memory
		_ = resp.Trailer.Write(&head)
		answers = append(answers, resp.Status+"\n"+head.String()+"\n"+text)
	}
	checkAnswers(t, &up, sent, answers)
}

// checkAnswers searches the answers, and what the host sent for comparison.
func checkAnswers(t *testing.T, up *egresstest.Upstream, sent, answers []string) {
	t.Helper()
	find := egresstest.NewFinder(up.Secrets()...)
	for i, answer := range answers {
		if secret := find.Find([]byte(answer)); secret != "" {
			t.Errorf("answer %d has the secret %q: %q", i, secret, answer)
		}
	}
	known := 0
	for _, text := range sent {
		if find.Find([]byte(text)) != "" {
			known++
		}
	}
	if len(sent) != len(answers) || known != len(sent) {
		t.Errorf("the search found a secret in %d of %d answers as the host sent them; %d came back", known, len(sent), len(answers))
	}
	t.Logf("%d secrets, %d answers", len(up.Secrets()), len(answers))
}

// Answers that are cut, endless or coded otherwise show no secret either.
func TestHostileAnswers(t *testing.T) {
	var up egresstest.Upstream
	w := newWorld(t, &up, func(e *api.Egress) { e.MaxAnswer = 100 << 10 })
	for query, want := range map[string]string{
		"do=drip": "", "do=endless": "longer than", "do=bomb": "longer than", "do=headers": "not HTTP", "do=coding&coding=br": "encoding", "do=coding&coding=zstd": "encoding",
		"do=coding&coding=gzip": "can't be read", "do=coding&coding=gzip,gzip,gzip,gzip": "encoding", "do=redirect&status=302&to=https://evil.test/": "",
	} {
		resp, text, err := w.call("GET", w.host.URL+"/v1/x?"+query, "", http.Header{"Accept-Encoding": {"gzip"}})
		switch {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: got %v, want %q", query, err, want)
		case egresstest.NewFinder(up.Secrets()...).Find([]byte(text+fmt.Sprint(resp, err))) != "":
			t.Errorf("%s: got a secret: %q, %v", query, text, err)
		}
	}
	for seed := range 300 {
		resp, text, err := w.call("GET", fmt.Sprintf("%s/v1/x?do=range&seed=%d", w.host.URL, seed), "", nil)
		if err != nil || resp.StatusCode != http.StatusPartialContent {
			t.Fatal(resp, err)
		}
		for i := 0; i+8 <= len(token); i++ {
			if strings.Contains(text, token[i:i+8]) {
				t.Errorf("seed %d: got %q", seed, text)
			}
		}
	}
}

// Frames of a hostile host show no secret.
func TestHostileFrames(t *testing.T) {
	var up egresstest.Upstream
	w := newWorld(t, &up, func(e *api.Egress) { e.Allow[0].WebSocket = true })
	find := egresstest.NewFinder(token)
	frames := 0
	for seed := range 200 {
		r, err := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("%s/v1/x?do=socket&seed=%d", w.host.URL, seed), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
		resp, err := w.transport.Upgrade(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || find.Find(got) != "" {
			t.Errorf("seed %d: got %q, %v", seed, got, err)
		}
		frames += bytes.Count(got, []byte("***"))
		_ = resp.Body.Close()
	}
	if frames == 0 {
		t.Error("no frame had a secret")
	}
}
