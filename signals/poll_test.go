package signals

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"accessbroker.internal/broker/signal"
	"accessbroker.internal/signals/signalstest"
)

// polling returns a world whose transmitter is polled.
func polling(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.receiver.cfg.Poll = &Poll{Endpoint: w.Issuer + signalstest.PollPath, Token: secret(w.Token)}
	return w
}

func (w *world) pollOnce(t *testing.T) error {
	t.Helper()
	_, err := w.receiver.pollAll(t.Context(), done{})
	return err
}

func TestPollAppliesAndAcknowledges(t *testing.T) {
	w := polling(t)
	var want []string
	for i := range maxSets + 3 { // more than one answer
		claims := w.Claims(signalstest.AccountDisabled, signalstest.Person(provider, fmt.Sprintf("p%03d", i)), nil)
		claims["iat"] = time.Now().Add(time.Duration(i-200) * time.Second).Unix()
		if _, _, err := w.Send(t.Context(), claims); err != nil {
			t.Fatal(err)
		}
		want = append(want, claims["jti"].(string))
	}
	if err := w.pollOnce(t); err != nil {
		t.Fatal(err)
	}
	if got := w.Acked(); len(got) != len(want) || !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("got %d acknowledgements, want %d", len(got), len(want))
	}
	events := w.events()
	for i := 1; i < maxSets; i++ {
		if events[i].Issued.Before(events[i-1].Issued) {
			t.Fatalf("event %d was applied before an older one", i-1)
		}
	}
	if len(events) != len(want) || w.polled == 0 {
		t.Errorf("got %d events, %d polls", len(events), w.polled)
	}
}

// A token that is wrong is reported and does not hold up the others. One that the broker
// could not process is not acknowledged.
func TestPollReportsErrors(t *testing.T) {
	w := polling(t)
	down := true
	w.result = func(e signal.Event) (signal.Outcome, error) {
		if down && e.Subject.Account == "login/later" {
			return "", errors.New("the store is down")
		}
		return signal.Applied, nil
	}
	good, later, foreign := w.Claims(signalstest.AccountDisabled, ana, nil), w.Claims(signalstest.AccountDisabled, signalstest.Person(provider, "later"), nil), w.Claims(signalstest.AccountDisabled, ana, nil)
	foreign["aud"] = "https://other.test"
	renamed := w.Claims(signalstest.AccountDisabled, signalstest.Person(provider, "renamed"), nil)
	for id, token := range map[string]string{
		good["jti"].(string): w.Sign(good), later["jti"].(string): w.Sign(later), foreign["jti"].(string): w.Sign(foreign), "garbage": "x", "renamed": w.Sign(renamed),
	} {
		if _, _, err := w.SendToken(t.Context(), id, token); err != nil {
			t.Fatal(err)
		}
	}
	d, err := w.receiver.pollAll(t.Context(), done{})
	if err == nil {
		t.Error("got no error for an event that could not be processed")
	}
	down = false
	if _, err := w.receiver.pollAll(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if got, want := w.Acked(), []string{good["jti"].(string), later["jti"].(string)}; !slices.Equal(got, want) {
		t.Errorf("got acknowledgements %q, want %q", got, want)
	}
	if slices.ContainsFunc(w.events(), func(e signal.Event) bool { return e.Subject.Account == "login/renamed" }) {
		t.Error("a token under another id than its own was applied")
	}
	errs := w.Errors()
	if errs[foreign["jti"].(string)].Err != codeInvalidAudience || errs["garbage"].Err != codeInvalidRequest || errs["renamed"].Err != codeInvalidRequest || len(errs) != 3 {
		t.Errorf("got errors %+v", errs)
	}
}

// An answer that is not one of RFC 8936, or too long, or a redirect, changes nothing.
func TestHostileAnswers(t *testing.T) {
	reached := false
	internal := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer internal.Close()
	for name, answer := range map[string]http.HandlerFunc{
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, internal.URL, http.StatusTemporaryRedirect)
		},
		"unauthorized":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
		"HTML":           func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"a list":         func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("[]")) },
		"sets is a list": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"sets":[]}`)) },
		"a set twice":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"sets":{"a":"x","a":"y"}}`)) },
		"too long": func(w http.ResponseWriter, _ *http.Request) {
			for range maxAnswer/1024 + 1 {
				if _, err := w.Write([]byte(strings.Repeat(" ", 1024))); err != nil {
					return
				}
			}
			_, _ = w.Write([]byte("{}"))
		},
		"closed connection": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			w := polling(t)
			server := httptest.NewServer(answer)
			defer server.Close()
			w.receiver.cfg.Poll.Endpoint = server.URL
			if err := w.pollOnce(t); err == nil || strings.Contains(err.Error(), w.Token) {
				t.Errorf("got %v", err)
			}
			if len(w.events()) != 0 || reached || w.polled != 0 {
				t.Errorf("the answer had an effect")
			}
		})
	}
}

// A transmitter that repeats what was acknowledged does not keep the receiver busy.
func TestPollStopsWithoutProgress(t *testing.T) {
	w := polling(t)
	token := w.Sign(w.Claims(signalstest.AccountDisabled, ana, nil))
	polls := 0
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		polls++
		_ = json.NewEncoder(rw).Encode(map[string]any{"sets": map[string]string{"same": token}, "moreAvailable": true})
	}))
	defer server.Close()
	w.receiver.cfg.Poll.Endpoint = server.URL
	if err := w.pollOnce(t); err != nil || polls != 2 {
		t.Errorf("got %d polls, %v; want 2", polls, err)
	}
}

// A transmitter that is down is polled less and less often, and as before when it is back.
func TestRunPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var polls, answered atomic.Int64
		var failing atomic.Bool
		failing.Store(true)
		r := New(Config{
			Name: "okta", Log: discard(), Poll: &Poll{Endpoint: "http://127.0.0.1:1/poll", Every: 10 * time.Second},
			Polled: func(context.Context, string, time.Time) error { answered.Add(1); return nil },
		})
		r.client = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
			if polls.Add(1); failing.Load() {
				return nil, errors.New("down")
			}
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("{}"))}, nil
		})}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = r.RunPoll(ctx) }()
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if n := polls.Load(); n < 8 || n > 20 || answered.Load() != 0 {
			t.Errorf("while it is down: got %d polls, %d answered", n, answered.Load())
		}
		failing.Store(false)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := answered.Load(); n < 20 || n > 80 {
			t.Errorf("after it is back: got %d answered polls in 10 minutes, want about one in 10 s", n)
		}
		cancel()
		synctest.Wait()
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The receiver requests verification events, and remembers the state first.
func TestVerification(t *testing.T) {
	w := newWorld(t, pushing)
	server := httptest.NewServer(Handler([]*Transmitter{w.receiver}))
	defer server.Close()
	w.PushTo(server.URL+"/signals/okta", "push-token")
	w.receiver.cfg.Verification = &Verification{Endpoint: w.Issuer + signalstest.VerifyPath, StreamID: w.StreamID, Token: secret(w.Token), Every: time.Minute}
	if err := w.receiver.requestVerification(t.Context()); err != nil {
		t.Fatal(err)
	}
	events := w.events()
	if len(events) != 1 || events[0].Kind != signal.KindVerification || len(w.expected) != 1 || events[0].State != w.expected[0] || events[0].Subject.Stream != w.StreamID {
		t.Errorf("got %+v, expected %q", events, w.expected)
	}
	w.receiver.cfg.Verification.StreamID = "other"
	if err := w.receiver.requestVerification(t.Context()); err == nil {
		t.Error("an unknown stream: got no error")
	}
}
