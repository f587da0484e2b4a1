package signals

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"accessbroker.internal/broker/signal"
	"accessbroker.internal/signals/signalstest"
)

func pushing(c *Config) { c.Tokens = []Secret{secret("old-token"), secret("push-token")} }

func TestPush(t *testing.T) {
	w := newWorld(t, pushing)
	other := New(Config{Name: "polled"})
	server := httptest.NewServer(Handler([]*Transmitter{w.receiver, other}))
	defer server.Close()
	token := func() string { return w.Sign(w.Claims(signalstest.SessionRevoked, ana, nil)) }
	foreign := w.Claims(signalstest.SessionRevoked, ana, nil)
	foreign["aud"] = "https://other.test"
	for _, c := range []struct {
		name, method, path, authorization, mediaType, body string
		status                                             int
		code                                               string
		result                                             func(signal.Event) (signal.Outcome, error)
		applied                                            int
	}{
		{name: "accepted", body: token(), status: http.StatusAccepted, applied: 1},
		{name: "older token", authorization: "bearer old-token", body: token(), status: http.StatusAccepted, applied: 1},
		{name: "line end after the token", body: token() + "\r\n", status: http.StatusAccepted, applied: 1},
		{name: "media type with a parameter", mediaType: "application/secevent+jwt; charset=utf-8", body: token(), status: http.StatusAccepted, applied: 1},
		{name: "unknown subject", body: w.Sign(w.Claims(signalstest.SessionRevoked, map[string]any{"format": "email", "email": "x@y.test"}, nil)), status: http.StatusAccepted},
		{name: "replayed", body: token(), status: http.StatusAccepted, applied: 1, result: func(signal.Event) (signal.Outcome, error) { return signal.Replayed, nil }},
		{name: "no bearer token", authorization: "none", body: token(), status: http.StatusUnauthorized, code: codeUnauthenticated},
		{name: "wrong bearer token", authorization: "Bearer push-toke", body: token(), status: http.StatusUnauthorized, code: codeUnauthenticated},
		{name: "empty bearer token", authorization: "Bearer ", body: token(), status: http.StatusUnauthorized, code: codeUnauthenticated},
		{name: "basic", authorization: "Basic push-token", body: token(), status: http.StatusUnauthorized, code: codeUnauthenticated},
		{name: "another audience", body: w.Sign(foreign), status: http.StatusBadRequest, code: codeInvalidAudience},
		{name: "not a token", body: "{}", status: http.StatusBadRequest, code: codeInvalidRequest},
		{name: "empty", body: "", status: http.StatusBadRequest, code: codeInvalidRequest},
		{name: "too long", body: strings.Repeat("a", MaxSET+1), status: http.StatusRequestEntityTooLarge, code: codeInvalidRequest},
		{name: "JSON", mediaType: "application/json", body: token(), status: http.StatusUnsupportedMediaType, code: codeInvalidRequest},
		{name: "GET", method: http.MethodGet, status: http.StatusMethodNotAllowed},
		{name: "unknown transmitter", path: "/signals/nobody", body: token(), status: http.StatusNotFound},
		{name: "a transmitter that is polled", path: "/signals/polled", body: token(), status: http.StatusNotFound},
		{name: "no transmitter", path: "/signals/", body: token(), status: http.StatusNotFound},
		{name: "a path below", path: "/signals/okta/x", body: token(), status: http.StatusNotFound},
		{name: "wrong state", body: token(), status: http.StatusBadRequest, code: codeInvalidState, applied: 1, result: func(signal.Event) (signal.Outcome, error) { return signal.WrongState, nil }},
		{name: "too many held", body: token(), status: http.StatusServiceUnavailable, applied: 1, result: func(signal.Event) (signal.Outcome, error) { return signal.Full, nil }},
		{name: "the store is down", body: token(), status: http.StatusServiceUnavailable, applied: 1, result: func(signal.Event) (signal.Outcome, error) { return "", errors.New("secret detail") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.result = c.result
			path, method := c.path, c.method
			if path == "" {
				path = "/signals/okta"
			}
			if method == "" {
				method = http.MethodPost
			}
			req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/secevent+jwt")
			if c.mediaType != "" {
				req.Header.Set("Content-Type", c.mediaType)
			}
			req.Header.Set("Authorization", "Bearer push-token")
			if c.authorization == "none" {
				req.Header.Del("Authorization")
			} else if c.authorization != "" {
				req.Header.Set("Authorization", c.authorization)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != c.status {
				t.Fatalf("got %d %s, %v; want %d", resp.StatusCode, body, err, c.status)
			}
			if bytes.Contains(body, []byte("secret detail")) {
				t.Errorf("the answer has the cause of a failure: %s", body)
			}
			var answer setError
			if c.code != "" && (json.Unmarshal(body, &answer) != nil || answer.Err != c.code || answer.Description == "") {
				t.Errorf("got %s, want the code %s", body, c.code)
			}
			if c.status == http.StatusAccepted && len(body) != 0 {
				t.Errorf("got the body %q, want none", body)
			}
			if got := len(w.events()); got != c.applied {
				t.Errorf("got %d events, want %d", got, c.applied)
			}
		})
	}
}

// A transmitter gets no more than its share of the broker at once.
func TestPushesAtOnceAreBounded(t *testing.T) {
	w := newWorld(t, pushing)
	server := httptest.NewServer(Handler([]*Transmitter{w.receiver}))
	defer server.Close()
	for range pushesAtOnce {
		w.receiver.slots <- struct{}{}
	}
	w.PushTo(server.URL+"/signals/okta", "push-token")
	status, _, err := w.Send(t.Context(), w.Claims(signalstest.SessionRevoked, ana, nil))
	if err != nil || status != http.StatusTooManyRequests || len(w.events()) != 0 {
		t.Errorf("got %d, %v", status, err)
	}
	<-w.receiver.slots
	if status, _, err := w.Send(t.Context(), w.Claims(signalstest.SessionRevoked, ana, nil)); err != nil || status != http.StatusAccepted {
		t.Errorf("got %d, %v", status, err)
	}
}

// A bearer token that can't be read lets nobody in, and the transmitter tries again.
func TestUnreadableBearerToken(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Tokens = []Secret{func() (string, error) { return "", errors.New("gone") }} })
	server := httptest.NewServer(Handler([]*Transmitter{w.receiver}))
	defer server.Close()
	for _, token := range []string{"", "x"} {
		w.PushTo(server.URL+"/signals/okta", token)
		status, _, err := w.Send(t.Context(), w.Claims(signalstest.SessionRevoked, ana, nil))
		if err != nil || status != http.StatusServiceUnavailable && status != http.StatusUnauthorized || len(w.events()) != 0 {
			t.Errorf("token %q: got %d, %v", token, status, err)
		}
	}
}
