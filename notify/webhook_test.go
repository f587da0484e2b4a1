package notify

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

const secretText = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

func webhookTo(t *testing.T, url string, secrets ...string) Notifier {
	t.Helper()
	cfg := WebhookConfig{Pages: "https://broker.acme.test", URL: url, AllowPrivate: true}
	for _, s := range secrets {
		raw, err := Secret(s)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Secrets = append(cfg.Secrets, raw)
	}
	w, err := NewWebhook(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// The example is from the specification (Standard Webhooks 1.0, "Verifying webhook
// authenticity").
func TestSignatureOfTheSpecification(t *testing.T) {
	secret, err := Secret(secretText)
	if err != nil {
		t.Fatal(err)
	}
	got := signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`))
	if got != "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" {
		t.Errorf("got signature %s", got)
	}
}

func TestWebhook(t *testing.T) {
	rotated := "whsec_" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", 32)))
	var header http.Header
	var body []byte
	var readErr error
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header = r.Header
		body, readErr = io.ReadAll(r.Body)
	}))
	defer server.Close()
	n, r := waiting()
	if _, err := webhookTo(t, server.URL, secretText, rotated).Notify(t.Context(), n, r, nil, noon); err != nil {
		t.Fatal(err)
	}
	signatures := strings.Fields(header.Get("webhook-signature"))
	if len(signatures) != 2 {
		t.Fatalf("got signatures %q, want one for each of two secrets", signatures)
	}
	for i, key := range []string{strings.TrimPrefix(secretText, "whsec_"), strings.TrimPrefix(rotated, "whsec_")} {
		raw, err := base64.StdEncoding.DecodeString(key)
		if err != nil {
			t.Fatal(err)
		}
		mac := hmac.New(sha256.New, raw)
		mac.Write([]byte(header.Get("webhook-id") + "." + header.Get("webhook-timestamp") + "." + string(body)))
		if signatures[i] != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
			t.Errorf("signature %d is not valid", i)
		}
	}
	if header.Get("webhook-id") != n.ID.String() || header.Get("webhook-timestamp") != "1780315200" {
		t.Errorf("got id %q and timestamp %q", header.Get("webhook-id"), header.Get("webhook-timestamp"))
	}
	var event struct {
		Type string
		Data Facts
	}
	if err := errors.Join(readErr, json.Unmarshal(body, &event)); err != nil {
		t.Fatal(err)
	}
	if event.Type != "request.pending" || event.Data.Entitlement != "orders-db-rw" || event.Data.Needed["dba"] != "0 of 2" || event.Data.URL != "https://broker.acme.test/ui/requests/"+r.ID.String() {
		t.Errorf("got body %s", body)
	}
}

func TestWebhookErrors(t *testing.T) {
	answers := map[string]func(http.ResponseWriter, *http.Request){
		"/500": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"/410": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(410) },
		"/429": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "90"); w.WriteHeader(429) },
		"/503": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "99999999")
			w.WriteHeader(503)
		},
		"/302":     func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/followed", http.StatusFound) },
		"/endless": func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, endless{}) },
	}
	followed := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/followed" {
			followed = true
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		answers[r.URL.Path](w, r)
	}))
	defer server.Close()
	n, r := waiting()
	notify := func(path string) error {
		_, err := webhookTo(t, server.URL+path, secretText).Notify(t.Context(), n, r, nil, noon)
		return err
	}
	if err := notify("/500"); err == nil || err.Error() != "the receiver answered 500" {
		t.Error(err)
	}
	if err := notify("/410"); !errors.Is(err, ErrChannelGone) {
		t.Error(err)
	}
	for path, want := range map[string]time.Duration{"/429": 90 * time.Second, "/503": time.Hour} {
		var retry *RetryAfter
		if err := notify(path); !errors.As(err, &retry) || retry.After != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := notify("/302"); err == nil || followed {
		t.Errorf("a redirect: %v, followed: %v", err, followed)
	}
	if err := notify("/endless"); err != nil { // the status is 200; the client reads only the start
		t.Error(err)
	}
}

func TestWebhookCallEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		cancel() // as a deadline would
		<-r.Context().Done()
	}))
	defer server.Close()
	n, r := waiting()
	if _, err := webhookTo(t, server.URL+"?token=sesame", secretText).Notify(ctx, n, r, nil, noon); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "sesame") {
		t.Errorf("%v", err)
	}
	if _, err := webhookTo(t, "http://127.0.0.1:1", secretText).Notify(t.Context(), n, r, nil, noon); err == nil {
		t.Error("a receiver that is down: got no error")
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// Without allow_private, a webhook reaches neither this machine nor its neighbours
// nor the metadata service of a cloud.
func TestPrivateAddressesAreRejected(t *testing.T) {
	called := false
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called = true }))
	defer server.Close()
	raw, err := Secret(secretText)
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "https://"), ":")
	n, r := waiting()
	for _, host := range []string{"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "127.1"} {
		w, err := NewWebhook(WebhookConfig{URL: "https://" + host + ":" + port + "/hook?token=sesame", Secrets: [][]byte{raw}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = w.Notify(t.Context(), n, r, nil, noon); err == nil || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: %v", host, err)
		}
	}
	if called {
		t.Error("the server received a message")
	}
}

func TestNewWebhookRejectsBadConfigs(t *testing.T) {
	for _, url := range []string{"http://hooks.acme.test/x", "ftp://acme.test", "https://user:pw@acme.test", "//acme.test", "https://", "http://10.0.0.1/", "https://acme.test/#x"} {
		if _, err := NewWebhook(WebhookConfig{URL: url, Secrets: [][]byte{make([]byte, 32)}, AllowPrivate: true}); err == nil {
			t.Errorf("NewWebhook accepted %s", url)
		}
	}
	if _, err := NewWebhook(WebhookConfig{URL: "https://acme.test"}); err == nil {
		t.Error("NewWebhook accepted a webhook without a secret")
	}
	for _, secret := range []string{"", "whsec_", "whsec_c2hvcnQ=", "whsec_!", "whsec_" + strings.Repeat("A", 120)} {
		if _, err := Secret(secret); err == nil {
			t.Errorf("Secret accepted %q", secret)
		}
	}
}

func TestWebhookOfAnAnnouncement(t *testing.T) {
	var body []byte
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { body, _ = io.ReadAll(r.Body) }))
	defer server.Close()
	n := &broker.Notice{Event: broker.NoticeReviewStarted, Created: noon, Group: "dba", Title: "Access review", Text: "3 items wait.", Page: "/ui/campaigns"}
	if _, err := webhookTo(t, server.URL, secretText).Notify(t.Context(), n, nil, nil, noon); err != nil {
		t.Fatal(err)
	}
	want := `{"data":{"event":"access_review.started","time":"2026-06-01T12:00:00Z","group":"dba","title":"Access review","text":"3 items wait.","url":"https://broker.acme.test/ui/campaigns"},"timestamp":"2026-06-01T12:00:00Z","type":"access_review.started"}`
	if string(body) != want {
		t.Errorf("got body %s\nwant %s", body, want)
	}
}
